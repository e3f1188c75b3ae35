"""Runs grouped, averaged, tested and named: on result files written here, and on a run that was trained."""

import csv
import errno
import io
import json
import math
import os
import random
import shutil

import pytest

import ltcore
from ltcore.cli.parser import run_named
from ltcore.compare import compare, group_runs
from ltcore.compare.found import find_runs
from ltcore.compare.testing import holm, paired_test, spread
from ltcore.errors import RecipeError
from ltcore.files.run_directory import RunDirectory
from ltcore.recipe.loading import load_recipe
from ltcore.recipe.yaml_source import dump_yaml

RECIPE = """name: {name}
seed: {seed}
data: {{use: synthetic, options: {{class_counts: [8, 4], image_size: 8}}}}
backbone: {{use: cifar_resnet, options: {{depth: 8}}}}
stages:
- name: joint
  epochs: 2
  optimizer: {{lr: {lr}}}
"""


def figures(top1):
    shown = dict.fromkeys(("many", "medium"))
    more = {"balanced_accuracy": top1, "ece": 1 - top1, "macro_f1": top1, "per_class_accuracy": [top1, None]}
    return {"top1": top1, "top5": None, **shown, "few": top1 / 2, **more}


@pytest.fixture
def write_run(tmp_path):
    """A finished run's directory as a run leaves it; arguments replace parts of it."""

    def write(name, seed, top1, lr=0.1, begun=1, more="", **parts):
        path = tmp_path / "runs" / name / f"20260101-00000{begun}-seed{seed}"
        while path.exists():
            path = path.with_name(path.name + "-2")
        path.mkdir(parents=True)
        (path / "recipe.yaml").write_text(RECIPE.format(name=name, seed=seed, lr=lr) + more)
        result = {"recipe": name, "seed": seed, "data": "synthetic", "num_classes": 2, "calibration": []}
        result |= {"device": "cpu", "versions": {}, **parts}
        classes = result["num_classes"]
        result |= {"class_counts": [5] * classes, "class_names": ["x"] * classes, "reported_epoch": "last"}
        result |= {f"{when}_calibration": figures(top1) for when in ("before", "after")}
        result |= {"stages": [{"name": "joint", "test": figures(top1 / 4), "seconds": 1.0, "images_per_second": 9.0}]}
        for found in (result["before_calibration"], result["after_calibration"], result["stages"][0]["test"]):
            found["per_class_accuracy"] = [found["top1"]] * classes
        (path / "result.json").write_text(json.dumps(result))
        return path

    return write


@pytest.fixture
def two_groups(write_run, tmp_path):
    for seed, (a, b) in enumerate([(0.50, 0.53), (0.60, 0.61), (0.70, 0.75)]):
        write_run("a_ce", seed, a)
        write_run("b_better", seed, b)
    return tmp_path / "runs"


def test_statistics_by_hand_and_as_scipy_has_them(two_groups):
    # Differences 0.03, 0.01, 0.05: mean 0.03, sample deviation 0.02, t = 0.03 / (0.02 / sqrt(3)) = 2.598.
    # With 2 degrees of freedom the two-sided p is 1 - t / sqrt(2 + t**2).
    from scipy.stats import ttest_rel

    t = 0.03 / (0.02 / math.sqrt(3))
    by_hand = 1 - t / math.sqrt(2 + t**2)
    first, second = compare([two_groups])["groups"]
    assert first["figures"]["top1"] == {"mean": pytest.approx(0.6), "sd": pytest.approx(0.1), "n": 3}
    assert first["test"] is None and second["test"]["seeds"] == [0, 1, 2] and second["test"]["metric"] == "top1"
    assert second["test"]["difference"] == pytest.approx(0.03)
    assert second["test"]["p"] == pytest.approx(by_hand, rel=1e-9) == pytest.approx(0.121690, abs=1e-5)
    assert second["test"]["p"] == ttest_rel([0.53, 0.61, 0.75], [0.5, 0.6, 0.7]).pvalue


def test_statistics_equal_scipys_on_any_numbers():
    from scipy.stats import tstd, ttest_rel

    drawn = random.Random(0)
    for n in (2, 3, 5, 20):
        ours = {seed: drawn.random() for seed in range(n)}
        theirs = {seed: drawn.random() for seed in range(n + 3)}  # more seeds, which are not paired
        found = paired_test(ours, theirs)
        assert found.p == ttest_rel(list(ours.values()), [theirs[seed] for seed in range(n)]).pvalue
        assert spread(list(ours.values())).sd == pytest.approx(tstd(list(ours.values())), rel=1e-12)


def test_holm_by_hand():
    # Smallest first: 3 * 0.01, 2 * 0.03, 1 * 0.04, none below the one before it; in the given order.
    assert holm([0.04, 0.01, 0.03]) == pytest.approx([0.06, 0.03, 0.06])
    assert holm([0.9, 0.8]) == [1.0, 1.0] and holm([0.02]) == [0.02] and holm([]) == []


def test_holm_is_over_the_comparisons_that_have_a_p(two_groups, write_run):
    for seed, value in enumerate([0.40, 0.65, 0.90]):
        write_run("c_noisy", seed, value)
    write_run("d_single", 0, 0.9)
    _, better, noisy, single = compare([two_groups])["groups"]
    p = [better["test"]["p"], noisy["test"]["p"]]
    assert [better["test"]["p_holm"], noisy["test"]["p_holm"]] == holm(p) and p[0] * 2 == better["test"]["p_holm"]
    assert single["test"]["p"] is None and "1 seed in common with the baseline" in single["test"]["why"]
    assert single["figures"]["top1"] == {"mean": 0.9, "sd": None, "n": 1}


def test_where_no_test_is_possible_it_says_so(write_run, tmp_path, cli):
    for seed in (0, 1):
        write_run("a", seed, 0.5)
        write_run("b", seed, 0.6)
        write_run("c", seed + 5, 0.6 + seed / 10)
        write_run("d", seed, 0.6 + seed / 10, num_classes=3)
    _, b, c, d = compare([tmp_path / "runs"])["groups"]
    assert b["test"]["p"] is None and "the same for every seed" in b["test"]["why"]
    assert c["test"]["difference"] is None and "no seed in common" in c["test"]["why"]
    assert d["test"]["difference"] is None and "other data" in d["test"]["why"]
    text = cli("compare", tmp_path / "runs").out
    assert all(
        f"{name}: no p-value: {test['test']['why']}" in text for name, test in zip("bcd", (b, c, d), strict=True)
    )


def test_unfinished_and_broken_runs_are_named_and_not_averaged(two_groups, write_run, cli):
    def unfinished(seed):
        path = write_run("a_ce", seed, 0.01)
        (path / "result.json").unlink()
        return path

    begun, killed, running, broken, old = unfinished(3), unfinished(4), unfinished(5), unfinished(6), unfinished(7)
    line = {"stage": "joint", "epoch": 6, "loss": 1.0, "lr": 0.1, "seconds": 1.0, "images_per_second": 9.0}
    (killed / "metrics.jsonl").write_text(f"{json.dumps(line)}\n")
    directory = RunDirectory(running)
    lock = directory.lock()
    lock.__enter__()
    (broken / "result.json").write_text('{"recipe": ')
    (old / "result.json").write_text("{}")
    odd = write_run("a_ce", 10, 0.01)
    result = json.loads((odd / "result.json").read_text())
    (odd / "result.json").write_text(json.dumps({**result, "data_fingerprint": {"train": {}}}))
    changed = write_run("a_ce", 8, 0.01, more="zzz: 1\n")
    hidden = two_groups / "a_ce" / ".20260101-000009-seed9-77"
    hidden.mkdir()
    (hidden / "recipe.yaml").write_text("")
    found = compare([two_groups])
    reasons = {run["path"]: run["why"] for run in found["left_out"]}
    expected = {
        begun: "failed or was killed before its first epoch had ended",
        killed: "failed or was killed in stage 'joint' after epoch 7",
        running: "a process is still working on it",
        broken: "result.json is damaged (",
        old: "result.json is damaged (recipe: field required, and",
        odd: "result.json is damaged (data_fingerprint/train",
        changed: "zzz: unknown key",
        hidden: "killed before its directory was complete",
    }
    assert set(reasons) == {str(path) for path in expected}
    assert all(words in reasons[str(path)] for path, words in expected.items())
    assert found["groups"][0]["seeds"] == [0, 1, 2]
    assert found["groups"][0]["figures"]["top1"]["mean"] == pytest.approx(0.6)
    for kind in ("table", "markdown", "latex"):
        text = cli("compare", two_groups, "--format", kind).out
        assert all(f"not averaged: {path}: " in text for path in expected), kind
    assert all(f"not averaged: {path}: " in cli("compare", two_groups, "--format", "csv").err for path in expected)


def test_the_runs_of_a_sweep_are_found_in_its_jobs(two_groups, write_run, tmp_path, cli):
    jobs = tmp_path / "sweep" / "jobs"
    for number, recipe in enumerate(sorted(two_groups.glob("a_ce/*/recipe.yaml"))):
        job = jobs / f"{number:016}"
        shutil.copytree(recipe.parent, job / "runs" / "a_ce" / recipe.parent.name)
        (job / "recipe.yaml").write_text(recipe.read_text())
        (job / "job.json").write_text("{}")
    waits = shutil.copytree(jobs / f"{0:016}", jobs / "waits")
    shutil.rmtree(waits / "runs")
    found = compare([tmp_path / "sweep"])
    assert found["groups"][0]["seeds"] == [0, 1, 2]
    assert found["left_out"] == [
        {"path": str(waits), "why": "it has not begun; start the sweep's or the table's command again"}
    ]
    assert run_named(str(jobs / f"{0:016}")).parent == jobs / f"{0:016}" / "runs" / "a_ce"
    assert run_named(str(waits)) == waits


def test_a_folder_that_may_not_be_read_is_named(two_groups, monkeypatch, cli):
    def refuse(path):
        raise PermissionError(errno.EACCES, "x", str(path))

    monkeypatch.setattr(os, "scandir", refuse)
    cli("compare", two_groups).is_one_message(2, f"{two_groups} cannot be looked into: Permission denied; make it")


def test_a_seed_that_was_run_twice_counts_once(write_run, tmp_path):
    first, second = write_run("a", 0, 0.2, begun=1), write_run("a", 0, 0.4, begun=2)
    third = write_run("a", 0, 0.6, begun=2)  # begun in the same second
    found = compare([tmp_path / "runs"])
    assert found["groups"][0]["figures"]["top1"] == {"mean": 0.6, "sd": None, "n": 1}
    assert {run["path"] for run in found["left_out"]} == {str(first), str(second)}
    assert all("seed 0 was run again later" in run["why"] for run in found["left_out"])
    assert len(compare([first, second, third, first])["left_out"]) == 2  # named twice, read once


def test_groups_of_one_name_are_told_apart_by_their_settings(write_run, tmp_path, cli):
    for seed in (0, 1):
        write_run("a", seed, 0.5, lr=0.1)
        write_run("a", seed, 0.6, lr=0.2)
        write_run(
            "a", seed + 2, 0.5, lr=0.1, more="device: cpu\ncheckpoint_seconds: 1\ndescription: 'none of it counts'\n"
        )
    first, second = compare([tmp_path / "runs"])["groups"]
    assert (first["label"], second["label"]) == ("a #1", "a #2") and first["seeds"] == [0, 1, 2, 3]
    assert first["differs"] == {"stages.joint.optimizer.lr": 0.1}
    assert second["differs"] == {"stages.joint.optimizer.lr": 0.2}
    text = cli("compare", tmp_path / "runs").out
    assert "a #2: stages.joint.optimizer.lr=0.2\n" in text
    cli("compare", tmp_path / "runs", "--baseline", "a").is_one_message(2, "2 groups have this name", "'a #1'; 'a #2'")
    assert compare([tmp_path / "runs"], "a #2")["baseline"] == "a #2"


BESIDE = {
    "data_fingerprint": {
        "classes": "cc",
        "train": {"images": 12, "digest": "aa"},
        "test": {"images": 4, "digest": "bb"},
    },
    "device": "cpu",
    "device_name": "x86_64",
    "threads": 1,
    "versions": {"python": "3.12.1", "torch": "2.9.0", "numpy": "2.3.0", "ltcore": "0.1.0"},
    "code": {"ltcore": "dd", "ltcore-ofa": "ee"},
}
SMALLER = BESIDE["data_fingerprint"] | {"test": {"images": 3, "digest": "ff"}}


@pytest.mark.parametrize(
    ("change", "differs"),
    [
        ({"data_fingerprint": SMALLER}, {"test data": "3 images, ff"}),
        ({"data_changed": ["1 is gone"]}, {"data changed while it trained": "1 is gone"}),
        ({"threads": 2}, {"number of threads": "2"}),
        ({"device": "cuda", "device_name": "A100"}, {"device": "cuda", "number of threads": None, "GPU": "A100"}),
        ({"versions": BESIDE["versions"] | {"torch": "2.10.0"}}, {"torch": "2.10.0"}),
        ({"code": {"ltcore": "dd", "ltcore-ofa": "ff"}}, {"code of ltcore-ofa": "ff"}),
        (
            {
                "environments": [
                    BESIDE | {"platform": "Linux", "python": "3.12.1", "threads": 2},
                    {**BESIDE, "platform": "Linux", "python": "3.12.1"},
                ]
            },
            {"environment changed while it trained": "number of threads was 2 and is 1 (OMP_NUM_THREADS sets it)"},
        ),
    ],
)
def test_runs_are_averaged_only_where_what_their_figures_depend_on_is_the_same(
    change, differs, write_run, tmp_path, cli
):
    for seed in (0, 1):
        write_run("a", seed, 0.5, **BESIDE)
        write_run("a", seed + 2, 0.6, **(BESIDE | change))
    first, second = compare([tmp_path / "runs"])["groups"]
    assert (first["seeds"], second["seeds"], second["differs"]) == ([0, 1], [2, 3], differs)
    assert len(json.loads(cli("compare", tmp_path / "runs", "--format", "json").out)["groups"]) == 2
    joined = compare([tmp_path / "runs"], any_environment=True)["groups"]
    assert len(joined) == (2 if "data_fingerprint" in change or "data_changed" in change else 1)
    said = "Runs of a were tested on different images; those are not averaged together."
    assert (said in cli("compare", tmp_path / "runs").out) == ("data_fingerprint" in change)


def test_what_changes_no_figure_parts_no_group(write_run, tmp_path):
    others = {"device_name": "arm", "versions": BESIDE["versions"] | {"python": "3.12.2", "numpy": "2.4.0"}}
    write_run("a", 0, 0.5, **BESIDE)
    write_run("a", 1, 0.6, **(BESIDE | others))
    (group,) = compare([tmp_path / "runs"])["groups"]
    assert group["seeds"] == [0, 1] and group["differs"] == {}


def test_recipes_that_were_tested_on_other_images_are_not_tested_against_each_other(write_run, tmp_path):
    for seed in (0, 1, 2):
        write_run("a", seed, 0.5 + seed / 100, **BESIDE)
        write_run("b", seed, 0.6 + seed**2 / 100, **(BESIDE | {"data_fingerprint": SMALLER}))
        write_run("c", seed, 0.6 + seed**2 / 100)  # of an earlier version, which does not tell
    _, second, third = compare([tmp_path / "runs"])["groups"]
    assert second["test"]["why"] == "other test images than the baseline's" and second["test"]["p"] is None
    assert third["test"]["p"] is not None


def test_the_runs_of_a_sweep_are_found(write_run, tmp_path):
    for seed in (0, 1):
        job = tmp_path / "swept" / "jobs" / f"address{seed}"
        run = write_run("joint", seed, 0.5)
        shutil.copytree(run, job / "runs" / "joint" / run.name)
        shutil.copy(run / "recipe.yaml", job)
        (job / "job.json").write_text("{}")
    runs, left_out = find_runs([tmp_path / "swept"])
    assert [run.seed for run in runs] == [0, 1] and not left_out


def test_what_is_asked_for_wrongly(two_groups, tmp_path, cli):
    cli("compare", tmp_path / "none").is_one_message(2, "none: no such directory")
    (tmp_path / "empty").mkdir()
    cli("compare", tmp_path / "empty").is_one_message(2, "empty: no run is in it")
    cli("compare", two_groups, "--baseline", "a_cee").is_one_message(2, "--baseline a_cee", "did you mean 'a_ce'?")
    cli("compare", two_groups, "--metric", "top2").is_one_message(2, "invalid choice")
    cli("compare", two_groups, "--out", tmp_path / "no" / "t.md").is_one_message(2, "t.md: there is no folder")
    for result in two_groups.rglob("result.json"):
        result.unlink()
    with pytest.raises(RecipeError, match="no run has a result, of 6:"):
        compare([two_groups])


def test_published_figures_stand_beside_ours(write_run, tmp_path, cli):
    figures = (
        "published: [{value: 61.5, sd: 0.3, few: 20.5, source: 'X, table 1', note: 'n'}, "
        "{value: 9, source: Y, when: {seed: 7}}]"
    )
    for seed in (0, 1):
        write_run("a", seed, 0.5, more=figures)
        write_run("b", seed, 0.6)
    first, second = compare([tmp_path / "runs"])["groups"]
    told = {"source": "X, table 1", "note": "n"}
    assert first["published"] == [
        {"metric": "top1", "value": 61.5, "sd": 0.3, **told},
        {"metric": "few", "value": 20.5, "sd": None, **told},
    ]
    assert second["published"] == []
    text = cli("compare", tmp_path / "runs").out
    assert "top-1, published" in text and "61.5 ± 0.3 (X, table 1)" in text and text.count("a: X, table 1: n\n") == 1
    assert "few, published" in text and "20.5 (X, table 1)" in text and "many, published" not in text
    assert "published" not in cli("compare", tmp_path / "runs", "--metric", "many").out


def test_a_changed_recipe_keeps_only_the_figures_that_speak_of_the_change(write_recipe):
    path = write_recipe(
        published="[{value: 1, source: a}, {value: 2, source: b, when: {data.holdout: 0}}, "
        "{value: 3, source: c, when: {data.holdout: 1}}]"
    )

    def kept(*sets):
        return [figure.value for figure in load_recipe(path, sets).recipe.published]

    assert kept() == kept("device=cpu", "data.workers=0", "seed=3") == [1, 2, 3]
    assert kept("stages.joint.precision=fp32") == [1, 2, 3], "they were measured so"
    assert kept("stages.joint.precision=bf16") == []
    assert kept("data.holdout=1", "stages.joint.precision = fp32") == kept("data.holdout=1") == [2, 3]
    assert kept("data.holdout=1", "stages.joint.epochs=2") == []
    assert "published" not in load_recipe(path, ["stages.joint.epochs=2"]).source
    with pytest.raises(RecipeError, match="a recipe has no key 'dada'; did you mean 'data'"):
        load_recipe(write_recipe(published="[{value: 1, source: a, when: {dada.holdout: 1}}]"))


def test_published_figures_are_not_inherited_and_do_not_stop_a_resume(write_recipe, tmp_path):
    parent = write_recipe("parent", published="[{value: 1, source: a}]")
    child = tmp_path / "child.yaml"
    child.write_text(f"extends: {parent.name}\n")
    assert load_recipe(child).recipe.published == []
    source = {"name": "r", "seed": 1, "data": {"use": "synthetic"}}
    directory = RunDirectory.create(tmp_path / "runs", "r", 1, dump_yaml(source))
    added = source | {"published": [{"value": 1, "source": "a"}]}
    assert RunDirectory.find(tmp_path / "runs", "r", dump_yaml(added)).path == directory.path
    with pytest.raises(RecipeError, match="1 there differ"):
        RunDirectory.find(tmp_path / "runs", "r", dump_yaml(added | {"seed": 2}))


def test_every_format_holds_the_same_figures(two_groups, write_run, tmp_path, cli):
    awkward = "50%_a|b&c~{d}"
    for seed in (0, 1):
        write_run(awkward, seed, 0.4 + seed / 10)
    content = json.loads(cli("compare", two_groups, "--format", "json", "--stages").out)
    assert content == json.loads(json.dumps(compare([two_groups], stages=True)))
    rows = list(csv.DictReader(io.StringIO(cli("compare", two_groups, "--format", "csv", "--stages").out)))
    finals = [row for row in rows if not row["stage"]]
    assert len(rows) == 2 * len(finals) == 6
    for row, group in zip(finals, content["groups"], strict=True):
        assert row["label"] == group["label"]
        assert float(row["top1_mean"]) == group["figures"]["top1"]["mean"]
        assert float(row["top1_sd"]) == group["figures"]["top1"]["sd"]
        p = None if group["test"] is None else group["test"]["p_holm"]
        assert row["p_holm"] == ("" if p is None else str(p))
    markdown = cli("compare", two_groups, "--format", "markdown").out
    assert "| b_better | 3 | **63.0 ± 11.1** |" in markdown and "50%_a\\|b&c" in markdown
    assert all(
        line.replace("\\|", "").count("|") == markdown.splitlines()[1].count("|") for line in markdown.splitlines()[:5]
    )
    latex = cli("compare", two_groups, "--format", "latex").out
    assert (
        r"b\_better & 3 & \textbf{63.0 $\pm$ 11.1} & " in latex
        and r"50\%\_a\textbar{}b\&c\textasciitilde{}\{d\} & 2 & " in latex
    )
    body = latex[latex.index(r"\begin") :]
    assert [body.count(rule) for rule in (r"\toprule", r"\midrule", r"\bottomrule")] == [1, 1, 1]
    assert len({line.replace(r"\&", "").count("&") for line in body.splitlines() if line.endswith(r"\\")}) == 1
    # The error's best is its smallest; a written file has what is printed, by its suffix.
    assert r"\textbf{37.0 $\pm$ 11.1}" in latex
    for suffix, kind in ((".md", "markdown"), (".tex", "latex"), (".json", "json"), (".txt", "table")):
        assert cli("compare", two_groups, "--out", tmp_path / f"t{suffix}").code == 0
        assert (tmp_path / f"t{suffix}").read_text() == cli("compare", two_groups, "--format", kind).out


def test_stages_show_before_and_after_calibration(write_run, tmp_path):
    write_run("a", 0, 0.4)
    (run,) = (tmp_path / "runs").rglob("result.json")
    run.write_text(json.dumps(json.loads(run.read_text()) | {"calibration": ["x"], "before_calibration": figures(0.3)}))
    (group,) = compare([tmp_path / "runs"], stages=True)["groups"]
    shown = [(row["name"], row["figures"]["top1"]["mean"]) for row in group["stages"]]
    assert shown == [("joint", 0.1), ("before calibration", 0.3), ("after calibration", 0.4)]


def test_a_trained_run_is_read_as_its_result_says(digits_run, tmp_path):
    shutil.copytree(digits_run, tmp_path / "copy")
    (tmp_path / "copy" / "result.json").unlink()
    runs, left_out = find_runs([digits_run, tmp_path / "copy"])
    result = json.loads((digits_run / "result.json").read_text())
    (group,) = group_runs(runs)
    assert group.figures("few") == {0: result["after_calibration"]["few"]}
    assert [run.path for run in left_out] == [tmp_path / "copy"] and "in stage 'finetune'" in left_out[0].why


def test_the_command_line_offers_every_figure_and_format(two_groups, cli):
    from ltcore.compare.text import FORMATS
    from ltcore.contract.figures import FIGURES

    text = " ".join(cli("compare", "--help").out.split())
    assert ", ".join(FIGURES) in text
    for metric in FIGURES:
        assert cli("compare", two_groups, "--metric", metric).code == 0
    for kind in FORMATS:
        assert cli("compare", two_groups, "--format", kind).code == 0


def test_classes_side_by_side(cli, digits_run, write_run, tmp_path):
    saved = ltcore.load(digits_run)
    found = json.loads(cli("compare", digits_run, "--classes", "--format", "json").out)["groups"][0]["classes"]
    order = sorted(range(10), key=lambda label: (-saved.class_counts[label], label))
    assert [row["class"] for row in found] == [saved.class_names[label] for label in order]
    classes = saved.result["classes"]
    for label, row in zip(order, found, strict=True):
        precision = classes["precision"][label]  # None where nothing is taken for the class
        assert row["figures"]["precision"] == {"mean": precision, "sd": None, "n": int(precision is not None)}
        assert row["figures"]["f1"]["mean"] == classes["f1"][label]
        assert row["recall_interval"] == classes["recall_interval"][label]
        assert (row["training_images"], row["test_images"]) == (saved.class_counts[label], classes["support"][label])
    lines = cli("compare", digits_run, "--classes").out.splitlines()
    (head,) = (place for place, line in enumerate(lines) if line.startswith("class "))
    assert lines[head].split() == "class training test recipe recall 95 % interval precision F1".split()
    first = classes["recall_interval"][order[0]]
    shown = [saved.class_names[order[0]], f"{saved.class_counts[order[0]]:,}", str(classes["support"][order[0]])]
    assert lines[head + 1].split()[:3] == shown
    assert f"{100 * first[0]:.1f}-{100 * first[1]:.1f}" in lines[head + 1]
    rows = list(csv.DictReader(io.StringIO(cli("compare", digits_run, "--classes", "--format", "csv").out)))
    assert [row["precision_mean"] for row in rows] == [
        "" if classes["precision"][label] is None else str(classes["precision"][label]) for label in order
    ]
    for kind in ("markdown", "latex"):
        text = cli("compare", digits_run, "--classes", "--format", kind).out
        assert text.count("precision") == 1 and text.count("tabular") in (0, 4)
    write_run("old", 0, 0.5)  # of a version that wrote no figures of classes but accuracy
    (group,) = json.loads(cli("compare", tmp_path / "runs", "--classes", "--format", "json").out)["groups"]
    assert [row["figures"]["recall"]["mean"] for row in group["classes"]] == [0.5, 0.5]
    assert all(row["figures"]["f1"]["n"] == 0 and row["recall_interval"] is None for row in group["classes"])

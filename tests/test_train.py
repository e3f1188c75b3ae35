"""`ltcore train`: a recipe for a folder, its run and its report, in one command."""

import json
import re
import shlex
from pathlib import Path

import pytest
import yaml

from tests.test_init import LONG, put, speed  # noqa: F401

WORDS = ("--model", "test_resnet", "--image-size", 32, "--epochs", 1)


@pytest.fixture
def photos(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return put(tmp_path / "photos", LONG)


def commands(text):
    """By their first words, the commands that were printed."""
    lines = [line[line.index("ltcore ") :] for line in text.splitlines() if "  ltcore " in line]
    return {shlex.split(line)[1]: shlex.split(line)[1:] for line in lines}


def test_one_command_gives_a_recipe_a_run_a_report_and_the_next_command(cli, photos, tmp_path):
    result = cli("train", photos, *WORDS)
    assert result.code == 0, result
    ours = yaml.safe_load((tmp_path / "photos.yaml").read_text())
    cli("init", photos, "--out", "photos.yaml", "--force", *WORDS)
    assert yaml.safe_load((tmp_path / "photos.yaml").read_text()) == ours  # comments have what was measured anew
    (run,) = (tmp_path / "runs" / "photos").iterdir()
    assert json.loads((run / "result.json").read_text())["after_calibration"]["top1"] >= 0
    assert (run / "errors.csv").is_file() and "errors.csv" in result.out
    assert "<html" in (tmp_path / "photos.html").read_text()
    words = commands(result.out)["predict"]
    assert words[2] == "IMAGES"
    assert cli(*words[:2], photos / "cat").code == 0


def test_several_seeds_and_places_of_ones_own(cli, photos, tmp_path):
    words = ("--recipe", "other.yaml", "--out", "elsewhere", "--seeds", "0..1")
    result = cli("train", photos, *WORDS, *words)
    assert result.code == 0, result
    assert len(list((tmp_path / "elsewhere" / "other").iterdir())) == 2 and (tmp_path / "other.html").is_file()
    assert "± " in result.out  # the table over the seeds
    cli("train", photos, *WORDS, *words).is_one_message(2, "other.yaml is there already", "--force")


def test_what_was_interrupted_is_gone_on_with_by_run(cli, photos, monkeypatch):
    from ltcore.training.run import Run

    def stopped(self):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Run, "train", stopped)
        result = cli("train", photos, *WORDS)
    assert result.code == 130 and "ltcore run photos.yaml --out runs --resume" in result.err
    assert cli("run", "photos.yaml", "--out", "runs", "--resume").code == 0


def test_every_command_of_the_walk_works(cli, photos, tmp_path, monkeypatch):
    """docs/photos.md, with a small network in place of the weights."""
    page = (Path(__file__).parents[1] / "docs" / "photos.md").read_text()
    monkeypatch.setattr("ltcore.init.methods.all_suited", lambda: ["stg"])  # to be quick
    put(tmp_path / "new", {"unsorted": 2})
    for name in LONG:
        put(tmp_path / "photos" / "test", {name: 3})
        (tmp_path / "photos" / "train").mkdir(exist_ok=True)
        (tmp_path / "photos" / name).rename(tmp_path / "photos" / "train" / name)
    lines = re.findall(r"^\$ ltcore (.+)$", page, re.MULTILINE)
    assert [line.split()[0] for line in lines] == [
        *["train"] * 3,
        "suspects",
        "report",
        "evaluate",
        "predict",
        "export",
        "compare",
    ]
    for line in lines:
        words = line.split()
        if words[0] == "train":
            words = [*words[:2], *WORDS, *words[words.index("--minutes") + 2 :]]
        result = cli(*words)
        assert result.code == 0, (line, result)
    pages = ("photos.html", "photos_all.html", "every_methods.html")
    for made in (*pages, "photos.yaml", "evaluated/errors.csv", "found.csv", "photos.pt2"):
        assert (tmp_path / made).is_file(), made


def test_a_named_method_has_its_own_recipe_and_run(cli, photos, tmp_path):
    result = cli("train", photos, *WORDS, "--method", "cdt")
    assert result.code == 0, result
    assert yaml.safe_load((tmp_path / "photos_cdt.yaml").read_text())["stages"][0]["methods"] == ["cdt"]
    assert not (tmp_path / "photos.yaml").exists() and (tmp_path / "photos_cdt.html").is_file()
    assert "left out" not in result.out and len(list((tmp_path / "runs" / "photos_cdt").iterdir())) == 1


@pytest.mark.sampled(2)
@pytest.mark.parametrize("split", [True, False])
def test_all_methods_are_compared_on_held_out_images_and_the_best_is_named(cli, photos, tmp_path, monkeypatch, split):
    """With images to validate on, and without, where some are held out; of five methods, to be quick."""
    monkeypatch.setattr(
        "ltcore.init.methods.all_suited", lambda: ["cdt", "glag", "ldam", "temperature", "distillation"]
    )
    if split:
        folder = tmp_path / "split"
        put(folder / "train", {"cat": 40, "dog": 15, "yak": 5})
        put(folder / "test", dict.fromkeys(LONG, 3))
        folder = folder.rename(tmp_path / "set")
    else:
        folder = photos.rename(tmp_path / "set")
    words = [word if word != 32 else 16 for word in WORDS]
    result = cli("train", folder, *words, "--method", "all")
    assert result.code == 0, result
    assert "left out  distillation: --method distillation: its recipe would be refused" in result.out
    ran = {path.name: next(path.iterdir()) for path in (tmp_path / "runs").iterdir()}
    assert set(ran) == {"set", "set_cdt", "set_glag", "set_ldam", "set_temperature"}  # and no features are left
    recipes = {name: yaml.safe_load((tmp_path / f"{name}.yaml").read_text()) for name in ran}
    assert {recipe["data"].get("holdout") for recipe in recipes.values()} == ({3} if split else {None})
    scores = {
        name: json.loads((path / "result.json").read_text())["stages"][-1]["validation"]["balanced_accuracy"]
        for name, path in ran.items()
    }
    lines = result.out[result.out.index("held out  balanced") :].splitlines()
    table = {line.split()[0]: line.split()[1] for line in lines[1:6]}
    methods = {"init" if name == "set" else name.removeprefix("set_"): score for name, score in scores.items()}
    assert table == {name: f"{100 * score:.1f}" for name, score in methods.items()}
    best = max(scores.values())
    assert scores[Path(commands(result.out)["predict"][1]).parent.name] == best
    assert methods[lines[1].split()[0]] == best
    assert "set_ldam" in (tmp_path / "set_methods.html").read_text()

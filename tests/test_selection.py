"""`select:`: which candidate wins, that nothing else is trained, and that test data and kills change nothing."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from ltcore.errors import RecipeError
from ltcore.recipe.loading import load_recipe
from ltcore.training.selection import Selection, combinations, only_calibrates, shown

RECIPE = """
name: r
data: {use: digits_lt}
backbone: {use: cifar_resnet, options: {depth: 8, width: 4}}
methods: {cdt: {}, count_norm: {options: {bias: drop}}}
stages:
  - name: representation
    epochs: 4
    batch_size: 64
    methods: [cdt]
    optimizer: {name: sgd, lr: 0.1, momentum: 0.9}
calibrate: [count_norm]
"""
TAU = [0.0, 0.3, 1.0]
TAUS = f"select: {{holdout: 4, options: {{methods.count_norm.options.tau: {TAU}}}"
GAMMAS = (
    "select: {holdout: 4, options: {methods.cdt.options.gamma: [0.0, 0.4], methods.count_norm.options.tau: [0.0, 1.0]}}"
)


@pytest.fixture
def run(cli, tmp_path):
    """``run(yaml, *words)``: the result and the run's directory."""

    def run(text, *words, name="r"):
        path = tmp_path / f"{name}.yaml"
        path.write_text(text)
        ended = cli("run", path, "--out", tmp_path / "out", *words)
        assert ended.code == 0, ended.err
        directory = max((tmp_path / "out" / "r").iterdir(), key=lambda found: found.stat().st_mtime_ns)
        return json.loads((directory / "result.json").read_text()), directory, ended.out

    return run


def predictions(directory):
    with np.load(directory / "predictions.npz") as arrays:
        return {name: arrays[name].tobytes() for name in arrays}


def scores(found):
    return [candidate["score"] for candidate in found["selection"]["candidates"]]


@pytest.mark.parametrize(
    ("option", "settled"),
    [("methods.count_norm.options.tau: [0.5]", True), ("methods.cdt.options.gamma: [0, 1]", False)],
)
def test_what_is_trained_is_settled_where_only_calibration_is_chosen(option, settled, tmp_path):
    (tmp_path / "r.yaml").write_text(f"{RECIPE}select: {{holdout: 4, options: {{{option}}}}}")
    selection = Selection(load_recipe(tmp_path / "r.yaml"))
    said = r"^--from before: what .*r\.yaml:\d+ selects decides what is trained"
    if settled:
        trained = selection.settled(Path("before"))
        assert trained.recipe.select is None and trained.recipe.data.holdout == 0
        assert trained.source["stages"] == selection.loaded.source["stages"]
    else:
        with pytest.raises(RecipeError, match=said):
            selection.settled(Path("before"))
    # The network is then the one without the held-out images.
    selection.asked = selection.asked.model_copy(update={"retrain": False})
    with pytest.raises(RecipeError, match=said):
        selection.settled(Path("before"))


def test_tau_is_chosen_on_one_network_by_its_accuracy_on_held_out_images(run, make_run):
    found, directory, printed = run(RECIPE + TAUS + ", retrain: false}")
    assert [path.name for path in (directory / "select").iterdir()] == ["network-0"]

    # The same network by an ordinary run, and every tau in NumPy.
    _, plain, _ = run(RECIPE, "--set", "data.holdout=4")
    assert (plain / "checkpoints" / "stage-0-representation.safetensors").read_bytes() == (
        directory / "select" / "network-0" / "checkpoints" / "stage-0-representation.safetensors"
    ).read_bytes()
    again = make_run(
        data="{use: digits_lt, holdout: 4}",
        methods="{cdt: {}}",
        stages="[{name: representation, epochs: 4, batch_size: 64, methods: [cdt], "
        "optimizer: {name: sgd, lr: 0.1, momentum: 0.9}}]",
    )
    again.execute()
    (features,), _, targets = again.evaluation.outputs("val")
    features, targets = features.double().numpy(), targets.double().numpy()
    weight = again.assembly.model.classifier.weight.detach().double().numpy()
    counts = again.assembly.data.whole.class_counts.double().numpy()
    expected = []
    for tau in TAU:
        guesses = (features @ (weight / counts[:, None] ** tau).T).argmax(1)
        expected.append(np.mean([(guesses[targets == c] == c).mean() for c in range(10)]))
    assert scores(found) == pytest.approx(expected)
    assert len(set(expected)) > 1

    best = TAU[int(np.argmax(expected))]
    selection = found["selection"]
    assert selection["chosen"] == {"methods.count_norm.options.tau": best}
    assert (selection["images"], selection["classes"], selection["retrained"]) == (40, 10, False)
    chosen, other, _ = run(RECIPE, "--set", "data.holdout=4", "--set", f"methods.count_norm.options.tau={best}")
    assert predictions(directory) == predictions(other)
    for key in ("after_calibration", "before_calibration"):
        assert found[key] == chosen[key]
    for key in ("test", "validation", "diagnostics"):
        assert found["stages"][0][key] == chosen["stages"][0][key]
    for tau, score in zip(TAU, expected, strict=True):
        assert f"tau={tau}  {100 * score:5.1f}" in printed
    assert f"tau={best}  {100 * max(expected):5.1f}  chosen" in printed


def test_gamma_is_chosen_by_training_and_then_trained_with_on_everything(run):
    found, directory, _ = run(RECIPE + GAMMAS)
    assert sorted(path.name for path in (directory / "select").iterdir()) == ["network-0", "network-1"]
    candidates = found["selection"]["candidates"]
    assert [(tuple(c["options"].values()), c["network"]) for c in candidates] == [
        ((0.0, 0.0), 0),
        ((0.0, 1.0), 0),
        ((0.4, 0.0), 1),
        ((0.4, 1.0), 1),
    ]
    best = max(candidates, key=lambda candidate: candidate["score"])
    assert found["selection"]["chosen"] == best["options"]
    changes = [word for path, value in best["options"].items() for word in ("--set", f"{path}={value}")]
    plain, other, _ = run(RECIPE, *changes)
    assert predictions(directory) == predictions(other)
    assert found["class_counts"] == plain["class_counts"]
    assert found["after_calibration"] == plain["after_calibration"]


def test_of_equal_scores_the_first_wins(run):
    same = "select: {holdout: 4, options: {methods.count_norm.options.bias: [drop, keep, drop]}}"
    found, _, _ = run(RECIPE.replace("bias: drop", "tau: 0.0") + same)
    assert len(set(scores(found))) == 1
    assert found["selection"]["chosen"] == {"methods.count_norm.options.bias": "drop"}


def test_classes_with_few_images_sit_out(run):
    found, _, _ = run(RECIPE + TAUS.replace("holdout: 4", "holdout: 6") + "}")
    assert (found["selection"]["images"], found["selection"]["classes"]) == (54, 9)  # the smallest class has 5


def test_test_images_are_not_there(tmp_path):
    from ltcore.files.run_directory import RunDirectory
    from ltcore.progress.console import Reporter
    from ltcore.recipe.loading import load_recipe
    from ltcore.training.data import read_data

    class Forbidden:
        def __getattribute__(self, name):
            raise AssertionError(f"test data was asked for {name}")

        def __len__(self):
            raise AssertionError("test data was counted")

    (tmp_path / "r.yaml").write_text(RECIPE + GAMMAS)
    selection = Selection(load_recipe(tmp_path / "r.yaml"))
    plan = selection.networks[0][0][1]
    data = replace(read_data(plan.loaded, plan.answers["data"]), test=Forbidden())
    directory = RunDirectory.create(tmp_path / "out", "r", 0, "")
    selected = selection.run(data, directory, torch.device("cpu"), Reporter.silent())
    assert len(selected.record["candidates"]) == 4
    metrics = [json.loads(line) for line in (selected.network.path / "metrics.jsonl").read_text().splitlines()]
    assert len(metrics) == 4


class Killed(BaseException):
    """Ends the process as far as the test is concerned."""


@pytest.mark.sampled(8)
@pytest.mark.parametrize("retrain", [True, False])
@pytest.mark.parametrize(
    ("target", "call"),
    [
        ("ltcore.training.observers.Checkpointer.save", 5),  # inside the first network
        ("ltcore.training.observers.Checkpointer.save", 40),  # inside the second
        ("ltcore.training.evaluation.Evaluation.validation_score", 2),  # its candidates are half scored
        ("ltcore.training.run.write_result", 1),
        ("ltcore.training.selection.copy_atomically", 2),  # with retrain: false, its files are half taken over
    ],
)
def test_a_killed_selection_goes_on_to_the_same_end(target, call, retrain, run, cli, tmp_path, monkeypatch):
    text = f"{RECIPE}checkpoint_seconds: 0\n{GAMMAS[:-1]}, retrain: {str(retrain).lower()}}}"
    whole, directory, _ = run(text)
    if target.endswith("copy_atomically") and retrain:
        return
    owner, name = target.rsplit(".", 1)
    import importlib

    module, _, kind = owner.rpartition(".")
    holder = getattr(importlib.import_module(module), kind)
    real, calls = getattr(holder, name), []

    def armed(*args, **kwargs):
        calls.append(1)
        if len(calls) == call:
            raise Killed
        return real(*args, **kwargs)

    out = tmp_path / "killed"
    monkeypatch.setattr(holder, name, armed)
    with pytest.raises(Killed):
        cli("run", tmp_path / "r.yaml", "--out", out)
    monkeypatch.setattr(holder, name, real)
    assert not list(out.glob("r/*/result.json"))
    assert cli("run", tmp_path / "r.yaml", "--out", out, "--resume").code == 0
    (found,) = out.glob("r/*")
    result = json.loads((found / "result.json").read_text())
    assert result["selection"] == whole["selection"]
    assert result["after_calibration"] == whole["after_calibration"]
    assert predictions(found) == predictions(directory)


def test_a_finished_selection_is_only_read(run, cli, tmp_path):
    run(RECIPE + TAUS + "}")
    again = cli("run", tmp_path / "r.yaml", "--out", tmp_path / "out", "--resume")
    assert again.code == 0 and "already ended" in again.out


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        ("methods.nope.options.tau: [1]", ("r.yaml:13", "tau=1", "no method 'nope'")),
        ("methods.count_norm.options.taw: [1]", ("r.yaml:13", "taw=1", "taw", "tau")),
        ("methods.count_norm.options.tau: [0.5, 2]", ("r.yaml:13", "tau=2", "at most 1")),
        ("seed: [1, 2]", ("r.yaml:13", "seed", "methods, stages or backbone")),
        ("methods.count_norm.options.tau: []", ("r.yaml:13", "at least 1")),
        ("stages.nope.epochs: [1]", ("r.yaml:13", "no stage 'nope'")),
    ],
)
def test_mistakes_are_known_before_anything_is_trained(options, parts, cli, tmp_path):
    (tmp_path / "r.yaml").write_text(RECIPE.strip() + "\nselect:\n  options: {" + options + "}\n")
    cli("run", tmp_path / "r.yaml", "--out", tmp_path / "out").is_one_message(2, *parts)
    assert not (tmp_path / "out").exists()


def test_nothing_to_choose_on(cli, tmp_path):
    (tmp_path / "r.yaml").write_text(RECIPE + TAUS.replace("holdout: 4", "holdout: 0") + "}")
    ended = cli("run", tmp_path / "r.yaml", "--out", tmp_path / "out")
    ended.is_one_message(2, "r.yaml:13", "no validation split", "select.holdout=3")


def test_what_only_calibrates():
    from ltcore.contract.recipe import Recipe

    stage = {"name": "s", "epochs": 1, "methods": ["a"], "optimizer": {"lr": 1}}
    recipe = Recipe(
        name="r",
        data={"use": "d"},
        backbone={"use": "b"},
        methods={"a": {}, "b": {}},
        stages=[stage],
        calibrate=["a", "b"],
    )
    paths = ["methods.b.options.x", "methods.a.options.x", "methods.b.use", "stages.s.epochs", "backbone.options.depth"]
    assert [only_calibrates(recipe, path) for path in paths] == [True, False, False, False, False]


def test_combinations_and_their_names():
    found = list(combinations({"methods.a.options.x": [1, 2], "methods.b.options.y": [3, 4]}))
    assert [tuple(values.values()) for values in found] == [(1, 3), (1, 4), (2, 3), (2, 4)]
    assert list(combinations({})) == [{}]
    assert shown(found[0]) == "x=1, y=3"
    assert shown({"methods.a.options.x": 1, "methods.b.options.x": 2}) == "methods.a.options.x=1, methods.b.options.x=2"


def test_the_plan_says_what_is_selected(cli, tmp_path):
    (tmp_path / "r.yaml").write_text(RECIPE + TAUS + ", retrain: false}")
    printed = cli("plan", tmp_path / "r.yaml").out
    assert "selection on 4 held-out images per class, whose network is the result" in printed
    assert "  methods.count_norm.options.tau: 0.0, 0.3, 1.0" in printed
    assert json.loads(cli("plan", tmp_path / "r.yaml", "--json").out)["select"]["holdout"] == 4

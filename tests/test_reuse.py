"""``--from RUN``: what is taken over is what would have been trained, and nothing that differs is."""

import json

import numpy as np
import pytest

RECIPE = """
data: {use: digits_lt}
backbone: {use: cifar_resnet, options: {depth: 8, width: 4}}
methods: {METHODS}
stages:
  - name: one
    epochs: 2
    batch_size: 64
    methods: [cdt]
    optimizer: {name: sgd, lr: 0.1, momentum: 0.9}
"""
SECOND = """  - name: two
    epochs: 2
    batch_size: 64
    methods: [lws, stg]
    sampler: class_balanced
    trainable: [classifier, stg]
    optimizer: {name: sgd, lr: 0.1, momentum: 0.9}
"""
LATER = "cdt: {}, lws: {}, stg: {}, count_norm: {options: {bias: drop}}"
CALIBRATE = "calibrate: [count_norm]\n"


@pytest.fixture
def run(cli, tmp_path):
    """``run(name, yaml, *words)``: result and directory."""

    def run(name, text, *words):
        path = tmp_path / f"{name}.yaml"
        path.write_text(text)
        ended = cli("run", path, "--out", tmp_path / "out", *words)
        assert ended.code == 0, ended.err
        (directory,) = (tmp_path / "out" / name).iterdir()
        return json.loads((directory / "result.json").read_text()), directory

    return run


def without_times(stages):
    return [{k: v for k, v in stage.items() if k not in ("seconds", "images_per_second")} for stage in stages]


def same(one, other):
    for name in ("before_calibration", "after_calibration"):
        assert one[0][name] == other[0][name]
    assert without_times(one[0]["stages"]) == without_times(other[0]["stages"])
    arrays = [np.load(directory / "predictions.npz") for _, directory in (one, other)]
    assert all(np.array_equal(arrays[0][key], arrays[1][key]) for key in arrays[0])
    lines = [(directory / "metrics.jsonl").read_text().splitlines() for _, directory in (one, other)]
    assert len(lines[0]) == len(lines[1])


def test_later_stages_of_other_methods_go_on_from_it(run, look_on):
    whole = run("whole", RECIPE.replace("METHODS", LATER) + SECOND + CALIBRATE)
    first = run("first", RECIPE.replace("METHODS", "cdt: {}"))
    trained = []
    look_on(stage_started=lambda run, loop: trained.append(loop.stage.name))
    taken = run("taken", RECIPE.replace("METHODS", LATER) + SECOND + CALIBRATE, "--from", first[1])
    assert trained == ["two"]
    assert taken[0]["reused"] == {"run": str(first[1]), "stages": 1}
    assert "reused" not in whole[0]
    same(whole, taken)
    assert taken[0]["stages"][0]["seconds"] == first[0]["stages"][0]["seconds"]


def test_calibration_alone(run):
    whole = run("whole", RECIPE.replace("METHODS", "cdt: {}, count_norm: {}") + CALIBRATE)
    taken = run("taken", RECIPE.replace("METHODS", "cdt: {}, count_norm: {}") + CALIBRATE, "--from", whole[1])
    same(whole, taken)


def test_what_is_chosen_for_calibration_needs_the_whole_set_trained_once(run):
    select = "select: {holdout: 3, options: {methods.count_norm.options.tau: [0.0, 0.2]}}\n"
    text = RECIPE.replace("METHODS", "cdt: {}, count_norm: {}") + CALIBRATE
    first = run("first", RECIPE.replace("METHODS", "cdt: {}"))
    whole, taken = run("whole", text + select), run("taken", text + select, "--from", first[1])
    same(whole, taken)
    assert whole[0]["selection"] == taken[0]["selection"]
    assert run("again", RECIPE.replace("METHODS", "cdt: {}"), "--from", whole[1])[0]["reused"]["stages"] == 1


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (("--seed", "1"), "its seed is another"),
        (("--set", "data.holdout=1"), "its data is another"),
        (("--set", "backbone.options.width=8"), "its backbone is another"),
        (("--set", "stages.one.epochs=3"), "its first stage 'one' is not the recipe's 'one'"),
        (("--set", "methods.cdt.options.gamma=0.4"), "its first stage 'one' is not"),
        (("--set", "select={options: {methods.cdt.options.gamma: [0, 1]}}"), "decides what is trained"),
    ],
)
def test_what_differs_is_refused(change, said, run, cli, tmp_path):
    first = run("first", RECIPE.replace("METHODS", "cdt: {}"))
    ended = cli("run", tmp_path / "first.yaml", "--out", tmp_path / "other", "--from", first[1], *change)
    ended.is_one_message(2, f"--from {first[1]}", said)
    assert not (tmp_path / "other").exists()


def test_no_run(cli, tmp_path):
    (tmp_path / "r.yaml").write_text(RECIPE.replace("METHODS", "cdt: {}"))
    cli("run", tmp_path / "r.yaml", "--from", tmp_path / "none").is_one_message(2, "--from", "no run that has ended")


class Killed(BaseException):
    """Ends the process as far as the test is concerned."""


def test_killed_while_taking_over_and_while_going_on(run, cli, tmp_path, monkeypatch):
    from ltcore.files import checkpoint
    from ltcore.training.observers import Checkpointer

    text = RECIPE.replace("METHODS", LATER) + SECOND + CALIBRATE + "checkpoint_seconds: 0\n"
    whole, first = run("whole", text), run("first", RECIPE.replace("METHODS", "cdt: {}"))
    for number, (owner, name) in enumerate([(checkpoint, "save"), (Checkpointer, "save")]):
        real = getattr(owner, name)

        def armed(*arguments, real=real):
            real(*arguments)
            raise Killed

        out = tmp_path / f"killed{number}"
        with monkeypatch.context() as patched:
            patched.setattr(owner, name, armed)
            with pytest.raises(Killed):
                cli("run", tmp_path / "whole.yaml", "--out", out, "--from", first[1])
        assert cli("run", tmp_path / "whole.yaml", "--out", out, "--from", first[1], "--resume").code == 0
        (directory,) = (out / "whole").iterdir()
        same(whole, (json.loads((directory / "result.json").read_text()), directory))

"""Positions: what a checkpoint says of where a run stands is believed only where the recipe comes by there."""

from dataclasses import asdict, replace

import pytest
import torch

from ltcore.contract.recipe import Stage
from ltcore.errors import RunError
from ltcore.files import checkpoint
from ltcore.files.run_directory import RunDirectory
from ltcore.training.position import Position, find

STAGES = [
    Stage.model_validate({"name": name, "batch_size": 8, "optimizer": {"name": "sgd", "lr": 0.1}, **length})
    for name, length in (("one", {"epochs": 3}), ("two", {"iterations": 10}))
]
INSIDE = Position(0, 2, 5, True, 1.5, 40, 0)
BETWEEN = Position(1, metrics_size=9, results=[{"name": "one"}])
INSIDE_TWO = replace(BETWEEN, epoch=7, begun=True)
VALIDATED = {"best": 0.5, "best_epoch": 1, "since": 0, "epochs": 2, "stopped": False}
BEHIND = Position(2, results=[{"name": "one"}, {"name": "two"}])


@pytest.fixture
def directory(tmp_path):
    """A run that has ended its first stage."""
    directory = RunDirectory(tmp_path)
    directory.last.parent.mkdir()
    checkpoint.save(directory.stage_file(0, "one"), {"model/a": torch.ones(2)}, {})
    checkpoint.save(directory.stage_file(1, "two"), {"model/a": torch.ones(2)}, {})
    return directory


@pytest.mark.parametrize(
    ("position", "inside"),
    [
        *[(Position(), False), (INSIDE, True), (BETWEEN, False), (INSIDE_TWO, True), (BEHIND, False)],
        (replace(INSIDE, validation=VALIDATED), True),
    ],
)
def test_a_position_of_the_recipe_is_believed(position, inside, directory):
    directory.write_last({"model/a": torch.ones(2)} if inside else {}, {"position": asdict(position), "optimizer": {}})
    told = []
    found = find(directory, STAGES, "cpu", told.append)
    assert found.position == position and bool(found.tensors) == inside and not told


def test_every_stage_begins_as_the_first_does():
    position = replace(INSIDE, seconds=9.0, validation=VALIDATED, acceleration={"chosen": "off"})
    position.end_stage(0)
    assert position == replace(Position(), stage=1, metrics_size=position.metrics_size)
    assert (Position().seconds, Position().images) == (0, 0)


@pytest.mark.parametrize(
    ("position", "inside", "said"),
    [
        (replace(INSIDE, stage=-1), True, "its position is not of whole numbers from 0"),
        (replace(INSIDE, epoch=1.5), True, "its position is not of whole numbers from 0"),
        (replace(INSIDE, step=True), True, "its position is not of whole numbers from 0"),
        (replace(INSIDE, begun=1), True, "its position is not of whole numbers from 0"),
        (replace(INSIDE, seconds=-1.0), True, "its time is -1.0 seconds"),
        (replace(INSIDE, validation=VALIDATED | {"stopped": 1}), True, "its validations are {'best': 0.5"),
        (replace(INSIDE, epoch=4), True, "it stands in epoch 5 of 3"),
        (replace(BEHIND), True, "it stands in stage 3 of 2"),
        (Position(3, results=[{"name": name} for name in ("one", "two", "three")]), False, "in stage 4 of 2"),
        (replace(BETWEEN, results=[]), False, "it holds no figures of the stages that had ended, one"),
        (replace(BETWEEN, results=[{"name": "two"}]), False, "it holds no figures of the stages that had ended, one"),
        (replace(INSIDE, results=[{"name": "one"}]), True, "it holds no figures of the stages that had ended, none"),
        (replace(INSIDE), False, "it stands inside a stage, but holds no model"),
    ],
)
def test_a_position_that_the_recipe_does_not_have_is_refused(position, inside, said, directory):
    directory.write_last({"model/a": torch.ones(2)} if inside else {}, {"position": asdict(position), "optimizer": {}})
    with pytest.raises(RunError) as error:
        find(directory, STAGES, "cpu", print)
    assert str(error.value).startswith(f"{directory.last}: no position of this recipe: ") and said in str(error.value)
    assert str(error.value).endswith("Begin the run anew, without --resume")
    assert directory.last.exists()


def test_a_state_of_other_fields_is_refused(directory):
    for state in ({}, {"position": {"where": 1}, "optimizer": {}}, {"position": [], "optimizer": {}}):
        directory.write_last({}, state)
        with pytest.raises(RunError, match="is no checkpoint of this version of ltcore"):
            find(directory, STAGES, "cpu", print)
        directory.previous.unlink(missing_ok=True)


def test_without_a_checkpoint_nothing_is_said(directory):
    told = []
    assert find(directory, STAGES, "cpu", told.append) is None and not told


def test_without_hard_links_the_checkpoint_before_the_last_is_kept_too(directory, monkeypatch):
    from ltcore.files import run_directory

    def refuse(*paths):
        raise PermissionError("no links here")

    monkeypatch.setattr(run_directory.os, "link", refuse)
    for number in range(3):
        directory.write_last({}, {"number": number})
    assert [checkpoint.load(path)[1] for path in (directory.last, directory.previous)] == [{"number": 2}, {"number": 1}]
    assert sorted(path.name for path in directory.last.parent.glob("*[!s]")) == []


def test_stages_ends_come_latest_first(directory):
    for index in (0, 2, 10):
        checkpoint.save(directory.boundary(index), {}, {})
    (directory.last.parent / "boundary-mine.safetensors").write_text("")
    assert [path.name for path in directory.checkpoints()] == [f"boundary-{index}.safetensors" for index in (10, 2, 0)]

"""The shape of the loop: short, read from top to bottom, and changed by what stands beside it, not by subclasses."""

import ast
import re
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from ltcore.seeding import derive_seed
from ltcore.training.loop import Loop, Observer, seed_step

ROOT = Path(__file__).parent.parent


@cache
def trees():
    """The syntax tree of each file of ours that names a loop or a run."""
    folders = ("ltcore", "plugins", "tests", "benchmarks", "docs")
    texts = {path: path.read_text() for folder in folders for path in (ROOT / folder).rglob("*.py")}
    return {path: ast.parse(text) for path, text in texts.items() if re.search(r"\b(Loop|Run)\b", text)}


EVENTS = [name for name in vars(Observer) if not name.startswith("_")]


def test_the_loop_is_at_most_forty_lines():
    (loop,) = (
        node
        for node in ast.walk(trees()[ROOT / "ltcore" / "training" / "loop.py"])
        if isinstance(node, ast.FunctionDef) and node.name == "train"
    )
    assert loop.end_lineno - loop.lineno < 40


def test_nothing_subclasses_the_loop_or_a_run():
    for path, tree in trees().items():
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef):
                bases = {ast.unparse(base).rpartition(".")[2] for base in node.bases}
                assert not bases & {"Loop", "Run"}, f"{path}: {node.name}"


class Recorder(Observer):
    """Notes every event with the position at which it came."""

    def __init__(self):
        self.seen = []

    def __getattribute__(self, name):
        if name not in EVENTS:
            return super().__getattribute__(name)

        def note(loop, *_):
            at = loop if isinstance(loop, int) else (loop.state.epoch, loop.state.step)
            self.seen.append((name, at))

        return note


def test_events_come_in_their_order(make_run):
    recorder = Recorder()
    run = make_run(checkpoint_seconds="0")
    run._others = [recorder]
    run.execute()
    names = [name for name, _ in recorder.seen]
    steps = names.count("step_ended")
    assert names[:2] == ["stage_entered", "stage_started"] and names[-2:] == ["stage_ended", "stage_left"]
    assert names.count("losses_computed") == names.count("checkpoint_written") == steps > 1
    first = names.index("epoch_started")
    assert names[first : first + 4] == ["epoch_started", "losses_computed", "checkpoint_written", "step_ended"]
    last = len(names) - 1 - names[::-1].index("epoch_ended")
    assert names[last - 1] == "step_ended" and set(names) == set(EVENTS)
    epochs = [at[0] for name, at in recorder.seen if name == "epoch_started"]
    assert epochs == list(range(len(epochs)))


@pytest.mark.parametrize("piece", ["forward", "update"])
def test_a_step_that_works_otherwise_is_another_forward_or_update(make_run, piece):
    """What a captured or a distributed step will do: the loop calls what it is given."""
    calls = []

    class Replace(Observer):
        def stage_started(self, loop: Loop) -> None:
            real = getattr(loop, piece)
            setattr(loop, piece, lambda *given: (calls.append(piece), real(*given))[1])

    plain, replaced = make_run("plain"), make_run("replaced")
    replaced._others = [Replace()]
    plain.execute()
    replaced.execute()
    assert len(calls) > 1
    for a, b in zip(*(run.assembly.model.state_dict().values() for run in (plain, replaced)), strict=True):
        assert torch.equal(a, b)


def test_a_steps_global_draws_are_those_of_torchs_own_seeding():
    state = SimpleNamespace(seed=3, stage="one", epoch=2, step=7, device=torch.device("cpu"))
    seed_step(state)
    drawn = torch.rand(5)
    torch.manual_seed(derive_seed("global", 3, "one", 2, 7))
    assert torch.equal(drawn, torch.rand(5))
    seed_step(SimpleNamespace(**{**vars(state), "step": 8}))
    assert not torch.equal(drawn, torch.rand(5))

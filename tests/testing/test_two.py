"""What two processes that train together have done otherwise than one, and who says so where they do not end."""

import os
from dataclasses import replace
from importlib import import_module

import pytest
import torch.distributed as dist

from ltcore import Batch, Context, Method, hookimpl
from ltcore.discovery import catalogue
from ltcore.testing import together
from ltcore.testing.parts import PARTS
from ltcore.testing.recipes import compose, part_of
from ltcore.testing.together import Shared, difference
from ltcore.testing.trial import Step, Trained


class WaitsInOneProcess(Method):
    """Something for the first process to do alone, with which it has the others wait; they know nothing of it."""

    @hookimpl
    def after_step(self) -> None:
        if dist.is_initialized() and dist.get_rank() == 0:
            dist.barrier()


class EndsTheSecond(Method):
    @hookimpl
    def mix_inputs(self, batch: Batch, context: Context) -> Batch:
        if os.environ.get("RANK") == "1" and context.epoch == 0 and context._state.step == 1:
            os._exit(9)
        return batch


STEPS = [
    Step(("second", 0, number), {"classification": 1.0 - 0.1 * number, "a/b": 0.0}, 16 * number) for number in range(6)
]


def shared_of(steps=STEPS, **changes):
    return Shared(list(steps), [{"methods.m.mean": "1"} for _ in steps], (8, 0.5), **changes)


def off(number, **changes):
    """The steps, with another one in a place."""
    return [replace(step, **changes) if index == number else step for index, step in enumerate(STEPS)]


ONE = Trained(steps=STEPS, tested=(8, 0.5))


def test_two_that_are_alike_are_alike():
    assert difference(ONE, (shared_of(), shared_of())) is None
    near = off(2, losses={"classification": 0.8 + 9e-6, "a/b": -9e-6})
    assert difference(ONE, (shared_of(near), shared_of(near))) is None
    assert difference(Trained(steps=STEPS), (shared_of(), shared_of())) is None, "there may be no test images"


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        (
            off(2, losses={"classification": 0.8001, "a/b": 0.0}),
            None,
            "step 3: the loss 'classification' is 0.8 in one process",
        ),
        (
            off(5, losses={"classification": 0.51, "a/b": 0.0}),
            None,
            "step 6: the loss 'classification' is 0.5 in one process",
        ),
        (
            off(1, losses={"classification": float("nan"), "a/b": 0.0}),
            None,
            "step 2: the loss 'classification' is 0.9 in one process",
        ),
        (
            STEPS,
            off(1, losses={"classification": 0.9 + 1e-9, "a/b": 0.0}),
            "first process and 0.900000001 in the s",
        ),
        (
            off(1, losses={"classification": 0.9}),
            None,
            "the terms of the loss are ['classification'] in two, and",
        ),
        (off(3, images=40), None, "step 4: two processes have seen 40 images of the stage, and one has seen 48"),
        (off(3, at=("second", 1, 0)), None, "step 4: two processes are at stage 'second', epoch 2, step 1"),
        (STEPS[:4], None, "two processes train 4 steps, and one trains 6"),
    ],
)
def test_the_first_step_that_differs_is_named(first, second, message):
    found = difference(ONE, (shared_of(first), shared_of(first if second is None else second)))
    assert message in found, found


def test_states_test_images_and_ends():
    other = shared_of()
    other.states[1]["methods.m.mean"] = "2"
    found = difference(ONE, (shared_of(), other))
    assert found == "stage 'second', epoch 1, step 2: 'm.mean' is another one in the second process than in the first"
    found = difference(ONE, (shared_of(), replace(shared_of(), tested=(9, 0.5))))
    assert found == "process 2 of 2 has outputs of 9 test images, of 8"
    assert "0.500 in one process and 0.750 in two" in difference(
        ONE, [replace(shared_of(), tested=(8, 0.75)) for _ in range(2)]
    )
    lost = shared_of(STEPS[:2], error="process 1 of 2 has lost the others", lost=True)
    found = difference(ONE, (lost, shared_of(STEPS[:3], error="it failed")))
    assert found == "process 2 of 2 has not come to its end (behind stage 'second', epoch 1, step 3): it failed"
    assert "(before its first step): it" in difference(ONE, (shared_of([], error="it"), shared_of([], error="it")))


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        pytest.param(
            WaitsInOneProcess,
            "stage 'first', epoch 1, step 2): it has done nothing for 20 s",
            marks=pytest.mark.slow,
        ),
        (
            EndsTheSecond,
            "process 2 of 2 has not come to its end (behind stage 'second', epoch 1, step 1)",
        ),
    ],
)
def test_processes_that_do_not_end_together_are_ended(kind, message, monkeypatch):
    import_module("torch._dynamo")  # as the first optimiser does, which would take each of the two some seconds
    monkeypatch.setattr(together, "PATIENCE", 20.0)
    with catalogue.lent({**PARTS, "mine": kind}):
        found = together.two(compose([part_of(catalogue.find("mine"))]), "mine")
    one = Trained(steps=max((each.steps for each in found), key=len))
    assert message in difference(one, found), found

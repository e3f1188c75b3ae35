from types import ModuleType

import pytest
import torch
from torch import Tensor

from ltcore import Context, Method, hookimpl
from ltcore.errors import RunError

SEEN: list = []


class Watch(Method):
    """Calls ``SEEN[0]`` with the hook's name and the context."""

    @hookimpl
    def on_run_start(self, context: Context) -> None:
        SEEN[0]("run", context)

    @hookimpl
    def on_stage_start(self, context: Context) -> None:
        SEEN[0]("stage", context)

    @hookimpl
    def on_epoch_start(self, context: Context) -> None:
        SEEN[0]("epoch", context)

    @hookimpl
    def adjust_logits(self, logits: Tensor, context: Context) -> Tensor:
        SEEN[0]("step", context)
        return logits

    @hookimpl
    def on_epoch_end(self, context: Context) -> None:
        SEEN[0]("end", context)

    @hookimpl
    def post_calibrate(self, classifier, context: Context):
        SEEN[0]("calibrate", context)
        return classifier


@pytest.fixture
def watch(offer_methods, make_run):
    """Train a stage of 2 epochs and one of 3 steps, 26 of the 52 images a step; returns the run."""
    offer_methods({"watch": Watch})
    common = {"batch_size": 26, "methods": ["watch", "also"], "optimizer": {"lr": 0.05}}

    def execute(look, **second):
        SEEN[:] = [look]
        stages = [{"name": "one", "epochs": 2, **common}, {"name": "two", "iterations": 3, **common, **second}]
        run = make_run(methods={"watch": {}, "also": {"use": "watch"}}, stages=stages, calibrate=["watch", "also"])
        run.execute()
        return run

    return execute


def test_where_the_run_stands(watch):
    seen = []

    def look(hook, context):
        seen.append((hook, context.stage, context.stage_index, context.epoch, context.epochs))
        if hook in ("epoch", "step", "end"):
            assert 0 <= float(context.progress) < 1 and context.progress.dtype == torch.float32

    watch(look)
    assert seen[::2] == seen[1::2]  # two methods
    first = [
        *[("epoch", "one", 0, 0, 2), ("step", "one", 0, 0, 2), ("step", "one", 0, 0, 2), ("end", "one", 0, 0, 2)],
        *[("epoch", "one", 0, 1, 2), ("step", "one", 0, 1, 2), ("step", "one", 0, 1, 2), ("end", "one", 0, 1, 2)],
    ]
    assert [row for row in seen[::2] if row[1] == "one" and row[0] != "stage"] == first
    assert [row for row in seen[::2] if row[1] == "two" and row[0] == "step"] == [
        *[("step", "two", 1, 0, 2), ("step", "two", 1, 0, 2), ("step", "two", 1, 1, 2)]
    ]
    assert [row[:4] for row in seen[::2] if row[0] in ("run", "stage", "calibrate")] == [
        *[("run", "", 0, -1), ("stage", "one", 0, -1), ("stage", "two", 1, -1)],
        ("calibrate", "calibration", 2, -1),
    ]


def test_steps_are_counted_in_the_epoch(watch):
    seen = []
    watch(lambda hook, context: seen.append((hook, context.epoch, context.step)) if context.stage == "two" else None)
    epochs = [[("epoch", 0, -1), ("step", 0, 0), ("step", 0, 1), ("end", 0, 2)], [("epoch", 1, -1), ("step", 1, 0)]]
    assert [row for row in seen[::2] if row[0] != "stage"] == [*epochs[0], *epochs[1], ("end", 1, 1)]


def test_progress_is_a_tensor_that_grows_from_0(watch):
    seen, tensors = [], set()

    def look(hook, context):
        tensors.add(id(context.progress))
        if hook == "step" and context.stage == "two":
            seen.append(float(context.progress))

    watch(look)
    assert seen[::2] == pytest.approx([0, 1 / 3, 2 / 3])
    assert len(tensors) == 1  # schedules that read it do not recompile


def test_draws_are_a_methods_own_and_the_same_in_every_run(watch):
    def draws():
        found = {}

        def look(hook, context):
            where = (context._owner, hook, context.stage, context.epoch, context._state.step)
            found[where] = torch.rand(2, generator=context.generator).tolist()

        watch(look)
        return found

    first, again = draws(), draws()
    assert first == again
    values = [tuple(value) for value in first.values()]
    assert len(set(values)) == len(values) > 20  # no two methods, hooks, epochs or steps share their draws


def test_one_step_has_one_stream(watch):
    drawn = []

    def look(hook, context):
        if hook == "step":
            drawn.append([torch.rand((), generator=context.generator).item() for _ in range(3)])
            assert context.cpu_generator is context.generator  # on the CPU they are one
            context.restart()
            assert torch.rand((), generator=context.cpu_generator).item() == drawn[-1][0]

    watch(look)
    assert drawn and all(len(set(three)) == 3 for three in drawn)


def test_figures_of_the_training_split(watch):
    def look(hook, context):
        assert context.class_counts.tolist() == [24, 16, 8, 4] and context.num_classes == 4
        assert torch.equal(context.training_targets.bincount(), context.class_counts)
        with pytest.raises(RunError, match="there are no validation images; set"):
            _ = context.validation_targets
        assert context.device.type == "cpu"
        if hook == "stage":
            features = context.training_features()
            means = torch.stack([features[context.training_targets == label].mean(0) for label in range(4)])
            assert torch.allclose(context.class_means(), means, atol=1e-6)
        with pytest.raises(AttributeError):
            context.epoch = 3

    run = watch(look)
    assert run.assembly.contexts["watch"].model is run.assembly.model


def reachable(root):
    """Everything that a method could get hold of from `root`: attributes, items, closures."""
    found, left = {}, [root]
    while left:
        item = left.pop()
        if id(item) in found or isinstance(item, type | ModuleType | str | bytes | int | float):
            continue
        found[id(item)] = item
        if isinstance(item, dict):
            left += [*item.keys(), *item.values()]
        elif isinstance(item, list | tuple | set | frozenset):
            left += item
        left += getattr(item, "__dict__", {}).values()
        left += [cell.cell_contents for cell in getattr(item, "__closure__", None) or ()]
        left.append(getattr(item, "__self__", None))
    return list(found.values())


def test_no_test_image_is_reachable_from_a_context(watch):
    leaked = []

    def leaks(run, root):
        test = (
            run.assembly.data.whole.test.images,
            run.assembly.data.whole.test.targets,
            run.assembly.data.loaders["test"]._images,
        )
        memory = {tensor.untyped_storage().data_ptr() for tensor in test}
        tensors = [item for item in reachable(root) if isinstance(item, Tensor) and item.numel()]
        assert len(tensors) > 20  # the walk went somewhere
        return [item for item in tensors if item.untyped_storage().data_ptr() in memory]

    run = watch(lambda hook, context: None)
    for context in run.assembly.contexts.values():
        leaked += leaks(run, context)
    assert not leaked
    assert leaks(run, run)  # the walk would have found them
    with pytest.raises(RunError, match=r"no validation images; set data\.holdout"):
        run.assembly.contexts["watch"].validation_features()

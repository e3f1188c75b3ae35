import json
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from ltcore import Batch, Context, Features, Method, hookimpl
from ltcore.errors import LtcoreError, PluginError, RunError

#: What the recording method saw: (stage, epoch, step), and whatever a test adds.
STEPS: list[tuple] = []
BATCHES: list[Batch] = []


class Record(Method):
    @hookimpl
    def mix_inputs(self, batch: Batch, context: Context) -> Batch:
        STEPS.append((context.stage, context.epoch, context._state.step))
        BATCHES.append(batch)
        return batch


class Own(Method):
    """An auxiliary loss with a module of its own."""

    auxiliary = ("size",)

    def __init__(self, options=None) -> None:
        super().__init__(options)
        self.layer = nn.Linear(16, 1)

    @hookimpl
    def auxiliary_losses(self, features: Features) -> dict[str, Tensor]:
        return {"size": self.layer(features.features).square().mean()}


class LateParameter(Own):
    @hookimpl
    def on_stage_start(self) -> None:
        self.late = nn.Linear(2, 2)


class LateGradient(Own):
    @hookimpl
    def on_epoch_start(self) -> None:
        self.layer.requires_grad_(True)


class Counting(Method):
    """Counts steps in a buffer, and moves another at the end of each epoch."""

    def __init__(self, options=None) -> None:
        super().__init__(options)
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))
        self.register_buffer("level", torch.tensor([0.0, 1 / 3, torch.inf, torch.nan]))

    @hookimpl
    def mix_inputs(self, batch: Batch) -> Batch:
        self.steps += 1
        return batch

    @hookimpl
    def on_epoch_end(self) -> None:
        self.level += 1

    def logged(self) -> dict[str, Tensor]:
        return {"steps": self.steps, "level": self.level}


class LogsRows(Counting):
    def logged(self) -> dict[str, Tensor]:
        return {"level": self.level[:3]}


class FailsToLog(Counting):
    def logged(self) -> dict[str, Tensor]:
        raise ValueError("no level")


class Blow(Method):
    @hookimpl
    def adjust_logits(self, logits: Tensor, context: Context) -> Tensor:
        return logits * (float("nan") if context.epoch == 1 else 1)


class Writes(Method):
    """Writes into the backbone, after the steps of a stage that trains it only, or of any."""

    interface = "1.1"
    hook = "after_step"

    def write(self, context, value=None):
        for parameter in context.model.backbone.parameters():
            if parameter.requires_grad or self.hook == context.stage:
                parameter.mul_(0.5) if value is None else parameter.fill_(value)

    @hookimpl
    def after_step(self, context):
        self.write(context)


class WritesAnywhere(Writes):
    hook = "two"


class EndsBroken(Writes):
    @hookimpl
    def on_stage_end(self, context):
        self.write(context, float("nan"))


@pytest.fixture
def execute(offer_methods, make_run):
    """Run stages of 8 images a step (7 steps an epoch); returns the run, its result and its metrics."""
    offer_methods(record=Record, own=Own, late_parameter=LateParameter, late_gradient=LateGradient, blow=Blow)
    offer_methods(counting=Counting, logs_rows=LogsRows, fails_to_log=FailsToLog)
    offer_methods(writes=Writes, writes_anywhere=WritesAnywhere, ends_broken=EndsBroken)
    STEPS.clear()
    BATCHES.clear()

    def execute(*stages, before=lambda run: None, **parts):
        common = {"batch_size": 8, "methods": ["record"], "optimizer": {"lr": 0.05}}
        names = ("one", "two", "three")
        stages = [{"name": name, **common, **stage} for name, stage in zip(names, stages, strict=False)]
        used = {name: {} for stage in stages for name in stage["methods"]}
        run = make_run(stages=stages, methods=used, **parts)
        before(run)
        result = run.execute()
        lines = (run.directory.path / "metrics.jsonl").read_text().splitlines()
        return run, result, [json.loads(line) for line in lines]

    return execute


def copy_of(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


def test_epochs_and_iterations(execute):
    _, result, metrics = execute({"epochs": 2}, {"iterations": 10}, {"iterations": 3})
    assert STEPS == [
        *[("one", epoch, step) for epoch in range(2) for step in range(7)],
        *[("two", epoch, step) for epoch in range(2) for step in range(7)][:10],
        *[("three", 0, step) for step in range(3)],
    ]
    assert [(line["stage"], line["epoch"]) for line in metrics] == [
        *[("one", 0), ("one", 1), ("two", 0), ("two", 1), ("three", 0)]
    ]
    assert [stage["name"] for stage in result["stages"]] == ["one", "two", "three"]
    assert all(stage["seconds"] > 0 and stage["images_per_second"] > 0 for stage in result["stages"])


def test_batches_hold_the_images_and_labels_of_their_indices(execute):
    run, _, _ = execute({"epochs": 1})
    images = run.assembly.data.loaders["train"].eval_batch(0, 52)
    for batch in BATCHES:
        assert torch.equal(batch.images, images[batch.source_index])
        assert torch.equal(batch.targets, run.assembly.data.whole.train.targets[batch.source_index])
    assert torch.cat([batch.source_index for batch in BATCHES]).sort().values.tolist() == list(range(52))


def test_the_schedule_is_applied(execute):
    step = {"name": "step", "every": 1, "gamma": 0.1}
    _, _, metrics = execute({"epochs": 3, "schedule": step}, {"epochs": 2, "schedule": {"name": "constant"}})
    assert [line["lr"] for line in metrics] == pytest.approx([0.05, 0.005, 0.0005, 0.05, 0.05])


def test_the_rate_of_the_schedule_is_the_optimisers(execute):
    weights = []
    for epochs in (1, 2):
        stop = {"name": "step", "every": 1, "gamma": 1e-9}
        run, _, _ = execute({"epochs": epochs, "schedule": stop, "trainable": ["classifier"]})
        weights.append(run.assembly.model.classifier.weight)
    torch.testing.assert_close(*weights, rtol=1e-5, atol=1e-7)


def test_the_logged_loss_is_the_mean_over_the_epochs_steps(execute):
    """At a rate of almost 0 the model stands still, but for the norms, which train mode does not use."""
    run, _, (line,) = execute({"epochs": 1, "optimizer": {"lr": 1e-12}})
    losses = [nn.functional.cross_entropy(run.assembly.model.train()(batch.images), batch.targets) for batch in BATCHES]
    assert line["loss"] == pytest.approx(float(torch.stack(losses).mean().detach()), rel=1e-4)


def test_what_methods_log_is_that_of_the_epoch_and_of_the_stages_own_methods(execute):
    """Written after the last step and before on_epoch_end; methods without anything to say are not named."""
    _, _, lines = execute({"epochs": 2, "methods": ["counting", "record"]}, {"epochs": 1, "methods": ["record"]})
    assert [line.get("methods") for line in lines] == [
        {"counting": {"steps": 7.0, "level": [0.0, 0.333333, None, None]}},
        {"counting": {"steps": 14.0, "level": [1.0, 1.33333, None, None]}},
        None,
    ]


@pytest.mark.parametrize(
    ("method", "error", "said"),
    [
        ("logs_rows", PluginError, "'level' of logged is neither a number nor one for each of the 4 classes"),
        ("fails_to_log", RunError, r"'fails_to_log' \(ltcore-tests 0.0\) failed in logged: ValueError: no level"),
    ],
)
def test_what_cannot_be_logged_is_the_methods_fault(execute, method, error, said):
    with pytest.raises(error, match=said):
        execute({"epochs": 1, "methods": [method]})


@pytest.mark.parametrize("clip", [None, 0.001])
def test_the_gradients_norm_is_clipped(execute, clip):
    before = {}
    stage = {
        "iterations": 1,
        "optimizer": {"lr": 1.0},
        "trainable": ["backbone"],
        **({"clip_grad_norm": clip} if clip else {}),
    }
    run, _, _ = execute(stage, before=lambda run: before.update(copy_of(run.assembly.model.backbone)))
    moved = torch.cat(
        [(p.detach() - before[n]).flatten() for n, p in run.assembly.model.backbone.named_parameters()]
    ).norm()
    assert moved == pytest.approx(clip, rel=1e-3) if clip else moved > 0.01


def test_without_classification_only_auxiliary_losses_train(execute):
    kept = {}
    only = {"iterations": 4, "methods": ["own", "record"], "classification": False, "trainable": ["own"]}
    run, _, metrics = execute(
        {"epochs": 1},
        {**only, "auxiliary_weights": {"own/size": 0.0}},
        {**only, "auxiliary_weights": {"own/size": 10.0}},
        before=lambda run: kept.update(copy_of(run.assembly.model.methods["own"])),
    )
    frozen = run.assembly.provider.frozen_model("one").state_dict()
    model = {name: value for name, value in run.assembly.model.state_dict().items() if not name.startswith("methods.")}
    assert all(torch.equal(value, frozen[name]) for name, value in model.items())
    assert not torch.equal(run.assembly.model.methods["own"].layer.weight, kept["layer.weight"])
    assert metrics[1]["loss"] == 0 and metrics[2]["loss"] > 0


def test_the_classifier_is_kept_or_rebuilt(execute):
    still = {"iterations": 1, "optimizer": {"lr": 1e-12}}
    run, _, _ = execute({"epochs": 1}, still, {**still, "classifier": "rebuild"})
    one, two, three = (run.assembly.provider.frozen_model(name) for name in ("one", "two", "three"))
    torch.testing.assert_close(two.classifier.weight, one.classifier.weight)
    assert not torch.allclose(three.classifier.weight, one.classifier.weight, atol=1e-3)
    assert torch.allclose(three.classifier.bias, torch.zeros(4), atol=1e-9)  # as at a start
    torch.testing.assert_close(
        three.backbone.layer3.state_dict()["0.conv1.weight"], one.backbone.layer3[0].conv1.weight
    )


def test_methods_write_into_what_trains_and_nothing_else(execute):
    train, frozen = {"iterations": 3, "methods": ["writes"]}, {"iterations": 1, "trainable": ["classifier"]}
    run, _, _ = execute(train, {**frozen, "methods": ["writes"]})
    plain, _, _ = execute({**train, "methods": []}, {**frozen, "methods": []})
    norms = [
        sum(p.detach().norm() for p in each.assembly.provider.frozen_model("one").backbone.parameters())
        for each in (run, plain)
    ]
    assert norms[0] < 0.6 * norms[1]
    with pytest.raises(PluginError, match=r"'writes_anywhere' .* changed weights that the stage freezes \(hook"):
        execute({"iterations": 1, "methods": ["writes_anywhere"]}, {**frozen, "methods": ["writes_anywhere"]})


def test_what_a_stage_ends_with_is_looked_at(execute):
    with pytest.raises(RunError, match=r"stage 'one': the weights that .*'ends_broken' .* are not finite"):
        execute({"iterations": 1, "methods": ["ends_broken"]})


@pytest.mark.parametrize("name", ["late_parameter", "late_gradient"])
def test_a_parameter_that_no_optimiser_holds_is_refused(execute, name):
    with pytest.raises(PluginError, match=rf"stage 'one': .*{name}\.la.*; a method makes its"):
        execute({"epochs": 1, "methods": [name]})


def test_the_optimiser_holds_what_trains_and_no_more(execute, monkeypatch):
    from ltcore.training import stage

    held, build = [], stage.build_optimizer
    monkeypatch.setattr(stage, "build_optimizer", lambda name, p, *rest: held.append(p) or build(name, p, *rest))
    run, _, _ = execute({"iterations": 1, "methods": ["own"], "trainable": ["backbone.layer3", "own"]})
    found = {name for name, p in run.assembly.model.named_parameters() if any(p is one for one in held[0])}
    wanted = {n for n, _ in run.assembly.model.named_parameters() if n.startswith(("backbone.layer3.", "methods.own."))}
    assert found == wanted and len(held[0]) == len(wanted) and len(held) == 1


def test_held_out_images_are_evaluated_and_not_trained_on(execute):
    data = "{use: synthetic, options: {class_counts: [24, 16, 8, 4], image_size: 8, test_per_class: 4}, holdout: 2}"
    run, result, _ = execute({"epochs": 2}, data=data)
    train, val = run.assembly.data.whole.train.images, run.assembly.data.whole.val.images
    assert len(train) == 44 and len(val) == 8 and result["class_counts"] == [22, 14, 6, 2]
    assert not (train.flatten(1)[:, None] == val.flatten(1)[None]).all(2).any()
    assert max(int(batch.source_index.max()) for batch in BATCHES) == 43
    held = run.assembly.data.loaders["val"].eval_batch(0, 8)
    seen = torch.cat([batch.images for batch in BATCHES])
    assert not (seen.flatten(1)[:, None] == held.flatten(1)[None]).all(2).any()
    assert result["stages"][0]["validation"].keys() == result["stages"][0]["test"].keys()


def test_without_held_out_images_there_are_no_such_figures(execute):
    _, result, _ = execute({"iterations": 1})
    assert "validation" not in result["stages"][0]


@pytest.mark.parametrize(("sampler", "low", "high"), [("class_balanced", 0.12, 0.4), ("square_root", 0.06, 0.26)])
def test_the_recipes_sampler_is_used(execute, sampler, low, high):
    execute({"epochs": 8, "sampler": sampler})
    share = torch.bincount(torch.cat([batch.targets for batch in BATCHES]), minlength=4)[3] / (8 * 52)
    assert low < share < high  # 0.25 and 0.14 are expected; the images have 0.08


def test_a_loss_that_is_not_finite_ends_the_run_and_keeps_the_checkpoint(execute):
    seen = []
    with pytest.raises(RunError) as error:
        execute({"epochs": 1}, {"epochs": 2, "methods": ["blow"]}, before=seen.append)
    message = str(error.value)
    assert isinstance(error.value, LtcoreError) and error.value.exit_code == 1
    assert message.startswith("stage 'two', epoch 2, step 1: the classification loss is not finite")
    assert "'blow' (ltcore-tests 0.0)" in message and "last.safetensors" in message
    assert seen[0].directory.last.exists()


def test_the_record_is_of_frozen_batches():
    batch = Batch(torch.zeros(2, 3, 1, 1), torch.zeros(2).long(), torch.arange(2))
    with pytest.raises(AttributeError):
        batch.images = None
    assert replace(batch, targets=torch.ones(2)).images is batch.images

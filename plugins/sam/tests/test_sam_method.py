import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from ltcore_sam import SAM, FocalSAM, FocalSAMOptions, ImbSAM, ImbSAMOptions, SAMOptions
from pydantic import ValidationError
from torch import nn

import ltcore
from ltcore import DataError, RecipeError
from ltcore.files import checkpoint
from ltcore.testing import write_short_recipe

COUNTS = [48, 24, 12, 4]


def test_defaults_and_bounds():
    assert SAM().options.model_dump() == {"rho": 0.05, "adaptive": False, "eta": 0.01}
    assert ImbSAM().options.model_dump() == {**SAM().options.model_dump(), "tail_below": 20, "tail_weight": 2.0}
    focal = {"rho": 0.2, "strength": 0.5, "gamma": 1.0}
    assert FocalSAM().options.model_dump() == {**SAM().options.model_dump(), **focal}
    for options, wrong in [
        (SAMOptions, {"rho": -0.1}),
        (SAMOptions, {"eta": -1}),
        (SAMOptions, {"tail_below": 20}),
        (ImbSAMOptions, {"tail_below": 1}),
        (ImbSAMOptions, {"tail_weight": 0}),
        (FocalSAMOptions, {"strength": -0.1}),
        (FocalSAMOptions, {"gamma": -1}),
    ]:
        with pytest.raises(ValidationError):
            options(**wrong)
    classes = (SAMOptions, ImbSAMOptions, FocalSAMOptions)
    fields = [field for options in classes for field in options.model_fields.values()]
    assert all(field.description for field in fields)


def test_a_tail_without_classes_is_refused():
    context = SimpleNamespace(name="sharp", class_counts=torch.tensor([90, 20]))
    with pytest.raises(DataError, match=r"'sharp': no class has fewer than 20 training images \(the smallest has 20\)"):
        ImbSAM().on_run_start(context=context)
    ImbSAM(ImbSAMOptions(tail_below=21)).on_run_start(context=context)


def test_a_stage_without_classification_is_refused():
    for method in (ImbSAM(), FocalSAM()):
        with pytest.raises(RecipeError, match="no loss belongs to a class; use sam"):
            method.check_stage(SimpleNamespace(classification=False))
        method.check_stage(SimpleNamespace(classification=True))


# -- in a run ----------------------------------------------------------------------------------------------------------


def recipe(tmp_path, name="r", methods=None, **stage):
    sgd = {"name": "sgd", "lr": 0.05, "momentum": 0.9, "weight_decay": 5e-4}
    return write_short_recipe(
        tmp_path / f"{name}.yaml",
        data={"use": "synthetic", "options": {"class_counts": COUNTS, "image_size": 8, "test_per_class": 4}},
        backbone={"use": "cifar_resnet", "options": {"depth": 8, "width": 4}},
        methods={key: {"options": options} for key, options in (methods or {}).items()},
        stages=[{"epochs": 3, "optimizer": sgd, **stage}],
        checkpoint_seconds=0,
    )


def run(file, out, resume=False):
    """The model at the end of the stage by name, without counters, its loss lines, and the run's directory."""
    path = ltcore.run(file, out=out, resume=resume).path
    model, _ = checkpoint.load(path / "checkpoints" / "stage-0-joint.safetensors")
    losses = [json.loads(line)["loss"] for line in (path / "metrics.jsonl").read_text().splitlines()]
    kept = {key.removeprefix("model/"): value for key, value in model.items()}
    kept = {key: value for key, value in kept.items() if "methods." not in key and "num_batches" not in key}
    return kept, losses, path


def same(one, other):
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


def close(one, other, rtol=1e-3, atol=1e-4):
    assert one.keys() == other.keys()
    for name, value in one.items():
        torch.testing.assert_close(value, other[name], rtol=rtol, atol=atol)


LDAM_DRW = {"ldam": {}, "drw": {"start_epoch": 1}}


def two_passes(rho, clip):
    """A training step of SAM as it is written by hand: into the weights and back, statistics switched off by momentum.

    It takes the place of what core does in a step; the batches, the loss and the optimiser are the run's.
    """

    def replace_step(run, loop, *_):
        forward, given = loop.forward, []
        norms = [module for module in loop.model.modules() if isinstance(module, nn.BatchNorm2d)]

        def first(batch, weights):
            given[:] = [batch, weights]
            return forward(batch, weights)

        def update(losses, rate):
            optimizer, loss = loop.optimizer, sum(losses.values())
            parameters = [each for group in optimizer.param_groups for each in group["params"]]
            for group in optimizer.param_groups:
                group["lr"] = rate
            optimizer.zero_grad()
            loss.backward()
            with torch.no_grad():
                norm = torch.stack([each.grad.norm(p=2) for each in parameters]).norm(p=2)
                old = [each.clone() for each in parameters]
                for each in parameters:
                    each.add_(each.grad * (rho / (norm + 1e-12)))
            optimizer.zero_grad()
            for module in norms:
                module.kept, module.momentum = module.momentum, 0.0
            sum(forward(*given).values()).backward()
            for module in norms:
                module.momentum = module.kept
            with torch.no_grad():
                for each, value in zip(parameters, old, strict=True):
                    each.copy_(value)
            if clip:
                nn.utils.clip_grad_norm_(parameters, clip)
            optimizer.step()
            return loss.detach()

        loop.forward, loop.update = first, update

    return replace_step


@pytest.mark.parametrize(
    ("methods", "clip"),
    [pytest.param({}, None, marks=pytest.mark.slow), (LDAM_DRW, 1.0)],
    ids=["plain", "ldam, drw, clipped"],
)
def test_sam_is_the_step_written_by_hand_bit_for_bit(tmp_path, look_on, methods, clip):
    ours, losses, _ = run(recipe(tmp_path, methods={**methods, "sam": {"rho": 0.1}}, clip_grad_norm=clip), tmp_path)
    plain, _, _ = run(recipe(tmp_path, "plain", methods=methods, clip_grad_norm=clip), tmp_path)
    look_on(stage_started=two_passes(0.1, clip))
    by_hand, expected, _ = run(recipe(tmp_path, "by_hand", methods=methods, clip_grad_norm=clip), tmp_path)
    same(ours, by_hand)
    assert losses == expected
    assert not any(torch.equal(ours[name], plain[name]) for name in ours if name.startswith("classifier"))


@pytest.mark.parametrize("adaptive", [False, True])
def test_a_distance_of_zero_is_the_run_without_bit_for_bit(tmp_path, adaptive):
    methods = {"mixup": {}, **LDAM_DRW}
    flat, losses, _ = run(recipe(tmp_path, methods={"sam": {"rho": 0, "adaptive": adaptive}, **methods}), tmp_path)
    plain, expected, _ = run(recipe(tmp_path, "plain", methods=methods), tmp_path)
    same(flat, plain)
    assert losses == expected


def three_steps(rho, share, weight):
    """A training step of ImbSAM and Focal-SAM by hand, from its parts: each row's loss is cut in two by its label.

    Cross-entropy alone. Where the authors' code lets statistics learn in the second pass, too, this one does not.
    """
    shares = torch.tensor([share(n) for n in COUNTS])

    def replace_step(run, loop, *_):
        model, given = loop.model, []
        norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]

        def first(batch, weights):
            values = nn.functional.cross_entropy(model(batch.images), batch.targets, reduction="none")
            given[:] = [batch, values]
            return {"classification": values.mean()}

        def update(losses, rate):
            batch, values = given
            optimizer, part = loop.optimizer, shares[batch.targets]
            parameters = [each for group in optimizer.param_groups for each in group["params"]]
            for group in optimizer.param_groups:
                group["lr"] = rate
            optimizer.zero_grad()
            (((1 - part) * values).sum() / len(values)).backward(retain_graph=True)
            rest = [each.grad.clone() for each in parameters]
            optimizer.zero_grad()
            (weight * (part * values).sum() / len(values)).backward()
            with torch.no_grad():
                norm = torch.stack([each.grad.norm() for each in parameters]).norm() + 1e-16
                moves = [each.grad * (rho / norm) for each in parameters]
                for each, move in zip(parameters, moves, strict=True):
                    each.add_(move)
            optimizer.zero_grad()
            for module in norms:
                module.momentum = 0.0
            values = nn.functional.cross_entropy(model(batch.images), batch.targets, reduction="none")
            (weight * (part * values).sum() / len(values)).backward()
            for module in norms:
                module.momentum = 0.1
            with torch.no_grad():
                for each, move, gradient in zip(parameters, moves, rest, strict=True):
                    each.sub_(move)
                    each.grad.add_(gradient)
            optimizer.step()
            return losses["classification"].detach()

        loop.forward, loop.update = first, update

    return replace_step


@pytest.mark.parametrize(
    ("method", "options", "share", "weight"),
    [
        ("imbsam", {"rho": 0.1, "tail_below": 20, "tail_weight": 2.0}, lambda n: float(n < 20), 2.0),
        ("imbsam", {"rho": 0.5, "tail_below": 20, "tail_weight": 1.0}, lambda n: float(n < 20), 1.0),
        ("focal_sam", {"rho": 0.3, "strength": 0.8, "gamma": 3.2}, lambda n: 0.8 * (1 - n / sum(COUNTS)) ** 3.2, 1.0),
    ],
    ids=["imbsam", "imbsam without a weight", "focal_sam"],
)
def test_imbsam_and_focal_sam_are_the_step_written_by_hand(tmp_path, look_on, method, options, share, weight):
    ours, losses, _ = run(recipe(tmp_path, methods={method: options}, epochs=1), tmp_path)
    flat, _, _ = run(recipe(tmp_path, "flat", methods={method: {**options, "rho": 0.0}}, epochs=1), tmp_path)
    look_on(stage_started=three_steps(options["rho"], share, weight))
    by_hand, expected, _ = run(recipe(tmp_path, "by_hand", epochs=1), tmp_path)
    close(ours, by_hand, rtol=1e-4, atol=1e-5)
    assert losses == pytest.approx(expected)
    difference = (ours["classifier.weight"] - flat["classifier.weight"]).abs().max()
    assert difference > 1e-3  # the distance matters far more than what is tolerated


def test_focal_sam_with_whole_shares_is_sam(tmp_path):
    options = {"rho": 0.1, "strength": 1, "gamma": 0}
    ours, losses, _ = run(recipe(tmp_path, methods={"focal_sam": options}, epochs=1), tmp_path)
    sam, expected, _ = run(recipe(tmp_path, "sam", methods={"sam": {"rho": 0.1}}, epochs=1), tmp_path)
    close(ours, sam, rtol=1e-4, atol=1e-5)
    assert losses == pytest.approx(expected)


MIXED = {
    "none": {},
    "weights and margins": LDAM_DRW,
    "two labels a row": {"mixup": {}, "drw": {"start_epoch": 1}},
    "rows and terms of another method": {"safa": {"start_epoch": 0}, "ldam": {}},
}


@pytest.mark.parametrize("methods", MIXED.values(), ids=list(MIXED))
def test_the_parts_make_the_whole_loss(tmp_path, methods):
    """Nothing is counted twice or left out, whoever made it: without distance and weight it is plain training."""
    # SAFA makes rounding grow, so that after two epochs it may show.
    more = {"epochs": 1, "trainable": ["backbone", "classifier", "safa"]}
    stage = more if "safa" in methods else {"epochs": 2, "trainable": ["backbone", "classifier"]}
    options = {"rho": 0.0, "strength": 0.7}
    parts, losses, _ = run(recipe(tmp_path, methods={**methods, "focal_sam": options}, **stage), tmp_path)
    plain, expected, _ = run(recipe(tmp_path, "plain", methods=methods, **stage), tmp_path)
    close(parts, plain)
    assert losses == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("method", ["sam", "focal_sam"])
def test_a_killed_run_goes_on_exactly(tmp_path, copy_at_checkpoint, method):
    file = recipe(tmp_path, methods={**LDAM_DRW, method: {}})
    copy_at_checkpoint(9, tmp_path / "killed" / "runs" / "r")
    _, _, whole = run(file, tmp_path / "runs")
    copy_at_checkpoint()
    _, _, resumed = run(file, tmp_path / "killed" / "runs", resume=True)
    with np.load(whole / "predictions.npz") as a, np.load(resumed / "predictions.npz") as b:
        assert resumed != whole and np.array_equal(a["logits"], b["logits"])

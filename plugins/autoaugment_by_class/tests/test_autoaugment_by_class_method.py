import json

import numpy as np
import pytest
import torch
from ltcore_autoaugment_by_class import Augmentation, AutoAugmentByClass, AutoAugmentByClassOptions
from pydantic import ValidationError

import ltcore
from ltcore import RecipeError
from ltcore.testing import write_short_recipe

COUNTS = [48, 24, 12, 4]


def test_defaults_are_the_authors_and_bounds_hold():
    assert AutoAugmentByClass().options.model_dump() == {
        "probability": 0.5,
        "highest_level": 10,
        "scale": 30,
        "tries": 10,
        "threshold": 0.6,
        "update_every": 1,
        "adjust_test": False,
        "largest_shift": 100.0,
        "cutout": 0,
    }
    for wrong in (
        {"probability": 1.1},
        {"threshold": 1.0},
        {"tries": 0},
        {"update_every": 0},
        {"cutout": -1},
        {"p": 1},
    ):
        with pytest.raises(ValidationError):
            AutoAugmentByClassOptions(**wrong)
    with pytest.raises(RecipeError, match="highest_level 40 is above scale 30"):
        AutoAugmentByClass(AutoAugmentByClassOptions(highest_level=40))
    assert all(field.description for field in AutoAugmentByClassOptions.model_fields.values())


def started(context, **options):
    method = AutoAugmentByClass(AutoAugmentByClassOptions(**options))
    method.on_run_start(context=context)
    method.on_stage_start()
    return method


class Oracle(torch.nn.Module):
    """Recognises an image of a class as long as its level is below a bound."""

    def __init__(self, bounds):
        super().__init__()
        self.bounds = bounds

    def forward(self, images):
        labels, level = images
        logits = torch.zeros(len(labels), len(self.bounds))
        for row, label in enumerate(labels.tolist()):
            logits[row, label] = 1.0 if level < self.bounds[label] else -1.0
        return logits


def test_levels_rise_to_what_the_network_bears(ltcore_context):
    """The hook against a network that is known: each class climbs to its bound, and then goes to and fro there."""
    context = ltcore_context()
    asked = []

    class Context:
        def __getattr__(self, name):
            return getattr(context, name)

        model = Oracle([0, 2, 4, 99])
        epoch = 0

        def images(self, split, indices, transform=None, augmented=False):
            assert split == "train"
            labels = context.training_targets[indices]
            if transform is None:
                return torch.zeros(1, 3, 8, 8)
            assert augmented and transform.probability == 1.0 and len(set(transform.levels)) == 1
            asked.append((transform.levels[0], torch.bincount(labels, minlength=4).tolist()))
            return labels, transform.levels[0]

    look = Context()
    method = started(context, tries=2, highest_level=5)
    seen = []
    for epoch in range(8):
        asked.clear()
        look.epoch = epoch
        levels = method.levels.tolist()
        method.on_epoch_start(context=look)
        seen.append(method.levels.tolist())
        assert asked == [
            (level, [2 * (level + 1) * (own >= level) for own in levels]) for level in range(max(levels) + 1)
        ]
    assert seen == [
        [0, 1, 1, 1],
        [0, 2, 2, 2],
        [0, 1, 3, 3],
        [0, 2, 4, 4],
        [0, 1, 3, 5],
        [0, 2, 4, 5],
        [0, 1, 3, 5],
        [0, 2, 4, 5],
    ]
    rare = started(context, tries=2, update_every=3)
    for look.epoch in range(7):
        rare.on_epoch_start(context=look)
        assert rare.levels.tolist()[3] == look.epoch // 3 + 1


def test_the_prior_is_taken_off_the_logits_where_it_is_asked_for(ltcore_context):
    """A network that knows the prior alone recognises the largest class; without the prior it is at a tie."""
    context = ltcore_context(counts=(26, 18, 10, 6))
    counts = context.class_counts.float()
    context.model.classifier.weight.data.zero_()
    context.model.classifier.bias.data.copy_((counts / counts.sum()).log() + torch.tensor([0.0, 0.0, 0.0, 0.01]))
    for adjusted, expected in [(False, [1, 0, 0, 0]), (True, [0, 0, 0, 1])]:
        method = started(context, adjust_test=adjusted)
        method.on_epoch_start(context=context)
        assert method.levels.tolist() == expected


def test_the_function_is_of_the_levels(ltcore_context):
    method = started(ltcore_context(), probability=0.25, largest_shift=20)
    assert method.image_transform() is None
    method.levels.copy_(torch.tensor([0, 3, 1, 10]))
    assert method.image_transform() == Augmentation((0, 3, 1, 10), 0.25, 30, 20.0, 0)
    assert method.logged()["level"].tolist() == [0, 3, 1, 10]
    assert started(ltcore_context(), cutout=4).image_transform() == Augmentation((0, 0, 0, 0), cutout=4)
    none = started(ltcore_context(), probability=0)
    none.levels.fill_(3)
    assert none.image_transform() is None


# -- in a run ----------------------------------------------------------------------------------------------------------

EASY = {"autoaugment_by_class": {"options": {"threshold": 0.15, "tries": 2, "largest_shift": 25, "cutout": 2}}}


def recipe(tmp_path, name="r", methods=EASY, extra=(), streamed=None, **stage):
    data = {"use": "synthetic", "options": {"class_counts": COUNTS, "image_size": 8, "test_per_class": 4}}
    if streamed is not None:
        data |= {"transform": {"name": "cifar", "color_jitter": 0.2}, "workers": streamed}
    return write_short_recipe(
        tmp_path / f"{name}.yaml",
        data=data,
        backbone={"use": "cifar_resnet", "options": {"depth": 8, "width": 4}},
        methods={**methods, **{each: {} for each in extra}},
        stages=[{"epochs": 3, **stage}],
        checkpoint_seconds=0,
    )


def run(file, out, resume=False):
    """The logits, the lines of the epochs, and the run's directory."""
    done = ltcore.run(file, out=out, resume=resume)
    lines = [json.loads(line) for line in (done.path / "metrics.jsonl").read_text().splitlines()]
    return done.logits, lines, done.path


def levels_of(lines):
    return [line["methods"]["autoaugment_by_class"]["level"] for line in lines]


def test_without_augmentation_training_is_as_without_the_method(tmp_path):
    methods = {"autoaugment_by_class": {"options": {"probability": 0, "tries": 1}}}
    logits, lines, _ = run(recipe(tmp_path, methods=methods), tmp_path)
    plain, without, _ = run(recipe(tmp_path, "plain", methods={}), tmp_path)
    assert np.array_equal(logits, plain) and [x["loss"] for x in lines] == [x["loss"] for x in without]


def test_a_killed_run_goes_on_exactly_and_workers_do_not_matter(tmp_path, copy_at_checkpoint):
    file = recipe(tmp_path, extra=["ldam"], streamed=2)
    copy_at_checkpoint(14, tmp_path / "killed" / "runs" / "r")  # in the third epoch of six steps
    whole, lines, _ = run(file, tmp_path / "runs")
    copy_at_checkpoint()
    resumed, again, _ = run(file, tmp_path / "killed" / "runs", resume=True)
    assert np.array_equal(whole, resumed)
    assert levels_of(lines) == levels_of(again) and any(level > 0 for level in levels_of(lines)[-1])
    alone, _, _ = run(recipe(tmp_path, "alone", extra=["ldam"], streamed=0), tmp_path)
    assert np.array_equal(whole, alone)


@pytest.mark.parametrize("extra", [["ldam", "drw"], ["balanced_softmax", "mixup"]], ids=" ".join)
def test_it_mixes_with_losses_and_mixed_images(tmp_path, extra):
    methods = {**EASY, "drw": {"options": {"start_epoch": 1}}} if "drw" in extra else EASY
    file = recipe(tmp_path, methods=methods, extra=[each for each in extra if each not in methods])
    logits, lines, _ = run(file, tmp_path)
    plain, _, _ = run(recipe(tmp_path, "plain", methods={}, extra=[each for each in extra if each != "drw"]), tmp_path)
    assert np.isfinite(logits).all() and not np.array_equal(logits, plain)
    assert any(level > 0 for level in levels_of(lines)[-1])


def test_a_cached_stage_refuses_it(tmp_path):
    file = recipe(tmp_path, trainable=["classifier"], cache="eval")
    with pytest.raises(RecipeError, match=r"'autoaugment_by_class' .* changes the images, which cache 'eval' skips"):
        run(file, tmp_path)

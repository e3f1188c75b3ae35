"""The methods in small runs on scikit-learn's digits, and their parts in a run that they can be seen in."""

import json
from types import SimpleNamespace

import pytest
import torch
from ltcore_lfme import LFME, ClassGroupOptions, GroupSampler, LFMEOptions, start_weights
from pydantic import ValidationError
from torch import nn

import ltcore
from ltcore import DataError, Features, RecipeError, RunError
from ltcore.testing import write_short_recipe

TARGETS = torch.repeat_interleave(torch.arange(4), torch.tensor([40, 20, 9, 4]))


def test_a_group_s_epoch_is_its_images_once():
    members = torch.tensor([False, True, True, False])
    sampler = GroupSampler(TARGETS, members, 8)
    assert sampler.steps_per_epoch() == 4  # 29 images
    drawn = sampler.draw(4, None, torch.Generator().manual_seed(0)).indices
    assert sorted(torch.cat(drawn).tolist()) == list(range(40, 69))
    again = sampler.draw(2, None, torch.Generator().manual_seed(0)).indices
    assert [b.tolist() for b in again] == [b.tolist() for b in drawn[:2]]


def test_a_distribution_is_the_group_s_part_of_it():
    members = torch.tensor([True, False, True, False])
    sampler, generator = GroupSampler(TARGETS, members, 7000), torch.Generator().manual_seed(0)
    share = torch.tensor([0.1, 0.5, 0.3, 0.1])
    labels = torch.cat(
        [TARGETS[sampler.draw(1, share, generator).indices[0]] for _ in range(60)]
    )  # each epoch has 49 images
    rows = torch.bincount(labels, minlength=4)
    assert rows.sum() == 60 * 49 and rows[1] == rows[3] == 0
    assert abs(float(rows[2] / rows.sum()) - 0.75) < 5 * (0.75 * 0.25 / 2940) ** 0.5
    with pytest.raises(RecipeError, match="none of the group's classes"):
        sampler.draw(1, torch.tensor([0.0, 1.0, 0.0, 0.0]), generator)


@pytest.mark.parametrize(
    "wrong", [{"least": [100]}, {"least": [21, 100]}, {"experts": []}, {"threshold": 1}, {"temperature": 0}]
)
def test_options(wrong):
    with pytest.raises(ValidationError):
        LFMEOptions(**wrong)
    with pytest.raises(ValidationError, match="most is below least"):
        ClassGroupOptions(least=5, most=4)


def test_defaults_are_the_published_ones():
    assert LFMEOptions().model_dump() == {
        **{"experts": ["many", "medium", "few"], "least": [100, 21], "temperature": 2.0, "threshold": 0.3},
        **{"curriculum": "loss", "curriculum_share": 0.5},
    }


# -- on made-up logits -------------------------------------------------------------------------------------------------

COUNTS = torch.tensor([40, 20, 9, 4])


class Says(nn.Module):
    """A network whose logits of an image are its pixels."""

    def forward(self, images):
        return images.flatten(1)


def made(epoch=0, **options):
    """The method in a stage of 4 epochs whose experts say what the images' pixels are; its context and some rows."""
    generator = torch.Generator().manual_seed(1)
    pixels = 2 * torch.randn(len(TARGETS), 1, 2, 2, generator=generator)
    held = 3 * nn.functional.one_hot(torch.arange(4), 4).float().view(4, 1, 2, 2)
    held[3] = held[1]  # taken for class 1; among the expert's own classes for neither
    context = SimpleNamespace(
        **{"class_counts": COUNTS, "num_classes": 4, "device": torch.device("cpu"), "stage_index": 1, "epochs": 4},
        **{"training_targets": TARGETS, "validation_targets": torch.arange(4), "epoch": epoch, "name": "lfme"},
        images=lambda split, indices: {"train": pixels, "val": held}[split][indices],
        frozen_model=lambda stage: Says(),
        model=SimpleNamespace(methods={}, classifier=nn.Identity()),
        validation_features=lambda: held.flatten(1),
    )
    method = LFME(LFMEOptions(experts=["a", "b"], least=[15], **options))
    method.on_run_start(context=context)
    method.on_stage_start(context=context)
    method.extra_rows(context=context)
    index = torch.tensor([0, 5, 41, 62, 65, 71])
    rows = {"features": torch.zeros(6, 2), "targets": TARGETS[index], "source_index": index}
    features = Features(**rows, synthetic=torch.zeros(6, dtype=torch.bool), images=pixels[index])
    return method, context, features


def test_experts_are_measured_among_their_own_classes():
    method, context, _ = made()
    # The image of class 3 has logits of 0 for 2 and 3, where the first is taken.
    assert method.expert_accuracy.tolist() == [1.0, 0.5]
    assert method.student_accuracy.tolist() == [0.0, 0.0]
    method.on_epoch_end(context=context)
    assert method.student_accuracy.tolist() == [1.0, 0.5]  # the same network, among all classes
    assert {name: float(value) for name, value in method.logged().items()} == {"weight of a": 0, "weight of b": 0}


def sure(method, context):
    """The probability of an image's own class among those of its group."""
    own = []
    for image, target in zip(context.images("train", torch.arange(len(TARGETS))).flatten(1), TARGETS, strict=True):
        group = [label for label in range(4) if method.groups[label] == method.groups[target]]
        own.append(image[group].softmax(0)[group.index(int(target))])
    return torch.stack(own)


@pytest.mark.parametrize(("epoch", "share"), [(0, 0.5), (1, 1.0), (3, 1.0)])
def test_the_curriculum_weighs_losses_up_to_one(epoch, share):
    method, context, features = made(epoch)
    start = start_weights(sure(method, context), TARGETS, COUNTS, method.groups)[features.source_index]
    found = method.sample_weights(features=features, context=context)
    torch.testing.assert_close(found, start + (1 - start) * share)
    logits = torch.randn(6, 4)
    assert method.adjust_logits(logits=logits, features=features, context=context) is logits
    assert (start < 0.9).any() and (start[-1] == 1)


def test_the_curriculum_of_the_code_scales_logits_and_goes_on():
    method, context, features = made(3, curriculum="logits")
    start = start_weights(sure(method, context), TARGETS, COUNTS, method.groups)[features.source_index]
    assert method.sample_weights(features=features, context=context) is None
    logits = torch.randn(6, 4)
    found = method.adjust_logits(logits=logits, features=features, context=context)
    torch.testing.assert_close(found, (2 - start)[:, None] * logits)
    # The lessons see scaled logits too.
    method.expert_accuracy.fill_(1.0)
    scaled = method.auxiliary_losses(features=features, logits=logits, context=context)
    method, context, features = made(3, curriculum="off")
    assert method._start is None
    method.expert_accuracy.fill_(1.0)
    torch.testing.assert_close(scaled, method.auxiliary_losses(features=features, logits=found, context=context))


def test_lessons_are_weighed_and_each_expert_of_the_student_has_them():
    method, context, features = made(curriculum="off")
    logits = torch.randn(6, 4, generator=torch.Generator().manual_seed(2))
    method.student_accuracy.copy_(torch.tensor([0.65, 0.5]))  # weights 0.5 and 0
    (loss,) = method.auxiliary_losses(features=features, logits=logits, context=context).values()
    ours, theirs = (x[:, :2].div(2).log_softmax(1) for x in (logits, features.images.flatten(1)))
    torch.testing.assert_close(loss, 0.5 * (theirs.exp() * (theirs - ours)).sum(1).mean())
    # Rows that others have appended have no image, and no lesson.
    appended = features.append(torch.zeros(2, 2), TARGETS[:2], torch.arange(2))
    found = method.auxiliary_losses(features=appended, logits=torch.cat([logits, torch.zeros(2, 4)]), context=context)
    torch.testing.assert_close(found["distillation"], loss)
    two = features.split(torch.zeros(12, 2), 2).append(
        torch.zeros(2, 2), TARGETS[:2], torch.arange(2), expert=torch.arange(2)
    )
    both = torch.cat([logits, 2 * logits, torch.zeros(2, 4)])
    (found,) = method.auxiliary_losses(features=two, logits=both, context=context).values()
    (second,) = method.auxiliary_losses(features=features, logits=2 * logits, context=context).values()
    torch.testing.assert_close(found, (loss + second) / 2)


# -- in a run ----------------------------------------------------------------------------------------------------------


GROUPS = ({"least": 30}, {"most": 29})


def recipe(tmp_path, groups=GROUPS, student=None, epochs=(12, 6), **lfme):
    again = {"backbone": "rebuild", "classifier": "rebuild"}
    experts = [
        {"name": f"stage{k}", "epochs": epochs[0], "methods": [f"group{k}"], **(again if k else {})}
        for k in range(len(groups))
    ]
    return write_short_recipe(
        tmp_path / "r.yaml",
        threads=1,
        data={"use": "digits_lt", "holdout": 2},
        backbone={"use": "cifar_resnet", "options": {"depth": 8, "width": 4}},
        methods={
            **{f"group{k}": {"use": "class_group", "options": options} for k, options in enumerate(groups)},
            "lfme": {"options": {"experts": ["stage0", "stage1"], "least": [30], **lfme}},
        },
        stages=[*experts, {"name": "student", "epochs": epochs[1], "methods": ["lfme"], **again, **(student or {})}],
    )


def test_experts_know_their_group_and_teach_it(tmp_path):
    done = ltcore.run(recipe(tmp_path), out=tmp_path / "runs")
    result, path = done.result, done.path
    many, few, student = (torch.tensor(stage["test"]["per_class_accuracy"]) for stage in result["stages"])
    frequent = torch.tensor(result["class_counts"]) >= 30
    assert many[frequent].mean() > 0.8 and many[~frequent].mean() < 0.1
    assert few[~frequent].mean() > 0.6 and few[frequent].mean() < 0.1
    assert student[frequent].mean() > 0.8 and student[~frequent].mean() > 0.1
    lines = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    weights = [line["methods"]["lfme"] for line in lines if line["stage"] == "student"]
    assert weights[0] == {"weight of stage0": 1.0, "weight of stage1": 1.0}
    assert weights[-1]["weight of stage0"] < 0.5 <= weights[-1]["weight of stage1"]


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"least": [25]}, RecipeError, "of expert 'stage0' have .* training images, and no class_group"),
        ({"least": [500]}, DataError, "no class is of the group of 'stage0'"),
        ({"experts": ["stage0", "nowhere"]}, RunError, "no earlier stage 'nowhere'"),
        ({"groups": ({"least": 118}, {"most": 29})}, DataError, "a group needs two classes"),
        (
            {"student": {"cache": "eval", "trainable": ["classifier"], "backbone": "keep"}},
            RecipeError,
            "leave cache out",
        ),
    ],
    ids=["bounds", "empty", "stage", "one", "cache"],
)
def test_mistakes_are_one_message(tmp_path, change, error, message):
    with pytest.raises(error, match=message):
        ltcore.run(recipe(tmp_path, epochs=(1, 1), **change), out=tmp_path / "runs")

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from ltcore_ssd import SSD, SSDOptions, soft_label_loss
from pydantic import ValidationError
from scipy.special import log_softmax
from torch import nn
from torch.nn.functional import cross_entropy

import ltcore
from ltcore import Batch, Features, RecipeError, RunError
from ltcore.testing import write_short_recipe

#: The mean over the same rows, by temperature, as the published code has it.
PUBLISHED = {1.0: 1.791387, 2.0: 2.300252}
ROWS = 5


def pattern(shape, pace):
    return torch.sin(torch.arange(float(np.prod(shape))) * pace).reshape(shape)


@pytest.mark.parametrize("temperature", PUBLISHED)
def test_the_distillation_is_that_of_the_published_code_and_a_loop(temperature):
    student, teacher = 3 * pattern((5, 4), 1.9), 3 * pattern((5, 4), 0.6)
    teacher.requires_grad_()
    found = soft_label_loss(student.requires_grad_(), teacher, temperature)
    found.mean().backward()
    assert teacher.grad is None and student.grad is not None
    assert found.mean().item() == pytest.approx(PUBLISHED[temperature], abs=2e-6)
    ours, theirs = (log_softmax(x.detach().double().numpy() / temperature, 1) for x in (student, teacher))
    expected = [temperature**2 * np.sum(np.exp(q) * (q - p)) for p, q in zip(ours, theirs, strict=True)]
    np.testing.assert_allclose(found.detach().numpy(), expected, rtol=1e-5)
    with pytest.raises(ValueError, match="temperature must be above 0"):
        soft_label_loss(student, teacher, 0)


def test_options():
    assert SSD().options.model_dump() == {"temperature": 2.0, "teacher": None}
    with pytest.raises(ValidationError):
        SSDOptions(temperature=0)


class Step:
    """One step of the method on features of five images."""

    def __init__(self):
        torch.manual_seed(0)
        self.method, self.images = SSD(), torch.rand(ROWS, 3, 4, 4)
        self.teacher = nn.Sequential(nn.Flatten(), nn.Linear(48, 3))
        self.context = SimpleNamespace(
            feature_shape=lambda tap: (6,),
            num_classes=3,
            name="ssd",
            frozen_model=lambda stage: self.teacher,
        )
        self.method.on_run_start(context=self.context)
        targets = torch.tensor([0, 2, 1, 0, 2])
        batch = Batch(self.images, targets, torch.arange(ROWS))
        self.record = Features.of(batch, torch.randn(ROWS, 6), self.images)

    def soft(self, record, logits):
        return self.method.auxiliary_losses(features=record, logits=logits, context=self.context)["soft"]


def test_labels_are_for_the_hard_head_and_the_teacher_for_the_classifier():
    step, classifier = Step(), nn.Linear(6, 3)
    logits = classifier(step.record.features)
    hard = step.method.adjust_logits(features=step.record)
    torch.testing.assert_close(hard, step.method.hard(step.record.features))
    soft = step.method.auxiliary_losses(features=step.record, logits=logits, context=step.context)["soft"]
    torch.testing.assert_close(soft, soft_label_loss(logits, step.teacher(step.images), 2.0).mean())
    cross_entropy(hard, step.record.targets).backward(retain_graph=True)
    assert classifier.weight.grad is None and step.method.hard.weight.grad is not None
    before = step.method.hard.weight.grad.clone()
    soft.backward()
    assert classifier.weight.grad is not None and torch.equal(step.method.hard.weight.grad, before)
    assert step.teacher[1].weight.grad is None


def test_made_rows_are_not_distilled():
    step = Step()
    logits = torch.randn(ROWS + 2, 3)
    record = step.record.append(torch.randn(2, 6), step.record.targets[:2], step.record.source_index[:2])
    torch.testing.assert_close(step.soft(record, logits), step.soft(step.record, logits[:ROWS]))
    record.synthetic[1] = True  # replaced in its place
    values = soft_label_loss(logits[:ROWS], step.teacher(step.images), 2.0)
    torch.testing.assert_close(step.soft(record, logits), (values.sum() - values[1]) / (ROWS - 1))


# -- in a run ----------------------------------------------------------------------------------------------------------


def recipe(tmp_path, methods=("ssd", "balanced_softmax"), name="r", ssd=None, **changes):
    last = {"name": "two", "backbone": "rebuild", "classifier": "rebuild"}
    return write_short_recipe(
        tmp_path / f"{name}.yaml",
        backbone={"use": "cifar_resnet", "options": {"depth": 8, "width": 4}},
        methods={key: {"options": ssd or {}} if key == "ssd" else {} for key in methods},
        stages=[{"name": "one", "methods": []}, {**last, "trainable": ["backbone", "classifier", "ssd"], **changes}],
        threads=1,
    )


def run(file, out):
    return ltcore.run(file, out=out).result


def test_refusals(tmp_path):
    for changes, message in [
        ({"trainable": ["backbone", "classifier"]}, "own_parameters_train"),
        ({"classification": False, "methods": ["ssd"]}, "hard head learns nothing"),
        (
            {"backbone": "keep", "classifier": "keep", "trainable": ["classifier", "ssd"], "cache": "eval"},
            "a cache has none",
        ),
        ({"methods": ["balanced_softmax", "ssd"]}, "what .*balanced_softmax.* would be lost; name 'ssd' first"),
    ]:
        with pytest.raises(RecipeError, match=message):
            run(recipe(tmp_path, **changes), tmp_path / "runs")
    with pytest.raises(RunError, match="no earlier stage 'nowhere'"):
        run(recipe(tmp_path, ssd={"teacher": "nowhere"}), tmp_path / "runs")


def test_the_soft_head_comes_to_say_what_the_teacher_says(tmp_path, look_on):
    seen = []
    look_on(losses_computed=lambda run, loop, losses: seen.append({key: each.item() for key, each in losses.items()}))
    run(recipe(tmp_path, epochs=12), tmp_path / "runs")
    of_two = [losses for losses in seen if "ssd/soft" in losses]
    for term in ("classification", "ssd/soft"):
        values = [losses[term] for losses in of_two]
        assert np.mean(values[-6:]) < 0.8 * np.mean(values[:6])

"""The three methods: on features made up, and in small runs."""

import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from ltcore_decoupling import ScaledClassifier
from ltcore_glag import AFG, Distillation, GraLoss, distillation_loss, ladder
from pydantic import ValidationError
from torch import nn

import ltcore
from ltcore import DataError, Features, Model, RecipeError, hookimpl
from ltcore.data.synthetic import Synthetic
from ltcore.testing import make_context, move_context

COUNTS = torch.tensor([40, 20, 5, 1])  # with head_images 30, class 0 is head


class Pooled(nn.Identity):
    """A backbone that has been run already."""


class Stage:
    """What a trainer keeps, as far as stage two of GLAG asks; features made up."""

    def __init__(self, kind, counts=COUNTS, dim=6, held=(0, 0, 1, 1, 2), device="cpu", **options):
        generator = torch.Generator().manual_seed(0)
        classes = len(counts)
        self.targets = torch.repeat_interleave(torch.arange(classes), counts)
        self.means = 3 * torch.rand(classes, dim, generator=generator)
        self.train = self.made(self.targets, generator).to(device)
        self.held = torch.tensor(held)
        self.val = self.made(self.held, generator).to(device)
        torch.manual_seed(0)
        self.method = kind(kind.Options(**options))
        self.model = Model(Pooled(), nn.Linear(dim, classes), {"m": self.method}).to(device)
        self.teacher, later = (Model(Pooled(), nn.Linear(dim, classes), {}).to(device) for _ in range(2))
        self.asked = []
        self.context = make_context(
            counts,
            epoch=-1,
            epochs=5,
            seed=3,
            owner="m",
            held_out=self.held,
            model=self.model,
            features=self.features,
            earlier={"representation": self.teacher, "other": later},
            device=device,
        )

    def made(self, targets, generator):
        noise = torch.randn(len(targets), self.means.shape[1], generator=generator)
        return (self.means[targets] + 0.5 * noise).clamp(min=0)

    def features(self, split, tap):
        self.asked.append(split)
        return {"train": self.train, "val": self.val}[split]  # there is no test split to ask for

    def start(self):
        self.method.on_run_start(context=self.context)
        if hasattr(self.method, "on_stage_start"):
            self.method.on_stage_start(context=self.context)
        move_context(self.context, epoch=0, step=0)
        if isinstance(self.method, AFG):
            self.method.class_distribution(context=self.context)
        return self

    def rows(self, index):
        marks = torch.zeros(len(index), dtype=torch.bool)
        return Features(self.train[index], self.targets[index], index, marks)

    def fold(self, index, step=0):
        move_context(self.context, step=step)
        record = self.rows(index) if isinstance(index, torch.Tensor) else index
        return self.method.augment_features(features=record, context=self.context)

    def end_epoch(self, right):
        """End an epoch with a classifier that is right on exactly the held-out images of these positions."""
        guesses = torch.where(torch.tensor(right), self.held, (self.held + 1) % 4)
        logits = nn.functional.one_hot(guesses, 4).float()
        self.model.classifier = Table(self.val, logits)
        self.method.on_epoch_end(context=self.context)
        move_context(self.context, epoch=self.context.epoch + 1)


class Table(nn.Module):
    """Logits by heart, for the held-out features only."""

    def __init__(self, known, logits):
        super().__init__()
        self.known, self.logits, self.weight = known, logits, torch.zeros(4, known.shape[1])

    def forward(self, x):
        assert torch.equal(x, self.known)
        return self.logits


# gra_loss.


def test_gra_loss_follows_the_epochs():
    stage = Stage(GraLoss).start()
    logits = torch.zeros(2, 4)
    log_prior = (COUNTS / 66).log()
    for epoch, alpha in [(0, 0), (2, 2**0.5 - 1), (4, 1)]:
        move_context(stage.context, epoch=epoch)
        adjusted = stage.method.adjust_logits(logits=logits, context=stage.context)
        torch.testing.assert_close(adjusted, alpha * log_prior.expand(2, 4))
    move_context(stage.context, epoch=0)
    assert stage.method.adjust_logits(logits=logits, context=stage.context) is logits
    none = Stage(GraLoss, scale=0).start()
    move_context(none.context, epoch=4)
    assert none.method.adjust_logits(logits=logits, context=none.context) is logits


# afg: what is generated.


def test_classes_are_drawn_alike_and_filled_up_to_the_largest():
    """20,000 rows under the class-balanced sampler: n_c of n_max stay real, within five standard deviations."""
    stage = Stage(AFG, head_images=30).start()
    distribution = stage.method.class_distribution(context=stage.context)
    assert torch.equal(distribution, torch.full((4,), 0.25, dtype=torch.float64))
    index = torch.tensor([0, 40, 60, 65]).repeat(5000)
    after = stage.fold(index)
    for c in range(4):
        share = COUNTS[c].item() / 40
        made = after.synthetic[after.targets == c].double().mean().item()
        assert made == pytest.approx(1 - share, abs=5 * (share * (1 - share) / 5000) ** 0.5)
    before = stage.rows(index)
    assert torch.equal(after.features[~after.synthetic], before.features[~after.synthetic])
    assert not (after.features[after.synthetic] == before.features[after.synthetic]).all(1).any()
    assert torch.equal(after.targets, before.targets) and torch.equal(after.source_index, index)
    assert (after.features >= 0).all()
    assert torch.equal(before.features, stage.rows(index).features)


def test_rows_of_other_methods_stay():
    stage = Stage(AFG, head_images=30).start()
    before = stage.rows(torch.full((50,), 65))  # a class that is nearly always generated
    marked = Features(before.features, before.targets, before.source_index, ~before.synthetic)
    after = stage.fold(marked)
    assert torch.equal(after.features, before.features) and after.synthetic.all()


def moments(stage, row, draws=60000):
    """Mean and covariance, on the ladder, of many draws for one training image."""
    index = torch.full((draws,), row)
    record = stage.rows(index)
    made = stage.method.generate(record.features, record.targets, torch.Generator().manual_seed(1))
    x = ladder(made, stage.method.options.power).double().numpy()
    return x.mean(0), np.cov(x, rowvar=False)


@pytest.mark.parametrize(("row", "beta"), [(62, 0.6), (65, 0.25), (45, 1.0)])
def test_a_tail_draw_has_the_moments_of_equations_8_and_9(row, beta):
    """Power 1 and features far from 0, so that nothing is cut off."""
    stage = Stage(AFG, head_images=30, power=1, dispersion=0.1, confidence=beta, confidence_step=0)
    stage.train = stage.train + 5
    stage.start()
    x, y = stage.train.double().numpy(), stage.targets.numpy()
    means = np.array([x[y == c].mean(0) for c in range(4)])
    covariances = [np.cov(x[y == c], rowvar=False) if (y == c).sum() > 1 else np.zeros((6, 6)) for c in range(4)]
    own = y[row]
    distance = {c: np.linalg.norm(x[row] - means[c]) for c in range(4) if COUNTS[c] > COUNTS[own]}
    support = sorted(distance, key=distance.get)[:2]
    omega = np.array([COUNTS[c].item() / distance[c] for c in support])
    omega /= omega.sum()
    mean = (1 - beta) * x[row] + beta * sum(w * means[c] for w, c in zip(omega, support, strict=True))
    covariance = (1 - beta) ** 2 * covariances[own] + 0.1 * np.eye(6)
    covariance += beta**2 * sum(w * covariances[c] for w, c in zip(omega, support, strict=True))
    found_mean, found = moments(stage, row)
    np.testing.assert_allclose(found_mean, mean, atol=0.015)
    np.testing.assert_allclose(found, covariance, atol=0.02 * covariance.max())


def test_a_head_class_is_drawn_from_its_own_gaussian():
    stage = Stage(AFG, counts=torch.tensor([40, 35, 5, 1]), head_images=30, power=1, dispersion=0.1)
    stage.train = stage.train + 5
    stage.start()
    own = stage.train[40:75].double().numpy()
    mean, covariance = moments(stage, 50)
    np.testing.assert_allclose(mean, own.mean(0), atol=0.015)
    np.testing.assert_allclose(covariance, np.cov(own, rowvar=False), atol=0.02)


def test_a_class_with_one_image_is_its_image_where_nothing_is_learned():
    stage = Stage(AFG, head_images=30, confidence=0, confidence_step=0).start()
    record = stage.rows(torch.full((8,), 65))
    made = stage.method.generate(record.features, record.targets, torch.Generator().manual_seed(0))
    torch.testing.assert_close(made, record.features)


def test_draws_are_a_function_of_seed_epoch_and_step():
    index = torch.arange(66)
    one, other = Stage(AFG, head_images=30).start(), Stage(AFG, head_images=30).start()
    later = one.fold(index, 7).features
    assert torch.equal(one.fold(index, 3).features, other.fold(index, 3).features)
    assert torch.equal(later, other.fold(index, 7).features) and not torch.equal(later, other.fold(index, 8).features)


def test_a_step_never_waits_for_the_device(no_sync):
    stage = Stage(AFG, head_images=30, dispersion=0.1).start()
    taught = Stage(Distillation, head_images=30).start()
    move_context(taught.context, epoch=4)
    record = stage.rows(torch.arange(20))
    stage.fold(record)
    with no_sync():
        after = stage.fold(record, 1)
        taught.method.auxiliary_losses(features=after, logits=torch.zeros(20, 4), context=taught.context)


@pytest.mark.gpu
def test_a_step_on_a_gpu_never_synchronises():
    stage = Stage(AFG, head_images=30, dispersion=0.1, device="cuda")
    stage.train = stage.train.half()
    stage.start()
    index = torch.arange(66, device="cuda")
    record = Features(stage.train, stage.targets.cuda(), index, index < 0)
    stage.fold(record)
    torch.cuda.set_sync_debug_mode("error")
    try:
        with torch.autocast("cuda", dtype=torch.bfloat16):
            after = stage.fold(record, 1)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert after.features.isfinite().all() and after.features.dtype == torch.float16


# afg: its confidence.


def test_confidence_follows_the_held_out_accuracy_class_by_class():
    """Held out: two images of class 0 (head), two of class 1, one of class 2, none of class 3."""
    stage = Stage(AFG, head_images=30)
    guesses = nn.functional.one_hot(torch.tensor([0, 0, 1, 0, 0]), 4).float()
    stage.model.classifier = Table(stage.val, guesses)
    stage.start()
    method = stage.method
    assert method.score[:3].tolist() == [1, 0.5, 0] and method.score[3].isnan()
    torch.testing.assert_close(method.beta, torch.tensor([0, 0.6, 0.6, 0.6]))
    stage.end_epoch([False, False, True, True, True])  # the head falls; classes 1 and 2 rise
    torch.testing.assert_close(method.beta, torch.tensor([0, 0.7, 0.7, 0.6]))
    stage.end_epoch([False, False, False, True, True])  # class 1 falls, class 2 stays
    torch.testing.assert_close(method.beta, torch.tensor([0, 0.6, 0.7, 0.6]))
    stage.end_epoch([True, True, False, False, False])  # both fall; the head rises
    torch.testing.assert_close(method.beta, torch.tensor([0, 0.5, 0.6, 0.6]))
    assert set(stage.asked) == {"train", "val"}


def test_confidence_moves_once_a_generation_epoch():
    stage = Stage(AFG, head_images=30, generation_epochs=2).start()
    stage.method.score[:3] = 0.5
    seen = []
    for epoch in range(5):
        stage.end_epoch([epoch != 4] * 5)
        seen.append(round(stage.method.beta[2].item(), 2))
    assert seen == [0.6, 0.6, 0.7, 0.7, 0.6]  # after epochs 3 and 5


def courses(right, **options):
    """The confidence of classes 1 and 2 after each epoch, for which of the five held-out images were recognised."""
    stage = Stage(AFG, head_images=30, **options)
    stage.model.classifier = Table(stage.val, nn.functional.one_hot(torch.tensor([0, 0, 1, 0, 0]), 4).float())
    stage.start()
    course = []
    for each in right:
        stage.end_epoch(each)
        course.append([round(value, 2) for value in stage.method.beta[1:3].tolist()])
    return course


def test_a_window_averages_scores_before_the_confidence_moves_once():
    """Class 1 begins at 1 of 2, class 2 at 0 of 1."""
    neither, first, all_five = [True, True, False, False, False], [True, True, True, False, False], [True] * 5
    right = [neither, all_five, first, first, neither]
    assert courses(right)[:2] == [[0.5, 0.6], [0.6, 0.7]], "without a window it follows each epoch"
    # Two epochs: class 1 at (0 + 1) / 2, as it was; class 2 at (0 + 1) / 2, above 0. Then 0.5 again, and 0.
    assert courses(right, window=2) == [[0.6, 0.6], [0.6, 0.7], [0.6, 0.7], [0.6, 0.6], [0.6, 0.6]]


def test_nearest_tail_classes_are_pooled():
    """Class 3 has no held-out image; with one class pooled it has its neighbour's, and beta can move."""
    stage = Stage(AFG, head_images=30, pooled_classes=1)
    stage.model.classifier = Table(stage.val, nn.functional.one_hot(torch.tensor([0, 0, 1, 0, 0]), 4).float())
    stage.start()
    means = torch.stack([stage.train[stage.targets == label].mean(0) for label in range(4)])
    nearest = []
    for label in range(4):
        others = [other for other in (1, 2, 3) if other != label]
        nearest.append(min(others, key=lambda other: float((means[label] - means[other]).norm())))
    assert stage.method.pools.tolist() == [[label, near] for label, near in enumerate(nearest)]
    right, images = torch.tensor([2.0, 1.0, 0.0, 0.0]), torch.tensor([2.0, 2.0, 1.0, 0.0])
    expected = (right + right[nearest]) / (images + images[nearest])
    torch.testing.assert_close(stage.method.score, expected)
    stage.end_epoch([True] * 5)
    assert stage.method.beta[3] == pytest.approx(0.7)
    with pytest.raises(RecipeError, match="pooled_classes is 3, but a tail class has only 2 others"):
        Stage(AFG, head_images=30, pooled_classes=3).start()


def test_a_probability_moves_where_no_guess_changes():
    stages = [Stage(AFG, head_images=30, score=score) for score in ("accuracy", "probability")]
    for stage in stages:
        start = torch.zeros(5, 4)
        start[range(5), [0, 0, 1, 1, 2]] = 1.0
        stage.model.classifier = Table(stage.val, start)
        stage.start()
        stage.model.classifier = Table(stage.val, 2 * start)
        stage.method.on_epoch_end(context=stage.context)
    torch.testing.assert_close(stages[0].method.beta[1:], torch.tensor([0.6, 0.6, 0.6]))
    torch.testing.assert_close(stages[1].method.beta[1:], torch.tensor([0.7, 0.7, 0.6]))
    expected = torch.tensor([np.e**2 / (np.e**2 + 3)] * 3, dtype=torch.float32)
    torch.testing.assert_close(stages[1].method.score[:3], expected)


def test_confidence_is_logged_for_tail_classes_only():
    stage = Stage(AFG, head_images=30).start()
    logged = stage.method.logged()
    assert logged["confidence"][0].isnan()
    torch.testing.assert_close(logged["confidence"][1:], torch.tensor([0.6, 0.6, 0.6]))
    assert torch.equal(logged["held-out score"][:3], stage.method.score[:3])


def test_the_printed_space_has_statistics_of_features_as_they_are():
    """Equations 5 to 9 by hand: only the tail row is on the ladder, and what is drawn is not taken back."""
    stage = Stage(AFG, head_images=30, space="printed", confidence=0.4)
    stage.train = stage.train + 5
    stage.start()
    x, y = stage.train.double().numpy(), stage.targets.numpy()
    means = np.array([x[y == c].mean(0) for c in range(4)])
    covariances = [np.cov(x[y == c], rowvar=False) if (y == c).sum() > 1 else np.zeros((6, 6)) for c in range(4)]
    row = 62
    transformed = np.sqrt(x[row])
    distance = {c: np.linalg.norm(transformed - means[c]) for c in (0, 1)}
    omega = np.array([COUNTS[c].item() / distance[c] for c in (0, 1)])
    omega /= omega.sum()
    mean = 0.6 * transformed + 0.4 * (omega[0] * means[0] + omega[1] * means[1])
    covariance = 0.36 * covariances[2] + 0.16 * (omega[0] * covariances[0] + omega[1] * covariances[1])
    record = stage.rows(torch.full((60000,), row))
    made = stage.method.generate(record.features, record.targets, torch.Generator().manual_seed(1)).double().numpy()
    np.testing.assert_allclose(made.mean(0), mean, atol=0.015)
    np.testing.assert_allclose(np.cov(made, rowvar=False), covariance, atol=0.02 * covariance.max())
    record = stage.rows(torch.full((60000,), 3))  # of the head: its own Gaussian, as it is
    made = stage.method.generate(record.features, record.targets, torch.Generator().manual_seed(1)).double().numpy()
    np.testing.assert_allclose(made.mean(0), means[0], atol=0.015)
    np.testing.assert_allclose(np.cov(made, rowvar=False), covariances[0], atol=0.02 * covariances[0].max())


def test_confidence_changes_what_is_generated():
    index = torch.arange(60, 65).repeat(20)
    stage = Stage(AFG, head_images=30).start()
    before = stage.fold(index).features
    stage.method.beta[2] = 0.9
    assert not torch.equal(stage.fold(index).features, before)


# distillation.


def test_only_head_rows_are_taught():
    stage = Stage(Distillation, head_images=10, temperature=2.0, teacher="representation").start()
    move_context(stage.context, epoch=4)
    record = stage.rows(torch.tensor([0, 45, 62, 65, 3]))
    logits = torch.randn(5, 4, requires_grad=True)
    term = stage.method.auxiliary_losses(features=record, logits=logits, context=stage.context)["kd"]
    term.backward()
    assert (logits.grad.abs().sum(1) > 0).tolist() == [True, True, False, False, True]
    values = distillation_loss(logits, stage.teacher.classifier(record.features), 2.0)
    torch.testing.assert_close(term, values[[0, 1, 4]].sum() / 5)


def test_distillation_begins_at_nothing_and_has_the_form_of_alpha():
    stage = Stage(Distillation, head_images=30, scale=0.5).start()
    record, logits = stage.rows(torch.arange(4)), torch.randn(4, 4)
    terms = []
    for epoch in range(5):
        move_context(stage.context, epoch=epoch)
        terms.append(stage.method.auxiliary_losses(features=record, logits=logits, context=stage.context)["kd"])
    assert terms[0] == 0
    torch.testing.assert_close(terms[2] / terms[4], torch.tensor(2**0.5 - 1))


# Refusals.


def of_stage(**changes):
    return SimpleNamespace(**{"trainable": ["classifier"], "batch_norm": "frozen", "epochs": 40, **changes})


@pytest.mark.parametrize("kind", [AFG, Distillation])
def test_moving_features_are_refused(kind):
    assert "fixed_backbone" in kind().requires  # which the plan looks at


def test_settings_that_cannot_work_are_refused():
    with pytest.raises(RecipeError, match="generation_epochs is 41, but the stage has only 40 epochs"):
        AFG(AFG.Options(generation_epochs=41)).check_stage(of_stage())
    with pytest.raises(DataError, match="no tail to generate; raise head_images"):
        Stage(AFG, counts=torch.tensor([200, 101]), held=(0,)).start()
    with pytest.raises(RecipeError, match="neighbours is 4, but a class has only 3 others"):
        Stage(AFG, neighbours=4).start()
    with pytest.raises(DataError, match=r"the largest has 40\), so nothing would be distilled; lower head_images"):
        Stage(Distillation).start()
    with pytest.raises(DataError, match="no training images of class 1"):
        Stage(GraLoss, counts=torch.tensor([3, 0, 2]), held=(0,)).start()


LIMITS = {  # the least and the most that an option may be, and what is beyond them
    "power": ([0, 2], [-0.1]),
    "neighbours": ([1, 3], [0]),
    "dispersion": ([0, 0.1], [-0.1]),
    "confidence": ([0, 1], [-0.1, 1.1]),
    "confidence_step": ([0, 1], [-0.1, 1.1]),
    "window": ([1], [0]),
    "pooled_classes": ([0], [-1]),
    "generation_epochs": ([1], [0]),
    "head_images": ([0], [-1]),
    "draw_images": ([2], [1]),
}


@pytest.mark.parametrize("name", LIMITS)
def test_limits_of_the_generators_options(name):
    allowed, beyond = LIMITS[name]
    assert [getattr(AFG.Options(**{name: value}), name) for value in allowed] == allowed
    for value in beyond:
        with pytest.raises(ValidationError):
            AFG.Options(**{name: value})


# Small runs.

RECIPE = """
name: r
data:
  use: synthetic
  options: {class_counts: [60, 24, 8, 3], image_size: 8, test_per_class: 10, noise: 20}
  holdout: 1
backbone: {use: cifar_resnet, options: {depth: 8, width: 4}}
checkpoint_seconds: 0
methods:
  gra_loss: {}
  lws: {}
  afg: {options: {head_images: 30, confidence: CONFIDENCE, score: probability, window: 2, pooled_classes: 1}}
  distillation: {options: {head_images: 30}}
stages:
  - {name: representation, epochs: 3, batch_size: 16, methods: [gra_loss], optimizer: {name: sgd, lr: 0.1}}
  - name: classifier
    epochs: 4
    batch_size: 16
    methods: [lws, afg, distillation]
    trainable: [classifier]
    cache: CACHE
    optimizer: {name: sgd, lr: 0.2, momentum: 0.9}
"""


LAST = "checkpoints/stage-1-classifier.safetensors"


def recipe(folder, cache="eval", confidence=0.6):
    path = folder / "r.yaml"
    path.write_text(RECIPE.replace("CACHE", cache).replace("CONFIDENCE", str(confidence)))
    return path


@pytest.mark.sampled(2)
@pytest.mark.parametrize("cache", ["off", "views:2"])
def test_a_run_killed_in_either_stage_goes_on_exactly(tmp_path, look_on, cache):
    """Resumed inside an epoch and a window, the bank is made again, and the confidence goes on and is logged alike."""
    file, saves = recipe(tmp_path, cache), []

    def copy(run, loop):
        saves.append(loop.stage.name)
        at = {"representation": 8, "classifier": 15}[loop.stage.name]
        if saves.count(loop.stage.name) == at:
            shutil.copytree(run.directory.path.parent, tmp_path / loop.stage.name / "r")

    look_on(checkpoint_written=copy)
    whole = ltcore.run(file, out=tmp_path / "whole")
    look_on()
    for killed in ("representation", "classifier"):
        resumed = ltcore.run(file, out=tmp_path / killed, resume=True)
        assert resumed.result["before_calibration"] == whole.result["before_calibration"]
        assert resumed.logits.tobytes() == whole.logits.tobytes()
        assert (whole.path / LAST).read_bytes() == (resumed.path / LAST).read_bytes()
        assert logged(whole.path) == logged(resumed.path)
    course = [line["afg"]["confidence"] for line in logged(whole.path)]
    assert len(course) == 4 and all(each[0] is None and None not in each[1:] for each in course)
    assert course[0] == course[1] != course[2] == course[3], "it moves between the second epoch and the third"


def logged(path):
    """What the methods of the second stage logged, epoch by epoch."""
    lines = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    return [line["methods"] for line in lines if line["stage"] == "classifier"]


def test_stage_two_begins_as_stage_one_ended(tmp_path, look_on):
    """LWS wraps stage one's classifier, and the teacher is stage one's model."""
    seen = []

    def look(run, loop):
        if loop.stage.name == "classifier":
            teacher = run.assembly.provider.frozen_model(None)
            x = torch.rand(5, loop.model.backbone.feature_dim)
            assert isinstance(loop.model.classifier, ScaledClassifier)
            assert torch.equal(loop.model.classifier(x), teacher.classifier(x))
            seen.append(teacher)

    look_on(stage_started=look)
    ltcore.run(recipe(tmp_path), out=tmp_path)
    assert len(seen) == 1


def test_nothing_depends_on_test_images(tmp_path, monkeypatch):
    """With other test images, the confidence and the trained weights are the same to the bit."""
    file = recipe(tmp_path)
    one, build = ltcore.run(file, out=tmp_path / "one"), Synthetic.build_data

    @hookimpl
    def build_data(self):
        splits = build(self)
        splits.test.images.bitwise_not_()
        return splits

    monkeypatch.setattr(Synthetic, "build_data", build_data)
    other = ltcore.run(file, out=tmp_path / "other")
    assert one.logits.tobytes() != other.logits.tobytes()
    assert (one.path / LAST).read_bytes() == (other.path / LAST).read_bytes()


def test_generated_features_help_the_tail_more_than_drawing_its_images_again():
    """Four images of a tail class in 30 dimensions: its neighbours' spread keeps the boundary off their noise."""
    torch.manual_seed(0)
    counts, dim = torch.tensor([300, 300, 4, 4]), 30
    centres = 10 + 0.7 * torch.randn(4, dim)

    def images(per_class):
        y = torch.repeat_interleave(torch.arange(4), per_class)
        return centres[y] + torch.randn(len(y), dim), y

    stage = Stage(AFG, counts=counts, dim=dim, head_images=100, power=1, confidence=0.3)
    stage.train, _ = images(counts)
    stage.start()
    test, labels = images(torch.full((4,), 300))

    def tail_accuracy(generate):
        torch.manual_seed(1)
        classifier = nn.Linear(dim, 4)
        optimizer = torch.optim.Adam(classifier.parameters(), lr=0.02)
        generator = torch.Generator().manual_seed(2)
        for step in range(200):
            label = torch.randint(4, (60,), generator=generator)
            first = torch.cumsum(counts, 0) - counts
            index = first[label] + (torch.rand(60, generator=generator) * counts[label]).long()
            record = stage.fold(index, step) if generate else stage.rows(index)
            loss = nn.functional.cross_entropy(classifier(record.features - 10), record.targets)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        guesses = classifier(test - 10).argmax(1)
        return [(guesses == labels)[pick].float().mean().item() for pick in (labels > 1, labels < 2)]

    (tail, head), (again, _) = tail_accuracy(True), tail_accuracy(False)
    assert tail > again + 0.03 and head > 0.8

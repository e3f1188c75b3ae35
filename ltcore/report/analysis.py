"""What ``--analysis`` computes of a run: all its images go through its models once more, and nothing is trained.

Some of it looks at test labels in a way that no result may (means of test features). It is for understanding a run. A
table shows it only in cells that ask for an analysis by name, and says so.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import normalize

from ltcore.contract.reported import ReportScatter, ReportTable
from ltcore.evaluation.outputs import logits_of
from ltcore.report.maps import plain_loader_features
from ltcore.report.sampling import embedded, fair_sample

if TYPE_CHECKING:
    from ltcore.contract.model import Model
    from ltcore.contract.recipe import Recipe
    from ltcore.contract.splits import ArraySplit, StreamedSplit
    from ltcore.data.prepare import PreparedData

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

#: Training images that are looked at, at most; drawn evenly over the classes.
TRAINING_IMAGES = 50_000
#: With more classes than these, matrices are left out: their cells could not be seen.
MATRIX_CLASSES = 500
#: Test images on the map of decisions, and rows of each panel that a method shows, at most.
POINTS = 500


@dataclass(frozen=True)
class Decisions:
    """What a classifier says of a split's images, averaged over the images of each class.

    Attributes:
        values: [C, C] mean logits, a row a true class; None with more than `MATRIX_CLASSES`. NaN without images.
        rates: [C, C] shares of the class's images that are taken for each class; None likewise.
        own: [C] the mean logit of the class itself.
    """

    values: Floats | None
    rates: Floats | None
    own: Floats


@dataclass(frozen=True)
class StagePredictions:
    """What the test images were taken for at the end of a stage.

    Attributes:
        name: the stage's.
        predictions: [N] int64.
        same_features: whether the backbone was then as it is at the run's end.
    """

    name: str
    predictions: Integers
    same_features: bool


@dataclass(frozen=True)
class MeansAccuracy:
    """How a classifier does on the test images.

    Attributes:
        name: the classifier.
        top1: accuracy.
        balanced: mean accuracy of the classes that have test images.
    """

    name: str
    top1: float
    balanced: float


@dataclass(frozen=True)
class DecisionMap:
    """Some test images in two dimensions, with what each stage takes them for.

    Attributes:
        points: [N, 2].
        targets: [N] int64.
        said: by stage, [N] int64; a stage that says what the one before it says is left out.
        chosen: the labels whose images they are, in the order of the colours.
    """

    points: Floats
    targets: Integers
    said: dict[str, Integers]
    chosen: tuple[int, ...]


@dataclass(frozen=True)
class Offered:
    """What a method shows of itself.

    Attributes:
        method: its name in the recipe.
        content: a table or vectors.
        panels: of vectors, by panel: points [N, 2] and labels [N].
        apart: of vectors, by panel, their mean silhouette; NaN where there is a single class.
    """

    method: str
    content: ReportTable | ReportScatter
    panels: dict[str, tuple[Floats, Integers]] = field(default_factory=dict)
    apart: dict[str, float] = field(default_factory=dict)


@dataclass
class Analysis:
    """All of it, as far as it could be computed."""

    train: Decisions | None = None
    test: Decisions | None = None
    images: int = 0
    means: list[MeansAccuracy] = field(default_factory=list)
    stages: list[StagePredictions] = field(default_factory=list)
    decisions: DecisionMap | None = None
    offered: list[Offered] = field(default_factory=list)

    def plain(self, targets: Integers, num_classes: int) -> dict[str, Any]:
        """For the page's data; numbers have six digits."""
        small = num_classes <= MATRIX_CLASSES // 5
        return {
            "own_decision_values": {name: _plain(each.own) for name, each in self._splits()},
            "decision_values": {name: _plain(each.values) for name, each in self._splits()} if small else None,
            "confusion_by_stage": {
                each.name: confusion(targets, each.predictions, num_classes).tolist() for each in self.stages
            }
            if small
            else None,
            "class_means": [{"name": each.name, "top1": each.top1, "balanced": each.balanced} for each in self.means],
        }

    def _splits(self) -> list[tuple[str, Decisions]]:
        return [(name, each) for name, each in (("train", self.train), ("test", self.test)) if each]


def decisions(logits: Tensor, targets: Tensor, num_classes: int) -> Decisions:
    """Means over the images of each class, in float64.

    Args:
        logits: [N, C].
        targets: [N] int64.
        num_classes: C.
    """
    counts = torch.bincount(targets, minlength=num_classes).double()
    own = torch.zeros(num_classes, dtype=torch.float64)
    own.index_add_(0, targets, logits.double().gather(1, targets[:, None])[:, 0])
    if num_classes > MATRIX_CLASSES:
        return Decisions(None, None, (own / counts).numpy())
    sums = torch.zeros(num_classes, num_classes, dtype=torch.float64).index_add_(0, targets, logits.double())
    said = confusion(targets.numpy(), logits.argmax(1).numpy(), num_classes)
    with np.errstate(invalid="ignore"):
        rates = said / counts.numpy()[:, None]
    return Decisions((sums / counts[:, None]).numpy(), rates, (own / counts).numpy())


def confusion(targets: Integers, predictions: Integers, num_classes: int) -> Integers:
    """[C, C] numbers of images: a row a true class, a column a prediction."""
    cells = np.bincount(targets * num_classes + predictions, minlength=num_classes**2)
    return cells.reshape(num_classes, num_classes)


def class_mean_predictions(centres: Tensor, centre_targets: Tensor, features: Tensor, num_classes: int) -> Integers:
    """What the nearest class mean takes features for (CDT, table 1; Kang et al. 2020, section 4).

    Features are scaled to unit length, averaged over each class, and the means scaled again, so that the smallest
    distance and the largest cosine are the same class. A class without features has no mean and is never said.

    Args:
        centres: [M, D] whose means are taken.
        centre_targets: [M] int64.
        features: [N, D].
        num_classes: C.

    Returns:
        [N] int64.
    """
    unit = normalize(centres.double())
    sums = torch.zeros(num_classes, unit.shape[1], dtype=torch.float64).index_add_(0, centre_targets, unit)
    empty = torch.bincount(centre_targets, minlength=num_classes) == 0
    cosines = normalize(features.double()) @ normalize(sums).T
    found: Integers = cosines.masked_fill(empty, -torch.inf).argmax(1).numpy()
    return found


def accuracy(name: str, predictions: Integers, targets: Integers) -> MeansAccuracy:
    """Figures of predictions [N]."""
    right = predictions == targets
    each = [right[targets == label].mean() for label in np.unique(targets)]
    return MeansAccuracy(name, float(right.mean()), float(np.mean(each)))


def of_result(
    model: Model,
    data: PreparedData,
    recipe: Recipe,
    stages: Sequence[StagePredictions],
) -> tuple[Analysis, Tensor]:
    """Look at a run's final model.

    Args:
        model: with the calibrated classifier.
        data: the run's data.
        recipe: as it was trained.
        stages: what the test images were taken for at each stage's end, and after calibration.

    Returns:
        The analysis, and the features [N, D] of all test images.

    Raises:
        LtcoreError: the images cannot be read.
    """
    assert data.test is not None
    size = len(data.class_names)
    train = data.train
    if len(train) > TRAINING_IMAGES:
        train = train.subset(torch.from_numpy(fair_sample(train.targets.numpy(), TRAINING_IMAGES)))
    found = Analysis(images=len(train), stages=list(stages))
    of_training, logits = _outputs(model, train, data, recipe)
    found.train = decisions(logits, train.targets, size)
    of_test, logits = _outputs(model, data.test, data, recipe)
    found.test = decisions(logits, data.test.targets, size)
    targets = data.test.targets.numpy()
    found.means = [accuracy("the run's own classifier", logits.argmax(1).numpy(), targets)]
    said = class_mean_predictions(of_training.flatten(1), train.targets, of_test.flatten(1), size)
    found.means.append(accuracy("nearest mean of training features", said, targets))
    found.means.append(_of_test_means(of_test, data))
    return found, of_test.flatten(1)


def test_means(model: Model, data: PreparedData, recipe: Recipe) -> MeansAccuracy:
    """The nearest mean of test features alone, as in `of_result`. It uses test labels, and is never a result.

    Raises:
        LtcoreError: the images cannot be read.
    """
    assert data.test is not None
    return _of_test_means(plain_loader_features(model, data.test, data, recipe), data)


def _of_test_means(features: Tensor, data: PreparedData) -> MeansAccuracy:
    assert data.test is not None
    rows, targets = features.flatten(1), data.test.targets
    said = class_mean_predictions(rows, targets, rows, len(data.class_names))
    return accuracy("nearest mean of test features", said, targets.numpy())


def offered(method: str, content: ReportTable | ReportScatter, mapped: bool) -> Offered | None:
    """What a method shows, brought to two dimensions where it is vectors; None where that is not wanted.

    Raises:
        DataError: there are too few vectors.
    """
    from sklearn.metrics import silhouette_score

    if isinstance(content, ReportTable):
        return Offered(method, content)
    if not mapped:
        return None
    rows, labels, ends = [], [], [0]
    for vectors, targets in content.panels.values():
        some = fair_sample(targets.cpu().numpy(), POINTS)
        rows.append(vectors.detach().float().cpu().numpy()[some])
        labels.append(targets.cpu().numpy()[some])
        ends.append(ends[-1] + len(some))
    points = embedded(np.concatenate(rows))
    places = zip(content.panels, labels, ends, ends[1:], strict=False)
    panels = {name: (points[start:stop], own) for name, own, start, stop in places}
    apart = {}
    for name, drawn, own in zip(content.panels, rows, labels, strict=True):
        several = 1 < len(np.unique(own)) < len(own)
        apart[name] = float(silhouette_score(drawn, own)) if several else float("nan")
    return Offered(method, content, panels, apart)


def _outputs(
    model: Model, split: ArraySplit | StreamedSplit, data: PreparedData, recipe: Recipe
) -> tuple[Tensor, Tensor]:
    """Pooled features [N, D], or [N, E, D] of experts, and logits [N, C] of all images of a split."""
    pooled = plain_loader_features(model, split, data, recipe)
    return pooled, logits_of(model.classifier, pooled, recipe.eval_batch_size)


def decision_map(
    features: Tensor, targets: Integers, stages: Sequence[StagePredictions], chosen: Sequence[int]
) -> DecisionMap:
    """A map of test images of the chosen classes, with what those stages say that had the features of the end.

    Args:
        features: [N, D] of all test images at the run's end.
        targets: [N] int64.
        stages: what the images were taken for.
        chosen: the labels.

    Raises:
        DataError: there are too few images.
    """
    some = fair_sample(targets, POINTS, chosen)
    points = embedded(features.numpy()[some])
    said: dict[str, Integers] = {}
    for each in stages:
        found = each.predictions[some]
        if each.same_features and not (said and np.array_equal(found, list(said.values())[-1])):
            said[each.name] = found
    return DecisionMap(points, targets[some], said, tuple(chosen))


def _plain(values: Floats | None) -> Any:
    if values is None:
        return None
    rounded = [None if np.isnan(value) else float(f"{value:.6g}") for value in values.ravel().tolist()]
    return np.array(rounded, dtype=object).reshape(values.shape).tolist()

"""What ``--analysis`` computes of a run: all its images go through its models once more, and nothing is trained.

Some of it looks at test labels in a way that no result may (means of test features). It is for understanding a run. A
table shows it only in cells that ask for an analysis by name, and says so.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

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
    from ltcore.data.prepare import PreparedData

Floats: TypeAlias = NDArray[np.float64]
Integers: TypeAlias = NDArray[np.int64]

#: Training images that are looked at, at most; drawn evenly over the classes.
TRAINING_IMAGES = 50_000
#: With more classes than these, matrices are left out: their cells could not be seen.
MATRIX_CLASSES = 500
#: Test images on the map of decisions, and rows of each panel that a method shows, at most.
POINTS = 500


@dataclass(frozen=True)
class Decisions:
    """What a classifier says of a split's images, averaged over the images of each class; NaN without images."""

    values: Floats | None  # [C, C] mean logits, a row a true class; None with more than `MATRIX_CLASSES`
    rates: Floats | None  # [C, C] shares of the class's images that are taken for each class; None likewise
    own: Floats  # [C] the mean logit of the class itself


@dataclass(frozen=True)
class StagePredictions:
    """What the test images were taken for at the end of a stage."""

    name: str
    predictions: Integers  # [N]
    same_features: bool  # whether the backbone was then as it is at the run's end


@dataclass(frozen=True)
class MeansAccuracy:
    """How a classifier does on the test images."""

    name: str
    top1: float
    balanced: float  # mean accuracy of the classes that have test images


@dataclass(frozen=True)
class DecisionMap:
    """Some test images in two dimensions, with what each stage takes them for."""

    points: Floats  # [N, 2]
    targets: Integers  # [N]
    said: dict[str, Integers]  # by stage, [N]; a stage that says what the one before it says is left out
    chosen: tuple[int, ...]  # the labels whose images they are, in the order of the colours


@dataclass(frozen=True)
class Offered:
    """What a method shows of itself, by its name in the recipe."""

    method: str
    content: ReportTable | ReportScatter
    panels: dict[str, tuple[Floats, Integers]] = field(default_factory=dict)  # of vectors: points [N, 2], labels [N]
    apart: dict[str, float] = field(default_factory=dict)  # their mean silhouettes; NaN where there is a single class


@dataclass
class Analysis:
    """All of it, as far as it was asked for and could be computed."""

    train: Decisions | None = None
    test: Decisions | None = None
    images: int = 0  # training images that were looked at
    means: list[MeansAccuracy] = field(default_factory=list)
    stages: list[StagePredictions] = field(default_factory=list)  # at each stage's end, and after calibration
    decisions: DecisionMap | None = None
    offered: list[Offered] = field(default_factory=list)

    def look(self, model: Model, data: PreparedData, recipe: Recipe) -> Tensor:
        """Look at a run's final model, with the calibrated classifier.

        Returns:
            The features [N, D] of all test images.

        Raises:
            LtcoreError: the images cannot be read.
        """
        assert data.test is not None
        size, train, test = len(data.class_names), data.train, data.test
        if len(train) > TRAINING_IMAGES:
            train = train.subset(torch.from_numpy(fair_sample(train.targets.numpy(), TRAINING_IMAGES)))
        self.images = len(train)
        of_training, of_test = (plain_loader_features(model, split, data, recipe) for split in (train, test))
        logits = logits_of(model.classifier, of_training, recipe.eval_batch_size)
        self.train = decisions(logits, train.targets, size)
        logits = logits_of(model.classifier, of_test, recipe.eval_batch_size)
        self.test = decisions(logits, test.targets, size)
        targets, features = test.targets.numpy(), of_test.flatten(1)
        self.means = [accuracy("the run's own classifier", logits.argmax(1).numpy(), targets)]
        said = class_mean_predictions(of_training.flatten(1), train.targets, features, size)
        self.means.append(accuracy("nearest mean of training features", said, targets))
        self.means.append(_of_test_means(of_test, data))
        return features

    def plain(self, targets: Integers, num_classes: int) -> dict[str, Any]:
        """For the page's data; numbers have six digits."""
        splits = {name: each for name, each in (("train", self.train), ("test", self.test)) if each}
        found: dict[str, Any] = {
            "own_decision_values": {name: _plain(each.own) for name, each in splits.items()},
            "class_means": [{"name": each.name, "top1": each.top1, "balanced": each.balanced} for each in self.means],
        }
        if num_classes <= MATRIX_CLASSES // 5:
            found["decision_values"] = {name: _plain(each.values) for name, each in splits.items()}
            found["confusion_by_stage"] = {
                each.name: confusion(targets, each.predictions, num_classes).tolist() for each in self.stages
            }
        return found


def test_means(model: Model, data: PreparedData, recipe: Recipe) -> MeansAccuracy:
    """The nearest mean of test features alone, as in `Analysis.look`. It uses test labels, and is never a result.

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


def decisions(logits: Tensor, targets: Tensor, num_classes: int) -> Decisions:
    """Means over the images of each class, in float64, from logits [N, C] and targets [N] int64."""
    counts = torch.bincount(targets, minlength=num_classes).double()
    own = torch.zeros(num_classes, dtype=torch.float64)
    own.index_add_(0, targets, logits.double().gather(1, targets[:, None])[:, 0])
    if num_classes > MATRIX_CLASSES:
        return Decisions(None, None, (own / counts).numpy())
    sums = torch.zeros(num_classes, num_classes, dtype=torch.float64).index_add_(0, targets, logits.double())
    rates = shares(confusion(targets.numpy(), logits.argmax(1).numpy(), num_classes))
    return Decisions((sums / counts[:, None]).numpy(), rates, (own / counts).numpy())


def confusion(targets: Integers, predictions: Integers, num_classes: int) -> Integers:
    """[C, C] numbers of images: a row a true class, a column a prediction."""
    cells = np.bincount(targets * num_classes + predictions, minlength=num_classes**2)
    return cells.reshape(num_classes, num_classes)


def shares(said: Integers) -> Floats:
    """The cells [C, C] of a confusion matrix as shares of each class's images; NaN for a class without images."""
    with np.errstate(invalid="ignore"):
        return said / said.sum(1, keepdims=True)  # type: ignore[no-any-return]


def class_mean_predictions(centres: Tensor, centre_targets: Tensor, features: Tensor, num_classes: int) -> Integers:
    """What the nearest class mean takes features [N, D] for: [N] (CDT, table 1; Kang et al. 2020, section 4).

    The centres [M, D] are scaled to unit length, averaged over each class of their targets [M], and the means scaled
    again, so that the smallest distance and the largest cosine are the same class. A class without centres has no mean
    and is never said.
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
    chosen = {name: fair_sample(targets.cpu().numpy(), POINTS) for name, (_, targets) in content.panels.items()}
    rows = {name: content.panels[name][0].detach().float().cpu().numpy()[some] for name, some in chosen.items()}
    labels = {name: content.panels[name][1].cpu().numpy()[some] for name, some in chosen.items()}
    points = np.split(
        embedded(np.concatenate(list(rows.values()))), np.cumsum([len(row) for row in rows.values()])[:-1]
    )
    apart = {
        name: float(silhouette_score(rows[name], own)) if 1 < len(np.unique(own)) < len(own) else float("nan")
        for name, own in labels.items()
    }
    return Offered(method, content, dict(zip(rows, zip(points, labels.values(), strict=True), strict=True)), apart)


def decision_map(
    features: Tensor, targets: Integers, stages: Sequence[StagePredictions], chosen: Sequence[int]
) -> DecisionMap:
    """A map of test images of the chosen classes, with what those stages say that had the features of the end.

    The features [N, D] and the targets [N] are those of all test images at the run's end.

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

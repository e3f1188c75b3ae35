"""What a report shows of a run's images and model: a map of features, and examples of the hardest classes."""

from __future__ import annotations

import base64
import io
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from ltcore.contract.splits import ArraySplit
from ltcore.data.pixels import converted, upright
from ltcore.data.streaming import ArrayImages, build_loader, worker_count
from ltcore.errors import DataError, LtcoreError
from ltcore.evaluation.outputs import pooled_features
from ltcore.runs.saved import load

if TYPE_CHECKING:
    from PIL.Image import Image

    from ltcore.contract.splits import StreamedSplit
    from ltcore.data.prepare import PreparedData
    from ltcore.data.transforms import ImageTransform
    from ltcore.report.data import ReportedRun
    from ltcore.runs.saved import SavedRun

#: Training and test images whose features are mapped, at most so many of each.
SAMPLES = 500
#: Classes shown as the hardest, and example images of each.
CLASSES, EXAMPLES = 9, 4
SEED = 0

_THUMBNAIL = 96  # pixels of a side
_LOSSLESS = 32  # images up to this size are kept as they are: a few hundred bytes, where JPEG would blur
_FEWEST = 5  # points that t-SNE can arrange


@dataclass(frozen=True)
class FeatureMap:
    """Features of training and test images, brought to two dimensions by t-SNE.

    Attributes:
        points: [N, 2].
        labels: [N] int64.
        tested: [N] bool; test images.
    """

    points: NDArray[np.float64]
    labels: NDArray[np.int64]
    tested: NDArray[np.bool_]


@dataclass(frozen=True)
class Example:
    """A test image that was taken for another class.

    Attributes:
        index: its place in the test split.
        said: the class it was taken for.
        image: its picture as a data URI; None where there is none.
        small: whether the picture is so small that its pixels should be seen as squares.
    """

    index: int
    said: int
    image: str | None = None
    small: bool = False


@dataclass(frozen=True)
class HardClass:
    """A class that the run recognises least.

    Attributes:
        label: the class.
        images: its test images.
        right: how many of them are recognised.
        taken_for: other classes and how many images were taken for them, the most frequent first.
        examples: some of these images.
    """

    label: int
    images: int
    right: int
    taken_for: list[tuple[int, int]]
    examples: list[Example]


@dataclass
class Material:
    """What was found out about a run, and why something is missing."""

    features: FeatureMap | None = None
    hardest: list[HardClass] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def gather(run: ReportedRun, features: bool, images: bool, run_code: bool = False) -> Material:
    """Look at a run's images and model.

    Args:
        run: the run.
        features: whether to map features, for which the model is rebuilt.
        images: whether to show example images.
        run_code: see `ltcore.load`.
    """
    found = Material()
    if run.predictions is None:
        return found
    found.hardest = hardest(run)
    if not (features or images):
        return found
    saved = load(run.path, run_code)
    try:
        data = saved.read_data()
    except LtcoreError as error:
        found.notes.append(f"{run.path}: no feature map and no example images, for the data cannot be read: {error}")
        return found
    if not _is_the_same(data, run):
        found.notes.append(f"{run.path}: no feature map and no example images, for the data is not what it was")
        return found
    if images:
        found.hardest = [_with_images(each, data) for each in found.hardest]
    if features:
        try:
            found.features = map_features(saved, data)
        except LtcoreError as error:
            found.notes.append(f"{run.path}: no feature map: {error}")
    return found


def _is_the_same(data: PreparedData, run: ReportedRun) -> bool:
    """Whether the classes, their training images and the test labels are what they were when the run was trained."""
    assert run.predictions is not None
    return (
        data.test is not None
        and list(data.class_names) == run.names
        and data.class_counts.tolist() == run.counts
        and data.test.targets.tolist() == run.predictions.targets.tolist()
    )


def hardest(run: ReportedRun) -> list[HardClass]:
    """The classes with the lowest accuracy that have an error at all; of equal ones, the rarer first."""
    assert run.predictions is not None and run.result is not None
    targets, said = run.predictions.targets, run.predictions.after.predictions
    accuracy = run.result["after_calibration"]["per_class_accuracy"]
    known = [(value, run.counts[label], label) for label, value in enumerate(accuracy) if value is not None]
    found = []
    for label in [label for value, _, label in sorted(known) if value < 1][:CLASSES]:
        own = np.flatnonzero(targets == label)
        missed = own[said[own] != label]
        taken_for = sorted(Counter(said[missed].tolist()).items(), key=lambda pair: (-pair[1], pair[0]))
        # One image of each class that it was taken for, then a second of each, and so on.
        places = {other: rank for rank, (other, _) in enumerate(taken_for)}
        place = np.array([places[other] for other in said[missed].tolist()])
        order = np.lexsort((place, rank_within(said[missed])))
        examples = [Example(int(index), int(said[index])) for index in missed[order][:EXAMPLES]]
        found.append(HardClass(label, len(own), len(own) - len(missed), taken_for, examples))
    return found


def rank_within(labels: NDArray[np.int64]) -> NDArray[np.int64]:
    """For each of N labels, how many of the same stand before it."""
    order = np.argsort(labels, kind="stable")
    ordered = labels[order]
    ranks = np.empty_like(labels)
    ranks[order] = np.arange(len(labels)) - np.searchsorted(ordered, ordered)
    return ranks


def fair_sample(labels: NDArray[np.int64], most: int) -> NDArray[np.int64]:
    """Places of at most so many of N labels, an equal number of each as far as there are; drawn with a fixed seed."""
    drawn = np.random.default_rng(SEED).permutation(len(labels))
    return np.sort(drawn[np.argsort(rank_within(labels[drawn]), kind="stable")][:most])


def map_features(saved: SavedRun, data: PreparedData) -> FeatureMap:
    """t-SNE of the backbone's pooled features of at most `SAMPLES` training and as many test images.

    Raises:
        LtcoreError: the model cannot be rebuilt, or there are too few images.
    """
    from sklearn.manifold import TSNE

    assert data.test is not None
    rows, labels, tested = [], [], []
    for split in (data.train, data.test):
        chosen = torch.from_numpy(fair_sample(split.targets.numpy(), SAMPLES))
        part = split.subset(chosen)
        workers = 0 if isinstance(part, ArraySplit) else worker_count(saved.recipe.data.workers)
        device = torch.device("cpu")
        loader = build_loader(part, data.transform, data.mean, data.std, workers, device, training=False)
        rows.append(pooled_features(saved.model, loader, saved.recipe.eval_batch_size).flatten(1).numpy())
        labels.append(part.targets.numpy())
        tested.append(np.full(len(part), split is data.test))
    features = np.concatenate(rows)
    if len(features) < _FEWEST:
        raise DataError(f"t-SNE needs {_FEWEST} images, and there are {len(features)}")
    start = "pca" if features.shape[1] > 1 else "random"
    # 30 neighbours as in van der Maaten and Hinton (2008); the perplexity must stay below the number of points.
    tsne = TSNE(perplexity=min(30, (len(features) - 1) / 3), init=start, random_state=SEED)
    return FeatureMap(tsne.fit_transform(features), np.concatenate(labels), np.concatenate(tested))


def _with_images(found: HardClass, data: PreparedData) -> HardClass:
    assert data.test is not None
    channels = len(data.mean)
    if channels not in (1, 3):
        return found  # such images have no picture
    split = ArrayImages(data.test) if isinstance(data.test, ArraySplit) else data.test
    examples = [_pictured(each, split, data.transform) for each in found.examples]
    return HardClass(found.label, found.images, found.right, found.taken_for, examples)


def _pictured(example: Example, split: StreamedSplit | ArrayImages, transform: ImageTransform) -> Example:
    try:
        image = split.open(example.index)
        image.draft(None, (2 * _THUMBNAIL, 2 * _THUMBNAIL))
        image = converted(upright(image), transform.mode, transform.window)
    except Exception:  # the file has gone since the run, or is damaged, for which Pillow has many exceptions
        return example
    image.thumbnail((_THUMBNAIL, _THUMBNAIL))
    small = max(image.size) <= _LOSSLESS
    return Example(example.index, example.said, _data_uri(image, small), small)


def _data_uri(image: Image, lossless: bool) -> str:
    held = io.BytesIO()
    if lossless:
        image.save(held, "PNG", optimize=True)
    else:
        image.save(held, "JPEG", quality=80)
    kind = "png" if lossless else "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(held.getvalue()).decode()}"

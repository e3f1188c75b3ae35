"""Maps of features: training and test images, and the rows that methods make, brought to two dimensions together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from ltcore.contract.splits import ArraySplit
from ltcore.data.streaming import build_loader, worker_count
from ltcore.evaluation.outputs import pooled_features
from ltcore.report.sampling import embedded, fair_sample

if TYPE_CHECKING:
    from ltcore.contract.model import Model
    from ltcore.contract.recipe import Recipe
    from ltcore.contract.splits import StreamedSplit
    from ltcore.data.prepare import PreparedData
    from ltcore.runs.reopening import Made, StageEnd

#: Training images, test images and made rows whose features are mapped, at most so many of each.
SAMPLES = 500
#: Images that go through the network for made rows: at most so many, and where classes are chosen, so many.
MAKING, MAKING_CHOSEN = 1_000, 5_000

#: What a point of a map is.
TRAINING, TEST, MADE = range(3)


@dataclass(frozen=True)
class FeatureMap:
    """Features brought to two dimensions by t-SNE."""

    title: str  # whose they are
    points: NDArray[np.float64]  # [N, 2]
    labels: NDArray[np.int64]  # [N]
    kinds: NDArray[np.int64]  # [N], `TRAINING`, `TEST` or `MADE`
    methods: tuple[str, ...] = ()  # whose the made rows are, by names in the recipe; empty where there are none
    chosen: tuple[int, ...] = ()  # the labels that were asked for, in that order; empty where all classes are mapped


def plain_loader_features(
    model: Model, part: ArraySplit | StreamedSplit, data: PreparedData, recipe: Recipe
) -> torch.Tensor:
    """Pooled features of images without augmentation, on the CPU: [N, D], or [N, E, D] of experts."""
    workers = 0 if isinstance(part, ArraySplit) else worker_count(recipe.data.workers)
    loader = build_loader(part, data.transform, data.mean, data.std, workers, torch.device("cpu"), training=False)
    return pooled_features(model, loader, recipe.eval_batch_size)


def of_result(model: Model, data: PreparedData, recipe: Recipe, chosen: Sequence[int]) -> FeatureMap:
    """The map of a run's final model.

    Raises:
        LtcoreError: there are too few images, or they cannot be read.
    """
    return _mapped("Features at the end of the last stage", model, data, recipe, chosen, None)


def of_stage(end: StageEnd, data: PreparedData, chosen: Sequence[int]) -> FeatureMap | None:
    """The map of a stage whose methods make rows, with some of them; None where they make none.

    Raises:
        LtcoreError: a method fails, or there are too few images.
    """
    made = end.made_rows(MAKING_CHOSEN if chosen else MAKING, SAMPLES, chosen or None)
    if made is None:
        return None
    title = f"Features after '{end.name}', with made rows"
    return _mapped(title, end.assembly.model, data, end.assembly.recipe, chosen, made)


def _mapped(
    title: str, model: Model, data: PreparedData, recipe: Recipe, chosen: Sequence[int], made: Made | None
) -> FeatureMap:
    assert data.test is not None
    rows, labels, kinds = [], [], []
    for kind, split in ((TRAINING, data.train), (TEST, data.test)):
        places = torch.from_numpy(fair_sample(split.targets.numpy(), SAMPLES, chosen or None))
        part = split.subset(places)
        found = plain_loader_features(model, part, data, recipe)
        # A made row is one expert's; so then are those that it is drawn beside.
        rows.append((found[:, 0] if made and found.dim() == 3 else found.flatten(1)).numpy())
        labels.append(part.targets.numpy())
        kinds.append(np.full(len(part), kind))
    if made is not None:
        some = fair_sample(made.targets.numpy(), SAMPLES)
        rows.append(made.features.numpy()[some])
        labels.append(made.targets.numpy()[some])
        kinds.append(np.full(len(some), MADE))
    points = embedded(np.concatenate(rows))
    methods = made.methods if made else ()
    return FeatureMap(title, points, np.concatenate(labels), np.concatenate(kinds), methods, tuple(chosen))

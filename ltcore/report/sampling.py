"""A fair choice of images, the same in every report, and their way to two dimensions."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ltcore.errors import DataError

SEED = 0
_FEWEST = 5  # points that t-SNE can arrange


def rank_within(labels: NDArray[np.int64]) -> NDArray[np.int64]:
    """For each of N labels, how many of the same stand before it."""
    order = np.argsort(labels, kind="stable")
    ordered = labels[order]
    ranks = np.empty_like(labels)
    ranks[order] = np.arange(len(labels)) - np.searchsorted(ordered, ordered)
    return ranks


def fair_sample(labels: NDArray[np.int64], most: int, classes: Sequence[int] | None = None) -> NDArray[np.int64]:
    """Places of at most so many of N labels, an equal number of each as far as there are; drawn with a fixed seed.

    Where classes are named, all are of these.
    """
    drawn = np.random.default_rng(SEED).permutation(len(labels))
    if classes is not None:
        drawn = drawn[np.isin(labels[drawn], list(classes))]
    return np.sort(drawn[np.argsort(rank_within(labels[drawn]), kind="stable")][:most])


def embedded(features: NDArray[np.float32]) -> NDArray[np.float64]:
    """t-SNE of features [N, D] to [N, 2], with a fixed seed.

    Raises:
        DataError: there are too few.
    """
    from sklearn.manifold import TSNE

    if len(features) < _FEWEST:
        raise DataError(f"t-SNE needs {_FEWEST} points, and there are {len(features)}")
    start = "pca" if features.shape[1] > 1 else "random"
    # 30 neighbours as in van der Maaten and Hinton (2008); the perplexity must stay below the number of points.
    tsne = TSNE(perplexity=min(30, (len(features) - 1) / 3), init=start, random_state=SEED)
    found: NDArray[np.float64] = tsne.fit_transform(features).astype(np.float64)
    return found

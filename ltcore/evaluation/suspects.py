"""Labels that are likely wrong: confident learning (Northcutt, Jiang, Chuang, JAIR 70, 2021) from held-out folds.

Each image is judged by a classifier that was not fitted to it. An image counts for the likeliest class whose
probability is at least what images of that class have on average (the class's threshold; section 3.1, eq. 1 and 2). It
is a suspect where this is another class than its label. Because every class has its own threshold, a class that the
classifier is never sure of is not suspect as a whole.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ltcore.seeding import derive_seed

Floats = NDArray[np.floating]
Integers = NDArray[np.int64]

#: Penalties that are tried, the strongest first, until one is worse; scikit-learn's C is 1 / (images x penalty).
_PENALTIES = (1.0, 0.1, 0.01, 0.001)
#: A feature is divided by its standard deviation, and this share of the mean variance, so that rounding stays small.
_FLOOR = 0.01


@dataclass(frozen=True)
class Suspects:
    """Images whose label is likely wrong, the most suspicious first.

    Attributes:
        places: [S] int64, where they stand.
        likely: [S] int64, the classes that they look like.
        margin: [N] float64, the probability of each image's label less that of the likeliest other class; NaN of those
            that were not judged.
        capped: classes of which more than half were suspects; only the more suspicious half is kept. Their images are
            badly recognised, which says nothing of labels.
    """

    places: Integers
    likely: Integers
    margin: Floats
    capped: tuple[int, ...]


def folds_of(targets: Integers, folds: int, seed: int) -> Integers:
    """The fold in which each image is held out, [N]; -1 for the only image of a class, which is never held out.

    A class's images are spread over the folds as evenly as they can be. So every class has an image outside of each
    fold.

    Args:
        targets: [N] int64.
        folds: K, at least 2.
        seed: the folds are a function of it and of `targets`.
    """
    random = np.random.default_rng(derive_seed(seed, "suspects", "folds"))
    order = np.lexsort((random.random(len(targets)), targets))
    found = np.empty(len(targets), dtype=np.int64)
    found[order] = np.arange(len(targets)) % folds
    found[np.bincount(targets)[targets] == 1] = -1
    return found


def held_out_probabilities(features: Floats, targets: Integers, num_classes: int, folds: Integers) -> Floats:
    """Probabilities [N, C] float64 of each image by a classifier that was fitted to the other folds' images.

    It is logistic regression on standardised features in which every class counts alike. Of a few penalties, that with
    the smallest log loss on the held-out images is taken, every class counted alike there, too.

    Args:
        features: [N, D], finite.
        targets: [N] int64, each of the C classes at least once.
        num_classes: C.
        folds: [N], see `folds_of`; the rows of images that are never held out are NaN.
    """
    rows = features - features.mean(0)
    variance = rows.var(0)
    rows /= np.sqrt(variance + _FLOOR * variance.mean() + np.finfo(rows.dtype).tiny)
    judged = folds >= 0
    weights = (1 / np.bincount(targets[judged], minlength=num_classes).clip(1))[targets[judged]]
    best: Floats = np.empty(0)
    smallest = np.inf
    for penalty in _PENALTIES:
        found = _by_folds(rows, targets, num_classes, folds, penalty)
        own = found[judged, targets[judged]]
        loss = float(np.average(-np.log(own.clip(1e-12)), weights=weights))
        if loss >= smallest:
            break
        best, smallest = found, loss
    return best


def _by_folds(rows: Floats, targets: Integers, num_classes: int, folds: Integers, penalty: float) -> Floats:
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    found = np.full((len(targets), num_classes), np.nan)
    for fold in np.unique(folds[folds >= 0]):  # with few images some are empty
        held = folds == fold
        strength = 1 / ((~held).sum() * penalty)
        fitted = LogisticRegression(C=strength, class_weight="balanced", max_iter=300, tol=1e-3)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # a fit that ends early regularises a little more
            fitted.fit(rows[~held], targets[~held])
        found[held] = fitted.predict_proba(rows[held])
    return found


def find_suspects(probabilities: Floats, targets: Integers) -> Suspects:
    """Images whose label is likely wrong.

    As in section 3.1, and with the two conditions that an estimate of noise needs. The label is not the likeliest
    class all the same. And no more than half of a class are suspects, because the method assumes that most labels of a
    class are right (section 2).

    Args:
        probabilities: [N, C] of images that the classifier has not seen; rows of NaN are not judged.
        targets: [N] int64.
    """
    judged = np.flatnonzero(~np.isnan(probabilities[:, 0]))
    shares, labels = probabilities[judged], targets[judged]
    own = shares[np.arange(len(labels)), labels]
    counts = np.bincount(labels, minlength=shares.shape[1])
    sums = np.bincount(labels, own, minlength=shares.shape[1])
    with np.errstate(invalid="ignore", divide="ignore"):
        thresholds = np.where(counts > 0, sums / counts, np.inf)
    confident = np.where(shares >= thresholds, shares, -1.0)
    likely = confident.argmax(1)
    others = shares.copy()
    others[np.arange(len(labels)), labels] = -1.0
    margins = own - others.max(1)
    suspect = (confident.max(1) >= 0) & (likely != labels) & (margins < 0)
    order = np.argsort(margins, kind="stable")
    order = order[suspect[order]]
    kept, seen = [], np.zeros(shares.shape[1], dtype=np.int64)
    for place in order.tolist():
        seen[labels[place]] += 1
        if seen[labels[place]] <= counts[labels[place]] // 2:
            kept.append(place)
    margin = np.full(len(targets), np.nan)
    margin[judged] = margins
    capped = tuple(np.flatnonzero(seen > counts // 2).tolist())
    return Suspects(judged[kept], likely[kept], margin, capped)

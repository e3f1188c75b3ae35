"""How a long tail is cut from a training split: how many images each class keeps, and which.

Both rules are those of the published tables, so that the kept images are the very same ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, model_validator

from ltcore.errors import DataError

IntArray = NDArray[np.int64]


class Imbalance(BaseModel):
    """How many training images each class keeps."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)

    kind: Literal["none", "exponential", "step", "balanced_like", "counts"] = "none"
    """`none` keeps every image; `exponential` falls from the first class to the last; `step` keeps the first half of
    the classes and cuts the rest; `balanced_like` keeps as many images in all as `exponential` would, spread evenly
    over the classes (CDT, table 5); `counts` takes the numbers from `counts`."""
    factor: float | None = Field(default=None, ge=1)
    """Largest class over smallest class, for `exponential`, `step` and `balanced_like` (of the tail it stands for)."""
    counts: list[int] | None = None
    """Images of each class, in label order, for `counts`."""
    max_count: int | None = Field(default=None, ge=1)
    """Images of the largest class, for `exponential`, `step` and `balanced_like`; by default as many as the smallest
    class has."""
    seed: int = Field(default=0, ge=0, lt=2**32 - 1)
    """Seed of NumPy's legacy generator, which chooses the images. The published tables use 0."""

    @model_validator(mode="after")
    def _complete(self) -> Imbalance:
        by_factor = self.kind in ("exponential", "step", "balanced_like")
        if by_factor and self.factor is None:
            raise ValueError(
                f"kind '{self.kind}' needs a factor (largest class over smallest), for example factor: 100"
            )
        if not by_factor:
            for name in ("factor", "max_count"):
                if getattr(self, name) is not None:
                    raise ValueError(
                        f"{name} belongs to kind 'exponential', 'step' or 'balanced_like', but kind is '{self.kind}'"
                    )
        if self.kind == "counts" and not self.counts:
            raise ValueError("kind 'counts' needs counts: the images to keep of each class, in label order")
        if self.kind != "counts" and self.counts is not None:
            raise ValueError(f"counts belongs to kind 'counts', but kind is '{self.kind}'")
        return self


def class_label(label: int, class_names: Sequence[str] | None) -> str:
    """``class 3 ('cat')``, as messages name a class; without names, or where the name says no more, ``class 3``."""
    if class_names is None or not 0 <= label < len(class_names) or class_names[label] == str(label):
        return f"class {label}"
    return f"class {label} ('{class_names[label]}')"


def long_tailed_counts(
    imbalance: Imbalance, available: NDArray[Any], class_names: Sequence[str] | None = None
) -> IntArray:
    """How many images each class keeps.

    `exponential` is ``int(n_max * f**(i / (C - 1)))`` with ``f = 1 / factor``, truncated, for class i; `step` keeps
    `n_max` of the first ``C // 2`` classes and ``int(n_max * f)`` of the others. `balanced_like` gives every class the
    C-th part of the total of `exponential`, rounded down. The first classes have one more each, until the total is met.

    Args:
        imbalance: the rule.
        available: [C] images of each class in the whole training split.
        class_names: C names, for messages.

    Returns:
        [C] int64.

    Raises:
        DataError: a class would have no image, or more than it has; `counts` has another length than C.
    """
    counts = [int(n) for n in available]
    num_classes = len(counts)
    if imbalance.kind == "counts":
        wanted = imbalance.counts or []
        if len(wanted) != num_classes:
            raise DataError(f"imbalance.counts has {len(wanted)} numbers, but the data set has {num_classes} classes")
        counts = list(wanted)
    elif imbalance.kind != "none":
        assert imbalance.factor is not None  # the validator saw to it
        # Without max_count: the smallest class, which in a balanced set is N / C, and never asks for too many.
        n_max = imbalance.max_count or min(counts)
        f = 1 / imbalance.factor
        # Python floats and int(), as in the published code: another order of operations truncates differently.
        if imbalance.kind != "step":
            counts = [int(n_max * f ** (i / (num_classes - 1.0))) if i else n_max for i in range(num_classes)]
        else:
            counts = [n_max if i < num_classes // 2 else int(n_max * f) for i in range(num_classes)]
        if imbalance.kind == "balanced_like":
            each, rest = divmod(sum(counts), num_classes)
            counts = [each + (i < rest) for i in range(num_classes)]
    for label, count in enumerate(counts):
        if count < 1:
            why = (
                f"data.imbalance of kind '{imbalance.kind}' leaves it {count} of {int(available[label])}; lower its "
                "factor, or raise max_count or the class's count"
                if available[label]
                else "the data set has none; add some, or leave the class out and number the others without a gap"
            )
            raise DataError(f"{class_label(label, class_names)} would have no training image: {why}")
        if count > available[label]:
            raise _too_many(label, count, int(available[label]), class_names)
    return np.asarray(counts, dtype=np.int64)


def long_tailed_indices(
    targets: NDArray[Any], counts: NDArray[Any], seed: int, class_names: Sequence[str] | None = None
) -> IntArray:
    """Which images are kept: per class in label order, shuffle the class's indices and keep the first ones.

    Drawn from ``np.random.RandomState(seed)``, NumPy's legacy generator, whose stream is frozen for good. Another
    generator would be another data set, whose figures cannot be compared.

    Args:
        targets: [N] integer labels of the whole training split.
        counts: [C] images to keep of each class.
        seed: seed of the generator.
        class_names: C names, for messages.

    Returns:
        [sum of counts] int64 indices into `targets`, class by class.

    Raises:
        DataError: a class has fewer images than are to be kept.
    """
    random = np.random.RandomState(seed)
    kept = []
    for label, count in enumerate(counts):
        index = np.where(targets == label)[0]
        if count > len(index):
            raise _too_many(label, int(count), len(index), class_names)
        random.shuffle(index)
        kept.append(index[:count])
    return np.concatenate(kept).astype(np.int64)


def _too_many(label: int, wanted: int, available: int, class_names: Sequence[str] | None) -> DataError:
    return DataError(
        f"{class_label(label, class_names)} is to keep {wanted} training images, but the data set has {available}; "
        "lower data.imbalance.max_count or the class's count"
    )

"""Class counts of long-tailed sets: published ones, fitted ones, and those that a user gives."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ltcore.contract.facts import DataFacts
from ltcore.data.image_files import IMAGENET_MEAN, IMAGENET_STD
from ltcore.errors import DataError
from ltcore.untrusted import parse_json


def photographs(counts: tuple[int, ...], image_size: int = 224) -> DataFacts:
    """Facts of a set of which only its class counts are known: files of 500 x 375, as many test images as a fifth."""
    return DataFacts(
        counts,
        test=max(1, sum(counts) // 5),
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        image_size=image_size,
        stored=(500, 375),
        transform="imagenet",
        approximate="Only the class counts are known: files of 500 x 375 pixels and a fifth as many test images are "
        "assumed",
    )


def published_counts(name: str) -> tuple[int, ...]:
    """Training images per class of a published long-tailed set, in label order, as its split list has them."""
    return tuple(map(int, Path(__file__).with_name(f"{name}_counts.txt").read_text(encoding="utf-8").split()))


def fitted_counts(num_classes: int, total: int, largest: int, smallest: int) -> tuple[int, ...]:
    """Class counts on a Zipf-Mandelbrot curve, ``largest * (1 + rank / b) ** -a``, with a given total and both ends.

    The curve goes through both ends for any ``b``; which one has the total is found by bisection.

    Args:
        num_classes: C.
        total: images in all.
        largest: images of the first class.
        smallest: images of the last class.

    Returns:
        C counts that do not increase, except for the few images that rounding leaves over. The second class and those
        after it have one more or one less for these.
    """
    rank = np.arange(num_classes)

    def curve(log_b: float) -> NDArray[np.float64]:
        b = np.exp(log_b)
        a = np.log(largest / smallest) / np.log1p((num_classes - 1) / b)
        counts: NDArray[np.float64] = largest * (1 + rank / b) ** -a
        return counts

    low, high = -20.0, 20.0
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if curve(middle).sum() < total else (low, middle)
    counts = np.rint(curve(high)).astype(np.int64)
    over = total - int(counts.sum())
    counts[1 : 1 + abs(over)] += np.sign(over)
    return tuple(counts.tolist())


def read_counts(path: Path) -> tuple[int, ...]:
    """Class counts from a JSON file: a list, an object of class names, or an object with ``class_counts``.

    Raises:
        DataError: the file cannot be read, or holds no counts.
    """
    try:
        content = parse_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"--counts {path}: it cannot be read as JSON ({error})") from error
    if isinstance(content, dict):
        content = next((content[key] for key in ("class_counts", "counts") if key in content), content)
    if isinstance(content, dict):
        content = list(content.values())
    whole = isinstance(content, list) and all(type(count) is int and count > 0 for count in content)
    if not whole or len(content) < 2:
        raise DataError(
            f"--counts {path}: it holds no class counts; write a list of the training images of each class in label "
            'order, [120, 40, 8], or an object {"class_counts": [...]} or {"cat": 120, "dog": 40}'
        )
    return tuple(content)

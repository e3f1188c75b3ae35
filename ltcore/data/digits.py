"""Digits-LT: scikit-learn's bundled handwritten digits with a long tail; needs no download."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from ltcore.contract.facts import DataFacts
from ltcore.contract.hook import hookimpl
from ltcore.contract.imbalance import Imbalance
from ltcore.contract.method import Method
from ltcore.contract.splits import ArraySplit, DataSplits

TEST_PER_CLASS = 50
# Of the 1,297 training images, before the long tail is cut, on the scale 0..1.
MEAN, STD = 0.3061, 0.3765
TAIL = Imbalance(kind="exponential", factor=24, max_count=120)
#: Of each class, before the tail is cut.
_TRAINING_IMAGES = (128, 132, 127, 133, 131, 132, 131, 129, 124, 130)


class DigitsLT(Method):
    """8 x 8 grey images of ten digits, 120 to 5 training images per class, 50 test images per class."""

    summary = (
        "handwritten digits, 10 classes, 8x8 grey, 120..5 training images; bundled with scikit-learn "
        "(UCI optical recognition of handwritten digits, CC BY 4.0)"
    )

    @hookimpl
    def build_data(self) -> DataSplits:
        """All digits; which ones are test images is fixed, whatever the recipe says."""
        pixels, targets = read_digits()
        images = torch.from_numpy(np.rint(pixels * 255 / 16).astype(np.uint8)).view(-1, 1, 8, 8)  # 0..16 to 0..255
        random = np.random.RandomState(0)
        is_test = np.zeros(len(targets), dtype=bool)
        for label in range(10):
            index = np.where(targets == label)[0]
            random.shuffle(index)
            is_test[index[:TEST_PER_CLASS]] = True
        whole = ArraySplit(images, torch.from_numpy(targets))
        return DataSplits(
            train=whole.subset(torch.from_numpy(np.where(~is_test)[0])),
            test=whole.subset(torch.from_numpy(np.where(is_test)[0])),
            class_names=tuple("0123456789"),
            mean=(MEAN,),
            std=(STD,),
            crop_padding=1,
            imbalance=TAIL,
        )

    def facts(self) -> DataFacts:
        """All that there is to know."""
        return DataFacts(
            _TRAINING_IMAGES, 10 * TEST_PER_CLASS, (MEAN,), (STD,), image_size=8, crop_padding=1, imbalance=TAIL
        )


def read_digits() -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Pixels [1797, 64] from 0 to 16, row by row, and labels [1797], as scikit-learn's ``load_digits`` gives them.

    They are read from scikit-learn's own file. To import scikit-learn takes about as long as to import PyTorch, and is
    left to versions that keep the file elsewhere.
    """
    spec = find_spec("sklearn")  # finds it, and imports nothing
    for folder in (spec and spec.submodule_search_locations) or ():
        file = Path(folder, "datasets", "data", "digits.csv.gz")
        if file.is_file():
            rows = np.loadtxt(file, delimiter=",")
            return rows[:, :-1], rows[:, -1].astype(np.int64)
    from sklearn.datasets import load_digits

    pixels, targets = load_digits(return_X_y=True)
    return pixels, targets.astype(np.int64)

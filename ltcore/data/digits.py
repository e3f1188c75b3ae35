"""Digits-LT: scikit-learn's bundled handwritten digits with a long tail; needs no download."""

from __future__ import annotations

import numpy as np
import torch

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
    """8 x 8 grey images of ten digits, 120 to 5 training images a class, 50 test images a class."""

    summary = (
        "handwritten digits, 10 classes, 8x8 grey, 120..5 training images; bundled with scikit-learn "
        "(UCI optical recognition of handwritten digits, CC BY 4.0)"
    )

    @hookimpl
    def build_data(self) -> DataSplits:
        """All digits; which ones are test images is fixed, whatever the recipe says."""
        from sklearn.datasets import load_digits

        digits = load_digits()
        images = torch.from_numpy(np.rint(digits.images * 255 / 16).astype(np.uint8))[:, None]  # 0..16 to 0..255
        targets = digits.target.astype(np.int64)
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

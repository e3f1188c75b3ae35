"""What a model says of each test image: the files ``predictions.csv`` and ``errors.csv``."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ltcore.contract.splits import ArraySplit, StreamedSplit
from ltcore.evaluation.metrics import rank
from ltcore.evaluation.unsure import Thresholds
from ltcore.files.writing import replacing
from ltcore.untrusted import cell

#: The columns of both files; behind them ``unsure``, yes or no, where there are thresholds.
COLUMNS = ("image", "class", "predicted", "probability", "class_probability", "margin")
YES_OR_NO = {True: "yes", False: "no"}


@dataclass(frozen=True)
class ImageRows:
    """What is said of N images.

    Attributes:
        names: what the images are called: paths, or numbers in the order of the split where they are in memory.
        targets: [N] int64.
        predictions: [N] int64, the likeliest class of each.
        probability: [N] float64, of the likeliest class.
        own: [N] float64, the probability of the image's class.
        margin: [N] float64, the probability of the likeliest class less that of the next one.
        unsure: [N] bool, whether the likeliest class's probability is below its threshold; None without thresholds.
    """

    names: Sequence[str]
    targets: NDArray[np.int64]
    predictions: NDArray[np.int64]
    probability: NDArray[np.float64]
    own: NDArray[np.float64]
    margin: NDArray[np.float64]
    unsure: NDArray[np.bool_] | None = None

    @classmethod
    def of(
        cls, names: Sequence[str], logits: Tensor, targets: Tensor, thresholds: Thresholds | None = None
    ) -> ImageRows:
        """From logits [N, C] and targets [N] on the CPU.

        Raises:
            RunError: a logit is not finite.
        """
        predictions, _, probability = rank(logits, targets)
        own, margin = [], []
        for rows, wanted in zip(torch.split(logits, 4096), torch.split(targets, 4096), strict=True):
            shares = rows.to("cpu", torch.float64).softmax(1)
            own.append(shares.gather(1, wanted[:, None])[:, 0])
            first, *others = shares.topk(min(2, shares.shape[1])).values.unbind(1)
            margin.append(first - others[0] if others else first)
        unsure = None if thresholds is None else thresholds.unsure(predictions, probability).numpy()
        return cls(
            names,
            targets.numpy(),
            predictions.numpy(),
            probability.numpy(),
            torch.cat(own).numpy(),
            torch.cat(margin).numpy(),
            unsure,
        )

    @property
    def wrong(self) -> list[int]:
        """The places of images that are taken for another class, the surest first."""
        return wrong_places(self.predictions, self.targets, self.probability)

    def write(self, folder: Path, class_names: Sequence[str]) -> None:
        """Write both files, each whole or not at all."""
        self._write(folder / "predictions.csv", range(len(self.targets)), class_names)
        self._write(folder / "errors.csv", self.wrong, class_names)

    def _write(self, path: Path, places: Sequence[int], class_names: Sequence[str]) -> None:
        names = [cell(name) for name in class_names]
        with replacing(path) as file:
            # A name that is no text becomes an escape.
            stream = io.TextIOWrapper(file, "utf-8", "backslashreplace", newline="")
            table = csv.writer(stream, lineterminator="\n")
            table.writerow(COLUMNS if self.unsure is None else (*COLUMNS, "unsure"))
            for place in places:
                shares = (self.probability[place], self.own[place], self.margin[place])
                said = (names[self.targets[place]], names[self.predictions[place]])
                last = [] if self.unsure is None else [YES_OR_NO[bool(self.unsure[place])]]
                table.writerow([cell(self.names[place]), *said, *(f"{share:.6f}" for share in shares), *last])
            stream.flush()
            stream.detach()


def wrong_places(
    predictions: NDArray[np.int64], targets: NDArray[np.int64], probability: NDArray[np.float64]
) -> list[int]:
    """The places of wrong predictions [N], those with the highest probability first."""
    places = np.flatnonzero(predictions != targets)
    ordered: list[int] = places[np.argsort(-probability[places], kind="stable")].tolist()
    return ordered


def image_names(split: ArraySplit | StreamedSplit) -> list[str]:
    """What the images of a split are called; their numbers, from 0, where they lie in memory."""
    if isinstance(split, ArraySplit):
        return [str(number) for number in range(len(split))]
    return [split.name(number) for number in range(len(split))]


def stored_names(split: ArraySplit | StreamedSplit) -> NDArray[np.str_] | None:
    """The same for ``predictions.npz``, [N], relative to the data set's root where it is known; None in memory."""
    if isinstance(split, ArraySplit):
        return None
    identities = getattr(split, "identities", None)
    if identities is None:
        return np.array(image_names(split))
    return np.array([name.decode("utf-8", "backslashreplace") for name in identities()[0].tolist()])

"""``ltcore suspects``: training images whose label is likely wrong, and images that nearly coincide."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from ltcore.contract.experts import of_images
from ltcore.contract.model import evaluating
from ltcore.contract.splits import ArraySplit
from ltcore.data.streaming import build_loader, worker_count
from ltcore.errors import DataError, RecipeError, listed
from ltcore.evaluation.images import image_names
from ltcore.evaluation.near_duplicates import Pair, Vectors, near_duplicates, thumbnails_of
from ltcore.evaluation.suspects import Suspects, find_suspects, folds_of, held_out_probabilities
from ltcore.files.writing import replacing, telling
from ltcore.untrusted import cell

if TYPE_CHECKING:
    from ltcore.contract.splits import StreamedSplit
    from ltcore.data.prepare import PreparedData
    from ltcore.runs.saved import SavedRun

SUSPECTS, DUPLICATES = "suspects.csv", "duplicates.csv"
#: Columns of the two files.
SUSPECT_COLUMNS = ("image", "class", "looks_like", "class_probability", "looks_like_probability", "margin")
DUPLICATE_COLUMNS = ("image", "split", "class", "other", "other_split", "other_class", "alike")
FOLDS, ALIKE = 5, 0.85
_SHOWN = 5


@dataclass(frozen=True)
class Doubts:
    """What was found.

    Attributes:
        class_names: C names.
        names: by split, what its images are called.
        targets: by split, [N] int64.
        probabilities: [N, C] float64 of the training images, by classifiers that were not fitted to them; NaN of those
            that were not judged.
        suspects: labels that are likely wrong.
        pairs: images that nearly coincide.
        notes: what the user should be told, a sentence each.
    """

    class_names: Sequence[str]
    names: dict[str, list[str]]
    targets: dict[str, Tensor]
    probabilities: np.ndarray[tuple[int, int], np.dtype[np.floating]]
    suspects: Suspects
    pairs: list[Pair]
    notes: list[str]

    @property
    def across(self) -> list[Pair]:
        """The pairs across two splits."""
        return [pair for pair in self.pairs if pair.split != pair.other_split]

    @property
    def two_classes(self) -> list[Pair]:
        """The pairs under two classes."""
        return [pair for pair in self.pairs if self._label(pair.split, pair.at) != self._label(*pair[2:4])]

    def write(self, folder: Path) -> None:
        """Write both files into a folder, each whole or not at all.

        Raises:
            RunError: one cannot be written.
        """
        with telling(folder, "or name another folder with --out"):
            folder.mkdir(exist_ok=True)
        _write(folder / SUSPECTS, SUSPECT_COLUMNS, self.suspect_rows())
        _write(folder / DUPLICATES, DUPLICATE_COLUMNS, self.pair_rows())

    def suspect_rows(self) -> Iterator[tuple[str, ...]]:
        """The rows of ``suspects.csv``, the most suspicious first."""
        found = self.suspects
        for place, likely in zip(found.places.tolist(), found.likely.tolist(), strict=True):
            label, shares = self._label("train", place), self.probabilities[place]
            said = (self.names["train"][place], self.class_names[label], self.class_names[likely])
            yield (*said, *(f"{share:.6f}" for share in (shares[label], shares[likely], found.margin[place])))

    def pair_rows(self) -> Iterator[tuple[str, ...]]:
        """The rows of ``duplicates.csv``, the most alike first."""
        for pair in self.pairs:
            one, other = ((split, place) for split, place in ((pair.split, pair.at), (pair.other_split, pair.other)))
            yield (*self._told(*one), *self._told(*other), f"{pair.alike:.4f}")

    def _told(self, split: str, place: int) -> tuple[str, str, str]:
        return self.names[split][place], split, self.class_names[self._label(split, place)]

    def _label(self, split: str, place: int) -> int:
        return int(self.targets[split][place])


def look(saved: SavedRun, folds: int = FOLDS, alike: float = ALIKE) -> Doubts:
    """Look at a run's images through its network.

    Args:
        saved: the run.
        folds: into how many parts the training images are divided; each is judged by what the others teach.
        alike: how alike images must be to count as near-duplicates, above 0 and at most 1.

    Raises:
        DataError: the images cannot be read, or are not what they were, or no class has two training images.
        RecipeError: a number is out of its range.
    """
    if folds < 2:
        raise RecipeError(f"--folds {folds}: an image is judged by the other parts, so there must be 2 or more")
    if not 0 < alike <= 1:
        raise RecipeError(f"--alike {alike:g}: it must be above 0 and at most 1; by default {ALIKE:g}")
    data = saved.read_data()
    found = {"train": data.train, "val": data.val, "test": data.test}
    splits = {name: split for name, split in found.items() if split is not None}
    vectors = {name: _vectors(saved, data, split) for name, split in splits.items()}
    counts, names = saved.result["class_counts"], saved.class_names
    if len(names) < 2 or max(counts) < 2:
        raise DataError(f"{saved.path}: no label can be judged without two classes, and one of two training images")
    targets = data.train.targets.numpy()
    parts = folds_of(targets, folds, saved.result["seed"])
    probabilities = held_out_probabilities(vectors["train"].features.numpy(), targets, len(names), parts)
    suspects = find_suspects(probabilities, targets)
    notes = []
    if trained(saved):
        notes.append(
            "the run trained its network with these labels, so its features have partly learned the wrong ones, too, "
            "and some are missed; a run whose network stays as it is finds more (ltcore train with few --minutes)"
        )
    if lonely := [name for name, count in zip(names, counts, strict=True) if count == 1]:
        notes.append(f"{len(lonely)} classes have a single training image, which is not judged: {listed(lonely[:3])}")
    if suspects.capped:
        told = listed(names[label] for label in suspects.capped[:3])
        notes.append(
            f"of {len(suspects.capped)} classes more than half of the images look like others: {told}. They are badly "
            "recognised, which says little of their labels; the more suspicious half is listed"
        )
    shown = {name: image_names(split) for name, split in splits.items()}
    labels = {name: split.targets for name, split in splits.items()}
    pairs = near_duplicates(vectors, alike)
    return Doubts(names, shown, labels, probabilities, suspects, pairs, notes)


def _vectors(saved: SavedRun, data: PreparedData, split: ArraySplit | StreamedSplit) -> Vectors:
    """Features and thumbnails, from one pass over a split as evaluation sees it."""
    model = saved.model.to("cuda" if torch.cuda.is_available() else "cpu")
    device, backbone = next(model.parameters()).device, model.backbone
    workers = 0 if isinstance(split, ArraySplit) else worker_count(saved.recipe.data.workers)
    loader = build_loader(split, data.transform, data.mean, data.std, workers, device, training=False)
    features, thumbnails = [], []
    with evaluating(model):
        for images in loader.eval_batches(saved.recipe.eval_batch_size):
            found = backbone.pool(backbone.forward_maps(images))
            features.append(of_images(found, len(images), backbone).float().flatten(1).cpu())
            thumbnails.append(thumbnails_of(images).cpu())
    return Vectors(torch.cat(features), torch.cat(thumbnails), split.targets)


def trained(saved: SavedRun) -> bool:
    """Whether a stage has trained the network, or what an adapter has added to it."""
    inside = {"backbone", "*", *saved.recipe.backbone.adapt}
    return any(part.partition(".")[0] in inside for stage in saved.recipe.stages for part in stage.trainable)


def _write(path: Path, head: Sequence[str], rows: Iterator[tuple[str, ...]]) -> None:
    with replacing(path, "or name another folder with --out") as file:
        stream = io.TextIOWrapper(file, "utf-8", "backslashreplace", newline="")
        table = csv.writer(stream, lineterminator="\n")
        table.writerow(head)
        table.writerows([cell(text) for text in row] for row in rows)
        stream.flush()
        stream.detach()


def render(found: Doubts) -> list[str]:
    """What was found, as lines for a terminal."""
    judged = int((~np.isnan(found.suspects.margin)).sum())
    lines = [f"{len(found.suspects.places)} of {judged} labels of training images are suspect"]
    for name, label, likely, own, other, _ in list(found.suspect_rows())[:_SHOWN]:
        lines.append(f"  {name}: '{label}' {float(own):.0%}, looks like '{likely}' {float(other):.0%}")
    lines.append(f"{len(found.pairs)} pairs of images nearly coincide")
    for pairs, what in ((found.across, "across splits, which flatters figures"), (found.two_classes, "in two classes")):
        if pairs:
            sides = [found._told(*each) for each in (pairs[0][:2], pairs[0][2:4])]
            named = ", ".join(f"{image} ('{of_class}')" for image, _, of_class in sides)
            lines.append(f"  {len(pairs)} {what}: {named}")
    return lines

"""The section on what ``ltcore suspects`` has left in a run's directory: suspect labels and near-duplicates."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from ltcore.evaluation.images import image_names
from ltcore.files.reading import Damaged
from ltcore.report.blocks import Card, Cards, Heading, Image, Part, Section, Text
from ltcore.report.data import ReportedRun
from ltcore.report.labels import shortened
from ltcore.report.layout import Runs, each_run, folded
from ltcore.report.thumbnails import thumbnail
from ltcore.runs.suspecting import DUPLICATE_COLUMNS, DUPLICATES, SUSPECT_COLUMNS, SUSPECTS
from ltcore.untrusted import cell

if TYPE_CHECKING:
    from ltcore.data.prepare import PreparedData

#: Suspects and pairs that are drawn, and rows of a table.
_DRAWN, _PAIRS, _ROWS = 12, 6, 50
_LETTERS = 28


@dataclass
class Doubtful:
    """What was found of a run's images.

    Attributes:
        suspects: rows of ``suspects.csv``.
        pairs: rows of ``duplicates.csv``, those across splits or in two classes first.
        pictures: by split and name, an image's address and whether it is small.
    """

    suspects: list[dict[str, str]]
    pairs: list[dict[str, str]]
    pictures: dict[tuple[str, str], tuple[str, bool]] = field(default_factory=dict)

    def add_pictures(self, data: PreparedData) -> None:
        """Fill in the pictures of what is drawn."""
        wanted = {("train", row["image"]) for row in self.suspects[:_DRAWN]}
        for row in self.pairs[:_PAIRS]:
            wanted |= {(row["split"], row["image"]), (row["other_split"], row["other"])}
        for name, split in (("train", data.train), ("val", data.val), ("test", data.test)):
            names = {image for of, image in wanted if of == name}
            for index, image in enumerate(map(cell, image_names(split)) if split is not None and names else ()):
                picture = thumbnail(split, index, data.transform, len(data.mean)) if image in names and split else None
                if picture:
                    self.pictures[name, image] = picture


def read_doubtful(path: Path) -> Doubtful | None:
    """What ``ltcore suspects`` has left in a run's directory; None where it did not run.

    Raises:
        RunError: a file is damaged.
    """
    if not (path / SUSPECTS).is_file() or not (path / DUPLICATES).is_file():
        return None
    pairs = _rows(path / DUPLICATES, DUPLICATE_COLUMNS)
    pairs.sort(key=lambda row: row["split"] == row["other_split"] and row["class"] == row["other_class"])
    return Doubtful(_rows(path / SUSPECTS, SUSPECT_COLUMNS), pairs)


def _rows(path: Path, columns: Sequence[str]) -> list[dict[str, str]]:
    try:
        with path.open(encoding="utf-8", newline="") as file:
            head, *rows = list(csv.reader(file))
        if tuple(head) != tuple(columns):
            raise ValueError("its columns are others")
        return [dict(zip(columns, row, strict=True)) for row in rows]
    except (OSError, ValueError, csv.Error) as error:
        raise Damaged(path, f"{error}; 'ltcore suspects' writes it anew") from error


def section(runs: Runs, found: Sequence[Doubtful | None]) -> Section | None:
    """Suspect labels and near-duplicates of the runs that were looked through."""
    if not any(found):
        return None

    def draw(index: int, run: ReportedRun) -> Sequence[Part]:
        doubtful = found[index]
        if doubtful is None:
            return [Text("'ltcore suspects' was not asked for this run.")]
        return _parts(doubtful, 3 if len(runs) == 1 else 4)

    text = (
        "Training images whose label is likely wrong, since a classifier that has not seen them is sure of another "
        "class, and images that nearly coincide. Look at them before you change a label."
    )
    return Section("doubtful", "Suspect labels and near-duplicates", text, each_run(runs, draw))


def _parts(found: Doubtful, level: int) -> list[Part]:
    suspects, pairs = found.suspects, found.pairs
    cards = []
    drawn = [row for row in suspects[:_DRAWN] if ("train", row["image"]) in found.pictures]
    if drawn:
        below = shortened([f"{row['class']} → {row['looks_like']}" for row in drawn], _LETTERS)
        images = [
            _image(
                found, "train", row["image"], f"{row['image']}: {row['class']}, looks like {row['looks_like']}", text
            )
            for row, text in zip(drawn, below, strict=True)
        ]
        cards.append(Card(Heading("The most suspicious labels", level), ["label → what it looks like"], images))
    for row in pairs[:_PAIRS]:
        sides = [(row["split"], row["image"], row["class"]), (row["other_split"], row["other"], row["other_class"])]
        if all(side[:2] in found.pictures for side in sides):
            images = [_image(found, of, name, f"{name}, of {label}", f"{of}: {label}") for of, name, label in sides]
            cards.append(Card(Heading("Nearly the same", level), [f"alike to {float(row['alike']):.3f}"], images))
    across = sum(row["split"] != row["other_split"] for row in pairs)
    conflicts = sum(row["class"] != row["other_class"] for row in pairs)
    said = (
        f"{len(suspects)} labels are suspect. {len(pairs)} pairs nearly coincide, {across} of them across splits, "
        f"which flatters figures, and {conflicts} in two classes."
    )
    parts: list[Part] = [Text(said)]
    if cards:
        parts.append(Cards(cards))
    for name, rows, columns in (("Suspects", suspects, SUSPECT_COLUMNS), ("Pairs", pairs, DUPLICATE_COLUMNS)):
        if rows:
            shown = [[row[column] for column in columns] for row in rows[:_ROWS]]
            parts.append(folded(f"{name}, the first {len(shown)}", columns, shown, name))
    return parts


def _image(found: Doubtful, split: str, name: str, alt: str, below: str) -> Image:
    address, small = found.pictures[split, name]
    return Image(address, alt, below, small)

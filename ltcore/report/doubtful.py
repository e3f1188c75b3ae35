"""What ``ltcore suspects`` has left in a run's directory: suspect labels and near-duplicates."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from ltcore.evaluation.images import image_names
from ltcore.files.reading import Damaged
from ltcore.report.thumbnails import thumbnail
from ltcore.runs.suspecting import DUPLICATE_COLUMNS, DUPLICATES, SUSPECT_COLUMNS, SUSPECTS
from ltcore.untrusted import cell

if TYPE_CHECKING:
    from ltcore.data.prepare import PreparedData

#: Suspects and pairs that are drawn.
DRAWN, PAIRS = 12, 6


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
        wanted = {("train", row["image"]) for row in self.suspects[:DRAWN]}
        for row in self.pairs[:PAIRS]:
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

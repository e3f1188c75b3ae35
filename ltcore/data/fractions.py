"""Splits by fraction: which images of each class are tested on and validated on, as a function of names alone.

A *unit* goes into a split as a whole. It is one image, or a group of images that belong together (those of one patient,
of one lesion, of one burst of a camera). No two splits share a unit.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pydantic import Field, model_validator

from ltcore.contract.method import Options
from ltcore.errors import DataError

PARTS = ("train", "val", "test")


class FractionOptions(Options):
    """How images are split by fraction."""

    test_fraction: float = Field(default=0.2, gt=0, lt=1)
    """Share of each class's images that is tested on, where images are split by fraction."""
    val_fraction: float = Field(default=0.1, ge=0, lt=1)
    """Share of each class's images that is held out for validation, where images are split by fraction; 0 for none."""
    val_min: int = Field(default=3, ge=3)
    """Classes with fewer images than this have none held out for validation, where images are split by fraction."""
    split_seed: int = 0
    """Another seed is another split by fraction; the run's seed does not change it."""

    @model_validator(mode="after")
    def _leaves_some(self) -> FractionOptions:
        if self.test_fraction + self.val_fraction >= 1:
            raise ValueError("test_fraction and val_fraction together leave nothing to train on; lower one")
        return self

    def asked_for(self) -> list[str]:
        """Which of these options were set."""
        return sorted(self.model_fields_set & set(FractionOptions.model_fields))


@dataclass(frozen=True)
class Fractions:
    """`FractionOptions`, as `split_images` wants them."""

    test: float
    val: float
    val_min: int = 3
    seed: int = 0

    @classmethod
    def of(cls, options: FractionOptions) -> Fractions:
        """Those that the options say."""
        return cls(options.test_fraction, options.val_fraction, options.val_min, options.split_seed)


def split_images(labels: Sequence[int], units: Sequence[str], fractions: Fractions) -> dict[str, list[int]]:
    """Where the images of each part stand, in the given order.

    Each class is split on its own (`split_class`). A group with images of several classes is split with the rarest of
    them. Should a class be left without a training image by that, its last ranked group is trained on.

    Args:
        labels: N labels.
        units: N names of what goes into one split as a whole: an image's own path, or its group's name.
        fractions: how much is wanted.

    Returns:
        By part, ``train``, ``val`` and ``test``, positions from 0 to N - 1, in order.
    """
    totals = Counter(labels)
    of_unit: dict[str, Counter[int]] = defaultdict(Counter)
    for label, unit in zip(labels, units, strict=True):
        of_unit[unit][label] += 1
    homes: dict[int, dict[str, int]] = defaultdict(dict)
    for unit, counts in of_unit.items():
        home = min(counts, key=lambda label: (totals[label], label))
        homes[home][unit] = counts[home]
    part_of: dict[str, str] = {}
    for sizes in homes.values():
        part_of |= split_class(sizes, fractions)
    for label in sorted(totals, key=lambda label: (totals[label], label)):
        own = [unit for unit, counts in of_unit.items() if label in counts]
        if all(part_of[unit] != "train" for unit in own):
            part_of[_ranked(own, fractions.seed)[-1]] = "train"
    return {part: [i for i, unit in enumerate(units) if part_of[unit] == part] for part in PARTS}


def split_class(sizes: Mapping[str, int], fractions: Fractions) -> dict[str, str]:
    """The part of each unit of one class.

    The units are ranked by a hash of (seed, name). The first are tested on, up to ``round(test * n)`` of n images, the
    next validated on, up to ``round(val * n)``, halves rounded up. A group is taken where that brings the number
    nearer. So the split depends only on the names. An image that is added ranks among the others without
    reordering them, and moves three of them at most, those next to a boundary. A threshold on the hash itself would
    move none. But it leaves the smallest classes without test or training images, and there a long tail is measured. A
    class of two units or more has at least one test image. A class of three units or more, with ``val_min`` images or
    more, also has a validation image. Each class keeps one unit to train on.

    Args:
        sizes: by unit, its number of images.
        fractions: how much is wanted.
    """
    n, units = sum(sizes.values()), len(sizes)
    validated = fractions.val > 0 and n >= fractions.val_min and units >= 3
    reserved = 1 if validated else 0
    ranked = _ranked(sizes, fractions.seed)
    tested = _nearest(ranked, sizes, max(int(fractions.test * n + 0.5), 1), units - 1 - reserved)
    rest = [unit for unit in ranked if unit not in tested]
    wanted = max(int(fractions.val * n + 0.5), 1)
    held = _nearest(rest, sizes, wanted, len(rest) - 1) if validated else set()
    return {unit: "test" if unit in tested else "val" if unit in held else "train" for unit in sizes}


def _nearest(ranked: Sequence[str], sizes: Mapping[str, int], wanted: int, most: int) -> set[str]:
    """The first units, at most so many, whose number of images comes nearest to what is wanted; one at least."""
    taken: set[str] = set()
    images = 0
    for unit in ranked:
        if len(taken) >= most:
            break
        if not taken or abs(images + sizes[unit] - wanted) <= abs(images - wanted):
            taken.add(unit)
            images += sizes[unit]
    return taken


def _ranked(units: Sequence[str] | Mapping[str, int], seed: int) -> list[str]:
    return sorted(units, key=lambda unit: hashlib.blake2b(f"{seed}\0{unit}".encode(errors="surrogateescape")).digest())


def groups_of(files: Sequence[str], pattern: str, where: str) -> list[str]:
    """The group of each file: what a pattern finds in its path, or what its first group in brackets holds.

    Args:
        files: N paths.
        pattern: a regular expression.
        where: the option that has it, for messages.

    Raises:
        DataError: it finds nothing in some path.
    """
    compiled = re.compile(pattern)
    found = [compiled.search(file) for file in files]
    missed = [file for file, match in zip(files, found, strict=True) if match is None]
    if missed:
        raise DataError(
            f"{where}: '{pattern}' finds no group in {len(missed)} of {len(files)} paths, first {missed[0]}; write a "
            "regular expression that every path has, with the group's name in brackets, such as '(patient[0-9]+)'"
        )
    return [match[1] if compiled.groups else match[0] for match in found if match is not None]


def refuse_crossing(groups: Mapping[str, Sequence[str]], where: str, advice: str) -> None:
    """Refuse a group that two splits share.

    Args:
        groups: by split, the groups of its images.
        where: what was split, for messages.
        advice: what to do.

    Raises:
        DataError: with the number of such groups and the first.
    """
    splits = list(groups)
    for number, one in enumerate(splits):
        for other in splits[number + 1 :]:
            if shared := sorted(set(groups[one]) & set(groups[other])):
                raise DataError(
                    f"{where}: {len(shared)} groups have images in both {one} and {other}, first '{shared[0]}'; "
                    f"{advice}"
                )

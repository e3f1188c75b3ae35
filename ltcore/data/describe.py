"""What the data of a run looks like, as a record for programs and as text for people."""

from __future__ import annotations

from dataclasses import asdict
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from ltcore.contract.figures import SHOT_GROUPS, shot_group
from ltcore.untrusted import printable

if TYPE_CHECKING:
    from ltcore.data.prepare import PreparedData

MAX_ROWS = 20
BAR = 40


def describe(prepared: PreparedData, name: str) -> dict[str, Any]:
    """Counts, groups and totals of the data of a run, in plain types.

    Args:
        prepared: the data.
        name: the data set's name.
    """
    counts: list[int] = prepared.class_counts.tolist()
    members = {group.name: [n for n in counts if shot_group(n) == group.name] for group in SHOT_GROUPS}
    return {
        "name": name,
        "num_classes": len(counts),
        "image_shape": [len(prepared.mean), prepared.transform.image_size, prepared.transform.image_size],
        "images": {
            "train": len(prepared.train),
            "val": 0 if prepared.val is None else len(prepared.val),
            "test": len(prepared.test or ()),
        },
        "imbalance_factor": max(counts) / min(counts),
        "groups": {group: {"classes": len(found), "images": sum(found)} for group, found in members.items()},
        "class_names": list(prepared.class_names),
        "class_counts": counts,
        "mean": list(prepared.mean),
        "std": list(prepared.std),
        "transform": asdict(prepared.transform),
        "duplicates": None if prepared.duplicates is None else prepared.duplicates.record(),
        "notes": list(prepared.notes),
    }


def render(description: dict[str, Any]) -> str:
    """The record of `describe` as plain text with a histogram, the most frequent classes first."""
    channels, height, width = description["image_shape"]
    images, groups = description["images"], description["groups"]
    transform = description["transform"]
    augmentation = [f"random crop, padding {transform['crop_padding']}"] if transform["crop_padding"] else []
    augmentation += ["flip"] if transform["flip"] else []
    augmentation += [f"colour jitter {transform['color_jitter']:g}"] if transform["color_jitter"] else []
    named = f" (transform '{transform['name']}')" if transform["name"] != "none" else ""
    lines = [
        f"{description['name']}: {description['num_classes']} classes, {channels} x {height} x {width}",
        f"images     train {images['train']}, validation {images['val'] or 'none'}, test {images['test']}",
        f"imbalance  {description['imbalance_factor']:.4g} (largest class over smallest)",
        "groups     " + ", ".join(f"{g.name} ({g.rule}): {groups[g.name]['classes']} classes" for g in SHOT_GROUPS),
        f"augmented  {', '.join(augmentation) or 'no'}{named}",
        *(f"note       {note}" for note in description["notes"]),
        "",
        *_histogram(description["class_counts"], description["class_names"]),
    ]
    return "\n".join(map(printable, lines))


def _histogram(counts: list[int], names: list[str]) -> list[str]:
    """A row a class, or, with more than `MAX_ROWS` classes, a row for each of `MAX_ROWS` runs of similar frequency."""
    order = sorted(range(len(counts)), key=lambda label: (-counts[label], label))
    if len(order) <= MAX_ROWS:
        rows = [(printable(names[label])[:24], str(counts[label]), float(counts[label])) for label in order]
    else:
        edges = [len(order) * row // MAX_ROWS for row in range(MAX_ROWS + 1)]
        rows = []
        for start, stop in pairwise(edges):
            found = [counts[label] for label in order[start:stop]]
            span = str(found[0]) if found[0] == found[-1] else f"{found[0]}..{found[-1]}"
            rank = f"class {start + 1}" if stop == start + 1 else f"classes {start + 1}..{stop}"
            rows.append((rank, span, sum(found) / len(found)))
    label_width, count_width = (max(len(row[column]) for row in rows) for column in (0, 1))  # type: ignore[arg-type]
    longest = max(row[2] for row in rows)
    head = ["by frequency:"] if len(order) > MAX_ROWS else []
    return head + [
        f"{label:<{label_width}}  {count:>{count_width}}  {'#' * max(1, round(BAR * value / longest))}"
        for label, count, value in rows
    ]

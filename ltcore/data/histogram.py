"""The class counts of a run's data as a picture."""

from __future__ import annotations

import io
from typing import Any

from ltcore.contract.figures import SHOT_GROUPS, shot_group
from ltcore.untrusted import printable

COLORS = {"many": (31, 119, 180), "medium": (255, 127, 14), "few": (214, 39, 40)}
LEFT, TOP, WIDTH, HEIGHT, MARGIN = 80, 70, 900, 360, 40


def histogram(description: dict[str, Any]) -> bytes:
    """A PNG: one bar per class, the most frequent first, coloured by shot group.

    Args:
        description: the record of `ltcore.data.describe.describe`.
    """
    from PIL import Image, ImageDraw, ImageFont

    counts = sorted(description["class_counts"], reverse=True)
    image = Image.new("RGB", (LEFT + WIDTH + MARGIN, TOP + HEIGHT + 60), "white")
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(15)
    draw.text(
        (LEFT, 10),
        f"{printable(description['name'])}: {len(counts)} classes, {sum(counts)} training images, imbalance "
        f"{description['imbalance_factor']:.4g}",
        "black",
        font,
    )
    across = LEFT
    for group in SHOT_GROUPS:
        found = description["groups"][group.name]
        text = f"{group.name} ({group.rule}): {found['classes']} classes, {found['images']} images"
        draw.rectangle((across, 40, across + 12, 52), COLORS[group.name])
        draw.text((across + 18, 36), text, "black", font)
        across += 300
    bottom, step = TOP + HEIGHT, _step(counts[0])
    for value in range(0, counts[0] + 1, step):
        y = bottom - HEIGHT * value / counts[0]
        draw.line((LEFT, y, LEFT + WIDTH, y), (225, 225, 225))
        draw.text((LEFT - 8, y), str(value), "black", font, anchor="rm")
    for rank, count in enumerate(counts):
        # From edge to edge in whole pixels: with more classes than pixels, neighbours share one.
        left, right = (LEFT + WIDTH * edge // len(counts) for edge in (rank, rank + 1))
        gap = 1 if right - left > 3 else 0
        height = max(1, round(HEIGHT * count / counts[0]))
        draw.rectangle((left, bottom - height, max(right - 1 - gap, left), bottom - 1), COLORS[shot_group(count)])
    draw.line((LEFT, bottom, LEFT + WIDTH, bottom), "black")
    draw.text((LEFT + WIDTH / 2, bottom + 25), "classes, the most frequent first", "black", font, anchor="mm")
    draw.text((LEFT - 8, TOP - 14), "images", "black", font, anchor="rm")
    held = io.BytesIO()
    image.save(held, "PNG")
    return held.getvalue()


def _step(largest: int) -> int:
    """The distance of the axis's lines: 1, 2 or 5 times a power of ten, for at most ten lines."""
    power = int(10 ** (len(str(largest)) - 1))
    return next((step for step in (power // 5, power // 2, power) if step and largest / step <= 10), power)

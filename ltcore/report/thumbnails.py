"""Small pictures of a run's images, as addresses that hold them."""

from __future__ import annotations

import base64
import io
from typing import TYPE_CHECKING

from ltcore.contract.splits import ArraySplit
from ltcore.data.pixels import converted, upright
from ltcore.data.streaming import ArrayImages

if TYPE_CHECKING:
    from PIL.Image import Image

    from ltcore.contract.splits import StreamedSplit
    from ltcore.data.transforms import ImageTransform

_THUMBNAIL = 96  # pixels of a side
_LOSSLESS = 32  # images up to this size are kept as they are: a few hundred bytes, where JPEG would blur


def thumbnail(
    split: ArraySplit | StreamedSplit, index: int, transform: ImageTransform, channels: int
) -> tuple[str, bool] | None:
    """An image as a data URI, and whether it is so small that its pixels should be seen as squares; None without one.

    Args:
        split: the images.
        index: which of them.
        transform: how they are prepared.
        channels: of the images as the network takes them; only those of 1 or 3 have a picture.
    """
    if channels not in (1, 3):
        return None
    opened = ArrayImages(split) if isinstance(split, ArraySplit) else split
    try:
        image = opened.open(index)
        image.draft(None, (2 * _THUMBNAIL, 2 * _THUMBNAIL))
        image = converted(upright(image), transform.mode, transform.window)
    except Exception:  # the file has gone since the run, or is damaged, for which Pillow has many exceptions
        return None
    image.thumbnail((_THUMBNAIL, _THUMBNAIL))
    small = max(image.size) <= _LOSSLESS
    return _data_uri(image, small), small


def _data_uri(image: Image, lossless: bool) -> str:
    held = io.BytesIO()
    if lossless:
        image.save(held, "PNG", optimize=True)
    else:
        image.save(held, "JPEG", quality=80)
    kind = "png" if lossless else "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(held.getvalue()).decode()}"

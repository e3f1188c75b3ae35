"""From what a file stores to upright pixels of eight bits: orientation, depth, transparency, colours.

Nothing is clipped in silence. Sixteen bits become eight by their upper half. What states no range (32-bit integers,
floating-point numbers) is refused unless a window says which values become black and white.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from PIL.Image import Image

    from ltcore.contract.splits import StreamedSplit

_ORIENTATION = 0x0112
_METADATA = frozenset({"exif", "xmp", "XML:com.adobe.xmp"})
#: Formats whose integers have sixteen bits at most, though Pillow may hold them in 32.
_SIXTEEN_BITS = ("PNG", "PPM")
_FULL = 65535
#: Largest values of cameras and scanners that keep fewer bits in a container of sixteen.
_USUAL = (255, 1023, 4095, 16383)
_SAMPLE = 16


def upright(image: Image) -> Image:
    """The image as a viewer shows it: turned as its EXIF orientation says, or that of its XMP where EXIF has none.

    Only that tag is read, so other tags may be damaged. Pillow turns a TIFF itself, when it decodes it.
    """
    from PIL.Image import Transpose

    if image.format == "TIFF" or not _METADATA & image.info.keys():
        return image
    try:
        orientation = image.getexif().get(_ORIENTATION)
    except Exception:  # metadata that Pillow cannot make sense of say nothing
        return image
    turns = {
        2: Transpose.FLIP_LEFT_RIGHT,
        3: Transpose.ROTATE_180,
        4: Transpose.FLIP_TOP_BOTTOM,
        5: Transpose.TRANSPOSE,
        6: Transpose.ROTATE_270,
        7: Transpose.TRANSVERSE,
        8: Transpose.ROTATE_90,
    }
    if orientation not in turns:
        return image
    turned = image.transpose(turns[orientation])
    turned.format = image.format
    return turned


def converted(image: Image, mode: str, window: Sequence[float] | None = None) -> Image:
    """The image in `mode`, ``RGB`` or ``L``, decoded. Transparent pixels are laid over white.

    Args:
        image: as Pillow opened it.
        mode: ``RGB`` or ``L``.
        window: the values that become black and white in an image of more than eight bits; values between them become
            grey in proportion. None for the upper half of sixteen bits.

    Raises:
        OSError: it cannot be decoded, or nothing states the range of its pixels.
    """
    from PIL import Image

    if is_deep(image):
        image = _eight_bits(image, window)
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        layer = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer)
    return image.convert(mode)  # decodes, and copies nothing where the mode is right


def is_deep(image: Image) -> bool:
    """Whether an image has one channel of more than eight bits."""
    return image.mode == "F" or image.mode.startswith("I")


def check_range(image: Image, window: Sequence[float] | None) -> None:
    """Refuse an image of whose pixels nothing states the range.

    Raises:
        OSError: its pixels are floating-point numbers or 32-bit integers, and there is no window.
    """
    if window is None and (image.mode == "F" or (image.mode == "I" and image.format not in _SIXTEEN_BITS)):
        kind = "floating-point numbers" if image.mode == "F" else "32-bit integers"
        raise OSError(
            f"its pixels are {kind}, and nothing says which of them are black and white; say so with data.range: "
            "[LOW, HIGH], or save it with 8 or 16 bits a channel"
        )


def _eight_bits(image: Image, window: Sequence[float] | None) -> Image:
    from PIL import Image

    check_range(image, window)
    pixels = np.asarray(image)
    if window is None:
        small = (pixels.clip(0, _FULL).astype(np.uint16) >> 8).astype(np.uint8)
    else:
        low, high = window
        inside = np.nan_to_num(pixels.astype(np.float64), nan=low).clip(low, high)
        small = np.rint((inside - low) * (255 / (high - low))).astype(np.uint8)
    found = Image.fromarray(small)
    clear = image.info.get("transparency")
    if isinstance(clear, int):
        found = Image.merge("LA", (found, Image.fromarray(np.where(pixels == clear, 0, 255).astype(np.uint8))))
    return found


def fitting_window(split: StreamedSplit) -> tuple[float, float] | None:
    """The window that suits deep images, from a few of a split; None where none is needed.

    For sixteen bits of which only the lower are used, as 12-bit cameras do, that is 0 to the largest value of so many
    bits. For pixels of no stated range it is their extremes.
    """
    low, high, stated, number = np.inf, -np.inf, True, min(_SAMPLE, len(split))
    for index in sorted({len(split) * i // number for i in range(number)}):
        try:
            with split.open(index) as image:
                if not is_deep(image):
                    continue
                stated &= image.mode.startswith("I;16") or (image.mode == "I" and image.format in _SIXTEEN_BITS)
                pixels: Any = np.asarray(image)
                pixels = pixels[np.isfinite(pixels)]
                low, high = min(low, float(pixels.min())), max(high, float(pixels.max()))
        except Exception:  # whoever decodes it says what is wrong
            continue
    if not low < high:
        return None
    if not stated:
        return low, high
    return next(((0.0, float(largest)) for largest in _USUAL if high <= largest), None)

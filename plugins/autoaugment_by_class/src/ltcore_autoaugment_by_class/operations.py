"""The 22 operations of CUDA, and what they do together to an image of a level.

Operations, ranges and rounding are those of the authors' code, which works on Pillow's images with Pillow's filters;
so does this, since other libraries round, blur and sharpen otherwise. What is drawn comes from the image's generator.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ltcore import DataError

#: A Pillow image; typed loosely, for Pillow is imported where images are changed.
Image = Any
#: Shifts are given in pixels; the largest of the range is an option of the method.
_SHIFT = 100.0


class Operation(NamedTuple):
    """One of the operations.

    Attributes:
        change: from an image and a value to an image.
        low: the value at strength 0.
        high: the value at strength 1.
        signed: whether the value is negated half of the time.
    """

    change: Callable[[Image, float], Image]
    low: float = 0.0
    high: float = 1.0
    signed: bool = False

    def value(self, strength: float) -> float:
        """The value at a strength in [0, 1]."""
        return strength * (self.high - self.low) + self.low


def _ops() -> Any:
    from PIL import ImageOps

    return ImageOps


def _filtered(name: str) -> Callable[[Image, float], Image]:
    def change(image: Image, value: float) -> Image:
        from PIL import ImageFilter

        return image.filter(getattr(ImageFilter, name))

    return change


def _enhanced(name: str) -> Callable[[Image, float], Image]:
    def change(image: Image, value: float) -> Image:
        from PIL import ImageEnhance

        return getattr(ImageEnhance, name)(image).enhance(value)

    return change


def _blurred(image: Image, radius: float) -> Image:
    from PIL import ImageFilter

    return image.filter(ImageFilter.GaussianBlur(radius))


def _enlarged(image: Image, factor: float) -> Image:
    """Enlarged, and cut back around its middle."""
    from PIL.Image import Resampling

    width, height = image.size
    wide, tall = int(width * factor), int(height * factor)
    left, top = wide // 2 - width // 2, tall // 2 - height // 2
    return image.resize((wide, tall), Resampling.LANCZOS).crop((left, top, left + width, top + height))


def _brightened_and_solarized(image: Image, addition: float) -> Image:
    """Brighter by a number of steps, then everything above the middle inverted."""
    from PIL.Image import fromarray

    pixels = np.clip(np.asarray(image).astype(np.float64) + addition, 0, 255).astype(np.uint8)
    return _ops().solarize(fromarray(pixels), 128)


def _affine(place: int) -> Callable[[Image, float], Image]:
    """One entry of the affine map from the new image's places to the old one's: 1 and 3 shear, 2 and 5 shift."""

    def change(image: Image, value: float) -> Image:
        from PIL.Image import Transform

        matrix = [1.0, 0.0, 0.0, 0.0, 1.0, 0.0]
        matrix[place] = value
        return image.transform(image.size, Transform.AFFINE, tuple(matrix))

    return change


OPERATIONS = {
    "flip": Operation(lambda image, _: _ops().flip(image)),
    "mirror": Operation(lambda image, _: _ops().mirror(image)),
    "edge_enhance": Operation(_filtered("EDGE_ENHANCE")),
    "detail": Operation(_filtered("DETAIL")),
    "smooth": Operation(_filtered("SMOOTH")),
    "autocontrast": Operation(lambda image, _: _ops().autocontrast(image)),
    "equalize": Operation(lambda image, _: _ops().equalize(image)),
    "invert": Operation(lambda image, _: _ops().invert(image)),
    "gaussian_blur": Operation(_blurred, 0.0, 2.0),
    "resize_crop": Operation(_enlarged, 1.0, 1.5),
    "rotate": Operation(lambda image, degrees: image.rotate(degrees), 0.0, 30.0, signed=True),
    "posterize": Operation(lambda image, bits: _ops().posterize(image, max(1, int(bits))), 0.0, 4.0),
    "solarize": Operation(lambda image, threshold: _ops().solarize(image, threshold), 0.0, 256.0),
    "solarize_add": Operation(_brightened_and_solarized, 0.0, 110.0),
    "color": Operation(_enhanced("Color"), 0.1, 1.9),
    "contrast": Operation(_enhanced("Contrast"), 0.1, 1.9),
    "brightness": Operation(_enhanced("Brightness"), 0.1, 1.9),
    "sharpness": Operation(_enhanced("Sharpness"), 0.1, 1.9),
    "shear_x": Operation(_affine(1), 0.0, 0.3, signed=True),
    "shear_y": Operation(_affine(3), 0.0, 0.3, signed=True),
    "translate_x": Operation(_affine(2), 0.0, _SHIFT, signed=True),
    "translate_y": Operation(_affine(5), 0.0, _SHIFT, signed=True),
}
_NAMES = tuple(OPERATIONS)


def transformed(
    image: Image, name: str, strength: float, negated: bool = False, largest_shift: float = _SHIFT
) -> Image:
    """A Pillow image after one operation.

    Args:
        image: a Pillow image of mode ``L`` or ``RGB``.
        name: a key of `OPERATIONS`.
        strength: in [0, 1].
        negated: whether the value of an operation that has a sign is negated.
        largest_shift: pixels at strength 1.

    Returns:
        A Pillow image of the same size and mode.
    """
    operation = OPERATIONS[name]
    if name.startswith("translate"):
        operation = operation._replace(high=largest_shift)
    value = operation.value(strength)
    return operation.change(image, -value if operation.signed and negated else value)


def cut_square(image: Tensor, side: int, generator: torch.Generator) -> Tensor:
    """Cutout (DeVries and Taylor 2017): a black square with its centre anywhere in the image, clipped at the borders.

    Args:
        image: [C, H, W] uint8; it is written into.
        side: of the square, in pixels.
        generator: on the CPU.
    """
    y, x = (int(torch.randint(length, (), generator=generator)) for length in image.shape[1:])
    image[:, max(y - side // 2, 0) : y + side // 2, max(x - side // 2, 0) : x + side // 2] = 0
    return image


@dataclass(frozen=True)
class Augmentation:
    """What is done to images, class by class: an image function of the hook ``image_transform``.

    An image of a class at level l gets l operations, drawn with replacement, each at strength l / `scale`, one after
    the other; and none where the coin says so (Ahn et al. 2023, section 3.1 and the authors' code).

    Attributes:
        levels: [C], the level of each class.
        probability: how many of the images are augmented.
        scale: the level that would be full strength.
        largest_shift: pixels by which images would be shifted at full strength.
        cutout: side in pixels of a black square behind it all, in every image; 0 for none.
    """

    levels: tuple[int, ...]
    probability: float = 0.5
    scale: int = 30
    largest_shift: float = _SHIFT
    cutout: int = 0

    def __call__(self, image: Tensor, target: int, generator: torch.Generator) -> Tensor:
        """[C, H, W] uint8 to the same, C = 1 or 3.

        Raises:
            DataError: images have another number of channels.
        """
        level = self.levels[target]
        if level and float(torch.rand((), generator=generator)) < self.probability:
            image = self._changed(image, level, generator)
        return cut_square(image, self.cutout, generator) if self.cutout else image

    def _changed(self, image: Tensor, level: int, generator: torch.Generator) -> Tensor:
        from PIL.Image import fromarray

        channels = len(image)
        if channels not in (1, 3):
            raise DataError(f"images of {channels} channels cannot be augmented; its operations take 1 or 3")
        pixels = np.ascontiguousarray(image.permute(1, 2, 0).numpy())
        found = fromarray(pixels[:, :, 0] if channels == 1 else pixels)
        for number in torch.randint(len(_NAMES), (level,), generator=generator).tolist():
            negated = OPERATIONS[_NAMES[number]].signed and bool(torch.randint(2, (), generator=generator))
            found = transformed(found, _NAMES[number], level / self.scale, negated, self.largest_shift)
        return torch.from_numpy(np.array(found)).reshape(*pixels.shape).permute(2, 0, 1)

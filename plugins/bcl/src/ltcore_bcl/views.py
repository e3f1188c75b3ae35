"""The stronger changes of the views that are contrasted, image by image (hook ``image_transform``)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

#: Largest relative change of brightness, contrast and saturation; largest shift of the hue, in turns of its circle.
_JITTER, _HUE = 0.4, 0.1
#: How often colours are changed at all, and how often they are taken away.
_COLOR, _GRAY = 0.8, 0.2
#: Widths and heights of a crop differ at most by this factor; draws until a crop is taken that surely fits.
_RATIO, _TRIES = 4 / 3, 10
#: Deviations of the blur, in pixels.
_BLUR = (0.1, 2.0)


def draw_crop(height: int, width: int, smallest: float, generator: torch.Generator) -> tuple[int, int, int, int]:
    """A box of random area and shape in an image.

    Args:
        height: H in pixels.
        width: W in pixels.
        smallest: the smallest share of the area, in (0, 1]; the largest is 1.
        generator: on the CPU.

    Returns:
        Top row, left column, height and width of the box. The middle of the image, as large as the ratio of sides
        allows, where ten draws did not fit.
    """
    for _ in range(_TRIES):
        u = torch.rand(4, generator=generator).tolist()
        area = height * width * (smallest + (1 - smallest) * u[0])
        ratio = _RATIO ** (2 * u[1] - 1)
        wide, tall = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < wide <= width and 0 < tall <= height:
            return int(u[2] * (height - tall + 1)), int(u[3] * (width - wide + 1)), tall, wide
    wide, tall = min(width, round(height * _RATIO)), min(height, round(width * _RATIO))
    return (height - tall) // 2, (width - wide) // 2, tall, wide


def strong_view(
    image: Tensor, target: int, generator: torch.Generator, smallest: float = 0.08, blur: float = 0.0
) -> Tensor:
    """A view as the authors' code makes them ("sim"): a crop of random area, colours changed or taken away.

    Brightness, contrast and saturation change by up to 0.4 and the hue by up to 0.1, in random order, with
    probability 0.8; with probability 0.2 the image becomes grey. Flips are left to the data: digits have none.

    Args:
        image: [C, H, W] uint8. Colours are changed where C is 3, of others brightness and contrast where C is 1.
        target: its label, not looked at.
        generator: on the CPU; all the randomness there is.
        smallest: the crop's smallest share of the area.
        blur: the probability of a Gaussian blur of 0.1 to 2 pixels, as in MoCo v2.

    Returns:
        [C, H, W] uint8.
    """
    from torchvision.transforms.v2 import functional as change

    channels, height, width = image.shape
    image = change.resized_crop(image, *draw_crop(height, width, smallest, generator), size=[height, width])
    u = torch.rand(8, generator=generator).tolist()
    if channels in (1, 3) and u[0] < _COLOR:
        factors = [1 + _JITTER * (2 * each - 1) for each in u[1:4]]
        changes = [
            lambda x: change.adjust_brightness(x, factors[0]),
            lambda x: change.adjust_contrast(x, factors[1]),
            lambda x: change.adjust_saturation(x, factors[2]),
            lambda x: change.adjust_hue(x, _HUE * (2 * u[4] - 1)),
        ]
        for place in torch.randperm(4 if channels == 3 else 2, generator=generator).tolist():
            image = changes[place](image)
    if channels == 3 and u[5] < _GRAY:
        image = change.rgb_to_grayscale(image, num_output_channels=3)
    if u[6] < blur:
        deviation = _BLUR[0] + (_BLUR[1] - _BLUR[0]) * u[7]
        reach = min(math.ceil(3 * deviation), (min(height, width) - 1) // 2)  # its borders are mirrored
        image = change.gaussian_blur(image, [2 * reach + 1] * 2, [deviation] * 2)
    return image

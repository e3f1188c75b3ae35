"""How an image is prepared, by name: at random for training, and always alike for evaluation.

One Pillow image at a time, in whatever process decodes it. What is random draws from torch's global CPU generator,
which the caller seeds for each image. Policies and crop parameters are torchvision's.

A JPEG is decoded no larger than it is needed (libjpeg scales by 1/2, 1/4 and 1/8 while it decodes). Crop and resize are
one operation, so that pixels outside of the crop are never resized.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cache
from typing import TYPE_CHECKING, Any, Literal

import torch

from ltcore.data.pixels import converted, upright
from ltcore.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from PIL.Image import Image

    from ltcore.contract.recipe import Transform
    from ltcore.contract.splits import DataSplits

Box = tuple[float, float, float, float]

#: Images of at most this size are padded and cropped, as on CIFAR; larger ones get a crop of random area and shape.
SMALL = 64
#: The evaluation's resize and crop of the ImageNet models.
_MARGIN = 256 / 224
#: How much larger than wanted a JPEG is at least decoded. Evaluation keeps the distance that Pillow's thumbnails keep.
_GAP_TRAINING, _GAP_EVALUATION = 1.0, 2.0
_GREY = 128
#: By how much more than a crop the shorter side has where several crops are tested, as in LIFT's code.
_CROP_MARGIN = 24 / 224


@dataclass(frozen=True)
class Rule:
    """What a named transform does in training; what it does in evaluation follows from its crop.

    Attributes:
        crop: ``pad`` (pad and crop back), ``area`` (random area and shape: torchvision's RandomResizedCrop), ``margin``
            (shorter side to 256/224 of the size, then a random crop), or ``by_size`` (``pad`` up to 64 pixels, else
            ``area``).
        padding: the padding as a share of the size.
        flip: whether images are flipped left to right half of the time.
        color_jitter: largest relative change of brightness, contrast and saturation.
        policy: a policy of random operations.
        cutout: whether a square of half the size is blacked out.
    """

    crop: Literal["pad", "area", "margin", "by_size"]
    padding: float = 0.0
    flip: bool = True
    color_jitter: float = 0.0
    policy: Literal["autoaugment", "randaugment"] | None = None
    cutout: bool = False


#: A padding of 1/8 is 4 pixels at 32 and 8 at 64, as in the published tables.
TRANSFORMS = {
    "none": Rule("pad", flip=False),
    "cifar": Rule("pad", 1 / 8),
    "imagenet": Rule("area", color_jitter=0.4),
    "resize_crop": Rule("margin"),
    "autoaugment_cutout": Rule("by_size", 1 / 8, policy="autoaugment", cutout=True),
    "randaugment": Rule("by_size", 1 / 8, policy="randaugment"),
}


@dataclass(frozen=True)
class ImageTransform:
    """A named transform with everything decided.

    Attributes:
        name: a key of `TRANSFORMS`.
        image_size: height and width in pixels of what comes out.
        crop_padding: pixels of zero padding for the random crop; 0 for no such crop.
        flip: whether training images are flipped left to right half of the time.
        color_jitter: largest relative change of brightness, contrast and saturation; 0 for none.
        mode: Pillow's mode of what comes out: ``RGB``, or ``L`` for one channel.
        interpolation: how images are resized; both kinds are antialiased.
        window: the values that become black and white in images of more than eight bits (`ltcore.data.pixels`).
        crops: how many crops of an image are looked at where the model is tested or used (`evaluate_crops`); 1 for what
            `evaluate` gives.
        crop_margin: pixels by which an image's shorter side is longer than those crops.
    """

    name: str
    image_size: int
    crop_padding: int = 0
    flip: bool = False
    color_jitter: float = 0.0
    mode: str = "RGB"
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"
    window: Sequence[float] | None = None
    crops: int = 1
    crop_margin: int = 0

    @property
    def whole_batches(self) -> bool:
        """Whether crop and flip are all there is, which images in memory get a batch at a time."""
        return self.name in ("none", "cifar") and not self.color_jitter

    @property
    def crop(self) -> str:
        """The rule's crop, ``by_size`` decided."""
        crop = TRANSFORMS[self.name].crop
        return crop if crop != "by_size" else ("pad" if self.image_size <= SMALL else "area")

    @property
    def shorter_side(self) -> int:
        """To what evaluation resizes an image's shorter side before it cuts out the centre, in pixels."""
        return self.image_size if self.crop == "pad" else round(self.image_size * _MARGIN)

    def load(self, training: bool = True) -> None:
        """Import what transforming needs, in the process from which workers are forked, so that they share it.

        Args:
            training: whether there will be training images, too. Only they may need torchvision, which imports
                PyTorch's compiler and so takes longer than PyTorch itself.
        """
        import PIL.Image  # noqa: F401

        if training and (self.crop == "area" or self.color_jitter or TRANSFORMS[self.name].policy):
            import torchvision.transforms.v2  # noqa: F401

    def train(self, image: Image) -> Image:
        """A training image, changed at random; draws from torch's global CPU generator.

        Args:
            image: as Pillow opened it, not necessarily decoded. It may be changed.

        Raises:
            OSError: it cannot be decoded; Pillow raises other exceptions too where a file is damaged.
        """
        image, size = upright(image), self.image_size
        if self.crop == "area":
            image = self._cut(image, _random_area(image), _GAP_TRAINING)
        elif self.crop == "margin":
            image = self._cut(image, _random_of_resized(image, size), _GAP_TRAINING)
        else:
            image = self._cut(image, _centre_of_resized(image, size, size), _GAP_TRAINING)
            if self.crop_padding:
                x, y = (torch.randint(2 * self.crop_padding + 1, (2,)) - self.crop_padding).tolist()
                image = image.crop((x, y, x + size, y + size))  # what lies outside is zero
        if self.flip and torch.randint(2, ()).item():
            from PIL.Image import Transpose

            image = image.transpose(Transpose.FLIP_LEFT_RIGHT)
        rule = TRANSFORMS[self.name]
        if self.color_jitter:
            image = _jitter(self.color_jitter)(image)
        if rule.policy:
            image = _policy(rule.policy, size <= SMALL)(image)
        return cut_out(image, size // 2) if rule.cutout else image

    def evaluate(self, image: Image) -> Image:
        """An image as evaluation sees it: resized in proportion, and its centre.

        The shorter side becomes the size, or 256/224 of it where training crops a random area or a margin.

        Args:
            image: as Pillow opened it, not necessarily decoded. It may be changed.

        Raises:
            OSError: it cannot be decoded; Pillow raises other exceptions too where a file is damaged.
        """
        image = upright(image)
        return self._cut(image, _centre_of_resized(image, self.shorter_side, self.image_size), _GAP_EVALUATION)

    def evaluate_crops(self, image: Image) -> list[Image]:
        """An image's crops, resized in proportion: the centre, the corners from the top left on, then all mirrored.

        The shorter side becomes the size and `crop_margin` pixels.

        Args:
            image: as Pillow opened it, not necessarily decoded. It may be changed.

        Raises:
            OSError: it cannot be decoded; Pillow raises other exceptions too where a file is damaged.
        """
        from PIL.Image import Transpose

        image, size = upright(image), self.image_size
        shorter = size + self.crop_margin
        resized = _resized(image, shorter)
        right, bottom = (side - size for side in resized)
        corners = [(0, 0), (right, 0), (0, bottom), (right, bottom)]
        boxes = [_window(image, resized, left, top, size) for left, top in corners]
        found = self._cuts(image, [_centre_of_resized(image, shorter, size), *boxes], _GAP_EVALUATION)
        return found if self.crops == 5 else [*found, *(crop.transpose(Transpose.FLIP_LEFT_RIGHT) for crop in found)]

    def _cut(self, image: Image, box: Box, gap: float) -> Image:
        """The box of the image, resized to the size."""
        return self._cuts(image, [box], gap)[0]

    def _cuts(self, image: Image, boxes: Sequence[Box], gap: float) -> list[Image]:
        """Boxes of one size, each resized to the size of the transform; the image is decoded once."""
        from PIL.Image import Resampling

        size, box = self.image_size, boxes[0]
        smaller = min(box[2] - box[0], box[3] - box[1]) / (gap * size)
        if smaller >= 2:
            width, height = image.size
            drafted = image.draft(None, (math.ceil(width / smaller), math.ceil(height / smaller)))
            if drafted:  # the boxes, in the pixels of the smaller image, whose last ones may be cut short
                x, y = drafted[1][2] / width, drafted[1][3] / height
                boxes = [
                    (box[0] * x, box[1] * y, min(box[2] * x, image.width), min(box[3] * y, image.height))
                    for box in boxes
                ]
        image = converted(image, self.mode, self.window)
        return [image.resize((size, size), Resampling[self.interpolation.upper()], box=box) for box in boxes]


def resolve(splits: DataSplits, asked: Transform, channels: int) -> ImageTransform:
    """The transform of a run: the recipe's choices, then the data set's own, then those of the transform's name.

    Args:
        splits: the data set.
        asked: the recipe's ``data.transform``.
        channels: channels of the images.

    Raises:
        DataError: the size of streamed images is not known, or a choice does not suit the transform or the images.
    """
    from ltcore.contract.splits import ArraySplit

    in_memory = isinstance(splits.train, ArraySplit)
    stored = splits.train.images.shape[-1] if isinstance(splits.train, ArraySplit) else splits.image_size
    size = asked.image_size or stored
    if size is None:
        raise DataError("nothing says what size the images are brought to; set data.transform.image_size")
    own = asked.name is None
    name = asked.name or splits.transform or ("none" if in_memory else "imagenet")
    rule = TRANSFORMS[name]
    padding, flip = round(rule.padding * size), rule.flip
    if own and splits.transform is None and in_memory:
        padding, flip = splits.crop_padding, splits.flip
    elif own and splits.crop_padding:
        padding = splits.crop_padding
    found = ImageTransform(
        name,
        size,
        padding if asked.crop_padding is None else asked.crop_padding,
        flip if asked.flip is None else asked.flip,
        rule.color_jitter if asked.color_jitter is None else asked.color_jitter,
        "L" if channels == 1 else "RGB",
        asked.interpolation or "bilinear",
        crops=asked.test_crops,
        crop_margin=0 if asked.test_crops == 1 else asked.test_margin or max(1, round(_CROP_MARGIN * size)),
    )
    if found.crop != "pad":
        if asked.crop_padding:
            raise DataError(
                f"data.transform.crop_padding is {asked.crop_padding}, but the transform '{name}' crops "
                f"{size} x {size} pixels in its own way; remove crop_padding, or choose name: cifar"
            )
        found = replace(found, crop_padding=0)
    if in_memory and channels not in (1, 3) and not (found.whole_batches and size == stored):
        raise DataError(
            f"the transform '{name}' at {size} pixels needs images of 1 or 3 channels, but these have {channels}; "
            "choose name: none or cifar, without image_size and color_jitter"
        )
    if found.crops > 1 and channels not in (1, 3):
        raise DataError(
            f"data.transform.test_crops is {found.crops}, which needs images of 1 or 3 channels, but these have "
            f"{channels}; remove test_crops"
        )
    return found


def cut_out(image: Image, length: int) -> Image:
    """Cutout (DeVries and Taylor 2017): a black square whose centre is anywhere in the image, clipped at its borders.

    Args:
        image: the image; it is not changed.
        length: side of the square in pixels.
    """
    image = image.copy()
    y, x = torch.randint(image.height, ()).item(), torch.randint(image.width, ()).item()
    top, left = int(y) - length // 2, int(x) - length // 2
    box = (max(left, 0), max(top, 0), min(left + length, image.width), min(top + length, image.height))
    image.paste(0, box)
    return image


def _random_area(image: Image) -> Box:
    from torchvision.transforms import RandomResizedCrop

    top, left, height, width = RandomResizedCrop.get_params(image, [0.08, 1.0], [3 / 4, 4 / 3])
    return left, top, left + width, top + height


def _resized(image: Image, shorter: int) -> tuple[int, int]:
    """Width and height once the shorter side is `shorter`, rounded down as torchvision does."""
    width, height = image.size
    if width <= height:
        return shorter, int(shorter * height / width)
    return int(shorter * width / height), shorter


def _window(image: Image, resized: tuple[int, int], left: int, top: int, size: int) -> Box:
    """Where a square of the resized image lies in the image as it is."""
    x, y = image.width / resized[0], image.height / resized[1]
    return left * x, top * y, min((left + size) * x, image.width), min((top + size) * y, image.height)


def _centre_of_resized(image: Image, shorter: int, size: int) -> Box:
    resized = _resized(image, shorter)
    return _window(image, resized, round((resized[0] - size) / 2), round((resized[1] - size) / 2), size)


def _random_of_resized(image: Image, size: int) -> Box:
    resized = _resized(image, round(size * _MARGIN))
    left, top = (int(torch.randint(side - size + 1, ()).item()) for side in resized)
    return _window(image, resized, left, top, size)


@cache
def _jitter(strength: float) -> Any:
    from torchvision.transforms import v2

    return v2.ColorJitter(brightness=strength, contrast=strength, saturation=strength)


@cache
def _policy(name: str, small: bool) -> Any:
    from torchvision.transforms import v2

    if name == "randaugment":
        return v2.RandAugment(fill=_GREY)
    return v2.AutoAugment(v2.AutoAugmentPolicy.CIFAR10 if small else v2.AutoAugmentPolicy.IMAGENET, fill=_GREY)

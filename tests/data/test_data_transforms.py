import subprocess
import sys
import typing

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import functional as F

from ltcore.contract.recipe import Transform
from ltcore.contract.splits import ArraySplit, DataSplits
from ltcore.data.transforms import TRANSFORMS, ImageTransform, _random_area, cut_out, resolve
from ltcore.errors import DataError


def picture(width, height, mode="RGB"):
    y, x = np.mgrid[0:height, 0:width] / max(width, height)
    pixels = np.stack([200 * x, 255 * (1 - y), 120 + 100 * np.sin(7 * x + 5 * y)], 2)
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).convert(mode)


def seeded(transform, image, seed):
    torch.manual_seed(seed)
    return np.asarray(transform.train(image.copy()))


def test_the_schema_knows_every_name():
    (names, _) = typing.get_args(Transform.model_fields["name"].annotation)
    assert typing.get_args(names) == tuple(TRANSFORMS)


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("size", [32, 80])
@pytest.mark.parametrize("name", TRANSFORMS)
def test_every_transform(name, size, mode):
    rule = TRANSFORMS[name]
    transform = ImageTransform(name, size, round(rule.padding * size), rule.flip, rule.color_jitter, mode)
    image = picture(120, 100, mode)
    found = [seeded(transform, image, seed) for seed in range(6)]
    assert all(pixels.shape == (size, size, 3)[: 3 if mode == "RGB" else 2] for pixels in found)
    assert all(np.array_equal(pixels, seeded(transform, image, seed)) for seed, pixels in enumerate(found))
    distinct = len({pixels.tobytes() for pixels in found})
    assert distinct == 1 if name == "none" else distinct > 3
    once, again = (np.asarray(transform.evaluate(image.copy())) for _ in range(2))
    assert np.array_equal(once, again)


@pytest.mark.parametrize(("width", "height"), [(100, 80), (64, 90), (300, 200)])
@pytest.mark.parametrize("name", ["none", "imagenet"])
def test_evaluation_is_torchvisions(name, width, height):
    image, size = picture(width, height), 32
    shorter = size if name == "none" else round(32 * 256 / 224)
    expected = F.center_crop(F.resize(image, shorter, antialias=True), size)
    found = ImageTransform(name, size).evaluate(image.copy())
    difference = np.asarray(found).astype(int) - np.asarray(expected)
    assert np.abs(difference).max() <= 1 and np.abs(difference).mean() < 0.1  # eight bits, rounded between two passes


def test_a_random_area_is_between_three_to_four_and_four_to_three():
    """Sides are whole pixels, so that a large image shows the ratios; both ends are reached."""
    torch.manual_seed(0)
    ratios, shares = [], []
    for _ in range(400):
        left, top, right, bottom = _random_area(Image.new("RGB", (1000, 1000)))
        ratios.append((right - left) / (bottom - top))
        shares.append((right - left) * (bottom - top) / 1e6)
    assert 0.745 < min(ratios) < 0.77 and 1.30 < max(ratios) < 1.34
    assert 0.079 < min(shares) < 0.1 and max(shares) > 0.9


@pytest.mark.parametrize(("name", "shorter"), [("imagenet", 256), ("resize_crop", 256), ("none", 224)])
def test_the_protocol_of_imagenet_is_256_pixels_and_the_middle_224(name, shorter):
    transform, image = ImageTransform(name, 224), picture(shorter + 60, shorter)
    assert transform.shorter_side == shorter
    expected = F.center_crop(image, 224)  # nothing is resized
    assert np.array_equal(transform.evaluate(image.copy()), expected)


def test_cifars_crop_and_flip():
    transform, image = ImageTransform("cifar", 16, 3, True), picture(16, 16)
    padded = np.pad(np.asarray(image), ((3, 3), (3, 3), (0, 0)))
    windows = {}
    for y in range(7):
        for x in range(7):
            crop = padded[y : y + 16, x : x + 16]
            windows[crop.tobytes()], windows[crop[:, ::-1].tobytes()] = (y, x, 0), (y, x, 1)
    seen = [windows[seeded(transform, image, seed).tobytes()] for seed in range(300)]
    assert {y for y, _, _ in seen} == {x for _, x, _ in seen} == set(range(7))
    assert 0.4 < np.mean([flipped for _, _, flipped in seen]) < 0.6
    assert {seeded(ImageTransform("cifar", 16), image, seed).tobytes() for seed in range(9)} == {image.tobytes()}


@pytest.mark.parametrize("name", ["imagenet", "none"])
def test_a_large_jpeg_is_decoded_small_and_looks_the_same(tmp_path, name, monkeypatch):
    picture(512, 384).save(tmp_path / "a.jpg", quality=95)
    size = 32
    transform = ImageTransform(name, size)
    with Image.open(tmp_path / "a.jpg") as image:
        found = np.asarray(transform.evaluate(image)).astype(int)
        assert image.size == (128, 96)  # at least twice the 32 pixels that are wanted of the shorter side
    with Image.open(tmp_path / "a.jpg") as image:
        image.load()  # from here on it cannot be decoded smaller
        whole = np.asarray(transform.evaluate(image)).astype(int)
    assert np.abs(found - whole).mean() < 1.5 and np.abs(found - whole).max() < 12
    drafted = []
    for seed in range(8):
        with Image.open(tmp_path / "a.jpg") as image:
            torch.manual_seed(seed)
            a = np.asarray(transform.train(image)).astype(int)
            drafted.append(image.size)
        b = seeded(transform, Image.open(tmp_path / "a.jpg").convert("RGB"), seed).astype(int)
        assert np.abs(a - b).mean() < 3
    assert min(drafted) < (512, 384)


def test_cutout():
    image = Image.new("RGB", (20, 20), "white")
    areas = set()
    for seed in range(200):
        torch.manual_seed(seed)
        black = (np.asarray(cut_out(image, 8)) == 0).all(2)
        rows, columns = np.flatnonzero(black.any(1)), np.flatnonzero(black.any(0))
        assert black[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].all()
        areas.add((len(rows), len(columns)))
    assert (8, 8) in areas and (4, 8) in areas and max(max(area) for area in areas) == 8
    assert np.asarray(image).min() == 255


# -- what is chosen where --------------------------------------------------------------------------------------------


def arrays(channels=3, size=32, **changed):
    split = ArraySplit(torch.zeros(2, channels, size, size, dtype=torch.uint8), torch.arange(2))
    return DataSplits(split, split, ("a", "b"), (0.5,) * channels, (0.5,) * channels, **changed)


def streamed(**changed):
    class Nothing:
        targets = torch.arange(2)

    return DataSplits(Nothing(), Nothing(), ("a", "b"), (0.5,) * 3, (0.5,) * 3, **changed)


def test_the_recipe_comes_before_the_set_and_the_set_before_the_name():
    def chosen(splits, channels=3, **asked):
        found = resolve(splits, Transform(**asked), channels)
        return found.name, found.image_size, found.crop_padding, found.flip, found.color_jitter

    assert chosen(arrays()) == ("none", 32, 0, False, 0.0)
    assert chosen(arrays(crop_padding=2, flip=True)) == ("none", 32, 2, True, 0.0)
    assert chosen(arrays(crop_padding=2, flip=True), flip=False) == ("none", 32, 2, False, 0.0)
    assert chosen(arrays(crop_padding=2), name="cifar") == ("cifar", 32, 4, True, 0.0)
    assert chosen(arrays(), name="cifar", image_size=64, crop_padding=3) == ("cifar", 64, 3, True, 0.0)
    assert chosen(arrays(), name="autoaugment_cutout", color_jitter=0.2) == ("autoaugment_cutout", 32, 4, True, 0.2)
    assert chosen(streamed(image_size=224)) == ("imagenet", 224, 0, True, 0.4)
    for asked, used in ((None, "bilinear"), ("bilinear", "bilinear"), ("bicubic", "bicubic")):
        transform = resolve(streamed(image_size=224), Transform(interpolation=asked), 3)
        assert transform.interpolation == used
    assert chosen(streamed(image_size=224), color_jitter=0) == ("imagenet", 224, 0, True, 0.0)
    assert chosen(streamed(image_size=224, transform="resize_crop"), image_size=160)[:2] == ("resize_crop", 160)
    assert chosen(streamed(image_size=32, transform="cifar", crop_padding=5))[2] == 5
    assert resolve(arrays(1), Transform(), 1).mode == "L"
    plain = [resolve(arrays(), Transform(name=name), 3).whole_batches for name in TRANSFORMS]
    assert plain == [True, True, False, False, False, False]


def test_what_does_not_fit_is_refused():
    with pytest.raises(DataError, match=r"what size the images are brought to; set data.transform.image_size"):
        resolve(streamed(), Transform(), 3)
    with pytest.raises(DataError, match=r"crop_padding is 4, but the transform 'imagenet' crops 224 x 224 .*cifar"):
        resolve(streamed(image_size=224), Transform(crop_padding=4), 3)
    for asked in (Transform(name="randaugment"), Transform(image_size=16), Transform(color_jitter=0.1)):
        with pytest.raises(DataError, match="needs images of 1 or 3 channels, but these have 2"):
            resolve(arrays(2), asked, 2)
    assert resolve(arrays(2), Transform(name="cifar"), 2).crop_padding == 4


_IMPORTS = """
import sys
from PIL import Image
from ltcore.data.transforms import TRANSFORMS, ImageTransform

image = Image.new("RGB", (40, 40))
for name in ("none", "cifar", "resize_crop"):
    ImageTransform(name, 32, crop_padding=4, flip=True).load()
    ImageTransform(name, 32, crop_padding=4, flip=True).train(image)
for name in TRANSFORMS:
    ImageTransform(name, 80, color_jitter=0.4).load(training=False)
    ImageTransform(name, 80, color_jitter=0.4).evaluate(image)
assert "torchvision" not in sys.modules
for transform in (
    ImageTransform("none", 32, color_jitter=0.4), ImageTransform("imagenet", 32), ImageTransform("randaugment", 32)
):
    transform.load()
    assert "torchvision.transforms.v2" in sys.modules, transform
    for module in [name for name in sys.modules if name.startswith("torchvision.transforms.v2")]:
        del sys.modules[module]
"""


def test_torchvision_is_imported_for_training_that_needs_it_only():
    subprocess.run([sys.executable, "-c", _IMPORTS], check=True)

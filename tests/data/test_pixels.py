"""Depth, range, orientation and transparency: read as meant, or refused."""

import struct

import numpy as np
import pytest
import torch
from PIL import Image, PngImagePlugin

from ltcore.contract.recipe import Data
from ltcore.contract.splits import ArraySplit, DataSplits
from ltcore.data.image_files import file_split
from ltcore.data.image_list import imagenet_like
from ltcore.data.inspection import inspect
from ltcore.data.pixels import converted, fitting_window, upright
from ltcore.data.prepare import prepare
from ltcore.data.streaming import find_broken
from ltcore.data.transforms import ImageTransform
from ltcore.errors import DataError


def test_pixels_become_rgb():
    grey = Image.fromarray(np.arange(256, dtype=np.uint8).reshape(16, 16))
    assert np.array_equal(np.asarray(converted(grey, "RGB"))[..., 1], np.asarray(grey))
    deep = Image.fromarray((np.arange(256, dtype=np.uint16) * 257).reshape(16, 16))
    assert deep.mode == "I;16"
    assert np.array_equal(np.asarray(converted(deep, "RGB"))[..., 2], np.asarray(grey))
    assert np.array_equal(np.asarray(converted(deep, "L")), np.asarray(grey))
    clear = Image.new("RGBA", (4, 4), (10, 20, 30, 0))
    clear.putpixel((1, 0), (10, 20, 30, 255))
    clear.putpixel((2, 0), (0, 0, 0, 51))
    assert np.asarray(converted(clear, "RGB"))[0].tolist() == [[255] * 3, [10, 20, 30], [204] * 3, [255] * 3]
    palette = Image.new("P", (2, 1))
    palette.putpalette([9, 8, 7, 1, 2, 3])
    palette.putpixel((1, 0), 1)
    assert np.asarray(converted(palette, "RGB")).tolist() == [[[9, 8, 7], [1, 2, 3]]]
    palette.info["transparency"] = 0
    assert np.asarray(converted(palette, "RGB")).tolist() == [[[255] * 3, [1, 2, 3]]]
    ink = Image.new("CMYK", (1, 1), (255, 0, 0, 0))
    assert np.asarray(converted(ink, "RGB")).tolist() == [[[0, 255, 255]]]
    assert np.asarray(converted(Image.new("1", (1, 1), 1), "RGB")).tolist() == [[[255] * 3]]
    with pytest.raises(OSError, match="floating-point"):
        converted(Image.new("F", (1, 1)), "RGB")


def test_images_are_turned_upright(tmp_path):
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 40, 3), np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned a quarter clockwise
    image.save(tmp_path / "turned.png", exif=exif)
    with Image.open(tmp_path / "turned.png") as stored:
        assert stored.size == (40, 20)
        found = upright(stored)
    assert np.array_equal(np.asarray(found), np.rot90(np.asarray(image), -1))


def stored(path, array, **how):
    Image.fromarray(array).save(path, **how)
    return Image.open(path)


def test_wide_pixels_are_refused_or_windowed(tmp_path):
    counts = np.array([[-5, 0], [50_000, 100_000]], np.int32)
    for name, array in (("i.tif", counts), ("f.tif", counts.astype(np.float32))):
        for change in (lambda image: image, upright):
            with pytest.raises(
                OSError, match=r"nothing says which of them are black and white; say so with data.range"
            ):
                converted(change(stored(tmp_path / name, array)), "L")
            found = converted(change(stored(tmp_path / name, array)), "L", (0, 100_000))
            assert np.asarray(found).tolist() == [[0, 0], [128, 255]]
    nothing = np.array([[np.nan, np.inf, -np.inf, 2.0]], np.float32)
    assert np.asarray(converted(stored(tmp_path / "n.tif", nothing), "L", (1, 3))).tolist() == [[0, 255, 0, 128]]


def test_sixteen_bits_keep_their_upper_half_or_a_window(tmp_path):
    twelve = np.array([[0, 2048, 4095]], np.uint16)
    for name in ("a.png", "a.tif", "a.pgm"):
        assert np.asarray(converted(stored(tmp_path / name, twelve), "L")).tolist() == [[0, 8, 15]], name
        assert np.asarray(converted(stored(tmp_path / name, twelve), "L", [0, 4095])).tolist() == [[0, 128, 255]], name
    eight = stored(tmp_path / "b.png", np.array([[0, 100]], np.uint8))
    assert np.asarray(converted(eight, "L", (0, 4095))).tolist() == [[0, 100]]  # a window is for deep images


def test_transparency_of_sixteen_bits(tmp_path):
    image = stored(tmp_path / "a.png", np.array([[0, 7, 40_000]], np.uint16), transparency=7)
    assert image.info["transparency"] == 7
    assert np.asarray(converted(image, "L")).tolist() == [[0, 255, 40_000 >> 8]]
    again = stored(tmp_path / "b.png", np.array([[0, 7, 40_000]], np.uint16), transparency=9)
    assert np.asarray(converted(again, "RGB"))[..., 0].tolist() == [[0, 0, 40_000 >> 8]]


def quadrants():
    """Four colours, so that any turn shows; large enough for JPEG."""
    pixels = np.zeros((32, 48, 3), np.uint8)
    pixels[:16, 24:, 0] = pixels[16:, :24, 1] = pixels[16:, 24:, 2] = 250
    return pixels


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_that_of_pillow(tmp_path, orientation):
    from PIL import ImageOps

    exif = Image.Exif()
    exif[0x0112] = orientation
    for name in ("a.jpg", "a.png", "a.webp", "a.tif"):
        Image.fromarray(quadrants()).save(tmp_path / name, exif=exif, quality=100)
        with Image.open(tmp_path / name) as image:
            found = np.asarray(converted(upright(image), "RGB")).astype(int)
        with Image.open(tmp_path / name) as image:
            wanted = np.asarray(ImageOps.exif_transpose(image).convert("RGB")).astype(int)
        assert found.shape == wanted.shape and np.abs(found - wanted).max() == 0, name


def test_orientation_beside_damaged_metadata(tmp_path):
    """An entry that Pillow can read and cannot write again; and one that says nothing at all."""
    # Orientation 6, and ImageWidth with a count of 2 as ASCII that points outside of the block.
    entries = struct.pack(">HHIHH", 0x0112, 3, 1, 6, 0) + struct.pack(">HHII", 0x010E, 2, 900, 9_000)
    block = b"Exif\0\0MM\0*" + struct.pack(">IH", 8, 2) + entries + bytes(4)
    Image.fromarray(quadrants()).save(tmp_path / "odd.jpg", exif=block)
    with Image.open(tmp_path / "odd.jpg") as image:
        assert upright(image).size == (32, 48)
    Image.fromarray(quadrants()).save(tmp_path / "none.jpg", exif=b"Exif\0\0garbage")
    with Image.open(tmp_path / "none.jpg") as image:
        assert upright(image).size == (48, 32)


def test_a_tag_that_cannot_be_written_again(tmp_path, monkeypatch):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(quadrants()).save(tmp_path / "a.jpg", exif=exif)
    monkeypatch.setattr(Image.Exif, "tobytes", lambda self, offset=8: 1 / 0)
    with Image.open(tmp_path / "a.jpg") as image:
        assert upright(image).size == (32, 48)


def test_orientation_of_xmp_alone(tmp_path):
    packet = '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
    text = PngImagePlugin.PngInfo()
    text.add_itxt("XML:com.adobe.xmp", packet)
    Image.fromarray(quadrants()).save(tmp_path / "a.png", pnginfo=text)
    Image.fromarray(quadrants()).save(tmp_path / "a.jpg", xmp=packet.encode())
    for name in ("a.png", "a.jpg"):
        with Image.open(tmp_path / name) as image:
            assert "exif" not in image.info and upright(image).size == (32, 48), name


# -- in a data set -----------------------------------------------------------------------------------------------------


def photographs(root, arrays, suffix="png"):
    from dataclasses import replace

    files = []
    for number, array in enumerate(arrays):
        stored(root / f"{number}.{suffix}", array)
        files.append(f"{number}.{suffix}")
    split = file_split(root, files, [number % 2 for number in range(len(arrays))])
    return replace(imagenet_like({"train": split, "test": split}), class_names=("a", "b"))


def noisy(high, dtype=np.uint16):
    return [np.random.default_rng(seed).integers(0, high, (30, 30)).astype(dtype) for seed in range(4)]


@pytest.mark.parametrize(
    "high, window", [(200, (0, 255)), (1000, (0, 1023)), (4000, (0, 4095)), (16_000, (0, 16_383)), (60_000, None)]
)
def test_fewer_bits_in_a_container_of_sixteen_are_noticed(tmp_path, high, window):
    splits = photographs(tmp_path, noisy(high))
    assert fitting_window(splits.train) == window
    notes = [n for n in inspect(prepare(splits), Data(use="x", duplicates="off")).notes if "eight bits" in n]
    if window is None:
        assert not notes
    else:
        assert f"--set data.range=[0,{window[1]}] makes" in notes[0]
    asked = Data(use="x", range=[0, 4095], duplicates="off")
    assert not inspect(prepare(splits, asked), asked).notes


def test_eight_bits_need_no_window(tmp_path):
    assert fitting_window(photographs(tmp_path, noisy(255, np.uint8)).train) is None


def test_the_range_reaches_decoding_and_the_search_for_broken_images(tmp_path):
    splits = photographs(tmp_path, noisy(1000, np.int32), "tif")
    assert fitting_window(splits.train)[1] == max(array.max() for array in noisy(1000))
    assert len(find_broken(splits.train, 0)) == 4 and find_broken(splits.train, 0, (0, 1000)) == []
    with pytest.raises(DataError, match=r"4 of 4 test images cannot be read .*data\.range"):
        inspect(prepare(splits), Data(use="x"))
    asked = Data(use="x", range=[0, 1000], broken="skip", workers=0)
    data = prepare(splits, asked)
    assert data.left_out == 0 and data.transform.window == (0, 1000)
    transform = ImageTransform("none", 30, window=(0, 1000))
    found = np.asarray(transform.evaluate(splits.train.open(0)))[..., 0].astype(int)
    assert np.abs(found - noisy(1000)[0] * 0.255).max() <= 0.5
    with pytest.raises(DataError, match="no image of the train split can be decoded"):
        prepare(splits, Data(use="x", broken="skip", workers=0))


def test_ranges_that_are_refused():
    with pytest.raises(ValueError, match="must be below the second"):
        Data(use="x", range=[5, 5])
    split = ArraySplit(torch.zeros(2, 1, 4, 4, dtype=torch.uint8), torch.tensor([0, 1]))
    with pytest.raises(DataError, match="images of more than eight bits in files"):
        prepare(DataSplits(split, split, ("a", "b"), (0.5,), (0.5,)), Data(use="x", range=[0, 9]))

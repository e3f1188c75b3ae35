import re

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from ltcore.data.npz import Npz, NpzOptions, channel_statistics
from ltcore.data.prepare import check_splits, prepare
from ltcore.errors import DataError


def arrays(**changed):
    rng = np.random.default_rng(0)
    found = {
        "train_images": rng.integers(0, 256, (12, 6, 6, 3), dtype=np.uint8),
        "train_labels": (np.arange(12) % 3)[:, None],
        "test_images": rng.integers(0, 256, (3, 6, 6, 3), dtype=np.uint8),
        "test_labels": np.arange(3, dtype=np.uint8),
    }
    found.update(changed)
    return {key: value for key, value in found.items() if value is not None}


def build(tmp_path, options=None, **changed):
    path = tmp_path / "own.npz"
    np.savez(path, **arrays(**changed))
    return Npz(NpzOptions(path=str(path), **(options or {}))).build_data()


def test_colour(tmp_path):
    splits = build(tmp_path)
    check_splits(splits)
    source = arrays()["train_images"]
    assert np.array_equal(splits.train.images.permute(0, 2, 3, 1).numpy(), source)
    assert splits.train.targets.tolist() == [0, 1, 2] * 4
    assert splits.val is None
    assert splits.mean == pytest.approx((source / 255).mean((0, 1, 2)))
    assert splits.std == pytest.approx((source / 255).std((0, 1, 2)))
    assert prepare(splits).class_counts.tolist() == [4, 4, 4]


def test_its_path_starts_from_root(tmp_path):
    np.savez(tmp_path / "own.npz", **arrays())
    data = Npz(NpzOptions(path="own.npz", root=str(tmp_path)))
    assert len(data.build_data().train) == len(arrays()["train_labels"]) and data.provides == frozenset()
    assert len(Npz(NpzOptions(path=str(tmp_path / "own.npz"), root="elsewhere")).build_data().train)
    with pytest.raises(DataError, match=re.escape(f"{tmp_path}/elsewhere/own.npz is not there (data.options.path)")):
        Npz(NpzOptions(path="own.npz", root=str(tmp_path / "elsewhere"))).build_data()


def test_grey_with_validation_and_options(tmp_path):
    grey = {f"{split}_images": np.zeros((3, 4, 4), np.uint8) for split in ("train", "val", "test")}
    labels = {f"{split}_labels": np.array([0.0, 1.0, 0.0]) for split in ("train", "val", "test")}
    options = {"mean": [0.1], "std": [0.2], "crop_padding": 2, "flip": True}
    splits = build(tmp_path, options, **grey, **labels)
    check_splits(splits)
    assert splits.val is not None and splits.val.images.shape == (3, 1, 4, 4)
    assert (splits.mean, splits.std, splits.crop_padding, splits.flip) == ((0.1,), (0.2,), 2, True)
    assert splits.val.targets.dtype == torch.int64
    assert channel_statistics(np.zeros((2, 4, 4, 1), np.uint8)) == ((0.0,), (1.0,))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"test_labels": None}, "key 'test_labels' is missing; the file has train_images"),
        ({"val_images": np.zeros((1, 6, 6, 3), np.uint8)}, "key 'val_labels' is missing"),
        ({"train_labels": np.array([{}] * 12, dtype=object)}, "key 'train_labels' cannot be read"),
        ({"train_images": np.zeros((12, 6, 6, 6), np.uint8)}, "volumes .N, D, H, W. of one channel, it seems"),
        ({"train_images": np.zeros((12, 6, 6, 6, 1), np.uint8)}, "a third axis of space, as of volumes, is not read"),
        ({"train_labels": np.zeros(12, bool)}, r"train_labels is true or false; save it as 0 and 1"),
        ({"train_images": np.zeros((12, 6, 6, 3))}, "train_images is float64, but must be uint8"),
        ({"train_images": np.zeros((12, 36), np.uint8)}, r"train_images has shape \(12, 36\)"),
        ({"train_images": np.zeros((12, 3, 6, 6), np.uint8)}, "not square, 3 x 6 x 6 .*channels to the end"),
        ({"train_images": np.zeros((12, 5, 6, 3), np.uint8)}, "not square, 5 x 6 x 3 .*crop or pad"),
        ({"train_images": np.zeros((0, 6, 6, 3), np.uint8)}, "train_images is empty"),
        (
            {"test_images": np.zeros((3, 5, 5, 3), np.uint8)},
            "test_images are 5 x 5 x 3, but train_images are 6 x 6 x 3",
        ),
        ({"test_labels": np.arange(2)}, "test_images has 3 images, but test_labels has 2 labels"),
        ({"train_labels": np.zeros((12, 2), int)}, r"train_labels has shape \(12, 2\)"),
        ({"test_labels": np.array(["a", "b", "c"])}, "test_labels is <U1, but must hold whole numbers"),
        ({"test_labels": np.array([0, 1, -1])}, r"test_labels\[2\] is -1, which is negative"),
        ({"test_labels": np.array([0, 3, 4])}, r"test_labels\[1\] is 3, which is not among the 3 classes .*\(2 such"),
        ({"test_labels": np.array([0, 0.5, 1])}, r"test_labels\[1\] is 0.5, which is not a whole number"),
        ({"test_labels": np.array([0, np.nan, np.inf])}, r"test_labels\[1\] is nan, which is not a whole number"),
        ({"train_labels": np.array([0] * 11 + [65535])}, r"train_labels\[11\] is 65535, which is too large for 12"),
    ],
)
def test_errors_name_key_index_and_value(tmp_path, changed, message):
    with pytest.raises(DataError, match=message) as caught:
        build(tmp_path, **changed)
    assert "own.npz" in str(caught.value)


def test_files_that_are_no_npz(tmp_path):
    def read(path):
        return Npz(NpzOptions(path=str(path))).build_data()

    with pytest.raises(DataError, match="is not there"):
        read(tmp_path / "absent.npz")
    (tmp_path / "text.npz").write_text("hello")
    with pytest.raises(DataError, match=r"is not an \.npz file"):
        read(tmp_path / "text.npz")
    np.save(tmp_path / "one.npy", np.zeros(3))
    with pytest.raises(DataError, match="holds a single array"):
        read(tmp_path / "one.npy")
    np.savez(tmp_path / "cut.npz", **arrays())
    content = bytearray((tmp_path / "cut.npz").read_bytes())
    content[300:400] = bytes(100)  # within train_images; the checksum notices
    (tmp_path / "cut.npz").write_bytes(content)
    with pytest.raises(DataError, match="key 'train_images' cannot be read"):
        read(tmp_path / "cut.npz")
    content = (tmp_path / "cut.npz").read_bytes()
    head = content.rindex(b"PK\x01\x02")  # of the last entry in the archive's list: version 25.5 is needed to read it
    (tmp_path / "cut.npz").write_bytes(content[: head + 6] + b"\xff" + content[head + 7 :])
    with pytest.raises(DataError, match=r"is not an .npz file \(zip file version 25.5"):
        read(tmp_path / "cut.npz")


def test_options(tmp_path):
    with pytest.raises(ValidationError):
        NpzOptions()
    with pytest.raises(ValidationError):
        NpzOptions(path="x", std=[0.0])
    with pytest.raises(DataError, match=r"data.options.mean has 1 numbers, but the images have 3 channels"):
        build(tmp_path, {"mean": [0.5]})

import gzip
import pickle
import struct
import tracemalloc
from hashlib import md5

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from sklearn.datasets import load_digits

from ltcore.data import cifar_files, digits
from ltcore.data.digits import DigitsLT
from ltcore.data.idx import read_idx
from ltcore.data.prepare import check_splits, prepare
from ltcore.data.synthetic import Synthetic, class_patterns
from ltcore.data.torchvision_sets import CIFAR10LT, CIFAR100LT, FASHION_STEMS, FashionMNISTLT, FolderOptions
from ltcore.errors import DataError


@pytest.fixture(autouse=True)
def no_data_folder(monkeypatch):
    monkeypatch.delenv("LTCORE_DATA", raising=False)


def test_digits():
    splits = DigitsLT().build_data()
    check_splits(splits)
    assert splits.train.images.shape == (1297, 1, 8, 8)
    assert torch.bincount(splits.test.targets).tolist() == [50] * 10
    assert int(splits.train.images.max()) == 255
    pixels = splits.train.images.double() / 255
    assert splits.mean == (round(float(pixels.mean()), 4),)
    assert splits.std == (round(float(pixels.std(correction=0)), 4),)
    data = prepare(splits)
    assert data.class_counts.tolist() == [120, 84, 59, 41, 29, 20, 14, 10, 7, 5]
    assert (data.transform.crop_padding, data.transform.flip) == (1, False)
    again = DigitsLT().build_data()
    assert torch.equal(splits.test.images, again.test.images)


def test_digits_are_those_that_scikit_learn_loads(monkeypatch):
    pixels, targets = load_digits(return_X_y=True)
    found = digits.read_digits()  # of its file
    monkeypatch.setattr(digits, "find_spec", lambda name: None)
    for values, labels in (found, digits.read_digits()):  # and where the file is not found
        assert np.array_equal(values, pixels) and np.array_equal(labels, targets)
        assert (values.dtype, labels.dtype) == (np.float64, np.int64)


# -- torchvision's sets, from tiny files -------------------------------------------------------------------------------


def write_idx(path, array, plain=False):
    content = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.tobytes()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if plain else gzip.compress(content))


def write_fashion(folder, suffix=".gz", labels=30):
    rng = np.random.default_rng(0)
    for images, names in FASHION_STEMS.values():
        write_idx(folder / (images + suffix), rng.integers(0, 256, (30, 28, 28), dtype=np.uint8), suffix == "")
        write_idx(folder / (names + suffix), np.arange(labels, dtype=np.uint8) % 10, suffix == "")


@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize("below", ["", "FashionMNIST/raw"])
def test_fashion_mnist(tmp_path, monkeypatch, below, suffix):
    write_fashion(tmp_path / below, suffix)
    monkeypatch.setenv("LTCORE_DATA", str(tmp_path))
    splits = FashionMNISTLT().build_data()
    check_splits(splits)
    assert splits.train.images.shape == (30, 1, 28, 28)
    assert (
        int(splits.train.images[0, 0, 0, 1])
        == np.random.default_rng(0).integers(0, 256, (30, 28, 28), np.uint8)[0, 0, 1]
    )
    assert splits.test.targets.tolist() == [i % 10 for i in range(30)]
    assert splits.class_names[9] == "Ankle boot"
    assert (splits.crop_padding, splits.flip, splits.imbalance.factor) == (2, True, 100)


def test_fashion_mnist_broken(tmp_path):
    data = FashionMNISTLT(FolderOptions(root=str(tmp_path)))
    with pytest.raises(
        DataError, match=r"train-images.*not found in .*Zalando.*30 MB.*data.options.root.*download=true"
    ):
        data.build_data()
    write_fashion(tmp_path, labels=29)
    with pytest.raises(DataError, match=r"has 30 images, but train-labels-idx1-ubyte\.gz has 29 labels"):
        data.build_data()
    (tmp_path / "t10k-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(DataError, match=r"t10k-labels-idx1-ubyte .*not found"):
        data.build_data()
    write_fashion(tmp_path)
    images = tmp_path / "train-images-idx3-ubyte.gz"
    images.write_bytes(images.read_bytes()[:-200])
    with pytest.raises(DataError, match="cannot be read"):
        data.build_data()


def test_idx_is_checked(tmp_path):
    write_idx(tmp_path / "a", np.zeros((2, 3), np.uint8), plain=True)
    assert read_idx(tmp_path / "a", 2).shape == (2, 3)
    with pytest.raises(DataError, match="3 dimensions"):
        read_idx(tmp_path / "a", 3)
    (tmp_path / "a").write_bytes((tmp_path / "a").read_bytes()[:-1])
    with pytest.raises(DataError, match="holds 5 bytes where its head promises 6"):
        read_idx(tmp_path / "a", 2)
    (tmp_path / "a").write_bytes(struct.pack(">I2I", 0x0802, 2, 3) + bytes(7))
    with pytest.raises(DataError, match="holds more bytes where its head promises 6"):
        read_idx(tmp_path / "a", 2)
    (tmp_path / "b.gz").write_bytes(b"no gzip")
    with pytest.raises(DataError, match="cannot be read"):
        read_idx(tmp_path / "b.gz", 2)


@pytest.mark.parametrize("promised", [0, 1, 2**20 - 1, 2**20, 2**20 + 1])
def test_a_byte_too_many_is_seen_wherever_the_pieces_end(tmp_path, promised):
    content = np.arange(promised, dtype=np.int64).astype(np.uint8)
    write_idx(tmp_path / "a", content, plain=True)
    assert np.array_equal(read_idx(tmp_path / "a", 1), content)
    with open(tmp_path / "a", "ab") as file:
        file.write(b"x")
    with pytest.raises(DataError, match=f"holds more bytes where its head promises {promised}"):
        read_idx(tmp_path / "a", 1)


def write_cifar(root, cls, monkeypatch, classes):
    """Files in CIFAR's layout with 2 images a class, and checksums to suit them."""
    folder = root / cls.folder
    folder.mkdir(parents=True, exist_ok=True)
    names = {f"{cls.labels.removesuffix('s')}_names": [f"name{i}" for i in range(classes)]}
    for name in cls.files:
        data = np.arange(2 * classes * 3072, dtype=np.uint32).astype(np.uint8).reshape(-1, 3072)
        rows = {"data": data, cls.labels: list(range(classes)) * 2}
        content = pickle.dumps(names if name == cls.files[-1] else rows, protocol=3)
        bytes_of = data.nbytes.to_bytes(4, "little")
        assert content.count(b"B" + bytes_of) == (name != cls.files[-1])
        content = content.replace(b"B" + bytes_of, b"T" + bytes_of)  # as Python 2 wrote them
        (folder / name).write_bytes(content)
        monkeypatch.setitem(cifar_files.CHECKSUMS[cls.folder], name, md5(content).hexdigest())


@pytest.mark.parametrize(("cls", "classes", "train"), [(CIFAR10LT, 10, 100), (CIFAR100LT, 100, 200)])
def test_cifar(tmp_path, monkeypatch, cls, classes, train):
    data = cls(FolderOptions(root=str(tmp_path)))
    with pytest.raises(DataError, match=r"not found in .*University of Toronto.*16[13] MB.*data.options.root"):
        data.build_data()
    write_cifar(tmp_path, cls, monkeypatch, classes)
    splits = data.build_data()
    check_splits(splits)
    assert splits.train.images.shape == (train, 3, 32, 32)
    assert splits.train.images[0].flatten()[:3].tolist() == [0, 1, 2]  # channel first in the file, too
    assert splits.class_names[3] == "name3"
    assert (splits.crop_padding, splits.flip, splits.imbalance.factor) == (4, True, 100)
    assert len(cls(FolderOptions(root=str(tmp_path / cls.folder))).build_data().train) == train
    (tmp_path / cls.folder / cls.files[0]).write_bytes(b"damaged")
    with pytest.raises(DataError, match="not the published ones, or damaged"):
        data.build_data()


@pytest.mark.parametrize("cls", [FashionMNISTLT, CIFAR10LT, CIFAR100LT])
def test_without_a_folder(cls, monkeypatch, tmp_path):
    with pytest.raises(DataError, match=r"no folder is named\. .*LTCORE_DATA"):
        cls().build_data()

    class Unreachable:
        def __init__(self, root, download):
            assert download
            raise OSError("no route to host")

    monkeypatch.setattr(f"torchvision.datasets.{getattr(cls, 'torchvision_class', 'FashionMNIST')}", Unreachable)
    with pytest.raises(DataError, match=r"the download to .* failed \(no route to host\)"):
        cls(FolderOptions(root=str(tmp_path), download=True)).build_data()


# -- synthetic ---------------------------------------------------------------------------------------------------------


def test_synthetic_shapes_and_determinism():
    make = Synthetic.Options
    splits = Synthetic(make(class_counts=[7, 1, 3], image_size=5, channels=2, test_per_class=4)).build_data()
    check_splits(splits)
    assert splits.train.images.shape == (11, 2, 5, 5)
    assert torch.bincount(splits.train.targets).tolist() == [7, 1, 3]
    assert torch.bincount(splits.test.targets).tolist() == [4, 4, 4]
    again = Synthetic(make(class_counts=[2, 1, 3], image_size=5, channels=2, test_per_class=4)).build_data()
    assert torch.equal(splits.train.images[:2], again.train.images[:2])
    assert torch.equal(splits.train.images[7:], again.train.images[2:])
    other = Synthetic(make(class_counts=[7, 1, 3], image_size=5, channels=2, seed=1)).build_data()
    assert not torch.equal(splits.train.images, other.train.images)
    assert len(Synthetic(make(num_classes=3, max_count=2)).build_data().train) == 6
    with pytest.raises(ValidationError):
        make(class_counts=[3, 0])


def test_synthetic_is_learnable():
    splits = Synthetic(Synthetic.Options(num_classes=20, image_size=32)).build_data()
    means = torch.stack([splits.train.images[splits.train.targets == c].double().mean(0).flatten() for c in range(20)])
    nearest = torch.cdist(splits.test.images.double().flatten(1), means).argmin(1)
    assert (nearest == splits.test.targets).double().mean() > 0.99
    pixels = splits.train.images.double() / 255
    assert abs(pixels.mean() - 0.5) < 0.02
    assert 0.2 < pixels.std() < 0.35


def test_without_noise_an_image_is_its_pattern_in_the_nearest_of_256_levels():
    options = Synthetic.Options(num_classes=6, max_count=2, image_size=16, channels=2, noise=0, seed=3)
    patterns = class_patterns(6, 16, 2, 3).transpose(0, 3, 1, 2).astype(float)
    assert patterns.mean((1, 2, 3)) == pytest.approx(0.5) and patterns.std((1, 2, 3)) == pytest.approx(0.2)
    assert patterns.min() < 0 and patterns.max() > 1  # which is cut off
    images = Synthetic(options).build_data().train.images.numpy()
    assert np.abs(images / 255 - patterns.clip(0, 1).repeat(2, axis=0)).max() <= 0.5 / 255 + 1e-6


def test_synthetic_patterns_are_smooth_at_any_size():
    for size in (1, 2, 224):
        assert np.isfinite(class_patterns(2, size, 1, 0)).all()
    pattern = class_patterns(3, 224, 1, 0)
    assert np.abs(np.diff(pattern, axis=1)).max() < 0.03


def test_no_more_of_an_idx_file_is_read_than_its_head_promises(tmp_path):
    path = tmp_path / "a.gz"
    with gzip.open(path, "wb", compresslevel=1) as file:
        file.write(struct.pack(">I2I", 0x0802, 2, 3))
        for _ in range(64):
            file.write(bytes(2**20))
    tracemalloc.start()
    with pytest.raises(DataError, match="holds more bytes where its head promises 6"):
        read_idx(path, 2)
    assert tracemalloc.get_traced_memory()[1] < 2**23
    tracemalloc.stop()

"""Fingerprints of data sets: what has changed is found and named; what has not, wherever it lies now, is the same."""

import io
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch

from ltcore.contract.splits import ArraySplit, DataSplits, FileSplit
from ltcore.data.fingerprint import Fingerprint, fingerprint
from ltcore.errors import DataError

NAMES = ("cat", "dog", "eel")


def in_memory(**changes):
    """Twelve training and six test images of three classes."""
    generator = torch.Generator().manual_seed(0)
    train, test = (
        ArraySplit(torch.randint(256, (n, 3, 4, 4), generator=generator, dtype=torch.uint8), torch.arange(n) % 3)
        for n in (12, 6)
    )
    splits = DataSplits(train=train, test=test, class_names=NAMES, mean=(0.5,) * 3, std=(0.5,) * 3)
    return replace(splits, **changes)


def altered(split, image=None, label=None, order=None):
    """The split with another pixel in one image, another label for one, or in another order."""
    images, targets = split.images.clone(), split.targets.clone()
    if image is not None:
        images[image, 0, 0, 0] += 1
    if label is not None:
        targets[label] = (targets[label] + 1) % 3
    changed = ArraySplit(images, targets)
    return changed if order is None else changed.subset(torch.tensor(order))


def test_the_same_data_is_the_same_however_it_lies_in_memory():
    before = in_memory()
    turned = before.train.images.to(memory_format=torch.channels_last)
    after = replace(before, train=ArraySplit(turned, before.train.targets.clone()), notes=("a note",), flip=True)
    assert fingerprint(before).differences(fingerprint(after)) == []
    assert fingerprint(before).digests() == fingerprint(after).digests()
    assert {name: part["images"] for name, part in fingerprint(before).digests().items() if name != "classes"} == {
        "train": 12,
        "test": 6,
    }


WHOLE = in_memory()
CHANGES = [
    ({"train": altered(WHOLE.train, image=7)}, ["of the train images 1 has other pixels (image 7)"]),
    ({"test": altered(WHOLE.test, label=4)}, ["of the test images 1 has another label (image 4 was 1 and is 2 'eel')"]),
    (
        {"train": altered(WHOLE.train, order=[1, 0, *range(2, 12)])},
        [
            "of the train images 2 are in another order (image 0; image 1), 2 have another label (image 0 was 0 and "
            "is 1 'dog'; image 1 was 1 and is 0 'cat')"
        ],
    ),
    ({"test": altered(WHOLE.test, order=[0, 1, 2, 3])}, ["of the test images there are 4, and were 6"]),
    ({"val": WHOLE.test}, ["there is now a val split"]),
    ({"class_names": ("cat", "fox", "eel")}, ["1 class has another name (1 was 'dog' and is 'fox')"]),
    ({"class_names": ("cat", "dog")}, ["there are 2 classes, and were 3"]),
]


@pytest.mark.parametrize(("change", "said"), CHANGES)
def test_what_changed_in_memory_is_named(change, said):
    before, after = fingerprint(in_memory()), fingerprint(in_memory(**change))
    assert before.differences(after) == said
    assert before.digests() != after.digests()
    assert Fingerprint.from_bytes(before.to_bytes()).differences(Fingerprint.from_bytes(after.to_bytes())) == said


def test_many_changes_are_counted_and_the_first_named():
    before = in_memory()
    after = replace(before, train=ArraySplit(255 - before.train.images, before.train.targets))
    (said,) = fingerprint(before).differences(fingerprint(after))
    assert said == "of the train images 12 have other pixels (image 0; image 1; image 2; ...)"


def in_files(root, files, labels=None):
    """The files that there are below a folder, for training and for testing."""
    encoded = np.array([file.encode() for file in files])
    split = FileSplit(root, encoded, torch.tensor(labels or [index % 3 for index in range(len(files))]))
    return DataSplits(train=split, test=split, class_names=NAMES, mean=(0.5,) * 3, std=(0.5,) * 3, image_size=8)


FILES = ["cat/a.jpg", "dog/b.jpg", "eel/ü.jpg"]


@pytest.fixture
def folder(tmp_path):
    for number, file in enumerate(FILES):
        path = tmp_path / "here" / file
        path.parent.mkdir(parents=True)
        path.write_bytes(b"." * (100 + number))
    return tmp_path / "here"


def test_where_the_files_lie_does_not_count(folder):
    before = fingerprint(in_files(folder, FILES))
    moved = folder.rename(folder.parent / "there")
    assert before.differences(fingerprint(in_files(moved, FILES))) == []


def test_what_changed_in_files_is_named(folder):
    before = fingerprint(in_files(folder, FILES))

    def said(files, labels=None):
        train, test = before.differences(fingerprint(in_files(folder, files, labels)))
        assert train.replace("train", "test") == test
        return train

    assert said(FILES, [0, 1, 1]) == "of the train images 1 has another label (eel/ü.jpg was 2 and is 1 'dog')"
    assert said(FILES[::-1], [2, 1, 0]) == "of the train images the order is another"
    assert said(FILES[:2]) == "of the train images 1 is gone (eel/ü.jpg)"
    (folder / "dog/c.jpg").write_bytes(b"")
    assert said([*FILES, "dog/c.jpg"], [0, 1, 2, 1]) == "of the train images 1 is new (dog/c.jpg)"
    (folder / "dog/b.jpg").write_bytes(b".")
    assert said(FILES) == "of the train images 1 has another size (dog/b.jpg had 101 bytes and has 1)"
    assert before.differences(fingerprint(in_memory()))[0] == "of the train images are now in memory"


def test_a_file_that_is_missing_is_named(folder):
    (folder / "dog/b.jpg").unlink()
    with pytest.raises(DataError, match=r"an image cannot be looked at: .*dog/b\.jpg"):
        fingerprint(in_files(folder, FILES))


@dataclass
class Named:
    """Images of a plugin that says only what they are called."""

    names: list
    targets: torch.Tensor

    def __len__(self):
        return len(self.names)

    def name(self, index):
        return self.names[index]


def test_of_other_images_the_names_count():
    splits = [
        replace(WHOLE, train=Named(names, torch.zeros(2, dtype=torch.int64))) for names in (["a", "b"], ["a", "c"])
    ]
    before, after = map(fingerprint, splits)
    assert before.differences(before) == []
    assert before.differences(after) == ["of the train images 1 is new (c), 1 is gone (b)"]


class Mischief:
    """Runs code where it is unpickled."""

    def __reduce__(self):
        return pytest.fail, ("a run's file was unpickled",)


def with_pickles(content):
    """The same arrays, one of them with an object that a stranger has put there."""
    with np.load(io.BytesIO(content)) as stored:
        arrays = dict(stored) | {"more": np.array([Mischief()], dtype=object)}
    stream = io.BytesIO()
    np.savez(stream, **arrays)
    return stream.getvalue()


def test_what_is_kept_comes_back_and_damage_is_found(folder):
    for splits in (in_memory(val=WHOLE.test), in_files(folder, FILES)):
        kept = fingerprint(splits)
        content = kept.to_bytes()
        again = Fingerprint.from_bytes(content)
        assert kept.differences(again) == [] and kept.digests() == again.digests()
        for place in range(30, len(content) - 30, 97):
            damaged = bytearray(content)
            damaged[place] ^= 1
            try:
                found = Fingerprint.from_bytes(bytes(damaged))
            except ValueError:
                continue
            assert found.digests() == kept.digests()  # in what is not read, such as a time
        for damaged in (b"", b"PK", with_pickles(content), content[: len(content) // 2]):
            with pytest.raises(ValueError):
                Fingerprint.from_bytes(damaged)

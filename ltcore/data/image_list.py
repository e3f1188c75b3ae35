"""Images named by split lists: text files of ``relative/path label`` lines, as the long-tailed sets are published."""

from __future__ import annotations

import os
import posixpath
from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ltcore.contract.hook import hookimpl
from ltcore.contract.method import Method, Options
from ltcore.contract.splits import DataSplits
from ltcore.data.class_names import names_from_folders, read_class_names
from ltcore.data.image_files import IMAGENET_MEAN, IMAGENET_STD, check_files, file_split, read_text
from ltcore.data.layouts import class_folder, relocate
from ltcore.errors import DataError

_MOST_DIGITS = 9  # of a label


class ImageListOptions(Options):
    """Options of `ImageList`."""

    root: str | None = None
    """Folder that the lists' paths are relative to; by default the environment variable LTCORE_DATA."""
    train: str
    """List of the training images; a relative name is looked for in the root, then where the command runs."""
    test: str
    """List of the test images."""
    val: str | None = None
    """List of validation images."""
    class_names: str | None = None
    """Text file with one class name a line, in label order; by default classes are named by their folders."""
    check_files: bool = True
    """Look whether every image is there before anything is trained."""


@dataclass(frozen=True)
class ListedSplit:
    """A split list as it was read.

    Attributes:
        source: its path.
        files: N paths.
        labels: N labels.
        lines: N line numbers.
    """

    source: Path
    files: Sequence[str]
    labels: Sequence[int]
    lines: Sequence[int]

    def error(self, position: int, message: str) -> DataError:
        """An error about one image of the list."""
        return DataError(f"{self.source}:{self.lines[position]}: {message}")


class ImageList(Method[ImageListOptions]):
    """Images of split lists, one ``relative/path label`` per line; paths may have spaces, labels count from 0."""

    summary = "images named by split lists of 'relative/path label' lines, in any folder"

    def __init__(self, options: ImageListOptions) -> None:
        super().__init__(options)  # no defaults: `train` and `test` are required

    @property
    def provides(self) -> AbstractSet[str]:
        """Validation images, where a list of them is named."""
        return {"validation"} if self.options.val is not None else frozenset()

    @hookimpl
    def build_data(self) -> DataSplits:
        """The splits of the lists; the classes are the labels of the training list."""
        o = self.options
        named = o.root or os.environ.get("LTCORE_DATA")
        if not named:
            raise DataError(
                "image_list: no folder is named that the lists' paths are relative to; set data.options.root=DIR or "
                "the environment variable LTCORE_DATA"
            )
        root = Path(named).expanduser()
        lists = {
            split: read_list(list_path(root, getattr(o, split), split))
            for split in ("train", "val", "test")
            if getattr(o, split) is not None
        }
        check_disjoint(list(lists.values()), root)
        names = None if o.class_names is None else read_class_names(list_path(root, o.class_names, "class_names"))
        advice = (
            "Correct data.options.root or the list; data.options.check_files=false turns this check off, and a run "
            "then ends at the first image that is missing"
        )
        return listed_splits(root, lists, names, advice if o.check_files else None)


def list_path(root: Path, named: str, option: str) -> Path:
    """Where a list or table is, looked for in the root, then where the command runs.

    Raises:
        DataError: it is in neither.
    """
    path = Path(named).expanduser()
    for candidate in (root / path, path):
        if candidate.is_file():
            return candidate
    where = f"{path}" if path.is_absolute() else f"{path} is neither in {root.absolute()} nor in {Path.cwd()}"
    raise DataError(f"{where}{' is not there' if path.is_absolute() else ''} (data.options.{option})")


def read_list(path: Path) -> ListedSplit:
    """Read a split list. The label is what stands behind the last white space of a line; empty lines are skipped.

    Raises:
        DataError: with file and line, for a line without a label, a label that is no whole number or negative, or a
            path that is listed twice. Also for a list without any line.
    """
    files: list[str] = []
    labels: list[int] = []
    lines: list[int] = []
    seen: dict[str, int] = {}
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        parts = line.strip().rsplit(None, 1)
        if not parts:
            continue
        if len(parts) == 1:
            raise DataError(f"{path}:{number}: '{parts[0]}' has no label; write 'relative/path label'")
        file, label = parts
        if not (label.isascii() and label.isdecimal()):
            what = "is negative" if label[0] == "-" and label[1:].isdecimal() else "is not a whole number"
            raise DataError(f"{path}:{number}: the label '{label}' {what}; labels count from 0, after the path")
        if len(label) > _MOST_DIGITS:
            raise DataError(
                f"{path}:{number}: the label {label[:_MOST_DIGITS]}... is absurdly long; labels count from 0"
            )
        file = file.removeprefix("./")
        same = posixpath.normpath(file)
        if same in seen:
            raise DataError(
                f"{path}:{number}: {file} is listed twice (first in line {lines[seen[same]]}, with label "
                f"{labels[seen[same]]}); remove one"
            )
        seen[same] = len(files)
        files.append(file)
        labels.append(int(label))
        lines.append(number)
    if not files:
        raise DataError(f"{path}: the list is empty; write one 'relative/path label' a line")
    return ListedSplit(path, files, labels, lines)


def check_disjoint(lists: Sequence[ListedSplit], root: Path) -> None:
    """Refuse an image that two lists name, or one list twice, in whatever way its path is written.

    Args:
        lists: the splits.
        root: what relative paths are relative to.

    Raises:
        DataError: names the image and both lines.
    """
    base = os.path.abspath(root)
    seen: dict[str, tuple[ListedSplit, int]] = {}
    for listed in lists:
        for position, file in enumerate(listed.files):
            first, place = seen.setdefault(os.path.normpath(os.path.join(base, file)), (listed, position))
            if first is listed and place == position:
                continue
            if first is listed:
                raise listed.error(
                    position, f"{file} is listed twice (first in line {listed.lines[place]}); remove one"
                )
            raise listed.error(
                position,
                f"{file} is also in {first.source}, line {first.lines[place]}; an image belongs to one split "
                "(without a val list, data.holdout takes validation images out of the training split)",
            )


def check_numbering(lists: dict[str, ListedSplit]) -> None:
    """Refuse a list that numbers the classes in another order than the training list, as their folders show.

    Folders only count where each stands for one class in both lists; elsewhere the labels are what is said.

    Args:
        lists: by split, with ``train``.

    Raises:
        DataError: names the folder, and its label in both lists.
    """
    train = lists["train"]
    known = _label_of_folder(train)
    for listed in lists.values():
        for folder, (label, position) in _label_of_folder(listed).items():
            trained, first = known.get(folder, (label, position))
            if trained != label:
                raise listed.error(
                    position,
                    f"images of the folder '{folder}' have the label {label}, but {trained} in {train.source}, "
                    f"line {train.lines[first]}; number the classes alike in all lists",
                )


def _label_of_folder(listed: ListedSplit) -> dict[str, tuple[int, int]]:
    """By the name of each class's folder, its label and the first image; empty where folders are no classes."""
    found: dict[str, tuple[int, int]] = {}
    for position, (file, label) in enumerate(zip(listed.files, listed.labels, strict=True)):
        folder = class_folder(file).rpartition("/")[2]
        if not folder or found.setdefault(folder, (label, position))[0] != label:
            return {}
    return found if len({label for label, _ in found.values()}) == len(found) else {}


def check_labels(lists: dict[str, ListedSplit], names: Sequence[str] | None) -> int:
    """Number of classes C; every one has a training image, and no list has a label beyond them.

    Args:
        lists: by split, with ``train``.
        names: C class names; None: as many classes as the training list has.

    Raises:
        DataError: a label is out of range, or a class has no training image.
    """
    train = lists["train"]
    found = set(train.labels)
    num_classes = len(found) if names is None else len(names)
    if names is not None:
        for listed in lists.values():
            _refuse_beyond(listed, num_classes, f"there are {num_classes} class names; add its name")
    gaps = [label for label in range(num_classes) if label not in found]
    if gaps:
        shown = ", ".join(map(str, gaps[:3])) + (", ..." if len(gaps) > 3 else "")
        which = f"classes {shown} have" if len(gaps) > 1 else f"class {shown} has"
        raise DataError(
            f"{train.source}: {which} no training image, but class {max(found)} has; list some, or number the classes "
            f"from 0 without gaps, in all lists"
        )
    for listed in lists.values():
        _refuse_beyond(listed, num_classes, f"{train.source} has the classes 0 to {num_classes - 1}; list images of it")
    return num_classes


def _refuse_beyond(listed: ListedSplit, num_classes: int, why: str) -> None:
    if max(listed.labels) >= num_classes:
        position = next(i for i, label in enumerate(listed.labels) if label >= num_classes)
        raise listed.error(position, f"the label is {listed.labels[position]}, but {why}, or correct the label")


def listed_splits(
    root: Path, lists: dict[str, ListedSplit], names: Sequence[str] | None, advice: str | None
) -> DataSplits:
    """The splits of lists, in the layout that is on the disk (`ltcore.data.layouts`).

    Args:
        root: what the paths are relative to.
        lists: by split: ``train`` and ``test``, perhaps ``val``.
        names: class names in label order; None to name classes by their folders.
        advice: what to do about missing images; None to not look for them.

    Raises:
        DataError: labels are wrong (`check_labels`), or images missing (`check_files`).
    """
    num_classes = check_labels(lists, names)
    check_numbering(lists)
    train = lists["train"]
    folders = {label: class_folder(file) for file, label in zip(train.files, train.labels, strict=True)}
    if names is None:
        names = names_from_folders(train.files, train.labels, num_classes, class_folder)
    splits, notes = {}, []
    for split, listed in lists.items():
        files = relocate(root, listed.files, [folders[label] for label in listed.labels])
        if files[0] != listed.files[0]:
            notes.append(f"{listed.source.name} lists {listed.files[0]}; read as {files[0]}, and so the others")
        if advice is not None:
            check_files(root, files, str(listed.source), advice)
        splits[split] = file_split(root, files, listed.labels)
    return replace(imagenet_like(splits), class_names=tuple(names), notes=tuple(notes))


def imagenet_like(splits: dict[str, Any]) -> DataSplits:
    """Splits prepared as ImageNet's images are, 224 x 224 pixels; classes still without names."""
    return DataSplits(
        train=splits["train"],
        test=splits["test"],
        val=splits.get("val"),
        class_names=(),
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        transform="imagenet",
        image_size=224,
    )

"""Image data sets of Hugging Face's library ``datasets``, an optional dependency: ``pip install 'ltcore[hf]'``."""

from __future__ import annotations

import io
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ltcore.contract.hook import hookimpl
from ltcore.contract.method import Method, Options
from ltcore.contract.splits import DataSplits
from ltcore.data.class_names import joined_by_name
from ltcore.data.image_list import imagenet_like
from ltcore.errors import DataError, listed, nearest

if TYPE_CHECKING:
    from PIL.Image import Image


class HuggingFaceOptions(Options):
    """Options of `HuggingFace`."""

    path: str
    """Name of the data set on the hub, a folder in one of the library's forms, or one written by `save_to_disk`."""
    config: str | None = None
    """Name of its configuration, where it has several."""
    revision: str | None = None
    """Commit, tag or branch of the data set on the hub; a commit is what makes a run repeatable."""
    train: str = "train"
    """Name of the training split; the library's slices (`train[:80%]`) work."""
    test: str = "test"
    """Name of the test split."""
    val: str | None = None
    """Name of the validation split."""
    image: str | None = None
    """Column of the images; by default the only one of the type Image."""
    label: str | None = None
    """Column of the labels, of the type ClassLabel or whole numbers from 0; by default the only ClassLabel."""


@dataclass(frozen=True)
class TableSplit:
    """Images of one split, encoded in a table of arrow files that every worker maps into its memory.

    Attributes:
        table: a ``datasets.Dataset`` whose image column is not decoded.
        column: its image column.
        rows: [N] int64, rows of the table.
        targets: [N] int64.
        title: how messages name the split.
    """

    table: Any
    column: str
    rows: Tensor
    targets: Tensor
    title: str

    def __len__(self) -> int:
        """Number of images."""
        return len(self.targets)

    def subset(self, index: Tensor) -> TableSplit:
        """The images at `index` [M] int64."""
        return replace(self, rows=self.rows[index], targets=self.targets[index])

    def open(self, index: int) -> Image:
        """The image at `index`, opened by Pillow but not decoded.

        Raises:
            OSError: it is missing, or no image.
        """
        from PIL import Image

        stored = self.table[int(self.rows[index])][self.column]
        if stored is None or (stored.get("bytes") is None and not stored.get("path")):
            raise OSError(f"{self.name(index)} is empty")
        # A path stands alone where the images are files beside the table.
        return Image.open(io.BytesIO(stored["bytes"]) if stored.get("bytes") is not None else stored["path"])

    def encoded(self, index: int) -> bytes | None:
        """The image at `index` as it is stored; None where the table has no bytes of it."""
        stored = self.table[int(self.rows[index])][self.column]
        content: bytes | None = stored.get("bytes") if stored else None
        return content

    def name(self, index: int) -> str:
        """The split's name and the row."""
        return f"{self.title}, row {int(self.rows[index])}"


class HuggingFace(Method[HuggingFaceOptions]):
    """Images and labels of a data set that Hugging Face's ``datasets`` loads, from the hub or from the disk."""

    summary = "images of a Hugging Face data set (pip install 'ltcore[hf]')"

    def __init__(self, options: HuggingFaceOptions) -> None:
        super().__init__(options)  # no defaults: `path` is required

    @property
    def provides(self) -> AbstractSet[str]:
        """Validation images, where a split of them is named."""
        return {"validation"} if self.options.val is not None else frozenset()

    @hookimpl
    def build_data(self) -> DataSplits:
        """The splits; classes are those of the training split's label column, or else its labels.

        Each split's numbers are joined to the classes by their names, where both have names.
        """
        o = self.options
        loaded = {split: self._load(name) for split in ("train", "val", "test") if (name := getattr(o, split))}
        image = self._column(loaded["train"], o.image, "Image", "image")
        label = self._column(loaded["train"], o.label, "ClassLabel", "label")
        labels = {split: self._labels(table, getattr(o, split), label) for split, table in loaded.items()}
        feature = loaded["train"].features[label]
        named: tuple[str, ...] = tuple(getattr(feature, "names", None) or ())
        names = named or tuple(map(str, range(int(labels["train"].max()) + 1)))
        splits, notes = {}, []
        for split, table in loaded.items():
            title = f"{o.path} ({getattr(o, split)})"
            if image not in table.features or type(table.features[image]).__name__ != "Image":
                raise DataError(f"{title}: column '{image}' is not of the type Image; set data.options.image")
            own = getattr(table.features[label], "names", None)
            self._check(title, label, labels[split], len(own or names), split == "train")
            if own and named:
                labels[split] = joined_by_name(title, labels[split], own, f"{o.path} ({o.train})", named)
            elif bool(own) != bool(named):
                notes.append(
                    f"{title}: column '{label}' {'has' if own else 'lacks'} class names, but that of {o.train} "
                    f"{'lacks' if own else 'has'} them; its numbers are taken to be the same"
                )
                self._check(title, label, labels[split], len(names), False)
            undecoded = table.select_columns([image]).cast_column(image, _library().Image(decode=False))
            targets = torch.from_numpy(labels[split])
            splits[split] = TableSplit(undecoded, image, torch.arange(len(targets)), targets, title)
        return replace(imagenet_like(splits), class_names=names, notes=tuple(notes))

    def _load(self, split: str) -> Any:
        o, datasets = self.options, _library()
        folder = Path(o.path).expanduser()
        saved = any((folder / name).is_file() for name in ("dataset_dict.json", "state.json"))
        try:
            if not saved:
                path = str(folder) if folder.exists() else o.path
                return datasets.load_dataset(path, o.config, split=split, revision=o.revision)
            found = datasets.load_from_disk(str(folder))
        except Exception as error:  # the library raises whatever its parts do: of the network, the parsers, the disk
            reason = " ".join(str(error).split()).rstrip(".") or type(error).__name__
            raise DataError(
                f"data set '{o.path}', split '{split}': {reason}. Check data.options (path, config, revision, train, "
                "val, test), and the connection where it is on the hub"
            ) from error
        if not isinstance(found, dict):
            raise DataError(f"{folder} holds one split without a name; save a DatasetDict with train and test splits")
        if split not in found:
            raise DataError(f"{folder} has the splits {listed(found)}, but not '{split}'{nearest(split, found)}")
        return found[split]

    def _column(self, table: Any, asked: str | None, kind: str, option: str) -> str:
        columns: dict[str, str] = {name: type(feature).__name__ for name, feature in table.features.items()}
        if asked is not None:
            if asked in columns:
                return asked
            hint = nearest(asked, columns) or "."
            raise DataError(f"{self.options.path}: no column '{asked}'{hint} It has {listed(columns)}")
        found = [name for name, has in columns.items() if has == kind]
        if len(found) == 1:
            return found[0]
        raise DataError(
            f"{self.options.path}: {len(found) or 'no'} columns of the type {kind} among {listed(columns)}; say which "
            f"to take with data.options.{option}"
        )

    def _labels(self, table: Any, split: str, column: str) -> np.ndarray:
        """[N] int64."""
        if column not in table.features:
            raise DataError(f"{self.options.path} ({split}): no column '{column}'; it has {listed(table.features)}")
        stored = table[column][:]
        if any(isinstance(label, (list, tuple, np.ndarray)) for label in stored):
            raise DataError(
                f"{self.options.path} ({split}): column '{column}' holds a list of labels an image, but an image has "
                "one class here; choose another column with data.options.label, or map it to one label per image"
            )
        if len(stored) and all(isinstance(label, (bool, np.bool_)) for label in stored):
            raise DataError(
                f"{self.options.path} ({split}): column '{column}' is true or false, but labels are whole numbers; "
                f"table.cast_column('{column}', datasets.Value('int64')) makes 0 and 1 of it"
            )
        labels = np.asarray(stored)
        if labels.size and (labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer)):
            raise DataError(
                f"{self.options.path} ({split}): column '{column}' must hold one whole number an image, but has "
                f"{labels.dtype} of shape {labels.shape}; class_encode_column of the library turns text into labels"
            )
        if not labels.size:
            raise DataError(f"{self.options.path} ({split}) has no images")
        return labels.astype(np.int64)

    def _check(self, title: str, column: str, labels: np.ndarray, num_classes: int, every: bool) -> None:
        """Refuse labels out of range and, where `every` class must be there, classes without images."""
        wrong = np.flatnonzero((labels < 0) | (labels >= num_classes))
        if len(wrong):
            what = "images without a label" if labels[wrong[0]] == -1 else f"labels outside 0 to {num_classes - 1}"
            raise DataError(
                f"{title}: {len(wrong)} {what} in column '{column}', first {labels[wrong[0]]} in row {wrong[0]}; take "
                "another split or column"
            )
        if every and (gaps := np.setdiff1d(np.arange(num_classes), labels)).size:
            raise DataError(f"{title}: {gaps.size} of {num_classes} classes have no image, first class {gaps[0]}")


def _library() -> Any:
    """The module ``datasets``.

    Raises:
        DataError: it is not installed.
    """
    try:
        import datasets
    except ImportError as error:
        raise DataError(f"hugging_face needs the library datasets ({error}). Try: pip install 'ltcore[hf]'") from error
    return datasets

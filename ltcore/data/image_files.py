"""What the readers of image collections share: finding files, checking that they are there, naming classes."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch

from ltcore.contract.splits import HEIF_SUFFIXES, FileSplit
from ltcore.errors import DataError

#: Endings of files that are taken for images. Pillow reads them all; HEIC is among them with the extra ``heif``.
IMAGE_SUFFIXES = frozenset(
    {
        *(HEIF_SUFFIXES if find_spec("pillow_heif") else ()),
        ".avif",
        ".bmp",
        ".gif",
        ".j2k",
        ".jfif",
        ".jp2",
        ".jpeg",
        ".jpg",
        ".pgm",
        ".png",
        ".ppm",
        ".tif",
        ".tiff",
        ".webp",
    }
)
#: Folders that other programs leave among images, in lower case: previews, archives' leftovers, trash.
JUNK = frozenset(
    {"@eadir", "__macosx", "thumbnails", "#recycle", "@recycle", "$recycle.bin", "lost+found"}
    | {"system volume information"}
)

#: ImageNet's, which the large long-tailed sets are normalised with, and the weights that are fine-tuned on them were.
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

#: How many files a message names.
NAMED = 3


@dataclass(frozen=True)
class Found:
    """Images below a folder.

    Attributes:
        files: their paths relative to it, with ``/``, sorted.
        left_out: how many other files there are, by their endings; ``hidden`` and ``without an ending`` among them.
        junk: paths of folders that are not read, since other programs left them.
    """

    files: tuple[str, ...]
    left_out: Counter[str] = field(default_factory=Counter)
    junk: tuple[str, ...] = ()


def is_image(name: str) -> bool:
    """Whether a file is taken for an image, by its name."""
    return not name.startswith(".") and os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES


def _is_read(folder: str) -> bool:
    """Whether a folder is read, by its name: not a hidden one, and none of `JUNK`."""
    return not folder.startswith(".") and folder.lower() not in JUNK


def subfolders(folder: Path) -> list[str]:
    """Names of the folders in a folder, sorted, without hidden ones and `JUNK`.

    Raises:
        DataError: it cannot be read.
    """
    try:
        with os.scandir(folder) as entries:
            return sorted(entry.name for entry in entries if _is_read(entry.name) and entry.is_dir())
    except OSError as error:
        raise unreadable(folder, error) from error


def find_images(folder: Path, deep: bool = True) -> Found:
    """Every image below a folder; symbolic links are followed, each folder once.

    Args:
        folder: where to look.
        deep: at any depth; if not, in the folder itself only.

    Raises:
        DataError: the folder or one below it cannot be read.
    """

    def refuse(error: OSError) -> None:
        raise unreadable(Path(error.filename or folder), error) from error

    files: list[str] = []
    junk: list[str] = []
    left_out: Counter[str] = Counter()
    seen = set()
    for base, folders, names in os.walk(folder, followlinks=True, onerror=refuse):
        seen.add(os.path.realpath(base))
        inside = os.path.relpath(base, folder).replace(os.sep, "/")
        prefix = "" if inside == "." else f"{inside}/"
        junk += [prefix + name for name in folders if name.lower() in JUNK]
        folders[:] = sorted(
            name
            for name in folders
            if deep and _is_read(name) and os.path.realpath(os.path.join(base, name)) not in seen  # a link in a circle
        )
        for name in names:
            if is_image(name):
                files.append(prefix + name)
            else:
                ending = os.path.splitext(name)[1].lower()
                left_out["hidden" if name.startswith(".") else ending or "without an ending"] += 1
    return Found(tuple(sorted(files)), left_out, tuple(sorted(junk)))


def said_left_out(counts: Mapping[str, int]) -> str:
    """``12 .heic, 2 hidden``: how many files of each ending were left out, the most frequent first."""
    order = sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))
    said = ", ".join(f"{count} {ending}" for ending, count in order[:6]) + (", ..." if len(order) > 6 else "")
    if set(HEIF_SUFFIXES) & set(counts):
        said += "; HEIC is read with pip install 'ltcore[heif]', or convert it"
    return said


def unreadable(path: Path, error: OSError) -> DataError:
    """The message for a file or folder that the system refuses."""
    return DataError(f"{path.absolute()} cannot be read ({error.strerror or error}); check that it is there and yours")


def missing_files(root: Path, files: Sequence[str]) -> list[int]:
    """Where in `files` those stand that are not below `root`.

    Each directory is listed once: iNaturalist's 437,513 files take 8,142 look-ups, not one each.
    """
    listings: dict[str, frozenset[str]] = {}
    absent = []
    for position, file in enumerate(files):
        folder, _, name = file.rpartition("/")
        if folder not in listings:
            try:
                listings[folder] = frozenset(os.listdir(os.path.join(root, folder) if folder else root))
            except OSError:
                listings[folder] = frozenset()
        if name not in listings[folder]:
            absent.append(position)
    return absent


def check_files(root: Path, files: Sequence[str], source: str, advice: str) -> None:
    """Refuse files that are not there, with how many and the first ones.

    Args:
        root: what `files` are relative to.
        files: relative paths.
        source: who lists them, such as the list's path.
        advice: what to do.

    Raises:
        DataError: at least one is missing.
    """
    if absent := missing_files(root, files):
        first = ", ".join(files[position] for position in absent[:NAMED]) + (", ..." if len(absent) > NAMED else "")
        raise DataError(
            f"{source}: {len(absent)} of {len(files)} images are not in {root.absolute()}: "
            f"{first}{_meant(root, files[absent[0]])}. {advice}"
        )


def _meant(root: Path, file: str) -> str:
    """A hint for a file that is there under a path of other case, with an ending, or with slashes; or empty."""
    found, parts = root, [part for part in file.replace("\\", "/").split("/") if part not in ("", ".")]
    for number, part in enumerate(parts, start=1):
        try:
            names = sorted(os.listdir(found))
        except OSError:
            return ""
        alike = [name for name in names if name == part] or [name for name in names if name.lower() == part.lower()]
        if number == len(parts):
            alike += [name for name in names if is_image(name) and os.path.splitext(name)[0].lower() == part.lower()]
        if not alike:
            return ""
        found = found / alike[0]
    spelled = found.relative_to(root).as_posix()
    if "\\" in file:
        how = "write / for \\"
    elif spelled.lower() == file.lower():
        how = "upper and lower case differ"
    else:
        how = "add the ending"
    return f" ('{spelled}' is there: {how})"


def file_split(root: Path, files: Sequence[str], labels: Sequence[int]) -> FileSplit:
    """A split of N files, in their order.

    Raises:
        DataError: a file's name is not UTF-8.
    """
    try:
        encoded = np.array([file.encode() for file in files], dtype=np.bytes_)
    except UnicodeEncodeError as error:
        name = os.fsencode(str(error.object)).decode(errors="replace")
        raise DataError(f"{root / name}: the file's name is not UTF-8; rename it") from error
    return FileSplit(root, encoded, torch.tensor(labels, dtype=torch.int64))


def read_text(path: Path) -> str:
    """A UTF-8 text file's content.

    Raises:
        DataError: it is missing, unreadable or not text.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
        if (place := text.find("\0")) >= 0:
            line = text.count("\n", 0, place) + 1
            raise DataError(f"{path.absolute()}:{line}: it holds the character NUL, so it is no text; save it anew")
        return text
    except UnicodeDecodeError as error:
        raise DataError(f"{path.absolute()} is not a UTF-8 text file ({error.reason} at byte {error.start})") from error
    except OSError as error:
        raise unreadable(path, error) from error


def spell_out(counts: Mapping[str, int]) -> str:
    """``12 in 'cat', 3 in 'dog'``; the first few."""
    shown = [f"{count} in '{name}'" for name, count in list(counts.items())[:NAMED]]
    return ", ".join(shown) + (", ..." if len(counts) > NAMED else "")

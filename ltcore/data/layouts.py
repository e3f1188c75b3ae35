"""The same published images under other paths: a list written for one layout, read where another is on the disk.

Places365 is published in two layouts, and the lists of Places-LT exist for both:

======== ============================================== ================================================
split    by class                                       by first letter
======== ============================================== ================================================
training ``train/airfield/00000001.jpg``                ``data_256/a/airfield/00000001.jpg``
training ``train/apartment_building-outdoor/1.jpg``     ``data_256/a/apartment_building/outdoor/1.jpg``
val      ``val/airfield/Places365_val_00000435.jpg``    ``val_256/Places365_val_00000435.jpg``
======== ============================================== ================================================

ImageNet's validation images, too, are either in one folder per class, or all in ``val``.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from ltcore.data.image_files import missing_files

_BY_CLASS = re.compile(r"(?:.*/)?(train|val)/(?:([^/]+)/)?([^/]+)")
_BY_LETTER = re.compile(r"(?:.*/)?(data_256|val_256|data_256_standard)/(?:([a-z])/(.+)/)?([^/]+)")
_FOLDERS = ("", "places365_standard/")
_PROBES = 16


def class_folder(path: str) -> str:
    """The folder that stands for the class, the same in all layouts: ``apartment_building-outdoor``; "" without one."""
    if match := _BY_LETTER.fullmatch(path):
        return (match[3] or "").replace("/", "-")
    return path.rpartition("/")[0]


def alternatives(path: str, folder: str) -> tuple[str, ...]:
    """A path in every layout, itself first; equal positions mean equal layouts.

    Args:
        path: relative path of an image of a list.
        folder: its class's folder (`class_folder`), for layouts whose path does not say it; "" if unknown.

    Returns:
        The path alone where it is of no layout that we know.
    """
    if match := _BY_LETTER.fullmatch(path):
        training, named, name = match[1] != "val_256", (match[3] or folder).replace("/", "-"), match[4]
    elif match := _BY_CLASS.fullmatch(path):
        training, named, name = match[1] == "train", match[2] or folder, match[3]
    else:
        return (path,)
    named = named.rpartition("/")[2]
    if not named:
        return (path,)
    if training:
        nested = f"{named[0]}/{named.replace('-', '/')}/{name}"
        other = [f"train/{named}/{name}", f"data_256/{nested}", f"data_256_standard/{nested}"]
    else:
        other = [f"val/{named}/{name}", f"val_256/{name}", f"val/{name}"]
    return (path, *(prefix + each for each in other for prefix in _FOLDERS))


def relocate(root: Path, files: Sequence[str], folders: Sequence[str]) -> list[str]:
    """The paths in the layout that is on the disk: the one with most of a few images spread over the list.

    Args:
        root: what the paths are relative to.
        files: N relative paths as listed.
        folders: N folders of their classes, "" where unknown.

    Returns:
        N relative paths; as listed, where no other layout has more of them.
    """
    step = max(1, len(files) // _PROBES)
    probes = [alternatives(file, folder) for file, folder in zip(files[::step], folders[::step], strict=True)]
    layouts = max(map(len, probes), default=1)
    found = [0] * layouts
    for layout in range(layouts):
        paths = [probe[layout] for probe in probes if layout < len(probe)]
        found[layout] = len(paths) - len(missing_files(root, paths))
    best = found.index(max(found))
    if best == 0:
        return list(files)
    return [(alternatives(file, folder) + (file,) * layouts)[best] for file, folder in zip(files, folders, strict=True)]

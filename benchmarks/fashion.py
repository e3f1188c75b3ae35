r"""Fashion-MNIST at half its size, for tables/league.yaml and `arms.py`.

    python benchmarks/fashion.py DIR runs/fashion

DIR holds the four files of Fashion-MNIST (docs/data.md).
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from ltcore.data.idx import find_idx, read_idx
from ltcore.data.torchvision_sets import FASHION_STEMS

#: What the table's recipes call the file.
FILE = "fashion_14x14.npz"


def halve(source: Path, folder: Path) -> Path:
    """Write the set as 14 x 14 images, each pixel the mean of four: a quarter of the work, as hard a problem.

    Args:
        source: the folder of the set's own files.
        folder: where the file is written.
    """
    arrays = {}
    for split, (images, labels) in FASHION_STEMS.items():
        pair = [(find_idx(source, stem), ndim) for stem, ndim in ((images, 3), (labels, 1))]
        if None in (pair[0][0], pair[1][0]):
            raise SystemExit(f"{source} does not hold Fashion-MNIST's files ({images}.gz, ...)")
        large, arrays[f"{split}_labels"] = (read_idx(path, ndim) for path, ndim in pair if path)
        means = large.reshape(len(large), 14, 2, 14, 2).mean((2, 4))
        arrays[f"{split}_images"] = np.rint(means).astype(np.uint8)[..., None]
    folder.mkdir(parents=True, exist_ok=True)
    np.savez(folder / FILE, **arrays)  # type: ignore[arg-type]
    return folder / FILE


def main() -> None:
    """Write the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path)
    parser.add_argument("folder", type=Path)
    arguments = parser.parse_args()
    print(halve(arguments.source.resolve(), arguments.folder))


if __name__ == "__main__":
    main()

"""Fill ``.gpu/`` with what a GPU machine without network needs."""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parents[1]
ROOT = HERE.parent
PACKED = ROOT / ".gpu"
MIB = 2**20


def run(*command: object, **options: Any) -> str:
    """Standard output of a command; ends the program with a message where it fails."""
    try:
        return subprocess.run([*map(str, command)], check=True, text=True, stdout=subprocess.PIPE, **options).stdout
    except (OSError, subprocess.CalledProcessError) as error:
        sys.exit(f"on_a_gpu.py: {error}")


def with_needs(names: Sequence[str]) -> dict[str, str]:
    """These distributions and all that they need, as installed here: their names and versions."""
    from packaging.requirements import Requirement

    found: dict[str, str] = {}
    queue = list(names)
    while queue:
        name = queue.pop()
        if name in found:
            continue
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            sys.exit(f"on_a_gpu.py: {name} (--carry) is not installed here, so its version is not known; install it")
        needs = (Requirement(text) for text in metadata.requires(name) or ())
        queue += [need.name for need in needs if not need.marker or need.marker.evaluate({"extra": ""})]
    return found


def pip() -> list[str]:
    """A command for pip: this Python's, or one that uv brings."""
    own = subprocess.run([sys.executable, "-m", "pip", "--version"], capture_output=True, check=False)
    return [sys.executable, "-m", "pip"] if own.returncode == 0 else ["uv", "tool", "run", "pip"]


def travelling(root: Path) -> Iterator[Path]:
    """The repository's files, tracked or not, without those that git ignores."""
    listed = run("git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", cwd=root)
    yield from (root / name for name in listed.split("\0") if name and (root / name).is_file())


def sizes(root: Path, packed: Path) -> dict[str, int]:
    """Bytes of the repository's files, and of each thing that is packed."""
    found = {"the repository's files": sum(path.stat().st_size for path in travelling(root))}
    for part in sorted(packed.iterdir()):
        files = [part] if part.is_file() else [path for path in part.rglob("*") if path.is_file()]
        found[part.name] = sum(path.stat().st_size for path in files)
    return found


def too_large(found: dict[str, int], limit: int) -> str | None:
    """What is wrong with these sizes: together they are over `limit` bytes; None where they are not."""
    total = sum(found.values())
    if total <= limit:
        return None
    parts = ", ".join(f"{name} {size / MIB:.1f}" for name, size in sorted(found.items(), key=lambda item: -item[1]))
    return f"{total / MIB:.1f} MiB would travel, more than {limit / MIB:.0f}: {parts}"


def pack_images(source: Path, folder: Path) -> dict[str, Any]:
    """Write the long-tailed images of CIFAR-100 small enough to travel.

    Args:
        source: the folder with the published files.
        folder: a new folder.

    Returns:
        The fingerprints in short of ``source``, as `cifar100_lt` reads it, and of its ``copy`` in an .npz file.
    """
    import numpy as np

    from gpu.images import read, save
    from gpu.jobs import recipe_file
    from ltcore.plan.plan import provider
    from ltcore.recipe.loading import load_recipe
    from ltcore.sweeps.prints import prints_of
    from ltcore.training.data import read_data

    loaded = load_recipe(ROOT / "recipes" / "cifar100_lt_ce.yaml", [f"data.options.root={source}"])
    data = read_data(loaded, provider(loaded, "data", loaded.recipe.data.use)[1])
    splits = {"train": data.train, "test": data.test}
    arrays = {f"{name}_images": split.images.permute(0, 2, 3, 1).numpy() for name, split in splits.items()}
    arrays |= {f"{name}_labels": split.targets.numpy() for name, split in splits.items()}
    save(arrays, folder)
    with tempfile.TemporaryDirectory(prefix="ltcore-") as room:
        copy = Path(room, "data.npz")
        np.savez(copy, **read(folder))
        there = load_recipe(recipe_file("ce", ROOT, Path(room), copy, short=False))
        prints = prints_of([loaded, there])
    return dict(zip(("source", "copy"), prints, strict=True))


def pack(arguments: argparse.Namespace) -> None:
    """Fill ``.gpu/``."""
    wheels = PACKED / "wheels"
    shutil.rmtree(wheels, ignore_errors=True)
    wheels.mkdir(parents=True)
    run("uv", "build", "-q", "--all-packages", "--wheel", "--out-dir", wheels, cwd=ROOT)
    (wheels / ".gitignore").unlink(missing_ok=True)
    carried = with_needs(arguments.carry)
    platforms = [f"--platform=manylinux_{version}_{arguments.machine}" for version in ("2_28", "2_17")]
    platforms.append(f"--platform=manylinux2014_{arguments.machine}")
    which = ["--only-binary=:all:", "--python-version", arguments.for_python, "--implementation", "cp", *platforms]
    run(*pip(), "download", "-q", "--no-deps", "-d", wheels, *which, *(f"{n}=={v}" for n, v in carried.items()))
    about_file = PACKED / "pack.json"
    prints = json.loads(about_file.read_text()).get("data") if about_file.is_file() else None
    if arguments.data:
        shutil.rmtree(PACKED / "data", ignore_errors=True)
        prints = pack_images(arguments.data, PACKED / "data")
    shutil.copy(HERE / "on_a_gpu.py", PACKED)
    shutil.copytree(HERE / "gpu", PACKED / "gpu", dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__"))
    dirty = "-dirty" if run("git", "status", "--porcelain", "-uno", cwd=ROOT).strip() else ""
    about = {
        "commit": run("git", "rev-parse", "HEAD", cwd=ROOT).strip() + dirty,
        "asked": arguments.carry,
        "carried": carried,
        "data": prints,
    }
    about_file.write_text(json.dumps(about, indent=1) + "\n")
    found = sizes(ROOT, PACKED)
    print("\n".join(f"{size / MIB:7.2f} MiB  {name}" for name, size in found.items()))
    if wrong := too_large(found, arguments.limit * MIB):
        sys.exit(f"on_a_gpu.py: {wrong}. Remove .gpu/sweep/, carry less, or raise --limit")
    print(f"{sum(found.values()) / MIB:7.2f} MiB  of {arguments.limit}")
    if not (PACKED / "data").is_dir() and arguments.command == "pack":
        sys.exit("on_a_gpu.py: .gpu/data/ is missing; name the folder of the images with --data")

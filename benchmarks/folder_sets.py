"""Two image sets whose classes are unbalanced by nature, made from Debian packages, for benchmarks/folder.py.

    apt-get download fonts-noto-color-emoji unicode-data oxygen-icon-theme
    for each in *.deb; do dpkg -x $each packages; done
    python benchmarks/folder_sets.py packages DEST

DEST/emoji: every emoji of Unicode 15 without skin tones, 136 x 128 pixels on white, a folder for each subgroup of
Unicode's list that has five or more. DEST/icons: the icons of KDE's Oxygen theme, the largest picture of each name up
to 128 pixels on white, a folder for each kind. One image in five of each class, by its place in the alphabet, is tested
on. Nobody has drawn these sets to be balanced, or to be learned.
"""

from __future__ import annotations

import argparse
import hashlib
from collections import defaultdict
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

FEWEST = 5
SIZES = (128, 64, 48, 32)


def emoji(packages: Path) -> dict[str, dict[str, Image.Image]]:
    """Pictures by subgroup and name."""
    font = ImageFont.truetype(str(packages / "usr/share/fonts/truetype/noto/NotoColorEmoji.ttf"), 109)
    found: dict[str, dict[str, Image.Image]] = defaultdict(dict)
    subgroup = ""
    for line in (packages / "usr/share/unicode/emoji/emoji-test.txt").read_text(encoding="utf-8").splitlines():
        if line.startswith("# subgroup:"):
            subgroup = line.removeprefix("# subgroup:").strip()
        codes, _, rest = line.partition(";")
        if line.startswith("#") or not rest.strip().startswith("fully-qualified") or "skin tone" in line:
            continue
        text = "".join(chr(int(code, 16)) for code in codes.split())
        canvas = Image.new("RGB", (136, 128), "white")
        ImageDraw.Draw(canvas).text((0, 0), text, font=font, embedded_color=True)
        found[subgroup]["-".join(codes.split())] = canvas
    return found


def icons(packages: Path) -> dict[str, dict[str, Image.Image]]:
    """Pictures by kind and name."""
    root = packages / "usr/share/icons/oxygen/base"
    found: dict[str, dict[str, Image.Image]] = defaultdict(dict)
    for size in SIZES:
        for path in sorted((root / f"{size}x{size}").glob("*/*.png")):
            kind, name = path.parent.name, path.stem
            if path.is_symlink() or name in found[kind]:
                continue
            picture = Image.open(path).convert("RGBA")
            canvas = Image.new("RGB", picture.size, "white")
            canvas.paste(picture, mask=picture)
            found[kind][name] = canvas
    return found


def write(found: dict[str, dict[str, Image.Image]], folder: Path) -> None:
    """A folder of classes for training and one for testing, without pictures that are there already."""
    seen: set[bytes] = set()
    for kind in sorted(found):
        names = []
        for name, picture in sorted(found[kind].items()):
            digest = hashlib.sha256(picture.tobytes()).digest()
            if digest not in seen:
                names.append(name)
            seen.add(digest)
        if len(names) < FEWEST:
            continue
        for place, name in enumerate(names):
            target = folder / ("test" if place % 5 == 2 else "train") / kind.replace("&", "and")
            target.mkdir(parents=True, exist_ok=True)
            found[kind][name].save(target / f"{name}.png")


def main() -> None:
    """Write both, and say how large they are."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("packages", type=Path)
    parser.add_argument("out", type=Path)
    arguments = parser.parse_args()
    for name, made in (("emoji", emoji(arguments.packages)), ("icons", icons(arguments.packages))):
        write(made, arguments.out / name)
        counts = sorted(len(list(kind.iterdir())) for kind in (arguments.out / name / "train").iterdir())
        tested = len(list((arguments.out / name / "test").glob("*/*")))
        print(f"{name}: {len(counts)} classes of {counts[-1]} to {counts[0]} training images, {sum(counts)} in all; "
              f"{tested} to test on")  # fmt: skip


if __name__ == "__main__":
    main()

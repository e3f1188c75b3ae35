"""What ``ltcore bench`` does not measure of the loaders: the ways of cropping, and memory over epochs of many files.

    python benchmarks/loader.py --crops    # the three ways of cropping that were compared
    python benchmarks/loader.py --jpegs    # 100,000 JPEG files, with one and two workers

Images a second beside PIL in DataLoader workers are a row of ``ltcore bench --compare benchmarks/reference.py``, of
images in memory and of a recipe's own files.

With --jpegs, both sides take a crop of random area and shape, resize, flip and normalise, with as many workers; the
baseline is torchvision's ImageFolder with its usual transforms. The two take turns, and each pair of turns gives a
ratio, since other programs may run beside them. Then five epochs over the files with two workers, at 32 pixels because
that is quicker, and the memory of all processes after each. The files are made in a temporary directory: 400 pictures,
each copied as often as needed. Takes about ten minutes on two busy cores.
"""

import argparse
import json
import multiprocessing
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageFilter
from torch import Tensor
from torch.nn.functional import pad
from torch.utils.data import DataLoader, RandomSampler
from torchvision import datasets, transforms

from ltcore.contract.splits import FileSplit
from ltcore.data.loader import crop_flip
from ltcore.data.streaming import StreamingLoader
from ltcore.data.transforms import ImageTransform
from ltcore.seeding import generator_for

BATCH, SIZE, CHANNELS, PADDING = 128, 32, 3, 4
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)


def seconds(step: Callable[[], object], repeats: int, device: torch.device) -> float:
    """The best of `repeats` timings, after one that is not counted: what the machine does when nothing else runs."""

    def wait() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    times = []
    for _ in range(repeats + 1):
        wait()
        start = time.perf_counter()
        step()
        wait()
        times.append(time.perf_counter() - start)
    return min(times[1:])


def crops(device: torch.device) -> dict[str, float]:
    """Milliseconds a batch of three formulations, without normalisation."""
    images = torch.randint(0, 256, (BATCH, SIZE, SIZE, CHANNELS), dtype=torch.uint8, device=device).permute(0, 3, 1, 2)
    dy, dx = torch.randint(2 * PADDING + 1, (2, BATCH), device=device)
    flip = torch.randint(2, (BATCH,), device=device)

    def advanced() -> Tensor:
        padded = pad(images.permute(0, 2, 3, 1), (0, 0) + (PADDING,) * 4)
        line = torch.arange(SIZE, device=device)
        columns = dx[:, None] + torch.where(flip.bool()[:, None], SIZE - 1 - line, line)
        batch = torch.arange(BATCH, device=device)[:, None, None]
        return padded[batch, (dy[:, None] + line)[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)

    def slices() -> Tensor:
        padded, out = pad(images, (PADDING,) * 4), torch.empty_like(images)
        for i, (y, x, mirrored) in enumerate(zip(dy.tolist(), dx.tolist(), flip.tolist(), strict=True)):
            crop = padded[i, :, y : y + SIZE, x : x + SIZE]
            out[i] = crop.flip(2) if mirrored else crop
        return out

    def flat() -> Tensor:
        return crop_flip(images, dy, dx, flip, PADDING)

    assert torch.equal(flat(), advanced()) and torch.equal(flat(), slices())
    ways = {"flat_lookup": flat, "advanced_index": advanced, "slice_each_image": slices}
    return {name: round(1000 * seconds(way, 50, device), 3) for name, way in ways.items()}


JPEGS, CLASSES, PICTURES, STEPS, TURNS = 100_000, 100, 400, 16, 5


def make_jpegs(folder: Path, side: int, count: int) -> FileSplit:
    """Gradients, blurred blobs and noise, about as large in bytes as photographs of that size."""
    random, written = np.random.RandomState(0), []
    y, x = np.mgrid[0:side, 0:side] / side
    for number in range(PICTURES):
        slopes = random.uniform(-1, 1, (3, 2))
        smooth = 128 + 90 * np.stack([a * (x - 0.5) + b * (y - 0.5) for a, b in slopes], 2)
        blobs = Image.fromarray(random.randint(0, 256, (side, side, 3)).astype(np.uint8))
        blurred = np.asarray(blobs.filter(ImageFilter.GaussianBlur(side / 32)), dtype=np.float64)
        pixels = smooth + 6 * (blurred - 128) + random.normal(0, 6, smooth.shape)
        path = folder / f"{number}.jpg"
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(path, quality=90)
        written.append(path.read_bytes())
        path.unlink()
    targets = np.arange(count) % CLASSES
    files = np.array([f"{label:03d}/{number:06d}.jpg".encode() for number, label in enumerate(targets)])
    for label in range(CLASSES):
        (folder / f"{label:03d}").mkdir()
    for number, name in enumerate(files):
        (folder / name.decode()).write_bytes(written[number % PICTURES])
    return FileSplit(folder, files, torch.from_numpy(targets))


def memory() -> float:
    """MiB of this process and its workers, pages that they share counted once."""
    processes = [os.getpid(), *(child.pid for child in multiprocessing.active_children())]
    lines = [line for pid in processes for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()]
    return sum(int(line.split()[1]) for line in lines if line.startswith("Pss:")) / 1024


def jpegs(side: int, size: int, count: int, epochs: int) -> dict[str, object]:
    with tempfile.TemporaryDirectory() as name:
        began = time.perf_counter()
        split = make_jpegs(Path(name), side, count)
        found: dict[str, Any] = {"files": count, "side": side, "size": size, "batch": BATCH}
        found["seconds_to_make"] = round(time.perf_counter() - began)
        usual = [transforms.RandomResizedCrop(size), transforms.RandomHorizontalFlip(), transforms.ToTensor()]
        folder = datasets.ImageFolder(name, transforms.Compose([*usual, transforms.Normalize(MEAN, STD)]))
        for workers in (1, 2):
            loader = StreamingLoader(split, ImageTransform("imagenet", size, flip=True), MEAN, STD, workers)
            sampler = RandomSampler(folder, num_samples=STEPS * BATCH)
            baseline = DataLoader(folder, BATCH, sampler=sampler, num_workers=workers, persistent_workers=True)

            def ours(loader: StreamingLoader = loader) -> Iterator[Tensor]:
                batches = torch.randperm(count)[: STEPS * BATCH].split(BATCH)
                return loader.train_batches(batches, (generator_for("cpu", step) for step in range(STEPS)))

            def theirs(baseline: DataLoader[Any] = baseline) -> Iterator[Tensor]:
                return (images for images, _ in baseline)

            # A turn is a short epoch, to its end: nothing is prefetched while the other has its turn.
            rates: dict[Any, list[float]] = {ours: [], theirs: []}
            for turn in range(TURNS + 1):
                for way, found_rates in rates.items():
                    start = time.perf_counter()
                    seen = sum(len(images) for images in way())
                    if turn:  # the first one starts the workers
                        found_rates.append(seen / (time.perf_counter() - start))
            ratios = [a / b for a, b in zip(rates[ours], rates[theirs], strict=True)]
            found[f"{workers}_workers"] = {
                "streaming_images_per_second": round(statistics.median(rates[ours])),
                "image_folder_images_per_second": round(statistics.median(rates[theirs])),
                "ratio": round(statistics.median(ratios), 2),
                "ratios": [round(ratio, 2) for ratio in ratios],
            }
            print(json.dumps(found), file=sys.stderr)  # what is known already, for the rest takes minutes
            del rates, way, loader, baseline, ours, theirs  # ends their workers
        small = StreamingLoader(split, ImageTransform("imagenet", 32, flip=True), MEAN, STD, 2)
        found["mib_after_each_epoch"] = []
        for epoch in range(epochs):
            batches = torch.randperm(count).split(BATCH)
            for _ in small.train_batches(batches, (generator_for("cpu", epoch, step) for step in range(len(batches)))):
                pass
            found["mib_after_each_epoch"].append(round(memory()))
        return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", type=torch.device)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--crops", action="store_true")
    what.add_argument("--jpegs", action="store_true")
    parser.add_argument("--files", type=int, default=JPEGS)
    parser.add_argument("--side", type=int, default=128, help="of the JPEGs, in pixels")
    parser.add_argument("--size", type=int, default=224, help="that they are cropped and resized to")
    parser.add_argument("--epochs", type=int, default=5, help="after each of which memory is measured")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.jpegs:
        print(json.dumps(jpegs(arguments.side, arguments.size, arguments.files, arguments.epochs), indent=2))
        raise SystemExit
    print(json.dumps(crops(arguments.device), indent=2))

"""Images a second of the in-memory loader against torchvision's transforms with a DataLoader, in one run.

    python benchmarks/loader.py            # CIFAR-sized synthetic images, batch 128, on the CPU
    python benchmarks/loader.py --device cuda
    python benchmarks/loader.py --crops    # the three ways of cropping that were compared

Both sides crop with 4 pixels of padding, flip and normalise. The baseline has no worker processes, so that the figure
compares work with work; N workers divide its time by N at best. Takes about 15 seconds.
"""

import argparse
import json
import time
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import pad
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms
from torchvision.transforms.functional import to_pil_image

from ltcore.data.loader import InMemoryLoader, crop_flip
from ltcore.data.splits import ArraySplit

BATCH, SIZE, CHANNELS, PADDING, COUNT = 128, 32, 3, 4, 10_000
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)


class Images(Dataset[Tensor]):
    """The baseline: an image is made a PIL image and transformed one at a time, as torchvision's CIFAR does."""

    def __init__(self, images: Tensor) -> None:
        self.images = images.permute(0, 2, 3, 1).contiguous().numpy()
        steps = [transforms.RandomCrop(SIZE, PADDING), transforms.RandomHorizontalFlip(), transforms.ToTensor()]
        self.transform = transforms.Compose([*steps, transforms.Normalize(MEAN, STD)])

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Tensor:
        return self.transform(to_pil_image(self.images[index]))


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


def compare(device: torch.device) -> dict[str, object]:
    images = torch.randint(0, 256, (COUNT, CHANNELS, SIZE, SIZE), dtype=torch.uint8)
    loader = InMemoryLoader(ArraySplit(images, torch.zeros(COUNT, dtype=torch.int64)), MEAN, STD, PADDING, True, device)
    generator = torch.Generator(device).manual_seed(0)

    def ours() -> None:
        for indices in torch.randperm(COUNT).split(BATCH):
            loader.train_batch(indices, generator)

    baseline = DataLoader(Images(images), batch_size=BATCH, shuffle=True, num_workers=0)

    def theirs() -> None:
        for batch in baseline:
            batch.to(device, non_blocking=True)

    fast, slow = COUNT / seconds(ours, 15, device), COUNT / seconds(theirs, 3, device)
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else f"{torch.get_num_threads()} threads",
        "in_memory_images_per_second": round(fast),
        "torchvision_dataloader_images_per_second": round(slow),
        "ratio": round(fast / slow, 1),
    }


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


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", type=torch.device)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--crops", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    print(json.dumps((crops if arguments.crops else compare)(arguments.device), indent=2))

r"""The published pipeline as researchers write it; ``ltcore bench --compare`` lets it take turns with ltcore's.

    python benchmarks/reference.py input run classifier      # once each, on made-up images of CIFAR's size
    ltcore bench --compare benchmarks/reference.py           # beside ltcore

Images go through PIL in DataLoader workers (torchvision's transforms: a crop padded by 4, or one of random area where
images are files; a flip; ToTensor; Normalize), one by one. A plain Python loop trains in eager fp32 with SGD and
momentum, with an ``.item()`` a step, and evaluates after every epoch. Where only the classifier trains (cRT, OFA), the
frozen backbone runs again in every epoch, without gradients. The network is ltcore's own, so that what is compared are
pipelines. It is spared what a real epoch pays: its workers stay alive, and nothing is saved.

Parts are named as arguments, or with ``-`` line by line on standard input. Each answer is a line of JSON:

    {"part": "input", "images_per_second": ...}
    {"part": "run", "step_seconds": ..., "evaluation_images_per_second": ..., "epoch_seconds": ...}
    {"part": "classifier", "step_seconds": ..., "evaluation_images_per_second": ..., "epoch_seconds": ...}

An epoch's seconds are those of its steps and of an evaluation of the test images, from a few batches of both. With
``--data`` images are real: a folder with cifar-100-python/, or one of an ImageFolder, with train/ in it or not.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Sampler
from torchvision import datasets, transforms

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)
LEAST = 2  # batches of a turn


class MadeUp(Dataset[Any]):
    """Images in memory, each made a PIL image and transformed when it is asked for, as torchvision's CIFAR does."""

    def __init__(self, images: int, asked: argparse.Namespace, transform: Callable[[Any], Tensor]) -> None:
        drawn, shape = np.random.default_rng(0), (images, asked.size, asked.size, asked.channels)
        self.images = drawn.integers(0, 256, shape, dtype=np.uint8).squeeze(-1 if asked.channels == 1 else ())
        self.labels = (np.arange(images) % asked.classes).tolist()
        self.transform = transform

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(Image.fromarray(self.images[index])), self.labels[index]


class Some(Sampler[int]):
    """So many images of a set, drawn at random anew each time."""

    def __init__(self, images: int) -> None:
        self.images, self.count = images, 0

    def __iter__(self) -> Iterator[int]:
        return iter((torch.randperm(max(self.count, self.images)) % self.images)[: self.count].tolist())

    def __len__(self) -> int:
        return self.count


class Batches:
    """A loader with workers that stay, of which a turn takes a short epoch, to its end."""

    def __init__(self, images: Dataset[Any], batch: int, workers: int, device: torch.device) -> None:
        self.batch, self.some = batch, Some(len(images))
        self.loader = DataLoader(
            images,
            batch_size=batch,
            sampler=self.some,
            num_workers=workers,
            persistent_workers=workers > 0,
            pin_memory=device.type == "cuda",
        )
        self.seconds = 0.0  # of a batch, when it was last gone through

    def timed(self, step: Callable[[Tensor, Tensor], None], seconds: float, device: torch.device) -> float:
        """Go through as many batches as take about so many seconds, and at least two; returns a batch's seconds."""
        count = max(LEAST, round(seconds / self.seconds) if self.seconds else LEAST)
        self.some.count = count * self.batch
        began = time.perf_counter()
        for images, labels in self.loader:
            step(images.to(device, non_blocking=True), labels.to(device, non_blocking=True))
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        self.seconds = (time.perf_counter() - began) / count
        return self.seconds


class Pipeline:
    """What is asked about."""

    def __init__(self, asked: argparse.Namespace) -> None:
        self.asked, self.device = asked, torch.device(asked.device)
        train, test = sets(asked)
        self.images = len(train) if asked.data else asked.images
        self.tested = len(test) if asked.data else asked.test
        self.train = Batches(train, asked.batch, asked.workers, self.device)
        self.test = Batches(test, asked.batch, asked.workers, self.device)
        self.backbone = network(asked).to(self.device)
        self.classifier = nn.Linear(self.backbone.feature_dim, asked.classes).to(self.device)
        self.criterion, self.running, self.right = nn.CrossEntropyLoss(), 0.0, 0
        whole = [*self.backbone.parameters(), *self.classifier.parameters()]
        self.optimizers = {
            "run": torch.optim.SGD(whole, lr=0.01, momentum=0.9, weight_decay=2e-4),
            "classifier": torch.optim.SGD(self.classifier.parameters(), lr=0.01, momentum=0.9, weight_decay=2e-4),
        }
        self.warm: set[str] = set()

    def answer(self, part: str) -> dict[str, Any]:
        """Measure a part; the first time once more, which starts workers and chooses algorithms."""
        measures = {"input": self.input, "run": self.epoch, "classifier": self.epoch}
        if part not in measures:
            raise SystemExit(f"reference.py: there is no part '{part}'; there are {', '.join(measures)}")
        if part not in self.warm:
            self.warm.add(part)
            self.train.seconds = self.test.seconds = 0.0
            measures[part](part)
        return {"part": part, **measures[part](part)}

    def input(self, part: str) -> dict[str, Any]:
        """Images a second that arrive on the device."""
        seconds = self.train.timed(lambda images, labels: None, self.asked.seconds, self.device)
        return {"images_per_second": self.asked.batch / seconds}

    def epoch(self, part: str) -> dict[str, Any]:
        """Steps and an evaluation; a real epoch has more of both."""
        frozen = part == "classifier"
        self.backbone.train(not frozen)
        optimizer = self.optimizers[part]

        def train(images: Tensor, labels: Tensor) -> None:
            with torch.set_grad_enabled(not frozen):
                features = self.features(images)
            loss = self.criterion(self.classifier(features), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            self.running += loss.item()

        def evaluate(images: Tensor, labels: Tensor) -> None:
            with torch.no_grad():
                found = self.classifier(self.features(images)).argmax(1)
            self.right += (found == labels).sum().item()

        step = self.train.timed(train, self.asked.seconds, self.device)
        self.backbone.eval()
        rate = self.asked.batch / self.test.timed(evaluate, self.asked.seconds / 4, self.device)
        seconds = math.ceil(self.images / self.asked.batch) * step + self.tested / rate
        return {"step_seconds": step, "evaluation_images_per_second": rate, "epoch_seconds": seconds}

    def features(self, images: Tensor) -> Tensor:
        """Pooled features [N, D]."""
        return self.backbone.pool(self.backbone.forward_maps(images))


def sets(asked: argparse.Namespace) -> tuple[Dataset[Any], Dataset[Any]]:
    """Training and test images."""
    last = [transforms.ToTensor(), transforms.Normalize(MEAN[: asked.channels], STD[: asked.channels])]
    flipped = [transforms.RandomHorizontalFlip(), *last]
    small = transforms.Compose([transforms.RandomCrop(asked.size, padding=4), *flipped])
    if not asked.data:
        made = [MadeUp(min(count, 20_000), asked, small) for count in (asked.images, asked.test)]
        made[1].transform = transforms.Compose(last)
        return made[0], made[1]
    if (asked.data / "cifar-100-python").is_dir():
        plain = transforms.Compose(last)
        return datasets.CIFAR100(asked.data, True, small), datasets.CIFAR100(asked.data, False, plain)
    train = asked.data / "train" if (asked.data / "train").is_dir() else asked.data
    test = asked.data / "test" if (asked.data / "test").is_dir() else train
    larger = [transforms.Resize(round(asked.size * 8 / 7)), transforms.CenterCrop(asked.size), *last]
    area = transforms.Compose([transforms.RandomResizedCrop(asked.size), *flipped])
    return datasets.ImageFolder(train, area), datasets.ImageFolder(test, transforms.Compose(larger))


def network(asked: argparse.Namespace) -> Any:
    """The recipe's backbone, or ResNet-32 of the published tables."""
    if asked.recipe is None:
        from ltcore_cifar_resnet import ResNet

        return ResNet(32, in_channels=asked.channels)
    from ltcore.contract.hookspecs import build_backbone
    from ltcore.discovery.binding import Hooks
    from ltcore.plan.plan import make_plan
    from ltcore.recipe.loading import load_recipe

    loaded, _ = load_recipe(asked.recipe, asked.sets).without_weights()
    return Hooks(make_plan(loaded).answers["backbone"], {}).call(build_backbone, asked.channels, asked.size)


def main() -> None:
    """Measure what is named."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="+", metavar="PART", help="input, run, classifier; or - to read them")
    parser.add_argument("--images", type=int, default=10_847, help="training images")
    parser.add_argument("--test", type=int, default=10_000, help="test images")
    parser.add_argument("--classes", type=int, default=100)
    parser.add_argument("--size", type=int, default=32, help="pixels of a side")
    parser.add_argument("--channels", type=int, default=3, choices=(1, 3))
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--workers", type=int, default=2, help="processes of the DataLoader")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of PyTorch")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--seconds", type=float, default=5.0, help="of a turn")
    parser.add_argument("--data", type=Path, help="real images in place of made-up ones")
    parser.add_argument("--recipe", type=Path, help="the recipe whose backbone is trained, in place of ResNet-32")
    parser.add_argument("--set", dest="sets", action="append", default=[], help="a change of that recipe")
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    pipeline = Pipeline(asked)
    for part in (line.strip() for line in sys.stdin) if asked.parts == ["-"] else asked.parts:
        print(json.dumps(pipeline.answer(part)), flush=True)


if __name__ == "__main__":
    main()

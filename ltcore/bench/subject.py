"""What is measured: a recipe, or noise of CIFAR's size where none is named."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

from ltcore.contract.imbalance import Imbalance, long_tailed_counts
from ltcore.contract.splits import ArraySplit
from ltcore.data.loader import Loader
from ltcore.data.prepare import PreparedData
from ltcore.data.streaming import build_loader, worker_count
from ltcore.plan.plan import Plan, make_plan
from ltcore.recipe.loading import LoadedRecipe, load_recipe
from ltcore.recipe.yaml_source import dump_yaml
from ltcore.training.data import choose_device, read_data
from ltcore.training.threads import automatic


def cifar_sized() -> dict[str, Any]:
    """The published protocol on noise: counts of CIFAR-100-LT at imbalance 100, ResNet-32, then the classifier anew."""
    tail = long_tailed_counts(Imbalance(kind="exponential", factor=100), np.full(100, 500))
    sgd = {"name": "sgd", "lr": 0.1, "momentum": 0.9, "weight_decay": 2.0e-4}
    return {
        "name": "cifar_sized",
        "data": {
            "use": "synthetic",
            "options": {"class_counts": tail.tolist(), "image_size": 32, "test_per_class": 100},
            "transform": {"crop_padding": 4, "flip": True},
        },
        "backbone": {"use": "cifar_resnet", "options": {"depth": 32}},
        "stages": [
            {
                "name": "representation",
                "epochs": 200,
                "batch_size": 128,
                "trainable": ["backbone", "classifier"],
                "optimizer": sgd,
                "schedule": {"name": "multistep", "milestones": [160, 180], "gamma": 0.01, "warmup_epochs": 5},
            },
            {
                "name": "classifier",
                "epochs": 10,
                "batch_size": 128,
                "classifier": "rebuild",
                "sampler": "class_balanced",
                "trainable": ["classifier"],
                "optimizer": sgd,
                "schedule": {"name": "cosine"},
                "cache": "eval",
            },
        ],
    }


@dataclass
class Subject:
    """A recipe, ready to be measured.

    Attributes:
        path: the recipe's file.
        sets: changes ``PATH=VALUE``.
        loaded: the recipe, its network from random weights.
        plan: its plan.
        device: where it trains.
    """

    path: Path
    sets: Sequence[str]
    loaded: LoadedRecipe
    plan: Plan
    device: torch.device

    @cached_property
    def data(self) -> PreparedData:
        """The recipe's images."""
        return read_data(self.loaded, self.plan.answers["data"])

    def cut(self, imbalance: Imbalance | None) -> PreparedData:
        """The images with a stage's imbalance in place of the recipe's."""
        return self.data if imbalance is None else read_data(self.loaded, self.plan.answers["data"], imbalance)

    @property
    def threads(self) -> int:
        """How many PyTorch computes with."""
        asked = self.loaded.recipe.threads
        return automatic() if asked == "auto" else asked

    @property
    def workers(self) -> int:
        """Processes that decode; 0 where the images are in memory."""
        return 0 if isinstance(self.data.train, ArraySplit) else worker_count(self.loaded.recipe.data.workers)

    def train_loader(self) -> Loader:
        """A loader of the training images of its own."""
        data = self.data
        return build_loader(data.train, data.transform, data.mean, data.std, self.workers, self.device)


@contextmanager
def subject(recipe: Path | None, sets: Sequence[str]) -> Iterator[Subject]:
    """What a recipe file, or none, stands for.

    Raises:
        LtcoreError: as in a run.
    """
    with TemporaryDirectory(prefix="ltcore-bench-") as folder:
        path = recipe or Path(folder) / "cifar_sized.yaml"
        if recipe is None:
            path.write_text(dump_yaml(cifar_sized()), encoding="utf-8")
        loaded, _ = load_recipe(path, sets).without_weights()
        yield Subject(path, sets, loaded, make_plan(loaded), choose_device(loaded))

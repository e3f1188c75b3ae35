"""What the fixtures of `ltcore.testing.plugin` make."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from ltcore.contract.context import Context, RunState
from ltcore.contract.model import Model
from ltcore.contract.records import Batch
from ltcore.contract.splits import ArraySplit
from ltcore.data.loader import InMemoryLoader, Loader
from ltcore.testing.parts import COUNTS, CheckBackbone
from ltcore.training.features import FeatureProvider

_HELD_OUT = 2


def make_batch(rows: int = 8, classes: int = 4, size: int = 8, seed: int = 0) -> Batch:
    """A training batch of noise.

    Args:
        rows: N.
        classes: labels are 0, 1, ... C - 1, 0, 1, ...
        size: height and width in pixels.
        seed: of the images.
    """
    images = torch.randn((rows, 3, size, size), generator=torch.Generator().manual_seed(seed))
    return Batch(images, torch.arange(rows) % classes, torch.arange(rows))


def make_context(
    counts: Sequence[int] = COUNTS,
    epoch: int = 0,
    epochs: int = 2,
    step: int = 0,
    seed: int = 0,
    owner: str = "method",
) -> Context:
    """A context on the CPU, in the first stage of a run with a small network, which is not trained.

    Args:
        counts: training images of each class; every class has two held-out images beside them.
        epoch: of the stage; -1 for before the first.
        epochs: of the stage.
        step: of the epoch.
        seed: of the run.
        owner: the method's name in the recipe.
    """
    generator = torch.Generator().manual_seed(seed)

    def split(targets: torch.Tensor) -> ArraySplit:
        return ArraySplit(torch.randint(256, (len(targets), 3, 8, 8), generator=generator, dtype=torch.uint8), targets)

    class_counts = torch.tensor(counts)
    train = split(torch.repeat_interleave(class_counts))
    held_out = split(torch.arange(len(counts)).repeat(_HELD_OUT))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        backbone = CheckBackbone().build_backbone(3)
        model = Model(backbone, nn.Linear(backbone.feature_dim, len(counts)), {})
    loaders: dict[str, Loader] = {
        name: InMemoryLoader(part, (0.5,) * 3, (0.25,) * 3) for name, part in (("train", train), ("val", held_out))
    }
    provider = FeatureProvider(loaders, 500)
    state = RunState(
        seed=seed,
        device=torch.device("cpu"),
        num_classes=len(counts),
        class_names=tuple(f"class {label}" for label in range(len(counts))),
        class_counts=class_counts,
        training_targets=train.targets,
        validation_targets=held_out.targets,
        model=model,
        provider=provider,
    )
    provider.state = state
    state.enter("stage", 0)
    state.epoch, state.epochs, state.step = epoch, epochs, step
    state.progress.fill_(max(epoch, 0) / epochs)
    return Context(state, owner)

"""What a plugin's tests build: a batch, a method's context, the loss terms of a step, a short training's recipe."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ltcore.contract.context import Context, RunState
from ltcore.contract.method import Method
from ltcore.contract.model import Model
from ltcore.contract.records import Batch
from ltcore.contract.splits import ArraySplit
from ltcore.data.loader import InMemoryLoader, Loader
from ltcore.discovery.binding import Entry, Hooks, implementations
from ltcore.discovery.offer import Offer
from ltcore.testing.parts import COUNTS, CheckBackbone
from ltcore.training.features import FeatureProvider
from ltcore.training.step import StepForward

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


class _Provider(FeatureProvider):
    """Answers from the model and its images, or with features that a test gives."""

    def __init__(self, loaders: dict[str, Loader], given: Callable[[str, str], Tensor] | None) -> None:
        super().__init__(loaders, 500)
        self._given = given

    def features(self, split: str, tap: str) -> Tensor:
        """See `ltcore.Context.training_features`."""
        return super().features(split, tap) if self._given is None else self._given(split, tap)

    def feature_shape(self, tap: str) -> tuple[int, ...]:
        """See `ltcore.Context.feature_shape`."""
        return super().feature_shape(tap) if self._given is None else tuple(self._given("train", tap).shape[1:])


def make_context(
    counts: Sequence[int] | Tensor = COUNTS,
    epoch: int = 0,
    epochs: int = 2,
    step: int = 0,
    seed: int = 0,
    owner: str = "method",
    *,
    targets: Tensor | None = None,
    held_out: Tensor | None = None,
    model: Model | None = None,
    features: Callable[[str, str], Tensor] | None = None,
    earlier: Mapping[str, Model] | None = None,
    device: str = "cpu",
) -> Context:
    """A method's context, in the stage ``joint`` of a run on images of noise; nothing is trained. See `move_context`.

    Args:
        counts: training images of each class.
        epoch: of the stage; -1 for before the first.
        epochs: of the stage.
        step: of the epoch.
        seed: of the run.
        owner: the method's name in the recipe.
        targets: labels of the training images, [N] int64; by default those of class 0, of class 1, and so on.
        held_out: labels of the validation images, [M] int64; by default two of each class.
        model: by default an untrained one, with a network for images [3, 8, 8].
        features: of a split (``train``, ``val``) at a tap, [N, ...], in place of those that the model computes.
        earlier: the models at the end of earlier stages, by the stages' names.
        device: where the run is. A model that is given must be there.
    """
    generator = torch.Generator().manual_seed(seed)
    class_counts = torch.as_tensor(counts)
    targets = torch.repeat_interleave(class_counts) if targets is None else targets
    held_out = torch.arange(len(class_counts)).repeat(_HELD_OUT) if held_out is None else held_out
    loaders: dict[str, Loader] = {}
    for name, labels in (("train", targets), ("val", held_out)):
        images = torch.randint(256, (len(labels), 3, 8, 8), generator=generator, dtype=torch.uint8)
        loaders[name] = InMemoryLoader(ArraySplit(images, labels), (0.5,) * 3, (0.25,) * 3, device=device)
    if model is None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            backbone = CheckBackbone().build_backbone(3)
            model = Model(backbone, nn.Linear(backbone.feature_dim, len(class_counts)), {}).to(device)
    provider = _Provider(loaders, features)
    state = RunState(
        seed=seed,
        device=torch.device(device),
        num_classes=len(class_counts),
        class_names=tuple(f"class {label}" for label in range(len(class_counts))),
        class_counts=class_counts.to(device),
        training_targets=targets,
        validation_targets=held_out,
        model=model,
        provider=provider,
        progress=torch.zeros((), device=device),
    )
    provider.state = state
    for stage, ended in (earlier or {}).items():
        state.model = ended
        provider.freeze(stage)
    state.model = model
    state.enter("joint", len(earlier or {}))
    return move_context(Context(state, owner), epoch=epoch, epochs=epochs, step=step)


def move_context(
    context: Context,
    stage: str | None = None,
    epoch: int | None = None,
    epochs: int | None = None,
    step: int | None = None,
) -> Context:
    """Go on in the run of a context that `make_context` has made, as training does. What is None stays as it is.

    The method then draws anew what it draws there: the same numbers where the place is the same.

    Args:
        context: one method's, or the only one.
        stage: the name of a new stage, which begins before its first epoch and is of 0 epochs where `epochs` does not
            say it. The model as it is now is what `Context.frozen_model` gives for the stage that ends.
        epoch: of the stage; -1 for before the first.
        epochs: of the stage.
        step: of the epoch.

    Returns:
        The context.
    """
    state = context._state
    if stage is not None:
        provider = state.provider
        assert isinstance(provider, FeatureProvider)
        provider.freeze(state.stage)
        state.enter(stage, state.stage_index + 1)
    state.epoch = state.epoch if epoch is None else epoch
    state.epochs = state.epochs if epochs is None else epochs
    state.step = state.step if step is None else step
    state.progress.fill_(max(state.epoch, 0) / max(state.epochs, 1))
    context.restart()
    return context


def step_losses(
    batch: Batch,
    methods: Mapping[str, Method],
    context: Context,
    class_weights: Tensor | None = None,
    precision: torch.dtype | None = None,
) -> dict[str, Tensor]:
    """The loss terms of one step, as training computes them: through the context's model and all hooks of the methods.

    Args:
        batch: what the methods' ``mix_inputs`` is given; ``extras`` holds what methods have asked for, by their names.
        methods: the stage's, by their names in the recipe, in their order.
        context: where the run stands. Each method gets a context of its own there.
        class_weights: [C], or None for equal weights.
        precision: of the forward pass under autocast; None for float32 throughout.

    Returns:
        0-d tensors: ``classification``, and ``method/term`` for each auxiliary loss.

    Raises:
        PluginError: an answer that cannot be right.
        RunError: a method failed.
    """
    entries = [
        Entry(name, Offer(name, f"{type(method).__module__}:{type(method).__name__}", "tested", "0"), method)
        for name, method in methods.items()
    ]
    contexts = {name: Context(context._state, name) for name in ("", *methods)}
    hooks = Hooks(implementations(entries), contexts)
    return StepForward(context.model, hooks, "images", True, precision)(batch, class_weights)


def write_short_recipe(path: Path, **parts: Any) -> Path:
    """Write the recipe of a short training on made images, for `ltcore.run`.

    Args:
        path: the file.
        parts: parts of a recipe as plain data, in place of these: `data`, 88 images of 8 x 8 pixels in four
            long-tailed classes; `backbone`, a small ResNet of timm's; no `methods`; one of `stages`. What a stage
            leaves out is: the name ``joint``, 2 epochs, batches of 16, SGD, all methods but those under `calibrate`.

    Returns:
        The path.
    """
    stages = parts.pop("stages", [{}])
    whole = {
        "data": {
            "use": "synthetic",
            "options": {"class_counts": [48, 24, 12, 4], "image_size": 8, "test_per_class": 4},
        },
        "backbone": {"use": "timm", "options": {"model": "test_resnet"}},
        "methods": {},
        "device": "cpu",
        **parts,
    }
    usual = {
        "name": "joint",
        "batch_size": 16,
        "methods": [name for name in whole["methods"] if name not in whole.get("calibrate", ())],
        "optimizer": {"name": "sgd", "lr": 0.05, "momentum": 0.9},
    }
    whole["stages"] = [{**usual, **({} if "iterations" in stage else {"epochs": 2}), **stage} for stage in stages]
    path.write_text(json.dumps(whole, indent=1), encoding="utf-8")
    return path

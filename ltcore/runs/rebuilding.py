"""A trained run's model, built again as the run built it, but without its data: names and shapes, not values.

The plugins' hooks that build the classifier and calibrate it are called as in the run. What they may ask about the data
is answered with the run's class counts, and with stand-ins for features, which only decide values.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ltcore.contract.images import ImageFunction
from ltcore.contract.model import Model
from ltcore.contract.splits import ArraySplit
from ltcore.data.image_functions import ImageChanges, ImageFunctions
from ltcore.data.prepare import PreparedData
from ltcore.evaluation.calibrated import Description
from ltcore.plan.plan import make_plan
from ltcore.recipe.loading import LoadedRecipe
from ltcore.training.assembly import Assembly
from ltcore.training.data import RunData
from ltcore.training.features import FeatureProvider


def rebuild(loaded: LoadedRecipe, description: Description) -> Model:
    """The model with its calibrated classifier, on the CPU, with arbitrary values.

    Args:
        loaded: the run's recipe. Files of weights that its backbone started from are not needed.
        description: what the run recorded of its data.

    Raises:
        LtcoreError: a plugin is missing, refuses or fails.
    """
    with torch.random.fork_rng(devices=[]):
        plan = make_plan(loaded.without_weights()[0], to_run=False)
        data, cpu = _without_images(description), torch.device("cpu")
        image = _OneImage(len(data.mean), data.transform.image_size)
        run_data = RunData(plan, data, cpu, cut=lambda _: data, make_loader=lambda _: image)
        assembly = Assembly(plan, run_data, cpu, _StandIns(run_data.loaders, 1))
        assembly.start()
        for index, stage in enumerate(plan.stages):
            assembly.enter(stage.stage.name, index)
            assembly.prepare(index, assembly.hooks(index))
            assembly.provider.freeze(stage.stage.name)
        return Model(assembly.model.backbone, assembly.calibrated(), {})


class _StandIns(FeatureProvider):
    """Answers with one row a class."""

    def features(self, split: str, tap: str) -> Tensor:
        generator, experts = torch.Generator().manual_seed(0), self.experts(tap)
        each = () if experts == 1 or self.state.expert is not None else (experts,)
        return torch.randn(self.state.num_classes, *each, *self.feature_shape(tap), generator=generator)

    def images(
        self,
        split: str,
        indices: Tensor,
        transform: ImageFunction | None,
        augmented: bool,
        generator: torch.Generator,
    ) -> Tensor:
        return self._loaders["train"].pick(indices)


@dataclass(frozen=True)
class _OneImage:
    """A `Loader` of one black image."""

    channels: int
    size: int
    device = generator_device = torch.device("cpu")

    def __len__(self) -> int:
        return 1

    def eval_batch(self, start: int, stop: int, crops: bool = False) -> Tensor:
        return torch.zeros(1, self.channels, self.size, self.size)

    def end_workers(self) -> None:
        pass

    def eval_batches(self, batch_size: int, crops: bool = False) -> Iterator[Tensor]:
        yield self.eval_batch(0, 1)

    def train_batches(
        self,
        indices: Iterable[Tensor],
        generators: Iterable[torch.Generator],
        changes: ImageChanges | None = None,
    ) -> Iterator[Tensor]:
        yield self.eval_batch(0, 1)

    def pick(
        self,
        indices: Tensor,
        generator: torch.Generator | None = None,
        functions: ImageFunctions | None = None,
        augmented: bool = False,
    ) -> Tensor:
        return self.eval_batch(0, 1).expand(len(indices), -1, -1, -1)


def _without_images(description: Description) -> PreparedData:
    classes, size = len(description.class_names), description.transform.image_size
    black = torch.zeros(1, len(description.mean), size, size, dtype=torch.uint8)
    split = ArraySplit(black.expand(classes, -1, -1, -1), torch.arange(classes))
    return PreparedData(
        train=split,
        val=split,
        test=None,
        class_names=description.class_names,
        class_counts=torch.tensor(description.class_counts),
        kept=split.targets,
        mean=description.mean,
        std=description.std,
        transform=description.transform,
    )

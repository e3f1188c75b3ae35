"""What methods ask of the context: features of images, the images themselves, and earlier models."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ltcore.contract.context import NO_VALIDATION
from ltcore.contract.model import Model, evaluating
from ltcore.data.image_functions import ImageFunctions
from ltcore.errors import PluginError, RunError, listed, nearest
from ltcore.evaluation.outputs import pooled_features
from ltcore.evaluation.pooled import PooledFeatures

if TYPE_CHECKING:
    from ltcore.contract.backbone import Backbone
    from ltcore.contract.context import RunState
    from ltcore.contract.images import ImageFunction
    from ltcore.data.loader import Loader


class FeatureProvider:
    """Answers `ltcore.Context`'s questions about features and earlier models.

    Args:
        loaders: the training images, and the validation images where there are any, by split name.
        batch_size: images at a time.

    Attributes:
        pooled: pooled features of whole splits, but for the test images; evaluation asks for them, too.
    """

    def __init__(self, loaders: dict[str, Loader], batch_size: int) -> None:
        self._loaders, self._batch_size = loaders, batch_size
        self._frozen: dict[str, Model] = {}
        self._kept: dict[tuple[str, str], tuple[object, Tensor]] = {}
        self.pooled = PooledFeatures()
        self.state: RunState

    def train_on(self, loader: Loader) -> None:
        """Answer with these training images from now on."""
        self._loaders["train"] = loader

    def freeze(self, stage: str) -> None:
        """Keep the model as it is now, for later stages."""
        model = self.state.model
        frozen = Model(copy.deepcopy(model.backbone), copy.deepcopy(model.classifier), {})
        self._frozen[stage] = frozen.eval().requires_grad_(False)

    def frozen_model(self, stage: str | None) -> Model:
        """See `ltcore.Context.frozen_model`."""
        name = stage or next(reversed(self._frozen), None)
        if name not in self._frozen:
            named = f" '{name}'" if name else ""
            raise RunError(f"there is no earlier stage{named} here; there is {listed(self._frozen)}")
        return self._frozen[name]

    def features(self, split: str, tap: str) -> Tensor:
        """See `ltcore.Context.training_features`."""
        loader = self._loader(split)
        backbone, state = self._backbone(tap), self.state
        trains = any(parameter.requires_grad for parameter in backbone.parameters())
        # By the stage's index: calibration comes after the last, and a recipe's stage may have its name.
        version = (state.stage_index, state.epoch, state.step) if trains else (state.stage_index,)
        kept = self._kept.get((split, tap))
        if kept is None or kept[0] != version:
            if tap == "pooled":
                (found,) = self.pooled.crops(state.model, loader, self._batch_size)
            else:
                found = pooled_features(state.model, loader, self._batch_size, tap)
            kept = (version, found)
            self._kept[split, tap] = kept
        return kept[1] if state.expert is None or self.experts(tap) == 1 else kept[1][:, state.expert]

    def at_hand(self, split: str) -> Tensor | None:
        """Pooled features [N, D] of a split ([N, E, D] of experts); None where the network would have to run."""
        return self.pooled.at_hand(self.state.model, self._loader(split), self._batch_size)

    def images(
        self,
        split: str,
        indices: Tensor,
        transform: ImageFunction | None,
        augmented: bool,
        generator: torch.Generator,
    ) -> Tensor:
        """See `ltcore.Context.images`; all draws come from `generator`, on the CPU."""
        if split not in ("train", "val"):
            raise PluginError(
                f"there are no images of '{split}' for methods; ask for 'train' or 'val'; tell its author"
            )
        loader = self._loader(split)
        if indices.dtype != torch.int64 or indices.dim() != 1:
            raise PluginError(f"images are asked for by indices [M] int64, not {list(indices.shape)} {indices.dtype}")
        indices = indices.cpu()
        if len(indices) and not 0 <= int(indices.min()) <= int(indices.max()) < len(loader):
            raise PluginError(
                f"images are asked for from {int(indices.min())} to {int(indices.max())}, and '{split}' has those from "
                f"0 to {len(loader) - 1}; tell its author"
            )
        functions = None if transform is None else ImageFunctions.pack({"": transform}, {})
        if transform is None and not augmented:
            return loader.pick(indices)
        seed = int(torch.randint(2**62, (), generator=generator))
        drawing = torch.Generator(loader.generator_device).manual_seed(seed)
        return loader.pick(indices, drawing, functions, augmented)

    def _loader(self, split: str) -> Loader:
        if split not in self._loaders:
            raise RunError(NO_VALIDATION)
        return self._loaders[split]

    def feature_shape(self, tap: str) -> tuple[int, ...]:
        """See `ltcore.Context.feature_shape`."""
        return tuple(self._rows(tap).shape[1:])

    def experts(self, tap: str) -> int:
        """How many rows an image has at a tap: 1 before the split of a network with experts."""
        return len(self._rows(tap))

    def _rows(self, tap: str) -> Tensor:
        """What a tap gives for one image."""
        seen: list[Tensor] = []

        def look(x: Tensor) -> Tensor:
            seen.append(x)
            return x

        backbone = self._backbone(tap)
        with evaluating(backbone):
            backbone.run(self._loaders["train"].eval_batch(0, 1), at={tap: look})
        return seen[0]

    def _backbone(self, tap: str) -> Backbone:
        backbone = self.state.model.backbone
        if tap not in backbone.taps:
            raise RunError(
                f"the backbone has no tap '{tap}'{nearest(tap, backbone.taps) or ';'} it has {listed(backbone.taps)}"
            )
        return backbone

"""A stage's forward pass where several processes train together: PyTorch's DistributedDataParallel around it."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ltcore import ranks
from ltcore.contract.records import Batch

if TYPE_CHECKING:
    from ltcore.contract.model import Model
    from ltcore.contract.recipe import Stage
    from ltcore.recipe.loading import LoadedRecipe
    from ltcore.training.step import StepForward


class _Step(nn.Module):
    """The forward pass as a module, whose gradients PyTorch averages."""

    def __init__(self, model: Model, step: StepForward) -> None:
        super().__init__()
        self.model, self._step = model, step

    def forward(self, batch: Batch, class_weights: Tensor | None) -> dict[str, Tensor]:
        """The losses of a batch."""
        return self._step(batch, class_weights)


def together(model: Model, step: StepForward) -> Callable[[Batch, Tensor | None], dict[str, Tensor]]:
    """The forward pass of a stage, after whose backward pass every process has the whole batch's gradients.

    Behind a tap all processes compute the same loss of the same rows. What comes back to the backbone's rows is the
    sum over the processes (`ltcore.ranks.joined`): their number times the gradient. So the mean that PyTorch takes is
    the gradient, of the backbone's parameters and of all others.
    """
    if not any(parameter.requires_grad for parameter in model.parameters()):
        return step  # only weights that an after_step writes
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # newer versions call the first of the two words otherwise
        # A step may leave parameters out, such as those of a method that acts later: all processes leave out the same.
        distributed: Any = DistributedDataParallel(
            _Step(model, step), broadcast_buffers=False, find_unused_parameters=True
        )
    return distributed  # type: ignore[no-any-return]


def refuse_too_many(loaded: LoadedRecipe, index: int, stage: Stage) -> None:
    """Every process computes a part of every batch, and with ``accumulate`` takes it in parts.

    Raises:
        RecipeError: there are more of them than rows.
    """
    if stage.batch_size < ranks.size() * stage.accumulate:
        parts = f" in {stage.accumulate} parts each (accumulate)" if stage.accumulate > 1 else ""
        raise loaded.fail(
            ("stages", index, "batch_size"),
            f"stage '{stage.name}': a batch of {stage.batch_size} images cannot be shared by {ranks.size()} processes"
            f"{parts}; start fewer with torchrun, or raise batch_size, which is the number of all processes together",
        )

"""The loss of a stage as a function of the weights, for methods that compute gradients themselves."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from torch import Tensor


class Objective(Protocol):
    """The whole loss of one batch, through every method's hooks; what ``compute_gradients`` is given.

    Each call is a forward pass of its own that draws the same random numbers. Buffers (the statistics of batch norm,
    a method's memory) learn in the first call only; later calls see them as they were before it. The loss that the run
    shows is that of the last call at the weights as they are.
    """

    @property
    def parameters(self) -> Mapping[str, Tensor]:
        """What trains, by its name in ``context.model.named_parameters()``: the weights as they are."""

    @property
    def size(self) -> int:
        """N, the images of the batch."""

    def __call__(self, at: Mapping[str, Tensor] | None = None, sample_weights: Tensor | None = None) -> Tensor:
        """The loss, 0-d, weighted terms of methods included.

        Args:
            at: other values for some of `parameters`; gradients flow into them. None for the weights as they are.
            sample_weights: [N], factors for the loss values of the batch's rows, not normalised. They multiply what
                ``sample_weights`` of methods gives; rows that methods append have a factor of 1.
        """

    def logits(self, images: Tensor, at: Mapping[str, Tensor] | None = None) -> Tensor:
        """Logits [M, C] float32 of any images [M, C, H, W], such as validation images, without the methods' hooks.

        Modules are in the modes of the stage, and no buffer learns.

        Args:
            images: normalised.
            at: as in a call.
        """

    def gradients(
        self,
        loss: Tensor,
        at: Mapping[str, Tensor] | None = None,
        create_graph: bool = False,
        retain_graph: bool = False,
    ) -> dict[str, Tensor]:
        """The gradient of a loss in what trains, or in the parameters `at`, by name; without those it does not reach.

        Args:
            loss: 0-d.
            at: parameters to differentiate by; None for the weights as they are.
            create_graph: whether the gradients can be differentiated again; a method that wants it says
                ``requires = frozenset({"second_order"})``.
            retain_graph: whether the loss's graph is asked for more gradients; it is kept with `create_graph`, too.
        """

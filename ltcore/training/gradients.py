"""A stage's loss as a function of the weights, and a step in which a method computes the gradients."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ltcore import ranks
from ltcore.contract.hookspecs import compute_gradients
from ltcore.errors import PluginError
from ltcore.training.functional import called_with

if TYPE_CHECKING:
    from ltcore.contract.records import Batch
    from ltcore.discovery.binding import Entry, Hooks
    from ltcore.training.step import StepForward


class BatchObjective:
    """The loss of one batch (`ltcore.contract.objective.Objective`).

    Args:
        forward: the stage's forward pass.
        batch: the batch.
        class_weights: [C], or None.
        parameters: what trains, by name.
        reseed: stands all random numbers at the beginning of the step.

    Attributes:
        losses: the weighted terms of the last call at the weights as they are, detached; none before it.
    """

    def __init__(
        self,
        forward: StepForward,
        batch: Batch,
        class_weights: Tensor | None,
        parameters: Mapping[str, Tensor],
        reseed: Callable[[], None],
    ) -> None:
        self.parameters = parameters
        self.losses: dict[str, Tensor] = {}
        self._forward, self._batch, self._class_weights, self._reseed = forward, batch, class_weights, reseed
        self._model = forward.model
        #: As they were before the first call, in which they learn.
        self._buffers = {name: buffer.clone() for name, buffer in self._model.named_buffers()}
        self._called = False

    @property
    def size(self) -> int:
        """See `Objective`."""
        return len(self._batch.targets)

    def __call__(self, at: Mapping[str, Tensor] | None = None, sample_weights: Tensor | None = None) -> Tensor:
        """See `Objective`."""
        losses: dict[str, Tensor] = {}

        def whole() -> Tensor:
            losses.update(self._forward(self._batch, self._class_weights, sample_weights))
            return torch.stack(list(losses.values())).sum()

        loss = self._evaluate(whole, at, learn=not self._called)
        self._called = True
        if at is None:
            self.losses = {name: value.detach() for name, value in losses.items()}
        return loss

    def logits(self, images: Tensor, at: Mapping[str, Tensor] | None = None) -> Tensor:
        """See `Objective`."""
        return self._evaluate(lambda: self._forward.plain(images), at, learn=False)

    def gradients(
        self,
        loss: Tensor,
        at: Mapping[str, Tensor] | None = None,
        create_graph: bool = False,
        retain_graph: bool = False,
    ) -> dict[str, Tensor]:
        """See `Objective`."""
        if create_graph and (why := self._forward.in_pieces()):
            raise PluginError(
                f"takes gradients of gradients, and {why}; tell its author to write "
                "requires = frozenset({'second_order'}), which the plan looks at"
            )
        by, retain = self.parameters if at is None else at, retain_graph or create_graph
        found = torch.autograd.grad(
            loss, list(by.values()), retain_graph=retain, create_graph=create_graph, allow_unused=True
        )
        given = {name: gradient for name, gradient in zip(by, found, strict=True) if gradient is not None}
        ranks.averaged(list(given.values()))
        return given

    def _evaluate(self, function: Callable[[], Tensor], at: Mapping[str, Tensor] | None, learn: bool) -> Tensor:
        """The function with other parameters, and with copies of the buffers where they must not learn."""
        self._reseed()
        given = {} if learn else {name: buffer.clone() for name, buffer in self._buffers.items()}
        given |= at or {}
        if not given:
            return function()
        return called_with(self._model, given, function)


class GivenGradients:
    """The forward pass of a stage in which a method computes the gradients; `ltcore.training.step.Update` takes them.

    Args:
        forward: the stage's forward pass.
        hooks: what the stage's methods answer.
        whose: the method that answers ``compute_gradients``.
        parameters: what trains, by name.
        reseed: stands all random numbers at the beginning of the step.
    """

    def __init__(
        self,
        forward: StepForward,
        hooks: Hooks,
        whose: Entry,
        parameters: Iterable[tuple[str, Tensor]],
        reseed: Callable[[], None],
    ) -> None:
        self.forward, self.hooks, self.whose, self.reseed = forward, hooks, whose, reseed
        self.parameters = dict(parameters)

    def __call__(self, batch: Batch, class_weights: Tensor | None) -> dict[str, Tensor]:
        """The loss's terms at the weights as they are, detached; the gradients lie at the parameters.

        Raises:
            PluginError: what the method gave are no gradients of what trains.
        """
        objective = BatchObjective(self.forward, batch, class_weights, self.parameters, self.reseed)
        given = self.hooks.call(compute_gradients, objective)
        if not objective.losses:
            raise self._refusal("never called objective() at the weights as they are")
        for name, gradient in given.items():
            parameter = self.parameters.get(name)
            if parameter is None:
                raise self._refusal(f"gave a gradient for '{name}', which this stage does not train")
            if not isinstance(gradient, Tensor) or gradient.shape != parameter.shape:
                shape = list(getattr(gradient, "shape", ()))
                raise self._refusal(f"gave '{name}' a gradient of shape {shape}; it is {list(parameter.shape)}")
        for name, parameter in self.parameters.items():
            found = given.get(name)
            parameter.grad = None if found is None else found.detach().to(parameter)
        return objective.losses

    def _refusal(self, what: str) -> PluginError:
        return PluginError(f"{self.whose.whose} {what} (hook compute_gradients); tell its author")

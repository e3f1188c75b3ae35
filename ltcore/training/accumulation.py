"""A batch that goes through the backbone in parts, whose activations are held one part at a time.

The parts take turns up to the first tap at which a method acts, and without a graph, but for the last one. From there
the rows of all go on together, so that methods see the whole batch. In the backward pass each part is computed again,
with a graph that is freed before the next part's is made. This is from (Chen et al., 2016, Training Deep Nets with
Sublinear Memory Cost, section 4, along the batch instead of the layers). The gradients arrive at each parameter as one
sum.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ltcore import ranks
from ltcore.seeding import derive_seed
from ltcore.training.functional import called_with
from ltcore.training.shares import restore, seed, states

if TYPE_CHECKING:
    from ltcore.contract.model import Model


@dataclass(frozen=True)
class Accumulation:
    """How much of a batch is computed at a time.

    Attributes:
        parts: in how many parts a whole batch goes.
        batch_size: B, its images, of all processes together.
    """

    parts: int
    batch_size: int

    def number(self, rows: int) -> int:
        """In how many parts so many rows go, of all processes together: the same number in each of them.

        A smaller batch, such as the last of an epoch, goes in fewer parts, which have no more rows than those of a
        whole one.
        """
        own = rows // ranks.size() or rows  # the fewest that a process has
        return min(self.parts, own, math.ceil(rows * self.parts / self.batch_size))


class _Reached(Exception):
    """A part's rows stand at the tap, where they wait for the others."""

    def __init__(self, rows: Tensor) -> None:
        super().__init__()
        self.rows = rows


def _stop(rows: Tensor) -> Tensor:
    raise _Reached(rows)


class Parts:
    """The rows of one batch, from the images to the first tap.

    In every part torch's global generator gives other numbers, and the same ones when it is computed again. At the tap
    it stands where it stood before the first part. Batch norm and the like learn from each part once, in their order.

    Args:
        model: the model.
        tap: where the parts wait for each other; ``pooled`` where no method acts.
        rows: [R, ...], the images, of which this process computes all.
        number: how many parts, at least 2 and at most R.
        autocast: dtype of the forward pass; None for float32 throughout.

    Attributes:
        last: [R', ...], the rows of the last part, with which the backbone is to be run as ever.
    """

    def __init__(self, model: Model, tap: str, rows: Tensor, number: int, autocast: torch.dtype | None) -> None:
        self._model, self._tap, self._autocast, self._device = model, tap, autocast, rows.device
        self._seeds = [derive_seed("part", torch.initial_seed(), part) for part in range(number)]
        parts = torch.tensor_split(rows, number)
        self.last, self._sizes = parts[-1], [len(part) for part in parts]
        before = states(self._device)
        self._names, trained, self._frozen = list[str](), list[Tensor](), dict[str, Tensor]()
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                self._names.append(name)
                trained.append(parameter)
            else:
                self._frozen[name] = parameter
        #: By part, the backbone's buffers as they were before it.
        self._buffers: list[dict[str, Tensor]] = []
        # Made before the last part's graph, which is therefore gone when autograd comes to these parts.
        self._passed: tuple[Tensor, ...] = _Passed.apply(self, rows[: -len(self.last)], *trained)
        seed(self._seeds[-1], self._device)
        self._before = before

    def joined(self, own: Tensor) -> Tensor:
        """The rows of all parts at the tap, of which the last one has `own`; where the network has split, by expert."""
        restore(self._before, self._device)
        # Let go, since their graph holds this object.
        parts, self._passed = (*self._passed, own), ()
        experts = self._model.backbone.experts
        if experts == 1 or len(own) != experts * len(self.last):
            return torch.cat(parts)
        by_expert = [part.reshape(experts, -1, *part.shape[1:]) for part in parts]
        return torch.cat(by_expert, 1).flatten(0, 1)

    def waiting(self, rows: Tensor) -> tuple[Tensor, ...]:
        """All parts but the last at the tap, each [R', ...]; `rows` are their images."""
        found: list[Tensor] = []
        versions: dict[str, int] = {}
        for number, part in enumerate(torch.split(rows, self._sizes[:-1])):
            buffers = dict(self._model.backbone.named_buffers(prefix="backbone"))
            self._buffers.append(
                {
                    name: self._buffers[-1][name] if versions.get(name) == buffer._version else buffer.clone()
                    for name, buffer in buffers.items()
                }
            )
            versions = {name: buffer._version for name, buffer in buffers.items()}
            found.append(self._run(part, number))
        return tuple(found)

    def gradients(
        self, rows: Tensor, trained: Sequence[Tensor], given: Sequence[Tensor | None], of_rows: bool
    ) -> tuple[Tensor | None, list[Tensor | None]]:
        """The gradients of the parts' images and, summed over the parts, of what trains.

        Args:
            rows: the images of all parts but the last.
            trained: the parameters, in the order in which the model has them.
            given: by part, the gradient of its rows at the tap; None where the loss does not depend on them.
            of_rows: whether the gradient of the images is wanted; else it is None.
        """
        leaves = [parameter.detach().requires_grad_() for parameter in trained]
        sums: list[Tensor | None] = [None] * len(leaves)
        at_rows: list[Tensor] = []
        before = states(self._device)
        for number, (part, gradient) in enumerate(zip(torch.split(rows, self._sizes[:-1]), given, strict=True)):
            part = part.detach().requires_grad_(of_rows)
            found: list[Tensor | None] = [None] * (len(leaves) + 1)
            if gradient is not None:
                buffers = {name: buffer.clone() for name, buffer in self._buffers[number].items()}
                tensors = {**self._frozen, **dict(zip(self._names, leaves, strict=True)), **buffers}
                with torch.enable_grad():
                    out = called_with(self._model, tensors, partial(self._run, part, number))
                if out.requires_grad:
                    wanted = [*leaves, part] if of_rows else leaves
                    found[: len(wanted)] = torch.autograd.grad(out, wanted, gradient, allow_unused=True)
                del out, tensors
            at_rows.append(torch.zeros_like(part) if found[-1] is None else found[-1])
            sums = [_sum(old, new) for old, new in zip(sums, found[:-1], strict=True)]
        restore(before, self._device)
        return (torch.cat(at_rows) if of_rows else None), sums

    def _run(self, rows: Tensor, number: int) -> Tensor:
        """The images of a part as they are at the tap."""
        seed(self._seeds[number], self._device)
        low = torch.autocast(
            # Without a cache, in which weights would stay that were cast without a graph.
            rows.device.type,
            self._autocast,
            enabled=self._autocast is not None,
            cache_enabled=False,
        )
        with low:
            try:
                return self._model.backbone.run(rows, "images", {self._tap: _stop})
            except _Reached as reached:
                return reached.rows


def _sum(old: Tensor | None, new: Tensor | None) -> Tensor | None:
    return new if old is None else old if new is None else old + new  # not in place: two may be one tensor


class _Passed(torch.autograd.Function):
    """The way of all parts but the last to the tap, and back."""

    @staticmethod
    def forward(ctx: Any, parts: Parts, rows: Tensor, *trained: Tensor) -> tuple[Tensor, ...]:
        """The images of those parts to their rows at the tap."""
        ctx.parts = parts
        ctx.save_for_backward(rows, *trained)
        ctx.set_materialize_grads(False)
        return parts.waiting(rows)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *given: Tensor | None) -> Any:
        """Gradients at the tap to those of the images and of what trains."""
        rows, *trained = ctx.saved_tensors
        at_rows, sums = ctx.parts.gradients(rows, trained, given, ctx.needs_input_grad[1])
        return None, at_rows, *sums

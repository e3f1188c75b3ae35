"""Whether a quicker backbone gives what the eager one gives, found out on one batch without leaving a trace."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ltcore.seeding import generator_for

#: The distance from 1 to the next number: of fp32, of what TF32 keeps of it, and of bf16.
EPSILON = {"fp32": 2.0**-23, "tf32": 2.0**-10, "bf16": 2.0**-7}
#: How many times as far two orders of the same operations may be apart as two inputs that are a rounding apart:
#: features and buffers, gradients. Compiled ResNet-32 in fp32 has been 14 and 2 times as far.
TIMES = 64.0, 32.0
#: No tolerance is above these. Gradients that have nothing to do with each other are 1.4 apart; none is 1 from some.
MOST = 0.25, 0.9
#: What is smaller than this share of what is usual may be nothing but rounding.
_LEAST = 1e-3
#: How PyTorch and timm call what batch norm keeps.
_MEAN, _VARIANCE = "running_mean", "running_var"


def rounding(precision: str, autocast: torch.dtype | None) -> float:
    """How large a rounding is, relative to what is rounded.

    Args:
        precision: the stage's.
        autocast: dtype of its forward pass; None for float32.
    """
    return EPSILON["bf16" if autocast is not None else "tf32" if precision == "tf32" else "fp32"]


class Kept:
    """What trying a piece of the network changes: its buffers, random states, and gradients.

    Args:
        piece: the piece.
    """

    def __init__(self, piece: nn.Module) -> None:
        self._parameters = list(piece.parameters())
        self._gradients = [parameter.grad for parameter in self._parameters]
        self._values = [None if each is None else each.clone() for each in self._gradients]
        self._buffers = [(buffer, buffer.clone()) for buffer in piece.buffers()]
        self._device = next((each.device for each in self._parameters), torch.device("cpu"))
        self._random = torch.get_rng_state()
        self._random_there = torch.cuda.get_rng_state(self._device) if self._device.type == "cuda" else None

    @torch.no_grad()
    def put_back(self) -> None:
        """Everything is as it was."""
        for buffer, value in self._buffers:
            buffer.copy_(value)
        for parameter, gradient, was in zip(self._parameters, self._gradients, self._values, strict=True):
            parameter.grad = gradient
            if gradient is not None and was is not None:
                gradient.copy_(was)
        torch.set_rng_state(self._random)
        if self._random_there is not None:
            torch.cuda.set_rng_state(self._random_there, self._device)

    def buffers(self) -> list[Tensor]:
        """Copies of the buffers as they are now."""
        return [buffer.clone() for buffer, _ in self._buffers]


#: What a function gives, what it writes into buffers, and what it hands back to each parameter that trains.
Seen = tuple[Tensor, list[Tensor], list[Tensor | None]]


@dataclass(frozen=True)
class Difference:
    """How far two functions are off, and where most.

    Attributes:
        finite: whether what the first one gives is.
        features: of what they give.
        statistics: of the buffers that they have written, and which.
        gradients: of the parameters' gradients, and which.
    """

    finite: bool
    features: float
    statistics: tuple[float, str]
    gradients: tuple[float, str]

    @property
    def largest(self) -> tuple[float, float]:
        """Of features and buffers, and of gradients."""
        return max(self.features, self.statistics[0]), self.gradients[0]

    def wrong(
        self, natural: Difference, epsilon: float, beside: str = "the eager backbone", given: str = "its features"
    ) -> str:
        """Where it is larger than rounding explains, the largest difference in words; empty where it is not.

        Args:
            natural: how far the eager function is off from itself where its input is a rounding off.
            epsilon: the rounding.
            beside: what it differs from, in words.
            given: what it gives, in words.
        """
        features, gradients = (
            min(times * max(found, epsilon), most)
            for times, found, most in zip(TIMES, natural.largest, MOST, strict=True)
        )
        shown = [
            (given, self.features, features),
            (f"buffer {self.statistics[1]}", self.statistics[0], features),
            (f"the gradient of {self.gradients[1]}", self.gradients[0], gradients),
        ]
        found = [(value / most, name, value, most) for name, value, most in shown if not value <= most]
        if not found:
            return ""
        _, name, value, most = max(found, key=lambda each: math.inf if math.isnan(each[0]) else each[0])
        return (
            f"on the first batch it differs from {beside}: {name} by {value:.2g} of their size, where "
            f"rounding explains {most:.2g}"
        )


def compared(
    eager: nn.Module, quick: Callable[[Tensor], Tensor], rows: Tensor, kept: Kept, epsilon: float
) -> tuple[Difference, Difference]:
    """Run both on the same rows, with the same random numbers and buffers, forward and backward.

    How much becomes of a rounding depends on the network. Behind a ReLU it turns some units on or off, and gradients
    are off by the root of their share. This is one part in a hundred in fp32 of ResNet-32, where a vision transformer
    has one in a million. So the eager function is also run on rows that are a rounding off.

    Args:
        eager: the function as it should be.
        quick: the other one, of the same parameters.
        rows: [N, C, H, W].
        kept: what both begin with.
        epsilon: the rounding.

    Returns:
        How far the other one is off; and how far the eager one is off from itself.
    """
    signs = torch.rand(rows.shape, generator=generator_for("cpu", "sameness", "signs")).to(rows) - 0.5
    near = rows * (1 + epsilon * signs.sign())
    first = _tried(eager, eager, rows, kept)
    return (
        difference(eager, first, _tried(eager, quick, rows, kept)),
        difference(eager, first, _tried(eager, eager, near, kept)),
    )


def difference(eager: nn.Module, first: Seen, second: Seen) -> Difference:
    """How far two functions of a module's parameters are off.

    Args:
        eager: the module; its parameters that train and its buffers are in the order of what was seen.
        first: what the one did that counts.
        second: what the other one did.
    """
    names = [name.removeprefix("backbone.") for name, _ in eager.named_buffers()]
    spread = {name: each for name, each in zip(names, first[1], strict=True) if name.endswith(_VARIANCE)}
    of_buffers = [
        0.0 if torch.equal(a, b) else _off(a, b, _size_of_rows(name, spread)) if a.is_floating_point() else math.inf
        for name, a, b in zip(names, first[1], second[1], strict=True)
    ]
    trained = [name.removeprefix("backbone.") for name, each in eager.named_parameters() if each.requires_grad]
    return Difference(
        bool(first[0].isfinite().all()),
        _off(first[0], second[0]) if first[0].shape == second[0].shape else math.inf,
        _worst(of_buffers, names),
        _worst(list(_gradients_off(first[2], second[2])), [*trained, "all parameters"]),
    )


def _size_of_rows(name: str, spread: dict[str, Tensor]) -> float:
    """Of a mean that batch norm keeps, how large the values are that it is the mean of; 0 for another buffer.

    Such a mean may be a hundredth of its values. A sum of all of them is off by roundings of theirs, not of its own.
    """
    variance = spread.get(name.removesuffix(_MEAN) + _VARIANCE) if name.endswith(_MEAN) else None
    return 0.0 if variance is None else float(variance.double().sum().sqrt())


def _tried(eager: nn.Module, function: Callable[[Tensor], Tensor], rows: Tensor, kept: Kept) -> Seen:
    """What a function gives, writes into buffers, and hands back to the parameters that train."""
    kept.put_back()
    trained = [parameter for parameter in eager.parameters() if parameter.requires_grad]
    given = function(rows)
    found: Sequence[Tensor | None] = [None] * len(trained)
    if given.requires_grad:
        towards = torch.randn(given.shape, generator=generator_for("cpu", "sameness")).to(given)
        found = torch.autograd.grad(given, trained, towards, allow_unused=True)
    # Copies: a graph writes into the same memory again.
    return given.detach().clone(), kept.buffers(), [None if each is None else each.clone() for each in found]


def _gradients_off(first: Sequence[Tensor | None], second: Sequence[Tensor | None]) -> Iterator[float]:
    """Of each parameter, and of all together.

    One whose gradient is small beside the others' is held against the size of those, too: a bias in front of batch norm
    has a gradient of 0, and what is computed of it is rounding. One that gets none, and should, is off by any measure.
    """
    there = [each.double().flatten() for each in first if each is not None]
    usual = float(torch.cat(there).square().mean().sqrt()) if there else 0.0
    apart = total = 0.0
    for one, other in zip(first, second, strict=True):
        if one is None and other is None:
            yield 0.0
            continue
        like: Any = one if other is None else other
        a, b = (torch.zeros_like(like) if each is None else each for each in (one, other))
        size, least = float(a.double().norm()), _LEAST * usual * math.sqrt(a.numel())
        yield math.inf if size > least and not b.any() else _off(a, b, usual * math.sqrt(a.numel()))
        apart, total = apart + float((a.double() - b.double()).square().sum()), total + size**2
    yield math.sqrt(apart / total) if total else 0.0


def _off(expected: Tensor, found: Tensor, besides: float = 0.0) -> float:
    """The norm of the difference over the norm of what is expected; infinite on purpose in both is no difference."""
    meant = ~expected.isfinite() & ((expected == found) | (expected.isnan() & found.isnan()))
    expected, found = expected.masked_fill(meant, 0.0), found.masked_fill(meant, 0.0)
    difference = float((found.double() - expected.double()).norm())
    size = float(expected.double().norm()) + besides
    return difference / size if size else math.inf if difference else 0.0


def largest(expected: Sequence[Tensor], found: Sequence[Tensor]) -> float:
    """The largest difference of two tensors, relative to the size of what is expected."""
    return max((_off(a, b) for a, b in zip(expected, found, strict=True)), default=0.0)


def _worst(values: Sequence[float], names: Sequence[str]) -> tuple[float, str]:
    """The largest, and whose it is; what is no number counts as the largest."""
    ordered = sorted(zip(values, names, strict=True), key=lambda each: math.inf if math.isnan(each[0]) else each[0])
    return ordered[-1] if ordered else (0.0, "")

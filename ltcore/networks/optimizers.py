"""Optimisers by name: PyTorch's own, then timm's. timm is imported only where PyTorch does not know the name."""

from __future__ import annotations

import importlib
import inspect
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ltcore.contract.model import matches
from ltcore.errors import RecipeError, listed, nearest
from ltcore.networks.without_compiler import spare_the_compiler

# LBFGS needs a closure, SparseAdam sparse gradients. PyTorch's Muon takes matrices only, so no convolution and no bias;
# 'muon' is timm's, which flattens convolutions and uses AdamW for the rest.
_EXCLUDED = {"Optimizer", "LBFGS", "SparseAdam", "Muon"}

TORCH_OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    name.lower(): item
    for name, item in sorted(vars(torch.optim).items(), key=lambda pair: pair[0].lower())
    if isinstance(item, type) and issubclass(item, torch.optim.Optimizer) and name not in _EXCLUDED
}
"""PyTorch's optimisers that a recipe can name, by lower-case name."""

# `params` and `lr` come from the trainer; `maximize` would climb the loss and `differentiable` keep every step's graph.
_RESERVED = {"self", "params", "lr", "maximize", "differentiable"}

# PyTorch takes these as fused ones, and refuses their first step on a GPU.
_NOT_FUSED_ON_CUDA = {"adagrad"}

# How a step is computed, for all parameters alike.
_OF_THE_WHOLE = {"foreach", "fused", "capturable"}

Parameters = Iterable[Tensor] | Iterable[dict[str, Any]]


def check_optimizer(
    name: str, arguments: Mapping[str, Any], values: bool = True, group: Mapping[str, Any] | None = None
) -> None:
    """Refuse an optimiser that could not be built, before there is a model or data.

    Args:
        name: as in `build_optimizer`.
        arguments: as in `build_optimizer`.
        values: whether to check the options' values beside their names, for which one is built.
        group: what a group of parameters has in place of some of `arguments`.

    Raises:
        RecipeError: the name is unknown, an option is unknown, or a value is not accepted. Or a group has an option
            that holds for all parameters. The message has no location; the caller knows the line of the recipe.
    """
    options, of_group = {**arguments, **(group or {})}, set(group or {})
    known = _known_options(name, options)
    per_group = known.keys() - _OF_THE_WHOLE
    if values:
        # The optimisers check their values when they are built, so building one for a toy matrix checks all of them.
        # PyTorch does not look at a group's values, so they take the place of the optimiser's own here.
        built = build_optimizer(name, [nn.Parameter(torch.zeros(2, 2))], 0.1, options, "cpu")
        per_group &= built.defaults.keys()
    for key in sorted(of_group - per_group):
        raise RecipeError(f"optimizer '{name}' has one {key} for all parameters; set it outside of the groups")


def build_optimizer(
    name: str, parameters: Parameters, lr: float, arguments: Mapping[str, Any], device_type: str
) -> torch.optim.Optimizer:
    """Build an optimiser; `arguments` apply to all parameters, weight decay on biases and norms included.

    What `arguments` leaves out has the default of PyTorch's class (momentum 0 for ``sgd``). For a name of timm's it has
    the default of timm's factory (momentum 0.9 where there is one, weight decay 0).

    Args:
        name: ``sgd``, ``adamw`` and the others of `TORCH_OPTIMIZERS`; any other name that timm registers.
        parameters: tensors, or parameter groups as ``{"params": [...], ...}``.
        lr: learning rate of the first step; see `set_learning_rate`.
        arguments: options of the optimiser as the recipe has them; a list (``betas``) becomes a tuple.
        device_type: ``cuda`` selects the fused implementation where PyTorch has one, unless `arguments` has ``fused``
            or ``foreach``.

    Raises:
        RecipeError: as in `check_optimizer`, or the optimiser cannot be used with these parameters or on this machine.
    """
    options = _with_tuples(arguments)
    known = _known_options(name, options)
    built: torch.optim.Optimizer
    if device_type == "cuda" and name in TORCH_OPTIMIZERS.keys() - _NOT_FUSED_ON_CUDA and "fused" in known:
        options.setdefault("fused", None if "foreach" in options else True)
    try:
        spare_the_compiler(TORCH_OPTIMIZERS.get(name, torch.optim.Optimizer))
        if name in TORCH_OPTIMIZERS:
            built = TORCH_OPTIMIZERS[name](parameters, lr=lr, **options)
            if name == "sgd" and options.get("fused"):
                built.register_step_pre_hook(_begin_momentum)
            return built
        built = _timm().create_optimizer_v2(parameters, name, lr=lr, **options)
        return built
    except (TypeError, ValueError, RuntimeError, AssertionError, ImportError) as error:
        raise RecipeError(f"optimizer '{name}' cannot be built: {error}") from error


def _begin_momentum(optimizer: torch.optim.Optimizer, *_: object) -> None:
    """Give a parameter whose first gradient comes late the momentum of the others.

    PyTorch's fused SGD wants momentum for all parameters or for none; its other implementations begin each parameter's
    with its first gradient, and so does this one.
    """
    for group in optimizer.param_groups:
        if not group["fused"] or not group["momentum"]:
            continue
        moved = [each for each in group["params"] if each.grad is not None]
        late = [each for each in moved if not optimizer.state[each]]
        if len(late) == len(moved):
            continue
        for each in late:  # momentum * buffer + (1 - dampening) * gradient is to be the gradient
            first = each.grad + group["weight_decay"] * each.detach()
            optimizer.state[each]["momentum_buffer"] = first * (group["dampening"] / group["momentum"])


def parameter_group(parameters: Iterable[Tensor], lr: float | None, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """A group for `build_optimizer`, with what differs from the optimiser's own.

    Args:
        parameters: what it holds.
        lr: its learning rate where the optimiser has the one it was built with; None for the optimiser's own.
        arguments: options, as in `build_optimizer`.
    """
    rate = {} if lr is None else {"lr": lr, "base_lr": lr}
    return {"params": list(parameters), **_with_tuples(arguments), **rate}


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Set the rate of the steps that follow.

    A group with a rate of its own (`parameter_group`) has that, times `lr` over the rate that the optimiser was built
    with. So a schedule scales all groups by one factor. Every other group has `lr`. A rate that is a tensor
    (`rates_as_tensors`) stays that tensor.
    """
    for group in optimizer.param_groups:
        rate = group["base_lr"] * (lr / optimizer.defaults["lr"]) if "base_lr" in group else lr
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate


def rates_as_tensors(optimizer: torch.optim.Optimizer, device: torch.device) -> None:
    """Have the optimiser read its learning rates from memory, where a CUDA graph of its step finds them.

    Args:
        optimizer: a fused one of `ltcore.plan.acceleration.CAPTURED`.
        device: where the parameters are.
    """
    for group in optimizer.param_groups:
        group["lr"] = torch.tensor(float(group["lr"]), dtype=torch.float32, device=device)
        if "capturable" in group and device.type == "cuda":
            group["capturable"] = True


@dataclass(frozen=True)
class Grouping:
    """Which of a stage's parameters are in which group of its optimiser.

    Attributes:
        rest: names that no pattern matches.
        held: for each pattern, in the recipe's order, the names that it is the first to match.
        elsewhere: for each pattern, the names that it matches as well, by the earlier pattern that has them.
    """

    rest: list[str]
    held: dict[str, list[str]]
    elsewhere: dict[str, dict[str, list[str]]]

    def overlaps(self) -> list[str]:
        """A sentence for each two patterns that match the same parameters, so that it is told which one has them."""
        return [
            f"optimizer group '{pattern}' leaves {_some(names)} to '{first}', which stands before it"
            for pattern, others in self.elsewhere.items()
            for first, names in others.items()
        ]


def group_parameters(names: Iterable[str], patterns: Iterable[str]) -> Grouping:
    """Sort parameters into groups; the first pattern that matches a name has it.

    Args:
        names: public names (`ltcore.contract.model.public_name`) of what trains.
        patterns: as in ``trainable``, see `ltcore.contract.model.matches`.
    """
    patterns = list(patterns)
    found = Grouping([], {pattern: [] for pattern in patterns}, {pattern: {} for pattern in patterns})
    for name in names:
        matching = [pattern for pattern in patterns if matches(name, pattern)]
        (found.held[matching[0]] if matching else found.rest).append(name)
        for pattern in matching[1:]:
            found.elsewhere[pattern].setdefault(matching[0], []).append(name)
    return found


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _with_tuples(arguments: Mapping[str, Any]) -> dict[str, Any]:
    return {key: tuple(value) if isinstance(value, list) else value for key, value in arguments.items()}


def _timm() -> Any:
    """The module ``timm.optim``, imported when it is first needed: it takes more than a second."""
    return importlib.import_module("timm.optim")


def _options(optimizer: Any) -> dict[str, Any]:
    """Options of an optimiser's class that a recipe may set, with their defaults."""
    parameters = inspect.signature(optimizer).parameters.values()
    return {item.name: item.default for item in parameters if item.name not in _RESERVED}


def _timm_options(name: str) -> dict[str, Any]:
    """Options of timm's optimiser `name`, with their defaults; RecipeError where timm has none that we can drive."""
    timm = _timm()
    registered = timm.list_optimizers()
    if name not in registered:
        hint = nearest(name.lower(), [*TORCH_OPTIMIZERS, *registered]) or "."
        raise RecipeError(
            f"there is no optimizer '{name}'{hint} "
            f"PyTorch has {listed(TORCH_OPTIMIZERS)}; timm's are known by timm's names, such as 'lamb' and 'lion'"
        )
    info = timm.get_optimizer_info(name)
    if info.second_order:
        raise RecipeError(f"optimizer '{name}' needs second derivatives, which training does not compute")
    if name.startswith("kron"):
        raise RecipeError(f"optimizer '{name}' keeps lists of matrices and a random state, which no checkpoint holds")
    try:
        options = _options(timm.get_optimizer_class(name, bind_defaults=False))
    except (AssertionError, ImportError) as error:  # apex and bitsandbytes, which timm only refers to
        raise RecipeError(f"optimizer '{name}' cannot be used here: {error}") from error
    # timm's factory drops these two without a word where its record says that the optimiser has none.
    dropped = {"eps": not info.has_eps, "betas": not info.has_betas}
    return {key: default for key, default in options.items() if not dropped.get(key, False)}


def _known_options(name: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Options of an optimiser with their defaults; RecipeError where it has none of a name, or text for a number."""
    known = _options(TORCH_OPTIMIZERS[name]) if name in TORCH_OPTIMIZERS else _timm_options(name)
    for key, value in options.items():
        if key not in known:
            hint = nearest(key, known) or f"; it has {listed(known)}"
            raise RecipeError(f"optimizer '{name}' has no option '{key}'{hint}")
        if isinstance(value, str) and isinstance(known[key], int | float | tuple):
            # The usual cause: YAML 1.1 reads 1e-4 as text, because a float needs a dot there.
            raise RecipeError(f"optimizer '{name}': {key} is the text '{value}'; write a number, such as 1.0e-4")
        for number in value if isinstance(value, list | tuple) else [value]:
            if isinstance(number, float) and not math.isfinite(number):
                raise RecipeError(f"optimizer '{name}': {key} is {number}; write a finite number")
    return known

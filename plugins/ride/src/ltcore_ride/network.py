"""A residual network whose last stages are split into experts."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from ltcore import Backbone, RecipeError

_STAGE = re.compile(r"layer\d+")


class Experts(nn.ModuleList):
    """A stage of the network, once for each expert.

    Args:
        stages: one for each expert.
        first: whether the network splits here, so that every expert gets all rows; else each gets its own.
    """

    def __init__(self, stages: Iterable[nn.Module], first: bool) -> None:
        super().__init__(stages)
        self.first = first

    def forward(self, x: Tensor) -> Tensor:
        """[N, D, H, W], or [E * N, D, H, W] of experts, to [E * N, D', H', W'], expert by expert."""
        rows = [x] * len(self) if self.first else x.reshape(len(self), -1, *x.shape[1:]).unbind(0)
        return torch.cat([stage(own) for stage, own in zip(self, rows, strict=True)])


def split_network(backbone: Backbone, experts: int, stages: int, width: float) -> Backbone:
    """The network with its last stages once for each expert; the network itself for one expert of full width.

    The first expert has the stages as they were built, and the others' convolutions are drawn anew, with the spread
    that the built ones have; with pre-trained weights all begin with those. Where `width` is below 1, all are drawn.

    Args:
        backbone: a network whose stages are called ``layer1``, ``layer2`` and so on, as those of residual networks
            are; it is changed.
        experts: E.
        stages: how many of the last stages every expert has for itself.
        width: the share of their channels that is left.

    Raises:
        RecipeError: it has no such stages, or too few, or they cannot be narrowed.
    """
    if experts == 1 and width == 1:
        return backbone
    if backbone.experts > 1:
        raise RecipeError(
            f"splits a network into experts, and this one has {backbone.experts} already; name one method that does, "
            "such as 'ride', and name it once"
        )
    net: Any = backbone.get_submodule(backbone.net) if backbone.net else backbone
    names = [name for name, _ in net.named_children() if _STAGE.fullmatch(name)]
    if len(names) <= stages:
        raise RecipeError(
            f"splits the last {stages} of a residual network's stages (layer1, layer2, ...), and {type(net).__name__} "
            f"has {len(names)}; " + ("lower option 'stages'" if names else "take a ResNet or a ResNeXt")
        )
    pretrained = backbone.pretraining is not None
    if pretrained and width != 1:
        raise RecipeError(
            f"option width {width} leaves a share of the channels, and the network's pre-trained weights are for all "
            "of them; set width: 1"
        )
    if backbone.feature_dim != _output(net.get_submodule(names[-1])):
        raise RecipeError(f"cannot split {type(net).__name__}, which has layers behind its last stage '{names[-1]}'")
    split, channels = names[-stages:], _output(net.get_submodule(names[-stages - 1]))
    for position, name in enumerate(split):
        built = net.get_submodule(name)
        if width == 1:
            copies = [built, *(copy.deepcopy(built) for _ in range(experts - 1))]
        else:
            copies = [_narrowed(built, channels, width, name) for _ in range(experts)]
        channels = _output(copies[0])
        for stage in copies[1:] if width == 1 and not pretrained else ():
            _draw(stage)
        setattr(net, name, copies[0] if experts == 1 else Experts(copies, first=not position))
    backbone.feature_dim, backbone.experts = channels, experts
    if experts > 1:
        backbone.inner_taps = tuple(tap for tap in backbone.inner_taps if tap.split(".")[0] not in split)
    return backbone


def _output(stage: nn.Module) -> int:
    """How many channels a stage gives: as many as its last norm has."""
    found = [module.num_features for module in stage.modules() if isinstance(module, nn.BatchNorm2d)]
    if not found:
        raise RecipeError(
            f"splits stages that end in a batch norm, and {type(stage).__name__} has none; take a ResNet or ResNeXt, "
            "and no other method under backbone.adapt that replaces its stages"
        )
    return found[-1]


def _narrowed(stage: nn.Module, in_channels: int, width: float, name: str) -> nn.Module:
    """A copy of a stage with a share of its channels, for `in_channels` that come in.

    How many come in at each layer is found by running a copy without values.

    Raises:
        RecipeError: the stage has layers that are no convolutions or batch norms, or groups that do not divide.
    """
    memo: dict[int, Any] = {id(tensor): torch.empty_like(tensor, device="meta") for tensor in stage.buffers()}
    memo |= {id(p): nn.Parameter(torch.empty_like(p, device="meta"), False) for p in stage.parameters()}
    twin = copy.deepcopy(stage, memo).eval()
    made: dict[str, nn.Module] = {}

    def resize(path: str, module: nn.Module, given: int) -> None:
        """Give a layer of the twin the channels that come in, and remember it."""
        if isinstance(module, nn.Conv2d):
            out, groups = round(width * module.out_channels), module.groups
            groups = given if groups == module.in_channels and groups > 1 else groups
            if not out or out % groups or given % groups:
                raise RecipeError(
                    f"option width {width} leaves {given} and {out} channels at '{name}.{path}', whose {groups} groups "
                    "do not divide them; take another width"
                )
            made[path] = nn.Conv2d(
                given,
                out,
                module.kernel_size,  # type: ignore[arg-type]
                module.stride,  # type: ignore[arg-type]
                module.padding,  # type: ignore[arg-type]
                module.dilation,  # type: ignore[arg-type]
                groups,
                module.bias is not None,
                device="meta",
            )
        else:
            made[path] = nn.BatchNorm2d(given, module.eps, module.momentum, device="meta")  # type: ignore[arg-type]
        _resize(module, made[path])

    for path, module in twin.named_modules():
        if isinstance(module, nn.Conv2d | nn.BatchNorm2d):
            module.register_forward_pre_hook(lambda found, args, path=path: resize(path, found, args[0].shape[1]))
        elif next(module.parameters(recurse=False), None) is not None:
            raise RecipeError(
                f"option width {width} narrows convolutions and batch norms, and '{name}.{path}' is a "
                f"{type(module).__name__}; set width: 1"
            )
    with torch.no_grad():
        twin(torch.empty(1, in_channels, 8, 8, device="meta"))
    narrow = copy.deepcopy(stage)
    for path, layer in made.items():
        _take_over(narrow.get_submodule(path), layer)
    return narrow


def _resize(old: nn.Module, layer: nn.Module) -> None:
    """Give a layer the shape and the tensors of another one."""
    for name in ("in_channels", "out_channels", "groups", "num_features"):
        if hasattr(old, name):
            setattr(old, name, getattr(layer, name))
    for name, parameter in [*layer.named_parameters(recurse=False)]:
        setattr(old, name, parameter)
    for name, buffer in [*layer.named_buffers(recurse=False)]:
        setattr(old, name, buffer)


def _take_over(old: nn.Module, layer: nn.Module) -> None:
    """Give a layer the shape of one without values: its vectors are cut, its matrices drawn, as spread as they were.

    The spread is that of the built layer times the root of its inputs over the new ones.
    """
    for name, shaped in [*layer.named_parameters(recurse=False)]:
        built: Tensor = old.get_parameter(name).detach()
        value: Tensor = built[: len(shaped)].clone()
        if built.dim() > 1:
            value = built.new_empty(shaped.shape)
            if not value.is_meta:
                value.normal_(0, float(built.std()) * (built[0].numel() / shaped[0].numel()) ** 0.5)
        setattr(layer, name, nn.Parameter(value))
    for name, buffer in [*layer.named_buffers(recurse=False)]:
        kept = old.get_buffer(name)
        setattr(layer, name, kept[: len(buffer)].clone() if kept.dim() else kept.clone())
    _resize(old, layer)


@torch.no_grad()
def _draw(stage: nn.Module) -> None:
    """Draw the weights of a stage's layers anew, normal and as spread as they are; norms and biases stay."""
    for parameter in stage.parameters():
        if parameter.dim() > 1 and not parameter.is_meta:
            parameter.normal_(0, float(parameter.std()))

"""The model of a run: backbone, classifier, and the methods' own modules."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn

from ltcore.contract.backbone import Backbone
from ltcore.contract.experts import by_image


class Model(nn.Module):
    """Backbone, classifier and methods in one module, so that they are saved, moved and restored together.

    Evaluation is ``model(images)``: the methods have no part in it.
    """

    def __init__(self, backbone: Backbone, classifier: nn.Module, methods: dict[str, nn.Module]) -> None:
        super().__init__()
        self.backbone = backbone
        self.classifier = classifier
        self.methods = nn.ModuleDict(methods)

    def forward(self, images: Tensor) -> Tensor:
        """Images [N, C, H, W] to logits [N, C]; those of experts combined."""
        logits: Tensor = self.classifier(by_image(self.backbone(images), self.backbone.experts))
        return logits


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Eval mode and no gradients; afterwards every module is in the mode that it was in."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, training in modes:
            module.training = training


class PublicName(str):
    """A parameter's name as a recipe writes it: ``backbone.layer4.0.conv1.weight``, ``safa.E.0.weight``.

    Attributes:
        also: the name that one of an adapter has too, such as ``lora.blocks.0.attn.qkv.lora_a``; empty for others.
    """

    also: str = ""


def public_name(name: str, backbone: Backbone) -> PublicName:
    """What a recipe calls the parameter that a model has under `name`."""
    inner = name.removeprefix("backbone.")
    if inner == name:
        return PublicName(name.removeprefix("methods."))
    shown = inner.removeprefix(f"{backbone.net}.") if backbone.net else inner
    public = PublicName(f"backbone.{shown}")
    if adapter := backbone.added_by.get(inner):
        public.also = f"{adapter}.{shown}"
    return public


def matches(name: str, pattern: str) -> bool:
    """Whether a public parameter name is, or lies under, what a ``trainable`` entry names; globs are allowed."""
    also = getattr(name, "also", "")
    return _matches(name, pattern) or bool(also and _matches(also, pattern))


def _matches(name: str, pattern: str) -> bool:
    return (
        name == pattern
        or name.startswith(pattern + ".")
        or fnmatchcase(name, pattern)
        or fnmatchcase(name, f"{pattern}.*")
    )


def set_trainable(model: Model, names: set[str], adapt_batch_norm: bool = False) -> None:
    """Freeze everything but the named parameters, honestly.

    A frozen parameter requires no gradient. A module is in train mode only where something under it trains, so that
    frozen batch norm keeps its statistics and frozen dropout is off. A module without parameters follows its parent.

    Args:
        model: the model.
        names: names of the parameters to train, as in ``model.named_parameters()``.
        adapt_batch_norm: let frozen batch norm go on with the statistics of its batches (MiSLAS's shifted batch norm);
            its parameters stay frozen.
    """
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in names)
        if name not in names:
            parameter.grad = None

    def visit(module: nn.Module, parent: bool) -> None:
        parameters = list(module.parameters())
        module.training = any(p.requires_grad for p in parameters) if parameters else parent
        for child in module.children():
            visit(child, module.training)

    visit(model, True)
    if adapt_batch_norm:
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.training = True

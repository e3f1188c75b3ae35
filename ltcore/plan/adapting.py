"""Adapters: what methods add to the backbone, in the plan on the meta device and in every run."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ltcore.errors import LtcoreError, listed
from ltcore.seeding import derive_seed, seed_globally

if TYPE_CHECKING:
    from torch import Tensor

    from ltcore.contract.backbone import Backbone
    from ltcore.discovery.binding import Answers
    from ltcore.recipe.loading import LoadedRecipe


def named(loaded: LoadedRecipe, adapters: int | None = None) -> str:
    """How messages name the backbone: what made it, and which adapters have changed it.

    Args:
        loaded: the recipe.
        adapters: how many have; None for all.
    """
    backbone = loaded.recipe.backbone
    changed = backbone.adapt[:adapters]
    return f"backbone '{backbone.use}'" + (f", adapted by {listed(changed)}," if changed else "")


def adapted(backbone: Backbone, num_classes: int, answers: Answers, loaded: LoadedRecipe) -> Backbone:
    """The backbone with what the recipe's adapters add, and which of its parameters and buffers is whose.

    Each adapter draws its initial values from a seed of its own, so that no other draw of a run depends on it.

    Args:
        backbone: the network; it is changed.
        num_classes: C.
        answers: what the methods under ``adapt`` implement.
        loaded: the recipe.

    Raises:
        LtcoreError: an adapter refuses the network or fails; the message names it and its place.
    """
    owners = {id(tensor): (tensor, "") for tensor in _tensors(backbone).values()}  # held, so that no id comes twice
    for position, answer in enumerate(answers["adapt_backbone"]):
        pretraining = backbone.pretraining
        seed_globally(derive_seed(loaded.recipe.seed, "adapt", answer.entry.key))
        try:
            backbone = answer.bind(None)(backbone, num_classes)
        except LtcoreError as error:
            where = loaded.where("backbone", "adapt", position)
            error.within(f"{where}: {named(loaded, position)} cannot be adapted (hook adapt_backbone): ")
            raise
        backbone.pretraining = backbone.pretraining or pretraining
        for tensor in _tensors(backbone).values():
            owners.setdefault(id(tensor), (tensor, answer.entry.key))
    whose = {name: owners[id(tensor)][1] for name, tensor in _tensors(backbone).items()}
    backbone.added_by = {name: adapter for name, adapter in whose.items() if adapter}
    return backbone


def _tensors(backbone: Backbone) -> dict[str, Tensor]:
    """Parameters and buffers by name."""
    return {**dict(backbone.named_parameters()), **dict(backbone.named_buffers())}

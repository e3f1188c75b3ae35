"""The method `adaptformer`."""

from __future__ import annotations

from pydantic import Field

from ltcore import Backbone, Method, Options, RecipeError, hookimpl
from ltcore_adaptformer.block import AdaptedBlock, Bottleneck


class AdaptFormerOptions(Options):
    """Options of AdaptFormer; the defaults are the paper's and its code's, LIFT's are in the card."""

    bottleneck: int = Field(default=64, ge=1)
    """Width of the bottleneck."""
    scale: float = Field(default=0.1, gt=0.0)
    """What the bottleneck's output is multiplied with."""
    learn_scale: bool = False
    """Whether the scale trains, from `scale` on, one number a block."""
    norm: bool = False
    """Whether each bottleneck begins with a layer norm of its own."""
    dropout: float = Field(default=0.1, ge=0.0, lt=1.0)
    """Share of the bottleneck's values that is dropped in training."""


class AdaptFormer(Method[AdaptFormerOptions]):
    """AdaptFormer (Chen et al. 2022): bottlenecks beside the MLPs of timm's vision transformers, see `Bottleneck`."""

    interface = "1.1"

    @hookimpl
    def adapt_backbone(self, backbone: Backbone) -> Backbone:
        """Put an `AdaptedBlock` in the place of each block.

        Raises:
            RecipeError: the network has no such block.
        """
        from timm.models.vision_transformer import Block

        o = self.options
        found = [
            (module, name, child)
            for module in backbone.modules()
            for name, child in module.named_children()
            if type(child) is Block
        ]
        if not found:
            raise RecipeError(
                "it adapts the blocks of timm's vision transformers, and the network has none (or they are adapted "
                "already); choose one such as vit_base_patch16_224 (backbone.use: timm), or take it out of "
                "backbone.adapt"
            )
        for module, name, block in found:
            (width,) = block.get_submodule("norm2").get_parameter("weight").shape
            adapter = Bottleneck(width, o.bottleneck, o.scale, o.learn_scale, o.norm, o.dropout)
            setattr(module, name, AdaptedBlock(block, adapter))
        return backbone

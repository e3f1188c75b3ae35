"""The method `lift`."""

from __future__ import annotations

import re
from typing import ClassVar

from ltcore_adaptformer import AdaptFormer, AdaptFormerOptions, Bottleneck
from ltcore_cosine_classifier import CosineClassifier
from ltcore_logit_adjustment import adjusted_logits, class_log_prior
from pydantic import Field, field_validator
from torch import Tensor, nn

from ltcore import Backbone, Context, DataError, Method, Options, RecipeError, hookimpl
from ltcore_lift.text import check_open_clip, text_directions


class LiftOptions(Options):
    """Options of LIFT."""

    bottleneck: int | None = Field(default=None, ge=1)
    """Width of AdaptFormer's bottlenecks, needed where `lift` stands under `adapt`; LIFT's is the largest power of two
    that is not above C / 24 for C classes: 4 for 100."""
    scale: float = Field(default=25.0, gt=0.0)
    """What the classifier's cosines are multiplied with to give logits."""
    tau: float = Field(default=1.0, ge=0.0)
    """Strength of the logit adjustment; 0 leaves it out."""
    pretrained: str | None = None
    """A model and tag of open_clip, such as `ViT-B-16/openai`: the classifier begins with its features of the class
    names; by default with the class means of the network's features."""
    template: str = "a photo of a {}."
    """What is said of a class name, which comes at `{}`."""

    @field_validator("pretrained")
    @classmethod
    def _two_parts(cls, pretrained: str | None) -> str | None:
        if pretrained is not None and not re.fullmatch(r"[^/]+/[^/]+", pretrained):
            raise ValueError(f"should be a model and a tag of open_clip, such as ViT-B-16/openai, not '{pretrained}'")
        return pretrained

    @field_validator("template")
    @classmethod
    def _has_a_place(cls, template: str) -> str:
        if "{}" not in template:
            raise ValueError("should have {} where the class name comes")
        return template


class Lift(Method[LiftOptions]):
    """LIFT (Shi et al. 2024): few parameters beside a frozen transformer, cosines, and adjusted logits.

    Under ``adapt`` it adds AdaptFormer's bottlenecks; another adapter may stand there in its place. In a stage it
    builds the classifier, see `CosineClassifier`, and adjusts logits, see `adjusted_logits`.
    """

    interface = "1.1"
    checked_with: ClassVar = {"bottleneck": 4}
    log_prior: Tensor

    @hookimpl
    def adapt_backbone(self, backbone: Backbone) -> Backbone:
        """AdaptFormer as LIFT has it: a layer norm and a learned scale from 1 on, no dropout, normal values at first.

        Raises:
            RecipeError: no width is given, or the network has no block of timm's vision transformers.
        """
        if self.options.bottleneck is None:
            raise RecipeError(
                "under adapt it needs the option bottleneck, the width of its bottlenecks. LIFT's is the largest power "
                "of two that is not above C / 24 for C classes: 1 for 10, 4 for 100, 8 for 365, 32 for 1000"
            )
        asked = AdaptFormerOptions(
            bottleneck=self.options.bottleneck, scale=1.0, learn_scale=True, norm=True, dropout=0.0
        )
        adapted: Backbone = AdaptFormer(asked).adapt_backbone(backbone=backbone)
        for module in adapted.modules():
            if isinstance(module, Bottleneck):
                nn.init.kaiming_normal_(module.down.weight, a=5**0.5)
        return adapted

    @hookimpl
    def on_run_start(self, context: Context) -> None:
        """Keep ``log p`` [C] in a buffer.

        Raises:
            DataError: a class has no training images, or its name, which would be read, is a number.
            RecipeError: the class names would be read, and open_clip is missing.
        """
        if self.options.pretrained is not None:
            check_open_clip()
            numbers = [name for name in context.class_names if re.fullmatch(r"n?\d+", name)]
            if numbers:
                raise DataError(
                    f"the classes are called by numbers, such as '{numbers[0]}', which a text encoder cannot read; "
                    "give the data set its class names, or begin at the class means: take the option pretrained out"
                )
        try:
            log_prior = class_log_prior(context.class_counts)
        except ValueError as error:
            raise DataError(f"method 'lift': {error}") from error
        self.register_buffer("log_prior", log_prior)

    @hookimpl
    def build_classifier(self, feature_dim: int, context: Context) -> nn.Module:
        """Cosines with the class means, for which all training images go through the network once, or with texts.

        Raises:
            RecipeError: see `text_directions`.
        """
        o = self.options
        if o.pretrained is None:
            directions = context.class_means()
        else:
            directions = text_directions(o.pretrained, context.class_names, o.template, feature_dim)
        return CosineClassifier(directions, o.scale)

    @hookimpl
    def adjust_logits(self, logits: Tensor) -> Tensor:
        """``z + tau * log p``, [N, C]."""
        return adjusted_logits(logits, self.log_prior, self.options.tau)

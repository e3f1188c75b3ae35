"""The method `disalign`."""

from __future__ import annotations

from pydantic import Field
from torch import Tensor, nn

from ltcore import Context, DataError, Method, Options, RecipeError, hookimpl
from ltcore_disalign.classifier import AlignedClassifier
from ltcore_disalign.functional import Form, reweighting


class DisAlignOptions(Options):
    """Options of distribution alignment."""

    rho: float = Field(default=1.2, ge=0.0)
    """Strength of the class weights ``(1 / r_c) ** rho``, r_c the class's share of the training images; 1.2 is the
    authors' on ImageNet-LT. 0: no weights."""
    form: Form = "paper"
    """How scale, shift and gate come together: ``paper``, which begins at the logits as they are, or ``released``, the
    layer of the authors' code."""


class DisAlign(Method[DisAlignOptions]):
    """Distribution alignment (Zhang et al. 2021): the classifier of the stage before, aligned on the frozen network.

    See `aligned_logits` and `reweighting`. ``trainable: [classifier]`` trains scale, shift and gate.
    """

    interface = "1.1"
    requires = frozenset({"earlier_stage"})

    @hookimpl
    def build_classifier(self, previous: nn.Module | None) -> nn.Module:
        """The previous classifier, frozen, with scale, shift and gate; see `AlignedClassifier`.

        Raises:
            RecipeError: there is no previous classifier.
        """
        if previous is None:
            raise RecipeError(
                "method 'disalign' aligns a trained classifier; give it a stage after the one that trains it"
            )
        return AlignedClassifier(previous, self.options.form)

    @hookimpl
    def class_weights(self, context: Context) -> Tensor | None:
        """``(1 / r_c) ** rho``, [C], summing to C; None where `rho` is 0.

        Raises:
            DataError: a class has no training images.
        """
        if self.options.rho == 0:
            return None
        try:
            return reweighting(context.class_counts, self.options.rho)
        except ValueError as error:
            raise DataError(f"method 'disalign': {error}") from error

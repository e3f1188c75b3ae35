"""The last layer: core's default, and the wrapper through which calibrations change a trained one.

A classifier maps pooled features [N, D] to logits [N, C], and has ``weight`` [C, D] and ``bias`` ([C] or None), as they
are applied. Methods rely on no more than that.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class CalibratedClassifier(nn.Module):
    """A trained classifier whose logits are changed class by class: ``scale * logits + shift``.

    Post-calibrations (tau-normalisation, ``n**tau``, post-hoc logit adjustment, temperature) are all of this form,
    whatever the classifier inside, and fold into its weight and bias.

    Args:
        classifier: the classifier to wrap.
        scale: [C] or 0-d, default 1.
        shift: [C] or 0-d, default 0.
    """

    def __init__(self, classifier: nn.Module, scale: Tensor | float = 1.0, shift: Tensor | float = 0.0) -> None:
        super().__init__()
        self.classifier = classifier
        like = torch.as_tensor(classifier.weight).detach()
        self.scale: Tensor
        self.shift: Tensor
        self.register_buffer("scale", torch.as_tensor(scale).to(like).expand(len(like)).clone())
        self.register_buffer("shift", torch.as_tensor(shift).to(like).expand(len(like)).clone())

    def forward(self, pooled: Tensor) -> Tensor:
        """[N, D] to [N, C]."""
        logits: Tensor = self.classifier(pooled)
        return logits * self.scale + self.shift

    @property
    def weight(self) -> Tensor:
        """[C, D], as applied."""
        return torch.as_tensor(self.classifier.weight) * self.scale[:, None]

    @property
    def bias(self) -> Tensor:
        """[C], as applied."""
        bias = self.classifier.bias
        return self.shift if bias is None else torch.as_tensor(bias) * self.scale + self.shift


def scale_weights(classifier: nn.Module, scale: Tensor, keep_bias: bool) -> CalibratedClassifier:
    """A trained classifier with logits ``x @ (scale * w).T + b``: its weights scaled class by class, and not its bias.

    Args:
        classifier: the classifier to wrap.
        scale: [C].
        keep_bias: whether the bias stays as it was trained, or is dropped.
    """
    bias = getattr(classifier, "bias", None)
    if bias is None:
        return CalibratedClassifier(classifier, scale=scale)
    # The wrapper scales the bias, too, so the shift takes that back.
    return CalibratedClassifier(classifier, scale=scale, shift=bias.detach() * (float(keep_bias) - scale))

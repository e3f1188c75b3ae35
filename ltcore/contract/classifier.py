"""The last layer: core's default, and the wrapper through which calibrations change a trained one.

A classifier maps pooled features [N, D] to logits [N, C], and has ``weight`` [C, D] and ``bias`` ([C] or None), as they
are applied. Methods rely on no more than that. One whose logits are no linear function of the features says
``linear = False``.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from ltcore.contract.model import evaluating

#: Random features that a classifier is tried on: so many rows, the second half of norm 1; and what is still rounding.
_ROWS, _TOLERANCE = 8, 5e-3  # TF32 rounds to 1e-3
_SEED = 20261127


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


def wrong_weight(classifier: nn.Module, feature_dim: int) -> str | None:
    """What is wrong with a classifier's ``weight`` and ``bias``, which should be what it applies; None for nothing.

    With a bias, logits are ``x @ weight.T + bias``. Logits of a classifier that normalises its features may differ by
    one positive factor per row from ``x @ weight.T``. With a bias they must hold for features of norm 1. It is tried on
    random features, in eval mode, also on a copy with other parameters. (A weight that was kept when the classifier was
    built says nothing about the trained one.) No random stream is drawn from.

    If a classifier, or a part of it, says ``linear = False``, only shapes are checked. Its logits are no linear
    function of the features, and ``weight`` and ``bias`` are those of some usual row.

    Args:
        classifier: maps [N, feature_dim] to [N, C].
        feature_dim: D.
    """
    moved = copy.deepcopy(classifier)
    generator = torch.Generator().manual_seed(_SEED)
    with torch.no_grad():
        for parameter in moved.parameters():
            noise = torch.rand(parameter.shape, generator=generator).to(parameter)
            parameter.add_(0.1 + noise)
    for tried, when in ((classifier, ""), (moved, ", once its parameters have changed")):
        with evaluating(tried):
            if problem := _wrong_weight(tried, feature_dim, generator):
                return problem + when
    return None


def _wrong_weight(classifier: nn.Module, feature_dim: int, generator: torch.Generator) -> str | None:
    weight, bias = getattr(classifier, "weight", None), getattr(classifier, "bias", None)
    if not isinstance(weight, Tensor) or weight.ndim != 2 or weight.shape[1] != feature_dim:
        shown = list(weight.shape) if isinstance(weight, Tensor) else "missing"
        return f"'weight' is {shown}, and it is [C, {feature_dim}]"
    if bias is not None and (not isinstance(bias, Tensor) or bias.shape != weight.shape[:1]):
        return (
            f"'bias' is {list(bias.shape) if isinstance(bias, Tensor) else bias!r}, and it is [{len(weight)}] or None"
        )
    x = torch.randn(_ROWS, feature_dim, generator=generator)
    x[_ROWS // 2 :] /= x[_ROWS // 2 :].norm(dim=1, keepdim=True)
    x = x.to(weight)
    logits = classifier(x)
    if logits.shape != (_ROWS, len(weight)):
        return f"it gives {list(logits.shape)} for {_ROWS} rows of features, and 'weight' is {list(weight.shape)}"
    if any(getattr(part, "linear", True) is False for part in classifier.modules()):
        return None
    weighted, rest = (x @ weight.T).double(), logits.double() - (0 if bias is None else bias.double())
    size = weighted.square().sum(1, keepdim=True)
    factor = (rest * weighted).sum(1, keepdim=True) / size.where(size > 0, 1)
    off = (rest - factor * weighted).abs().max() / rest.abs().max().clamp(min=1e-6)
    exact = (rest - weighted)[_ROWS // 2 :].abs().max() / rest.abs().max().clamp(min=1e-6)
    has_bias = bias is not None and bool(bias.any())
    if off < _TOLERANCE and bool(((factor > 0) | (size == 0)).all()) and (not has_bias or exact < _TOLERANCE):
        return None
    return (
        f"its logits on random features are not x @ weight.T{' + bias' * has_bias}, up to a positive factor a row, but "
        f"off by {float(exact if has_bias else off):.2g} of the largest"
    )

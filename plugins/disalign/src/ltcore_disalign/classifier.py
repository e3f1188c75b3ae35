"""The classifier that the method builds."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from ltcore_disalign.functional import Form, aligned_logits


class AlignedClassifier(nn.Module):
    """A trained classifier whose logits are aligned, see `aligned_logits`.

    What trains are ``scale`` [C], 1 at first, ``shift`` [C], 0 at first, and ``confidence``, a linear layer from the
    features to the gate's logit. The classifier within is held in buffers: it is saved and moved, and never trains.

    Its logits are no linear function of the features, for the gate looks at them too. ``weight`` and ``bias`` are those
    of a row with a confidence of 1, as `linear` says.

    Args:
        classifier: maps [N, D] to [N, C], and has ``weight`` [C, D] and ``bias`` ([C] or None).
        form: as in `aligned_logits`. With ``paper`` the gate's layer begins at 0, so that every confidence is 1/2; with
            ``released`` its weights begin at 0.1.
    """

    linear = False

    def __init__(self, classifier: nn.Module, form: Form = "paper") -> None:
        super().__init__()
        self.inner, self.form = _as_buffers(classifier), form
        weight = torch.as_tensor(self.inner.weight)
        self.scale = nn.Parameter(weight.new_ones(len(weight)))
        self.shift = nn.Parameter(weight.new_zeros(len(weight)))
        self.confidence = nn.Linear(weight.shape[1], 1, device=weight.device, dtype=weight.dtype)
        nn.init.constant_(self.confidence.weight, 0.0 if form == "paper" else 0.1)
        nn.init.zeros_(self.confidence.bias)

    def forward(self, pooled: Tensor) -> Tensor:
        """[N, D] to [N, C]."""
        confidence = torch.sigmoid(self.confidence(pooled))
        return aligned_logits(self.inner(pooled), self.scale, self.shift, confidence, self.form)

    @property
    def weight(self) -> Tensor:
        """[C, D], of a row with a confidence of 1."""
        return torch.as_tensor(self.inner.weight) * self._open_scale[:, None]

    @property
    def bias(self) -> Tensor:
        """[C], of a row with a confidence of 1."""
        bias = getattr(self.inner, "bias", None)
        return self.shift if bias is None else torch.as_tensor(bias) * self._open_scale + self.shift

    @property
    def _open_scale(self) -> Tensor:
        return self.scale if self.form == "paper" else 1 + self.scale


def _as_buffers(classifier: nn.Module) -> nn.Module:
    """A copy in which every parameter is a buffer of the same name."""
    frozen = copy.deepcopy(classifier)
    for part in frozen.modules():
        for name, parameter in list(part.named_parameters(recurse=False)):
            del part._parameters[name]
            part.register_buffer(name, parameter.detach().clone())
    return frozen

"""Networks with several experts: a classifier for each of them, and how their logits become one.

A backbone with E experts (`ltcore.Backbone.experts`) turns N images into E * N rows of features, those of expert 0 for
all images first. In training every row is a row of the batch, with the logits of its own expert's classifier.
Evaluation puts an image's rows side by side, [N, E, D], and combines the experts' logits.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from ltcore.contract.backbone import Backbone


def by_image(rows: Tensor, experts: int) -> Tensor:
    """Rows [E * N, ...], expert by expert, to [N, E, ...]; the rows themselves where E is 1."""
    return rows if experts == 1 else rows.reshape(experts, -1, *rows.shape[1:]).transpose(0, 1)


def as_rows(features: Tensor) -> Tensor:
    """[N, E, ...] to rows [E * N, ...], expert by expert."""
    return features.transpose(0, 1).flatten(0, 1)


def of_images(rows: Tensor, images: int, backbone: Backbone) -> Tensor:
    """What a tap gave for so many images: [N, E, ...] where the network had split into its experts, else the rows."""
    return rows if len(rows) == images else by_image(rows, backbone.experts)


class MeanOfExperts(nn.Module):
    """Core's own way to combine experts: the mean of their logits."""

    def forward(self, pooled: Tensor, logits: Tensor) -> Tensor:
        """Pooled features [N, E, D], which are not looked at, and logits [N, E, C], to [N, C]."""
        return logits.mean(1)


class ExpertClassifiers(nn.Module):
    """The classifier of a network with experts: one for each, and a module that combines their logits.

    Args:
        classifiers: E classifiers, each from [N, D] to [N, C].
        ensemble: from pooled features [N, E, D] and logits [N, E, C] to logits [N, C]; see ``build_ensemble``.
    """

    def __init__(self, classifiers: Iterable[nn.Module], ensemble: nn.Module) -> None:
        super().__init__()
        self.experts = nn.ModuleList(classifiers)
        self.ensemble = ensemble

    def forward(self, pooled: Tensor) -> Tensor:
        """Pooled features [N, E, D] to the combined logits [N, C], as in evaluation."""
        combined: Tensor = self.ensemble(pooled, self.each(pooled))
        return combined

    def each(self, pooled: Tensor) -> Tensor:
        """Pooled features [N, E, D] to each expert's logits [N, E, C]."""
        return torch.stack([classifier(pooled[:, k]) for k, classifier in enumerate(self.experts)], 1)

    def rows(self, features: Tensor, expert: Tensor) -> Tensor:
        """Rows [R, D] to [R, C], each by the classifier of its own expert, [R] int64.

        Every classifier reads every row, so that shapes are constant and no device is waited for.
        """
        first, *others = self.experts
        logits: Tensor = first(features)
        for number, classifier in enumerate(others, 1):
            logits = torch.where((expert == number)[:, None], classifier(features), logits)
        return logits


def row_logits(classifier: nn.Module, features: Tensor, expert: Tensor | None) -> Tensor:
    """Logits [R, C] of rows of pooled features, as in training.

    Args:
        classifier: a model's, such as that of ``context.frozen_model()``.
        features: [R, D].
        expert: [R] int64, which expert a row is of (`ltcore.Features.expert`); None where the network has none.
    """
    logits: Tensor = classifier(features) if expert is None else classifier.rows(features, expert)  # type: ignore[operator]
    return logits

"""The methods `feature_dropout` and `feature_noise`."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal, TypeVar

import torch
from pydantic import Field
from torch import Tensor

from ltcore import Context, DataError, Features, Method, Options, hookimpl, largest_classes
from ltcore_feature_noise.functional import dropped, noisy


class _WhichOptions(Options):
    classes: Literal["tail", "all"] = "tail"
    """Whose samples are changed: those of the tail, as STG's are, or all."""
    head_fraction: float = Field(default=0.2, gt=0, lt=1)
    """Share of the classes, the largest ones, that are the head; the rest is the tail."""


WhichOptionsT = TypeVar("WhichOptionsT", bound=_WhichOptions)


class FeatureDropoutOptions(_WhichOptions):
    """Options of dropout on features."""

    p: float = Field(default=0.3, ge=0, lt=1)
    """Probability that a channel is set to zero. 0 changes nothing."""


class FeatureNoiseOptions(_WhichOptions):
    """Options of Gaussian noise on features."""

    std: float = Field(default=0.1, ge=0)
    """Standard deviation of the noise, in the features' unit. 0 changes nothing."""


class _Changed(Method[WhichOptionsT]):
    """Pooled rows of the chosen classes are changed in place; rows that another method made are left alone."""

    interface = "1.0"
    changed: Tensor

    @hookimpl
    def on_run_start(self, context: Context) -> None:
        """Keep which classes are changed, [C], in a buffer.

        Raises:
            DataError: there is one class only, so no tail.
        """
        counts = context.class_counts
        try:
            head = largest_classes(counts, self.options.head_fraction)
        except ValueError as error:
            raise DataError(f"method of ltcore-feature-noise: {error}; use data with at least two classes") from error
        self.register_buffer("changed", ~head if self.options.classes == "tail" else torch.ones_like(head))

    def _replace(self, features: Features, rows: Tensor) -> Features:
        """The record with the chosen classes' rows from `rows`, marked as made."""
        chosen = self.changed[features.targets] & ~features.synthetic
        x = torch.where(chosen[:, None], rows.to(features.features.dtype), features.features)
        return replace(features, features=x, synthetic=features.synthetic | chosen)


class FeatureDropout(_Changed[FeatureDropoutOptions]):
    """Dropout on pooled features while the classifier trains, see `dropped`."""

    requires = frozenset({"hard_labels"})

    @hookimpl
    def augment_features(self, features: Features, context: Context) -> Features:
        """Rows with channels dropped."""
        x, p = features.features, self.options.p
        if p == 0:
            return features
        uniform = torch.rand(x.shape, generator=context.generator, device=x.device)
        return self._replace(features, dropped(x, uniform, p))


class FeatureNoise(_Changed[FeatureNoiseOptions]):
    """Gaussian noise on pooled features while the classifier trains, see `noisy`."""

    requires = frozenset({"hard_labels"})

    @hookimpl
    def augment_features(self, features: Features, context: Context) -> Features:
        """Rows with noise."""
        x, std = features.features, self.options.std
        if std == 0:
            return features
        noise = torch.randn(x.shape, generator=context.generator, device=x.device)
        return self._replace(features, noisy(x, noise, std))

"""The methods `range_loss`, `lifted_structure` and `m_per_class`."""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor
from torch.nn.functional import normalize

from ltcore import Context, Features, Method, Options, hookimpl
from ltcore_metric_losses.functional import lifted_structure_loss, range_between, range_within
from ltcore_metric_losses.sampler import MPerClassSampler


class RangeLossOptions(Options):
    """Options of range loss; the defaults are the paper's, for faces."""

    largest: int = Field(default=2, ge=1)
    """k: how many of a class's largest distances count."""
    within_weight: float = Field(default=5e-5, ge=0.0)
    """alpha: what the distances within classes are multiplied with."""
    between_weight: float = Field(default=1e-4, ge=0.0)
    """beta: what the missing distance between class centres is multiplied with."""
    margin: float = Field(default=2e4, gt=0.0)
    """M: the squared distance that the nearest two class centres should have; with `normalize`, below 4."""
    normalize: bool = False
    """Whether features are brought to norm 1 before distances are taken."""


class RangeLoss(Method[RangeLossOptions]):
    """Range loss (Zhang et al. 2017) beside the classification loss: classes grow small, their centres move apart."""

    interface = "1.1"
    requires = frozenset({"hard_labels", "one_network"})
    auxiliary = ("within", "between")

    @hookimpl
    def auxiliary_losses(self, features: Features, context: Context) -> dict[str, Tensor]:
        """Both terms, times their weights."""
        options, targets, classes = self.options, features.targets, context.num_classes
        with torch.autocast(targets.device.type, enabled=False):
            rows = _rows(features, options.normalize)
            within = range_within(rows, targets, classes, options.largest)
            between = range_between(rows, targets, options.margin)
        return {"within": options.within_weight * within, "between": options.between_weight * between}


class LiftedStructureOptions(Options):
    """Options of the lifted structure loss."""

    margin: float = 1.0
    """m: how much farther than rows of its class those of others should be."""
    weight: float = Field(default=1.0, ge=0.0)
    """What the loss is multiplied with."""
    normalize: bool = False
    """Whether features are brought to norm 1 before distances are taken."""


class LiftedStructure(Method[LiftedStructureOptions]):
    """Lifted structure loss (Oh Song et al. 2016) beside the classification loss."""

    interface = "1.1"
    requires = frozenset({"hard_labels", "one_network"})
    auxiliary = ("lifted",)

    @hookimpl
    def auxiliary_losses(self, features: Features) -> dict[str, Tensor]:
        """The term, times its weight."""
        options = self.options
        with torch.autocast(features.targets.device.type, enabled=False):
            rows = _rows(features, options.normalize)
            loss = lifted_structure_loss(rows, features.targets, options.margin)
        return {"lifted": options.weight * loss}


class MPerClassOptions(Options):
    """Options of batches with several images a class."""

    images: int = Field(default=4, ge=1)
    """m: how many images of a class stand side by side; 4 in OLTR's class-aware sampling."""


class MPerClass(Method[MPerClassOptions]):
    """Class-aware batches: m images of each class that is drawn, see `MPerClassSampler`."""

    interface = "1.1"

    @hookimpl
    def build_sampler(self, batch_size: int, context: Context) -> MPerClassSampler:
        """The sampler."""
        return MPerClassSampler(context.training_targets, context.num_classes, batch_size, self.options.images)


def _rows(features: Features, unit: bool) -> Tensor:
    """Pooled features [N, D] in float32 or better, of norm 1 if that is asked for."""
    rows = features.features
    rows = rows.to(torch.promote_types(rows.dtype, torch.float32))
    return normalize(rows, dim=1) if unit else rows

"""Batch norm over the rows of all processes that train together."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ltcore import ranks
from ltcore.errors import RecipeError


class _Synchronised(_BatchNorm):
    """What the three below share; PyTorch's SyncBatchNorm does the same, and only on GPUs."""

    def forward(self, x: Tensor) -> Tensor:
        """As `nn.BatchNorm2d`, with mean and variance of all processes' rows while it trains."""
        if not self.training:
            return super().forward(x)
        dims = [dim for dim in range(x.dim()) if dim != 1]
        shape = [1, -1, *[1] * (x.dim() - 2)]
        values = x.to(torch.promote_types(x.dtype, torch.float32))
        count = ranks.summed(values.new_tensor([values.numel() / values.shape[1]]))
        mean = ranks.summed(values.sum(dims)) / count
        centred = values - mean.view(shape)
        variance = ranks.summed(centred.square().sum(dims)) / count
        found = centred * (variance + self.eps).rsqrt().view(shape)
        if self.weight is not None:
            found = found * self.weight.view(shape) + self.bias.view(shape)
        self._learn(mean.detach(), (variance * count / (count - 1).clamp(min=1)).detach())
        return found.to(x.dtype)

    @torch.no_grad()
    def _learn(self, mean: Tensor, variance: Tensor) -> None:
        if self.running_mean is None or self.running_var is None or self.num_batches_tracked is None:
            return
        self.num_batches_tracked.add_(1)
        share = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean.to(self.running_mean), share)
        self.running_var.lerp_(variance.to(self.running_var), share)


class SynchronisedBatchNorm1d(_Synchronised, nn.BatchNorm1d):
    """`nn.BatchNorm1d` over all processes."""


class SynchronisedBatchNorm2d(_Synchronised, nn.BatchNorm2d):
    """`nn.BatchNorm2d` over all processes."""


class SynchronisedBatchNorm3d(_Synchronised, nn.BatchNorm3d):
    """`nn.BatchNorm3d` over all processes."""


_KINDS: dict[type[nn.Module], type[nn.Module]] = {
    nn.BatchNorm1d: SynchronisedBatchNorm1d,
    nn.BatchNorm2d: SynchronisedBatchNorm2d,
    nn.BatchNorm3d: SynchronisedBatchNorm3d,
}


def synchronise(backbone: nn.Module) -> None:
    """Let the batch norm of a backbone work over all processes; names, parameters and buffers stay.

    Raises:
        RecipeError: it has a kind of batch norm of which nobody knows how.
    """
    for name, module in backbone.named_modules():
        kind = type(module)
        if kind in _KINDS:
            module.__class__ = _KINDS[kind]
        elif isinstance(module, _BatchNorm) and not isinstance(module, _Synchronised):
            raise RecipeError(
                f"sync_batch_norm: {name} of the backbone is a {kind.__name__}, which ltcore cannot synchronise; train "
                "without it: each process then normalises its own rows"
            )

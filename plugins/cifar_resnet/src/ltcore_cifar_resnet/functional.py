"""The shortcut without parameters."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def option_a_shortcut(x: Tensor, channels: int, stride: int = 1) -> Tensor:
    """The identity for a block that changes shape: every `stride`-th location, missing channels filled with zeros.

    He, Zhang, Ren, Sun, "Deep Residual Learning for Image Recognition", CVPR 2016, section 3.3, option A. The paper
    does not say where the zero channels go; as in the code behind the published CIFAR tables, half of them come before
    the input's channels and half after (the odd one after).

    Args:
        x: [N, D, H, W].
        channels: D', at least D.
        stride: step of the sub-sampling in both directions; location 0 is kept.

    Returns:
        [N, D', ceil(H / stride), ceil(W / stride)]; `x` itself where nothing changes.

    Raises:
        ValueError: `channels` is smaller than D, or `stride` is smaller than 1.
    """
    missing = channels - x.shape[1]
    if missing < 0 or stride < 1:
        raise ValueError(f"no shortcut from {x.shape[1]} to {channels} channels with stride {stride}")
    if stride > 1:
        x = x[:, :, ::stride, ::stride]
    return F.pad(x, (0, 0, 0, 0, missing // 2, missing - missing // 2)) if missing else x

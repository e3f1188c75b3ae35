"""What a GPU may do with the numbers of a stage: PyTorch's switches, set while the stage lasts and put back."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def arithmetic(tf32: bool, same_shapes: bool = False) -> Iterator[None]:
    """Let products and convolutions in fp32 round to TF32 on a GPU, or not; without one nothing happens.

    PyTorch by itself lets convolutions do so and products not.

    Args:
        tf32: whether they may, convolutions and products alike.
        same_shapes: whether convolutions are called with the same shapes again and again, so that cuDNN may try its
            algorithms once and keep the fastest. Not where the user wants deterministic ones.
    """
    products, convolutions = torch.backends.cuda.matmul, torch.backends.cudnn
    before = products.allow_tf32, convolutions.allow_tf32, convolutions.benchmark
    determined = convolutions.deterministic or torch.are_deterministic_algorithms_enabled()
    try:
        products.allow_tf32 = convolutions.allow_tf32 = tf32
        if same_shapes and not determined:
            convolutions.benchmark = True
        yield
    finally:
        products.allow_tf32, convolutions.allow_tf32, convolutions.benchmark = before

"""What a method does to training images one by one (hook ``image_transform``)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from torch import Tensor

#: From an image [C, H, W] uint8 on the CPU, its label, and a CPU generator that is seeded for it, to another image.
ImageFunction = Callable[["Tensor", int, "torch.Generator"], "Tensor"]


@dataclass(frozen=True)
class ForExtraRows:
    """An answer to ``image_transform`` that acts on the method's own extra rows (``extra_rows``) and on no others.

    Attributes:
        function: as ``image_transform`` returns it.
    """

    function: ImageFunction

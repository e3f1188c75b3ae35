"""Randomness as a pure function: every draw is seeded by what it is for, never by what was drawn before it.

That is what lets a killed run go on with the same numbers: nothing has to be saved, or replayed.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def derive_seed(*parts: int | str) -> int:
    """A 63-bit seed from the run's seed and the names and numbers of a purpose, e.g. ``(0, "crop", epoch, step)``."""
    text = "\x1f".join(f"{type(part).__name__}:{part}" for part in parts)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1


def generator_for(device: torch.device | str, *parts: int | str) -> torch.Generator:
    """A generator on `device`, seeded with `derive_seed`."""
    import torch

    return torch.Generator(device=device).manual_seed(derive_seed(*parts))


def seed_globally(seed: int) -> None:
    """What ``torch.manual_seed`` does, faster on a machine whose CPU is all there is.

    For each kind of device that is not there torch keeps the seed with a stack trace, which takes a millisecond.
    """
    import torch

    if torch.accelerator.is_available():
        torch.manual_seed(seed)
    else:
        torch.default_generator.manual_seed(seed)

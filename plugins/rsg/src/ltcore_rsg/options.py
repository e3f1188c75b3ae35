"""RSG's options."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator

from ltcore import Options
from ltcore_rsg.functional import Vectors


class RSGOptions(Options):
    """Options of RSG; the defaults are those of the published code for CIFAR."""

    tap: str = "layer2"
    """Where rows are made: the output of the stage before the last down-sampling one, `layer2` of a CIFAR ResNet or
    `layer3` of an ImageNet ResNet."""
    start_epoch: int = Field(default=160, ge=0)
    """First epoch of the stage, counted from 0, in which rows are made: the one after the threshold (159). Before it
    centres and the pair network learn."""
    head_ratio: float = Field(default=0.2, gt=0, lt=1)
    """Share of the classes, the most frequent first, whose variation is used; rows of all other classes get it."""
    centres: int = Field(default=15, ge=1)
    """Centres a class."""
    pair_channels: int = Field(default=256, ge=1)
    """Channels of the pair network."""
    strength: float = Field(default=1.0, gt=0)
    """Transfer strength: share of the larger side of a batch (usually its head rows) that is used."""
    rows: Literal["constant", "batch"] = "constant"
    """How many rows are made: `constant`, in every batch of an epoch as many as its classes give on average; `batch`,
    as many as each batch gives (the published code)."""
    vectors: Vectors = "stored"
    """What the loss of the moved variation takes as one vector: `stored`, neighbours in memory (the published code), or
    `locations`, the channels of a location."""
    cesc_weight: float = Field(default=0.1, ge=0)
    """Weight of L_CESC, the centres' loss and that of the pair network."""
    mv_weight: float = Field(default=0.01, ge=0)
    """Weight of L_MV, the loss of the moved variation."""

    @field_validator("tap")
    @classmethod
    def _spatial(cls, tap: str) -> str:
        if tap == "pooled":
            raise ValueError("RSG convolves maps, and 'pooled' has none; use one of the backbone's taps")
        return tap

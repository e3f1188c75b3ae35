"""SAFA's options."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator

from ltcore import Options


class SAFAOptions(Options):
    """Options of SAFA. The README says which defaults are the paper's and which were measured."""

    tap: str = "layer2"
    """Where features are augmented: `maps` or one of the backbone's inner taps. The paper's place is the output of the
    stage before the last down-sampling one: `layer2` of a CIFAR ResNet, `layer3` of an ImageNet ResNet."""
    start_epoch: int = Field(default=160, ge=0)
    """First epoch of the stage, counted from 0, in which SAFA acts: the one after T_th. Before it training is plain."""
    head_ratio: float = Field(default=0.2, gt=0, lt=1)
    """beta: share of the classes, the most frequent first, that deltas are taken from; the rest is augmented."""
    generation: Literal["added", "whole"] = "added"
    """Whether G makes a change, which is added to the tail feature, or the augmented feature as a whole (the paper)."""
    standardise: bool = True
    """Whether the networks and the terms of the loss see features less the batch's mean, in units of its standard
    deviation, a channel at a time; `false`: as they are (the paper)."""
    detach: bool = True
    """Whether the networks and their terms see features as constants; `false`: they train the backbone, too (the
    paper, end to end)."""
    generated_weight: float = Field(default=1.0, ge=0)
    """What an augmented row counts for in the classification loss; a real one counts for 1 (the paper: 1)."""
    hidden_channels: int | None = Field(default=None, ge=1)
    """Channels between the two convolutions of each network; by default as many as the tap has."""
    cycle: float = Field(default=1.0, ge=0)
    """lambda_1: weight of the cycle reconstruction; 0 switches the term off."""
    delta_cycle: float = Field(default=1.0, ge=0)
    """Weight of the delta direction (eq. 4) against the feature direction (eq. 5) within the cycle reconstruction."""
    cycle_halves: Literal["printed", "even"] = "printed"
    """What both directions are divided by: `printed` keeps the proportion of the paper's norm and squared norm,
    `even` lets an element weigh the same in both."""
    tail_mode_seeking: float = Field(default=0.01, ge=0)
    """lambda_2: weight of the tail mode seeking; 0 switches the term off."""
    head_mode_seeking: float = Field(default=0.01, ge=0)
    """lambda_3: weight of the head mode seeking; 0 switches the term off."""
    numerators: Literal["constant", "trained"] = "constant"
    """Whether the sources' distances in the mode seeking are constants or have a gradient (the paper, as printed)."""
    contrastive: float = Field(default=0.1, ge=0)
    """lambda_4: weight of the contrastive loss; 0 switches the term off."""
    epsilon: float = Field(default=1e-3, gt=0)
    """Added to the denominators of the mode seeking, in the units that the networks see."""

    @field_validator("tap")
    @classmethod
    def _spatial(cls, tap: str) -> str:
        if tap == "pooled":
            raise ValueError("SAFA convolves maps, and 'pooled' has none; use 'maps' or one of the backbone's taps")
        return tap

"""What a recipe for a person's own images says of a method, as `Method.suited_to` answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Suited:
    """Parts of a recipe that train with a method, on images and for a time that core has chosen.

    Attributes:
        methods: by name, options of each method that the stages name, where they differ from the defaults. Methods of
            other distributions may be named: who lacks one is told what to install.
        stages: the stages, as a recipe writes them, all of them.
        holdout: training images per class that the method needs held out; those that the data set holds out anyway
            stand in their place.
        calibrate: methods that follow the training.
        why: what is done, in a sentence or two, for a comment in the recipe.
    """

    methods: Mapping[str, Mapping[str, Any]]
    stages: Sequence[Mapping[str, Any]]
    holdout: int = 0
    calibrate: Sequence[str] = field(default=())
    why: str = ""

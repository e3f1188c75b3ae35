"""What ``ltcore train DIR --method NAME`` writes of a method into the recipe for a person's own images.

A package of methods says it in a module of its own, ``suited``, beside them. It has functions ``(stage, counts)``, and
``SUITED``, a dictionary from names to them, that of the paper first. Late starts, lengths of further stages and shares
of head classes are scaled there from the paper's setting. The module is no part of the methods' code, of which records
keep a digest, for what suits a folder changes no figure.

`stage` is a stage that trains without a method, as a recipe writes it, to be copied: with ``name``, ``epochs``,
``batch_size``, ``trainable``, ``optimizer``, ``schedule``. ``trainable`` lacks ``backbone`` where the network stays as
its pre-trained weights are, and there is ``cache`` then. `counts` are the C training images per class, in label order.
The function gives a `Suited`, or raises an ``ltcore.RecipeError`` where the method cannot work with such counts. Core
calls it for several lengths of the stage, and takes the longest that fits the time. Without it the stage gets the
method with the options' defaults.
"""

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

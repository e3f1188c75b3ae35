"""Images prepared as those that a network's weights were trained on, where the recipe leaves it open."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import mean

from ltcore.contract.backbone import Pretraining
from ltcore.contract.recipe import Data, Normalize


def as_pretrained(asked: Data, weights: Pretraining | None, channels: int = 3) -> tuple[Data, list[str]]:
    """The recipe's ``data`` with normalisation and interpolation as the weights want them, where it does not say.

    One channel takes the mean over the weights' channels. Of any other number nothing is known, and the data set's own
    values hold.

    Args:
        asked: the recipe's ``data``.
        weights: what the backbone's weights were trained on; None where it starts from random ones.
        channels: channels of the images.

    Returns:
        The changed ``data``, and what the user should be told of it, a sentence each.
    """
    if weights is None:
        return asked, []
    theirs, whose = _for_channels(weights, channels), f"the weights of '{weights.of}'"
    used, notes, taken = asked, [], []
    if theirs is None:
        notes.append(f"{whose} were trained on {len(weights.mean)} channels, which says nothing of {channels}")
    elif asked.normalize is None:
        used = used.model_copy(update={"normalize": theirs})
        taken.append(f"normalised with {_said(theirs)}")
    elif not _alike(asked.normalize, theirs):
        notes.append(
            f"data.normalize says {_said(asked.normalize)}, but {whose} were trained with {_said(theirs)}, which is "
            "the default; remove data.normalize to use it"
        )
    wanted, said = weights.interpolation, asked.transform.interpolation
    if said is None:
        used = used.model_copy(update={"transform": asked.transform.model_copy(update={"interpolation": wanted})})
        taken.append(f"resized with {wanted} interpolation")
    elif said != wanted:
        notes.append(
            f"data.transform.interpolation says {said}, but {whose} were trained with {wanted}, which is the default; "
            "remove it to use that"
        )
    if taken:
        notes.insert(0, f"images are {' and '.join(taken)}, as {whose} were trained")
    return used, [*notes, *weights.notes]


def _for_channels(weights: Pretraining, channels: int) -> Normalize | None:
    if channels == len(weights.mean):
        return Normalize(mean=list(weights.mean), std=list(weights.std))
    return Normalize(mean=[mean(weights.mean)], std=[mean(weights.std)]) if channels == 1 else None


def _said(values: Normalize) -> str:
    return f"mean {_numbers(values.mean)} and standard deviation {_numbers(values.std)}"


def _numbers(values: Sequence[float]) -> str:
    """One number where all channels have the same."""
    shown = [f"{value:.4g}" for value in values]
    return shown[0] if len(set(shown)) == 1 else f"[{', '.join(shown)}]"


def _alike(one: Normalize, other: Normalize) -> bool:
    """Whether they are the same up to the rounding in which such values are passed on."""
    return all(
        len(a) == len(b) and all(math.isclose(x, y, abs_tol=5e-4) for x, y in zip(a, b, strict=True))
        for a, b in ((one.mean, other.mean), (one.std, other.std))
    )

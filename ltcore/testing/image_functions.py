"""Whether a method's image function is a function: of the image, its label and a generator, and of nothing else."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from ltcore.contract.images import ForExtraRows
from ltcore.testing.randomness import GlobalStates

if TYPE_CHECKING:
    from ltcore.contract.context import RunState
    from ltcore.testing.faults import FaultNotes

_IMAGES = 16
_WHAT = "the function of image_transform"
_DRAW = "draw from the `generator` that the function is given, which core seeds for each image"


def try_image_function(answer: Any, notes: FaultNotes, state: RunState) -> None:
    """Call a function twice for each of some images of noise, with generators in the same state.

    What it raises, the run raises too, with a better message; here it ends the trial.

    Args:
        answer: what the hook returned.
        notes: takes what is wrong with it.
        state: where the run stands.
    """
    function = answer.function if isinstance(answer, ForExtraRows) else answer
    seen = state.provider.images("train", torch.zeros(1, dtype=torch.int64), None, False, torch.Generator())
    noise = torch.Generator().manual_seed(0)
    images = torch.randint(256, (_IMAGES, *seen.shape[1:]), generator=noise, dtype=torch.uint8)
    for number, image in enumerate(images):
        found, drawn_elsewhere = [], False
        for _ in range(2):
            with GlobalStates().fixed("dropout") as used:
                try:
                    generator = torch.Generator().manual_seed(number)
                    found.append(function(image.clone(), number % state.num_classes, generator))
                except Exception:
                    return
            drawn_elsewhere |= bool(used)
            for what, _ in used:
                notes.fault("randomness", f"{_WHAT} {what.removesuffix(' in a step')}", _DRAW)
        if not all(isinstance(each, torch.Tensor) for each in found):
            return
        if not torch.equal(*found) and not drawn_elsewhere:  # else that is why
            notes.fault(
                "seed",
                f"{_WHAT} gave two images for the same image, label and generator's state",
                "keep no state in it: the processes that prepare images, and a resumed run, know nothing of the images "
                "that it saw before",
            )
            return

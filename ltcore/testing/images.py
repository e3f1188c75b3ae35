"""Whether the function of ``image_transform`` depends on its image, label and generator, and on nothing else."""

from __future__ import annotations

from typing import Any

import torch

from ltcore.contract.images import ForExtraRows
from ltcore.testing.inspecting import Call, Inspector

_SIZE, _TRIES = 8, 4
_CHANGE = (
    "let all its randomness be `generator`, and keep nothing from image to image: any process may work on any image"
)


class ImageFunctions(Inspector):
    """Calls the function a few times, where it would be called with every image of the epoch."""

    def after(self, call: Call, answer: Any, before: Any) -> None:
        """Try it on noise."""
        function = answer.function if isinstance(answer, ForExtraRows) else answer
        if call.hook.name != "image_transform" or not callable(function):
            return
        noise = torch.Generator().manual_seed(0)
        image = torch.randint(256, (3, _SIZE, _SIZE), generator=noise, dtype=torch.uint8)
        notes: Any = self.notes
        for seed in range(_TRIES):
            found = []
            for _ in range(2):
                with notes.globals.fixed("dropout") as used:
                    found.append(function(image.clone(), 0, torch.Generator().manual_seed(seed)))
                for what, _change in used:
                    self.notes.fault("randomness", f"the function of image_transform {what}", _CHANGE)
            if not torch.equal(*found):
                self.notes.fault(
                    "seed", "the function of image_transform gave two images for one and the same generator", _CHANGE
                )

"""How fast this machine trains a network, by a few steps of it."""

from __future__ import annotations

import os
import statistics
import time
from dataclasses import dataclass
from typing import Any

import torch

from ltcore.errors import RecipeError, nearest

_STEPS = 2
#: What an image takes in a run over what it takes here, without loading and with all memory at hand: to train on it,
#: and to take its features.
_IN_A_RUN = {True: 1.5, False: 1.2}


@dataclass(frozen=True)
class Machine:
    """What trains.

    Attributes:
        device: ``cpu`` or ``cuda``.
        name: how the summary calls it.
        cores: cores that decode images.
    """

    device: str
    name: str
    cores: int


def this_machine() -> Machine:
    """The machine that the command runs on, which is taken for the one that will train."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if torch.cuda.is_available():
        return Machine("cuda", torch.cuda.get_device_name(), cores)
    return Machine("cpu", f"the CPU with {torch.get_num_threads()} threads", cores)


def pretrained_config(model: str) -> Any:
    """What timm knows of a model's pre-trained weights: ``mean``, ``std``, ``input_size``, ``fixed_input_size``.

    Raises:
        RecipeError: timm has no such model.
    """
    import timm

    known = timm.list_models()
    if model.split(".")[0] not in known:
        raise RecipeError(f"--model: timm has no model '{model}'{nearest(model, known)}")
    return timm.get_pretrained_cfg(model) or timm.get_pretrained_cfg(model.split(".")[0])


def images_per_second(model: str, image_size: int, device: str) -> tuple[float, float]:
    """Images that a network trains on in a second, and that it takes features of, decoded and on the device.

    From a few steps on noise, after one to warm up, with something added for what a run does beside.

    Args:
        model: a name of timm.
        image_size: height and width in pixels.
        device: ``cpu`` or ``cuda``; on a GPU in bf16, as runs do.

    Raises:
        RecipeError: timm cannot make the model, or it does not take images of this size.
    """
    import timm

    batch = 64 if device == "cuda" else 8
    size: dict[str, Any] = {"img_size": image_size} if pretrained_config(model).fixed_input_size else {}
    try:
        network: Any = timm.create_model(model, num_classes=0, **size)
        network.to(device=device, memory_format=torch.channels_last)
        images = torch.randn(batch, 3, image_size, image_size, device=device).to(memory_format=torch.channels_last)
        mean = {}
        for trains in (True, False):
            network.train(trains)
            seconds = []
            for _ in range(1 + _STEPS):
                start = time.perf_counter()
                with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"), torch.set_grad_enabled(trains):
                    found = network(images).float().mean()
                if trains:
                    found.backward()
                if device == "cuda":
                    torch.cuda.synchronize()
                seconds.append(time.perf_counter() - start)
            mean[trains] = _IN_A_RUN[trains] * statistics.mean(seconds[1:])
    except Exception as error:
        raise RecipeError(
            f"'{model}' could not be tried on images of {image_size} pixels ({type(error).__name__}: {error}); choose "
            "another --model or --image-size"
        ) from error
    return batch / mean[True], batch / mean[False]

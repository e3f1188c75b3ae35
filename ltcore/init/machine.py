"""How fast this machine trains a network, by a few steps of it."""

from __future__ import annotations

import os
import statistics
import time
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch

from ltcore.errors import RecipeError, nearest

_STEPS = 2
#: What an image takes in a run over what it takes here, without loading and with all memory at hand: to train all of
#: the network on it or the last part, and to take its features.
_IN_A_RUN = {"all": 1.5, "last": 1.4, "none": 1.2}
#: The last part of a network is as many groups of its layers, as timm has them, as hold this share of its parameters.
_LAST = 0.25


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
    threads = torch.get_num_threads()
    return Machine("cpu", f"the CPU with {threads} thread{'s' if threads > 1 else ''}", cores)


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


def last_part(network: Any) -> list[str]:
    """Names of the last modules of a network of timm, which training may be kept to; none where timm knows no groups.

    Args:
        network: made with ``num_classes=0``.
    """
    from timm.models import group_parameters

    sizes = {name: parameter.numel() for name, parameter in network.named_parameters()}
    try:
        groups = group_parameters(network, network.group_matcher(coarse=True))
    except (AttributeError, NotImplementedError):
        return []
    wanted: set[str] = set()
    for _, names in sorted(groups.items(), reverse=True):
        wanted.update(names)
        if sum(sizes[name] for name in wanted) >= _LAST * sum(sizes.values()):
            break
    found: dict[str, None] = {}  # the shortest names that cover what is wanted, and nothing else
    for name in sizes:
        if name in wanted:
            words = name.split(".")
            tried = (".".join(words[:length]) for length in range(1, len(words) + 1))
            short = next(one for one in tried if all(n in wanted for n in sizes if n == one or n.startswith(f"{one}.")))
            found[short] = None
    return list(found)


@cache
def last_part_of(model: str) -> list[str]:
    """`last_part` of a model by its name."""
    import timm

    return last_part(timm.create_model(model, num_classes=0))


@cache
def normalises_batches(model: str) -> bool:
    """Whether a model has batch norm."""
    import timm

    network = timm.create_model(model, num_classes=0)
    return any(isinstance(module, torch.nn.modules.batchnorm._BatchNorm) for module in network.modules())


def images_per_second(model: str, image_size: int, device: str) -> tuple[float, float, float]:
    """Images that a network trains on in a second, that its last part trains on, and that it takes features of.

    From a few steps on noise, decoded and on the device, after one to warm up, with something added for what a run does
    beside. Where the last part is not known, its figure is that of all.

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
        last = last_part(network)
        rates: dict[str, float] = {}
        for trains in ("all", "last", "none"):
            network.train(trains == "all")
            for name, parameter in network.named_parameters():
                inside = trains == "all" or any(name == part or name.startswith(f"{part}.") for part in last)
                parameter.requires_grad_(inside and trains != "none")
            if trains == "last" and not last:
                rates[trains] = rates["all"]
                continue
            seconds = []
            for _ in range(1 + _STEPS):
                start = time.perf_counter()
                with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
                    found = network(images).float().mean()
                if found.requires_grad:
                    found.backward()
                if device == "cuda":
                    torch.cuda.synchronize()
                seconds.append(time.perf_counter() - start)
            rates[trains] = batch / (_IN_A_RUN[trains] * statistics.mean(seconds[1:]))
    except Exception as error:
        raise RecipeError(
            f"'{model}' could not be tried on images of {image_size} pixels ({type(error).__name__}: {error}); choose "
            "another --model or --image-size"
        ) from error
    return rates["all"], rates["last"], rates["none"]

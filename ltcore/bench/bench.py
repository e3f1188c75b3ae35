"""``ltcore bench``: the parts that were asked for, one after the other."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from ltcore.bench import calls, images, memory, starting, steps
from ltcore.bench.beside import Beside
from ltcore.bench.subject import Subject, subject
from ltcore.contract.interface import __version__
from ltcore.contract.splits import ArraySplit
from ltcore.errors import RecipeError, listed, nearest
from ltcore.training.threads import computing_with, usable_cores

PARTS = ("input", "step", "hooks", "stages", "start-up", "memory")


def bench(
    recipe: Path | None = None,
    sets: Sequence[str] = (),
    only: Sequence[str] = (),
    seconds: float = 20.0,
    compare: Path | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:
    """Measure what this machine makes of a recipe.

    Args:
        recipe: the recipe's file; None for noise of CIFAR's size and ResNet-32.
        sets: changes ``PATH=VALUE``.
        only: the parts to measure, of `PARTS`; by default all.
        seconds: about so many for each part.
        compare: a program that takes turns, see `ltcore.bench.beside`.
        say: tells the user which part is measured.

    Returns:
        What ``--json`` prints.

    Raises:
        LtcoreError: as in a run; or a part is unknown, or the program gives no figures.
    """
    for part in only:
        if part not in PARTS:
            raise RecipeError(f"--only {part}: no such part{nearest(part, PARTS) or ';'} there are {listed(PARTS)}")
    asked = [part for part in PARTS if not only or part in only]
    with subject(recipe, sets) as what, computing_with(what.loaded.recipe.threads):
        found: dict[str, Any] = {
            "recipe": what.loaded.recipe.name,
            "device": _device(what.device),
            "threads": what.threads,
            "cores": usable_cores(),
            "load": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "ltcore": __version__,
            "seconds": seconds,
            "compared_with": None if compare is None else str(compare),
            "parts": {},
        }
        measured = found["parts"]
        if compare is None or not {"input", "step", "stages"} & set(asked):
            _measure(what, asked, seconds, None, measured, say)
        else:
            with Beside(compare, _words(what, seconds)) as program:
                _measure(what, asked, seconds, program, measured, say)
    return found


def _measure(
    what: Subject,
    asked: Sequence[str],
    seconds: float,
    program: Beside | None,
    found: dict[str, Any],
    say: Callable[[str], None],
) -> None:
    if "input" in asked:
        say("measuring input")
        found["input"] = images.measure(what, seconds, program)
    if {"step", "stages"} & set(asked):
        say("measuring steps and stages")
        stages = steps.measure(what, seconds, program, first="stages" not in asked)
        if "step" in asked:
            found["step"] = stages[0]
        if "stages" in asked:
            found["stages"] = stages
    if "hooks" in asked:
        say("measuring hooks")
        found["hooks"] = calls.measure(min(seconds, 2.0))
    if "start-up" in asked:
        say("measuring start-up")
        found["start-up"] = starting.measure(what, seconds)
    if "memory" in asked:
        say("measuring memory")
        found["memory"] = memory.measure(what)


def _words(what: Subject, seconds: float) -> list[str]:
    """What the program beside is told of the subject."""
    recipe, data, size = what.loaded.recipe, what.data, what.data.transform.image_size
    words = {
        "images": len(data.train),
        "test": len(data.test or ()) or 1,
        "classes": len(data.class_names),
        "channels": len(data.mean),
        "size": size,
        "batch": what.plan.stages[0].stage.batch_size,
        "workers": what.workers or usable_cores(),
        "threads": what.threads,
        "device": what.device,
        "seconds": f"{seconds / 12:g}",
        "recipe": what.path.resolve(),
    }
    root = (recipe.data.options or {}).get("root")
    if root and not isinstance(data.train, ArraySplit) and Path(root).is_dir():
        words["data"] = Path(root).resolve()
    options = [f"--{name}={value}" for name, value in words.items()]
    return [*options, *(f"--set={text}" for text in what.sets)]


def _device(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)

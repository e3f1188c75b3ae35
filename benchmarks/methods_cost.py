r"""What a step of each method costs beside the same step without it: CPU time, and the process's peak of memory.

    python benchmarks/methods_cost.py              # all installed methods, a few minutes of one core
    python benchmarks/methods_cost.py sam mixup    # these; the figures of others stay

Each method stands in a second stage, with its own defaults (`OPTIONS` says where not), from its first epoch on. Data is
noise with a quarter of the counts of CIFAR-100-LT at imbalance 100, crops and flips; the network is ResNet-8, or a
small vision transformer for adapters that want one; batches have 64 images. Beside it is the same stage without the
method: cross-entropy of the whole network, or of the classifier alone where the method's stages in our recipes keep the
backbone as it is.

Both train in one process on one thread and take turns; seconds are those of the process on a core, so that other
programs disturb them little. What a method does once an epoch or a stage is not among them. A method under
``calibrate`` trains nothing: of it is measured how many such steps the calibration takes, once. Memory is the peak of
a process that trains a few steps with the method, what its stage begins with included, less that of one without.

Written are ``results/methods_cost.json``, and with ``python docs/make_methods.py`` the page that shows it.
"""

from __future__ import annotations

import argparse
import ctypes
import functools
import io
import json
import multiprocessing
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from preloaded import import_all
from torch import Tensor

from ltcore.contract.imbalance import Imbalance, long_tailed_counts
from ltcore.contract.records import Batch
from ltcore.data.prepare import PreparedData
from ltcore.discovery import catalogue
from ltcore.files.run_directory import RunDirectory
from ltcore.plan.plan import Plan
from ltcore.progress.console import Reporter
from ltcore.recipe.loading import load_recipe
from ltcore.rehearsal.memory import memory_used
from ltcore.testing.pairs import fitted
from ltcore.testing.parts import PARTS
from ltcore.testing.recipes import Part, compose, part_of, plan_of, with_companions
from ltcore.training.assembly import Assembly
from ltcore.training.data import RunData, read_data
from ltcore.training.loop import Loop, Observer
from ltcore.training.run import Run

ROOT = Path(__file__).parents[1]
PAGE, RECIPES = ROOT / "results" / "methods_cost.json", ROOT / "recipes"
T = TypeVar("T")
BATCH = 64
TURNS, STEPS, WARM_UP = 3, 2, 2
_MMAP_THRESHOLD = -3  # glibc's M_MMAP_THRESHOLD
#: Options in place of the defaults: what a method must be told of this data and network, and what begins late.
OPTIONS: dict[str, dict[str, Any]] = {
    "cmo": {"plain_at_end": 0},
    "lfme": {"experts": ["first", "first", "first"]},
    "m2m": {"beta": 0.99},  # for classes of at most 125 images
    "lift": {"bottleneck": 4},
    "moco": {"queue": 2048},  # fewer than there are images
    "oltr": {"map_size": 8},
    "rsg": {"start_epoch": 1},  # it refuses 0
}
#: Methods that do without their adaptation, which the small network refuses.
_UNADAPTED = ("fslwf",)
_TRANSFORMER = {
    "use": "timm",
    "options": {
        "model": "vit_tiny_patch16_224",
        "arguments": {"patch_size": 4, "embed_dim": 96, "depth": 3, "num_heads": 3},
    },
}


class Enough(Exception):
    """All that was asked for is measured."""


# -- recipes -----------------------------------------------------------------------------------------------------------


def methods() -> list[str]:
    """Installed methods that a plugin brings, without those that build data or a network."""
    offers = [each for each in catalogue.offers() if each.distribution != "ltcore" and each.name not in PARTS]
    return sorted(offer.name for offer in offers if part_of(offer).role is None)


def keeps_backbone(name: str) -> bool:
    """Whether every stage that lists the method in our recipes trains no backbone."""
    files = [path for path in sorted(RECIPES.glob("*.yaml")) if name in path.read_text()]
    stages = [stage for path in files for stage in load_recipe(path).recipe.stages if name in stage.methods]
    return bool(stages) and not any(each.startswith("backbone") for stage in stages for each in stage.trainable)


def part(name: str) -> Part:
    """A method with the options that are measured; `fixed` where its stages keep the backbone."""
    with catalogue.lent(PARTS):
        found = fitted(part_of(catalogue.asked(name)))
    options = dict(OPTIONS.get(name, {}))
    if "start_epoch" in type(found.method).Options.model_fields:
        options.setdefault("start_epoch", 0)
    return replace(found, options=options, fixed=found.fixed or (not found.transformer and keeps_backbone(name)))


def recipe(of: Part, own: bool) -> dict[str, Any]:
    """The recipe of a method, or the same without it."""
    made = compose(with_companions(of))
    counts = long_tailed_counts(Imbalance(kind="exponential", factor=100), np.full(100, 125))
    made["data"] = {
        "use": "synthetic",
        "options": {"class_counts": counts.tolist(), "image_size": 32, "test_per_class": 1},
        "transform": {"crop_padding": 4, "flip": True},
        "holdout": 1,
    }
    made |= {"threads": 1, "eval_batch_size": BATCH}
    adapters = [] if of.name in _UNADAPTED else made["backbone"].get("adapt", [])
    made["backbone"] = dict(_TRANSFORMER) if of.transformer else {"use": "cifar_resnet", "options": {"depth": 8}}
    if "experts" in of.method.requires:
        adapters, made["methods"] = ["ride"], {"ride": {}, **made["methods"]}
    second = made["stages"][1]
    if of.transformer and own:
        second["trainable"] = [of.name, "classifier"]
    for stage in made["stages"]:
        stage["batch_size"] = BATCH
    if not own:
        del made["methods"][of.name]
        adapters = [name for name in adapters if name != of.name]
        second["methods"] = [name for name in second["methods"] if name != of.name]
        second["trainable"] = [name for name in second["trainable"] if name != of.name]
        made["calibrate"] = []
    if adapters:
        made["backbone"]["adapt"] = adapters
    return made


# -- what is measured --------------------------------------------------------------------------------------------------


class _Few(Observer):
    """The extent of a measured run: a few steps of each stage, up to the epoch from which the method acts."""

    def epochs(self, loop: Loop) -> Iterator[int]:
        """The last is the first in which every method acts."""
        self.last = max((entry.method.acts_from for entry in loop.plan.entries), default=0)
        yield from range(self.last + 1)

    def steps(self, indices: list[Tensor]) -> list[Tensor]:
        """Few."""
        return indices[:WARM_UP]


class _Entered(_Few):
    """Stops where the second stage begins."""

    def stage_started(self, loop: Loop) -> None:
        """Keep it."""
        if loop.stage.name == "second":
            self.loop = loop
            raise Enough


class _Turns(_Few):
    """Steps of the method's stage and of the stage without it, by turns.

    Args:
        other: the stage without it, set up.
    """

    def __init__(self, other: Loop) -> None:
        self._other = other
        self._batches: Iterator[Batch] = iter(())
        self.own: list[float] = []
        self.without: list[float] = []
        self._began = 0.0

    def steps(self, indices: list[Tensor]) -> list[Tensor]:
        """Enough for all turns."""
        return indices[: WARM_UP + TURNS * STEPS]

    def step_ended(self, loop: Loop) -> None:
        """Behind every few steps the other has its turn."""
        done = loop.position.step - WARM_UP
        if loop.stage.name != "second" or loop.position.epoch < self.last or done < 0 or done % STEPS:
            return
        if done:
            self.own.append(time.process_time() - self._began)
            self.without.append(self._turn())
        self._began = time.process_time()

    def _turn(self) -> float:
        other, began = self._other, time.process_time()
        for _ in range(STEPS):
            batch = next(self._batches, None)
            if batch is None:
                self._batches = other.replayed(0)
                batch = next(self._batches)
            other.update(other.forward(batch, None), other.state.learning_rate)
        return time.process_time() - began


@functools.cache
def images() -> PreparedData:
    """The data, which is the same in all recipes."""
    plan = plan_of(recipe(part("focal"), own=False))
    return read_data(plan.loaded, plan.answers["data"])


def assembled(plan: Plan) -> Assembly:
    """A run's parts."""
    device = torch.device("cpu")
    return Assembly(plan, RunData(plan, images(), device), device)


def train(assembly: Assembly, extent: _Few, folder: Path) -> None:
    """Train as `ltcore run` does, as far as the extent goes."""
    (folder / "checkpoints").mkdir(parents=True)
    quiet = Reporter(io.StringIO())
    run = Run(assembly, RunDirectory(folder), quiet, observers=[extent], extent=extent, traced_steps=0)
    with suppress(Enough):
        run.train()


def timed(name: str, folder: Path) -> dict[str, Any]:
    """By how much a method's steps take more CPU seconds than those without it; of a calibration, how many steps."""
    of, entered = part(name), _Entered()
    plain = assembled(plan_of(recipe(of, own=False)))
    train(plain, entered, folder / "plain")
    turns, own = _Turns(entered.loop), assembled(plan_of(recipe(of, own=True)))
    train(own, turns, folder / "own")
    step = sum(turns.without) / (TURNS * STEPS)
    beside = "classifier alone" if of.fixed else "transformer" if of.transformer else "whole network"
    found = {"beside": beside, "options": of.options, "step_seconds_without": round(step, 4)}
    if not of.acts and "adapt_backbone" not in of.hooks:
        before = time.process_time()
        own.calibrated()
        return {**found, "calibration_steps": round((time.process_time() - before) / step, 2)}
    ratios = sorted(a / b for a, b in zip(turns.own, turns.without, strict=True))
    return {
        **found,
        "step_ratio": round(sum(turns.own) / sum(turns.without), 3),
        "lowest_turn": round(ratios[0], 3),
        "highest_turn": round(ratios[-1], 3),
    }


def peak(name: str, own: bool, folder: Path) -> tuple[int, str]:
    """Bytes, the peak of this process, which trains a few steps with the method or without it, and calibrates.

    The other value tells recipes without a method apart, since many methods have the same.
    """
    # Freed memory goes back at once, so that the peak is of what is held, and not of pieces between.
    ctypes.CDLL(None).mallopt(_MMAP_THRESHOLD, 1 << 16)
    of = part(name)
    assembly = assembled(plan_of(recipe(of, own)))
    train(assembly, _Few(), folder / "run")
    assembly.calibrated()
    return memory_used(torch.device("cpu"))["process"], json.dumps(recipe(of, own=False), sort_keys=True)


def apart(function: Callable[..., T], *values: Any) -> T:
    """What a function of some values and a folder gives, in a process of its own.

    Raises:
        RuntimeError: it has failed.
    """

    def work(sender: Any) -> None:
        with tempfile.TemporaryDirectory() as folder:
            sender.send(function(*values, Path(folder)))

    fork = multiprocessing.get_context("fork")
    receiver, sender = fork.Pipe(duplex=False)
    child = fork.Process(target=work, args=(sender,))
    child.start()
    sender.close()
    try:
        return receiver.recv()  # type: ignore[no-any-return]
    except EOFError:
        child.join()
        raise RuntimeError(f"its process ended with exit code {child.exitcode}") from None
    finally:
        child.join()


def measured(name: str, without: dict[str, int]) -> dict[str, Any]:
    """All figures of a method.

    Args:
        name: the method.
        without: peaks of recipes without a method; is filled.

    Raises:
        RuntimeError: a process has failed.
    """
    found = apart(timed, name)
    own, plain = apart(peak, name, True)
    if plain not in without:
        without[plain] = apart(peak, name, False)[0]
    sizes = {"memory_mib": own - without[plain], "peak_mib_without": without[plain]}
    return {**found, **{key: round(size / 2**20, 1) for key, size in sizes.items()}}


# -- the file ----------------------------------------------------------------------------------------------------------


def environment() -> dict[str, Any]:
    """Where it was measured."""
    cpu = next((line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")), "")
    return {
        "cpu": cpu.partition(": ")[2] or platform.processor(),
        "threads": 1,
        "python": platform.python_version(),
        "torch": version("torch"),
        "ltcore": version("ltcore"),
    }


def main() -> None:
    """Measure, and write the file after every method."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="methods; by default all that are installed")
    parser.add_argument("--out", type=Path, default=PAGE)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    import_all()  # once, for all processes that are forked; and so is the data
    images()
    without: dict[str, int] = {}
    content: dict[str, Any] = {"format": "ltcore methods' cost 1", "methods": {}}
    if arguments.out.exists():
        content = json.loads(arguments.out.read_text())
    failed = []
    for name in arguments.names or methods():
        print(name, file=sys.stderr, flush=True)
        try:
            figures = measured(name, without)
        except RuntimeError as error:
            print(f"{name}: {error}", file=sys.stderr)
            failed.append(name)
            continue
        figures |= {"measured": date.today().isoformat(), "environment": environment()}
        content["methods"][name] = figures
        content["methods"] = dict(sorted(content["methods"].items()))
        content["command"] = "python benchmarks/methods_cost.py"
        arguments.out.write_text(json.dumps(content, indent=1) + "\n")
    if failed:
        sys.exit(f"not measured: {', '.join(failed)}")


if __name__ == "__main__":
    main()

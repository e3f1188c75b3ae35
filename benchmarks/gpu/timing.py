"""Five timed epochs of CE, LDAM-DRW, SAFA and GLAG's AFG, with the share of the device; called by `on_a_gpu.py`.

A stage trains for five epochs and some more steps. The last four of the five give the time of an epoch, and the steps
after them, under torch's profiler, how long the device works in a step. What is missing between the two is time in
which the device waits for the host. Without a GPU the operators' own time on the CPU stands in the device's place,
as the profiler sees it, which slows small ones down.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

import ltcore
from gpu.jobs import recipe_file
from gpu.sharing import share
from ltcore import Context, Method, Options, hookimpl

EPOCHS, PROFILED, BATCH = 5, 20, 128
#: Each stage that is timed: recipe, stage, and changes so that everything acts from the first epoch on.
TIMED: dict[str, tuple[str, str, dict[str, Any]]] = {
    "CE": ("ce", "representation", {}),
    "LDAM-DRW": ("ldam_drw", "representation", {"drw": {"options": {"start_epoch": 0}}}),
    "SAFA + LDAM-DRW": (
        "safa_ldam_drw",
        "representation",
        {"drw": {"options": {"start_epoch": 0}}, "safa": {"options": {"start_epoch": 0}}},
    ),
    "GLAG's AFG": ("glag", "classifier", {"afg": {"options": {"generation_epochs": None}}}),
}


class EpochClockOptions(Options):
    """Options of `EpochClock`."""

    file: str = ""
    """JSON file that is written when the stage ends."""
    iterations: int = 0
    """Steps of the stage."""


class EpochClock(Method):
    """Times the epochs of its stage, and profiles the last one; must be the last of the stage's methods."""

    Options: ClassVar[type[Options]] = EpochClockOptions
    interface = "1.0"

    def __init__(self, options: Any = None) -> None:
        super().__init__(options)
        self.seconds: list[float] = []
        self.host: list[float] = []
        self.began = self.began_host = 0.0
        self.steps = 0
        self.profile: profile | None = None

    @staticmethod
    def _wait(context: Context) -> None:
        if context.device.type == "cuda":
            torch.cuda.synchronize()

    @hookimpl
    def on_epoch_start(self, context: Context) -> None:
        """Start the watch, and for the last epoch the profiler."""
        if context.epoch == context.epochs - 1:
            cuda = context.device.type == "cuda"
            self.profile = profile(activities=[ProfilerActivity.CUDA if cuda else ProfilerActivity.CPU])
            self.profile.start()
        self._wait(context)
        self.began, self.began_host = time.perf_counter(), time.process_time()

    @hookimpl
    def on_epoch_end(self, context: Context) -> None:
        """Stop the watch; after the last epoch write everything down."""
        self._wait(context)
        self.seconds.append(time.perf_counter() - self.began)
        self.host.append(time.process_time() - self.began_host)
        done = round(float(context.progress) * self.options.iterations) + 1
        if not self.steps:
            self.steps = done  # of a whole epoch
        if self.profile is None:
            return
        self.profile.stop()
        last = done - self.steps * context.epoch
        busy = sum(map(busy_time, self.profile.key_averages())) / 1e6 / last
        Path(self.options.file).write_text(json.dumps(self._figures(busy, last)))

    def _figures(self, busy: float, last: int) -> dict[str, Any]:
        epochs = self.seconds[1:-1]  # the first sets libraries up, the last is profiled
        epoch = statistics.median(epochs)
        return {
            "epochs_timed": len(epochs),
            "steps_an_epoch": self.steps,
            "steps_profiled": last,
            "epoch_s": round(epoch, 3),
            "step_ms": round(1000 * epoch / self.steps, 2),
            "device_ms": round(1000 * busy, 2),
            "host_cpu_ms": round(1000 * statistics.median(self.host[1:-1]) / self.steps, 2),
            "device_share": round(busy * self.steps / epoch, 3),
        }


def busy_time(event: Any) -> float:
    """Microseconds in which the device worked on an event's own behalf; without a GPU, the CPU."""
    if torch.cuda.is_available():
        annotation = getattr(event, "is_user_annotation", False)
        return 0.0 if event.device_type == DeviceType.CPU or annotation else float(event.self_device_time_total)
    return float(event.self_cpu_time_total)


def timed_recipe(label: str, root: Path, room: Path, data: Path, file: Path, short: bool) -> dict[str, Any]:
    """The recipe of a timed stage, as changes of the one that is trained; `file` gets the figures."""
    from ltcore.recipe.loading import load_recipe

    name, stage, methods = TIMED[label]
    path = recipe_file(name, root, room, data, short)
    plain = load_recipe(path).source
    images = len(np.load(data)["train_labels"])
    epochs, profiled = (2, 2) if short else (EPOCHS, PROFILED)
    iterations = epochs * -(-images // BATCH) + profiled
    timed = next(found for found in plain["stages"] if found["name"] == stage)
    stages: dict[str, Any] = {found["name"]: {"epochs": 1, "iterations": None} for found in plain["stages"]}
    stages[stage] = {"epochs": None, "iterations": iterations, "cache": None if "cache" not in timed else "views:1"}
    stages[stage] |= {"methods": [*timed.get("methods", []), "epoch_clock"], "schedule": {"name": "constant"}}
    for change, found in zip(stages.values(), plain["stages"], strict=True):
        for key in [key for key, value in change.items() if value is None and key not in found]:
            del change[key]
        change["schedule"] = {"name": "constant"}
    clock = {"epoch_clock": {"options": {"file": str(file), "iterations": iterations}}}
    about = {"extends": str(path), "name": f"timed_{name}", "description": f"{label}, timed", "diagnostics": "off"}
    # The images' own preparation is left out of GLAG's: its second stage works on features.
    data_change = {"data": {"transform": None}} if plain["data"].get("transform") else {}
    return about | data_change | {"methods": {**methods, **clock}, "stages": stages}


def main() -> None:
    """Time the stages one after the other; a line as soon as one is done."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--root", type=Path, required=True, help="the project's")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--room", type=Path, required=True)
    parser.add_argument("--short", action="store_true")
    arguments = parser.parse_args()
    arguments.room.mkdir(parents=True, exist_ok=True)
    for label in TIMED:
        file = arguments.room / "clock.json"
        file.unlink(missing_ok=True)
        content = timed_recipe(label, arguments.root, arguments.room, arguments.data, file, arguments.short)
        recipe = arguments.room / f"{content['name']}.yaml"
        recipe.write_text(json.dumps(content))
        ltcore.run(recipe, out=arguments.room / "runs")
        print(json.dumps({"stage": label, **json.loads(file.read_text())}), flush=True)
    share(arguments.root, arguments.data, arguments.room / "several", arguments.short)


if __name__ == "__main__":
    main()

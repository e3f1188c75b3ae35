"""Timed epochs with the share of the device, most important first; called by `on_a_gpu.py`.

CE, LDAM-DRW, SAFA and GLAG's AFG; CE in each precision, eager, as graphs and compiled; the published pipeline
(`reference.py`) beside them; and ResNet-50 on images of 224 pixels in memory. Nothing is begun that would probably not
end within ``--seconds``.

A stage trains for five epochs and some more steps. The last four of the five give the time of an epoch, and the steps
after them, under torch's profiler, how long the device works in a step. What is missing between the two is time in
which the device waits for the host. Without a GPU the operators' own time on the CPU stands in the device's place,
as the profiler sees it, which slows small ones down.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
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

#: Share of the time for runs that are alone on the card; the rest is for several at once.
_ALONE = 0.6

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
#: Epochs of the published protocol, and images of a batch of `LARGE`.
WHOLE, LARGE_BATCH = 200, 128
#: CE's precisions and ways to accelerate, in order of worth; `auto` stands for graphs where there is no GPU.
QUICK = [
    *[("fp32", "off"), ("tf32", "step_graphs"), ("bf16", "step_graphs"), ("fp32", "step_graphs")],
    *[("tf32", "graphs"), ("bf16", "graphs"), ("bf16", "off"), ("tf32", "off")],
    *[("fp32", "compile"), ("bf16", "compile"), ("tf32", "compile")],
]


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


def quick_recipe(
    precision: str, accelerate: str, root: Path, room: Path, data: Path, file: Path, short: bool
) -> dict[str, Any]:
    """CE's timed recipe in a precision, and accelerated in a way."""
    content = timed_recipe("CE", root, room, data, file, short)
    stage = content["stages"][TIMED["CE"][1]]
    stage |= {"precision": precision, "accelerate": there(accelerate)}
    return content | {"name": f"timed_ce_{precision}_{accelerate}"}


def there(accelerate: str) -> str:
    """The way that a recipe may name on this machine: without a GPU all is left to `auto`, which is eager there."""
    return accelerate if torch.cuda.is_available() else "auto"


def large_recipe(accelerate: str, file: Path, short: bool) -> dict[str, Any]:
    """ResNet-50 in bf16 on images of 224 pixels that lie in memory."""
    size, images, model = (32, 24, "resnet10t") if short else (224, 10 * LARGE_BATCH, "resnet50")
    batch = 8 if short else LARGE_BATCH
    epochs, profiled = (2, 1) if short else (4, 5)
    iterations = epochs * (images // batch) + profiled
    stage = {
        **{"name": "joint", "iterations": iterations, "batch_size": batch, "methods": ["epoch_clock"]},
        **{"precision": "bf16", "accelerate": there(accelerate)},
        "optimizer": {"name": "sgd", "lr": 0.01, "momentum": 0.9},
    }
    made = {"class_counts": [images // 8] * 8, "image_size": size, "test_per_class": 1}
    return {
        "name": f"timed_resnet50_{accelerate}",
        "diagnostics": "off",
        "data": {"use": "synthetic", "options": made, "transform": {"crop_padding": 4, "flip": True}},
        "backbone": {"use": "timm", "options": {"model": model, "pretrained": False}},
        "methods": {"epoch_clock": {"options": {"file": str(file), "iterations": iterations}}},
        "stages": [stage],
    }


def timed(content: dict[str, Any], room: Path, file: Path) -> dict[str, Any]:
    """Train a recipe; what its clock has written, and what became of its acceleration."""
    file.unlink(missing_ok=True)
    recipe = room / f"{content['name']}.yaml"
    recipe.write_text(json.dumps(content))
    done = ltcore.run(recipe, out=room / "runs")
    found: dict[str, Any] = json.loads(file.read_text())
    about = json.loads((done.path / "result.json").read_text())["stages"][-1].get("acceleration", {})
    found["train_s_200"] = round(WHOLE * found["epoch_s"], 1)
    stages = content["stages"]
    batch = stages[-1]["batch_size"] if isinstance(stages, list) else BATCH  # of the recipe that is extended
    found["images_s"] = round(1000 * batch / found["step_ms"])
    found["host_share"] = round(max(0.0, 1 - found["device_share"]), 3)
    return found | {name: about.get(name) for name in ("chosen", "why", "features_difference", "gradients_difference")}


def reference(root: Path, short: bool) -> dict[str, Any]:
    """The published pipeline's epoch: ResNet-32, batch 128, in eager fp32 as PyTorch has it by default."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    words = ["run", f"--device={device}", f"--seconds={1 if short else 5}"]
    words += ["--images=256", "--test=128", "--batch=16", "--workers=0"] if short else ["--workers=8"]
    command = [sys.executable, str(root / "benchmarks" / "reference.py"), *words]
    said = json.loads(subprocess.run(command, check=True, text=True, stdout=subprocess.PIPE).stdout)
    return {
        "epoch_s": round(said["epoch_seconds"], 3),
        "step_ms": round(1000 * said["step_seconds"], 2),
        "train_s_200": round(WHOLE * said["epoch_seconds"], 1),
    }


def lines(root: Path, room: Path, data: Path, short: bool) -> dict[str, Callable[[], dict[str, Any]]]:
    """All that is timed, by the line's name, most important first."""
    file = room / "clock.json"

    def of_stage(label: str) -> dict[str, Any]:
        return timed(timed_recipe(label, root, room, data, file, short), room, file)

    def of_ce(precision: str, accelerate: str) -> dict[str, Any]:
        return timed(quick_recipe(precision, accelerate, root, room, data, file, short), room, file)

    def of_large(accelerate: str) -> dict[str, Any]:
        return timed(large_recipe(accelerate, file, short), room, file)

    ways = {f"CE {precision} {way}": partial(of_ce, precision, way) for precision, way in QUICK}
    first, later = dict(list(ways.items())[:4]), dict(list(ways.items())[4:])
    return {
        "CE": partial(of_stage, "CE"),
        "reference": partial(reference, root, short),
        **first,
        "ResNet-50 bf16 graphs": partial(of_large, "graphs"),
        **{label: partial(of_stage, label) for label in TIMED if label != "CE"},
        **later,
        **{f"ResNet-50 bf16 {way}": partial(of_large, way) for way in ("off", "compile")},
    }


def main() -> None:
    """Time one thing after the other; a line as soon as one is done."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--root", type=Path, required=True, help="the project's")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--room", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=600.0, help="nothing is begun that would last beyond these")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="these lines only")
    parser.add_argument("--short", action="store_true")
    arguments = parser.parse_args()
    arguments.room.mkdir(parents=True, exist_ok=True)
    began, longest = time.perf_counter(), 0.0
    seconds = arguments.seconds if arguments.only else _ALONE * arguments.seconds
    for label, line in lines(arguments.root, arguments.room, arguments.data, arguments.short).items():
        if arguments.only and label not in arguments.only:
            continue
        before = time.perf_counter()
        if before - began + longest > seconds:
            print(f"timing: no time for {label} and what comes after it", file=sys.stderr)
            break
        try:
            found = line()
        except (ltcore.LtcoreError, subprocess.SubprocessError) as error:  # the other lines are worth having
            found = {"error": str(error)}
        longest = max(longest, time.perf_counter() - before)
        print(json.dumps({"stage": label, **found, "took_s": round(time.perf_counter() - before, 1)}), flush=True)
    if not arguments.only and time.perf_counter() - began < arguments.seconds:
        share(arguments.root, arguments.data, arguments.room / "several", arguments.short)


if __name__ == "__main__":
    main()

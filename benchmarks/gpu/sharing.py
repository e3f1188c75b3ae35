"""Several seeds on one card at once, over one of them alone; called by `timing.py`.

All processes are started together by the engine of ``ltcore sweep``, as ``--jobs 8`` does. Then they take turns: one
seed trains alone, eight do, four, two, while the others wait. So the start of a process, which takes as long as some
epochs, is in no figure, and what each takes on the card (a CUDA context, the images) is there in all of them. With `k`
at once an epoch of each takes `over_one` times an epoch alone; `k` seeds one after the other would take `k` times.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import time
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch

from gpu.jobs import recipe_file
from ltcore import Context, Method, Options, hookimpl
from ltcore.files.environment import mps
from ltcore.recipe.loading import load_recipe
from ltcore.sweeps.engine import Engine, Observer, slots_of
from ltcore.sweeps.work import prepared

#: How many train at once, one after the other; in a rehearsal fewer.
TURNS, FEW = (1, 8, 4, 2), (1, 2)
#: Epochs of a turn, of which the first is left out; images of a batch; seconds that one waits for the others.
EPOCHS, BATCH, PATIENCE = 3, 128, 120.0


class SeedTurnsOptions(Options):
    """Options of `SeedTurns`."""

    folder: str = ""
    """Where the processes meet."""
    number: int = 0
    """Which of them this is."""
    turns: tuple[int, ...] = ()
    """How many train in each turn: those with the lowest numbers."""


class SeedTurns(Method):
    """Trains in the turns in which this process has a part, and times its epochs; must be the last of the methods."""

    Options: ClassVar[type[Options]] = SeedTurnsOptions
    interface = "1.0"

    def __init__(self, options: Any = None) -> None:
        super().__init__(options)
        self.own = own_turns(self.options.turns, self.options.number)
        self.seconds: list[float] = []
        self.began = 0.0
        self.engine = os.getppid()

    @hookimpl
    def on_epoch_start(self, context: Context) -> None:
        """Wait until this turn has come, then start the watch."""
        asked, (place, within) = self.options, divmod(context.epoch, EPOCHS)
        self._refuse_alone()
        if not within:
            turn, self.seconds = self.own[place], []
            if not place:
                self._say(f"up-{asked.number}")
                self._wait_for(f"up-{number}" for number in range(max(asked.turns)))
            if turn:
                self._wait_for(f"done-{turn - 1}-{number}" for number in range(asked.turns[turn - 1]))
        wait_for_device(context)
        self.began = time.perf_counter()

    @hookimpl
    def on_epoch_end(self, context: Context) -> None:
        """Stop the watch; behind the last turn wait for the others, whom an evaluation would disturb."""
        asked, (place, within) = self.options, divmod(context.epoch, EPOCHS)
        wait_for_device(context)
        self.seconds.append(time.perf_counter() - self.began)
        if within < EPOCHS - 1:
            return
        self._say(f"done-{self.own[place]}-{asked.number}", json.dumps(self.seconds))
        if place == len(self.own) - 1:
            last = len(asked.turns) - 1
            self._wait_for(f"done-{last}-{number}" for number in range(asked.turns[last]))

    def _say(self, name: str, text: str = "") -> None:
        folder = Path(self.options.folder)
        made = folder / f".{name}"
        made.write_text(text)
        made.rename(folder / name)

    def _wait_for(self, names: Any) -> None:
        folder, until = Path(self.options.folder), time.monotonic() + PATIENCE
        for name in names:
            while not (folder / name).exists():
                self._refuse_alone()
                if time.monotonic() > until:
                    raise TimeoutError(f"no {name} within {PATIENCE:.0f} s")
                time.sleep(0.01)

    def _refuse_alone(self) -> None:
        """End where the engine has been cut off: nobody wants the figures, and others want the card."""
        if os.getppid() != self.engine:
            raise RuntimeError("the engine has ended")


def own_turns(turns: tuple[int, ...], number: int) -> list[int]:
    """The turns in which the process of a number trains."""
    return [turn for turn, count in enumerate(turns) if number < count]


def wait_for_device(context: Context) -> None:
    if context.device.type == "cuda":
        torch.cuda.synchronize()


class Lines(Observer):
    """Prints a line as soon as a turn is over."""

    def __init__(self, folder: Path, turns: tuple[int, ...], steps: int) -> None:
        self.folder, self.turns, self.steps = folder, turns, steps
        self.epochs: list[float] = []

    def looked(self, engine: Engine) -> None:
        """Look for turns that are over."""
        for turn in range(len(self.epochs), len(self.turns)):
            files = [self.folder / f"done-{turn}-{number}" for number in range(self.turns[turn])]
            if not all(file.exists() for file in files):
                return
            epochs = [second for file in files for second in json.loads(file.read_text())[1:]]
            self.epochs.append(statistics.median(epochs))
            print(json.dumps(self._line(turn)), flush=True)

    def _line(self, turn: int) -> dict[str, Any]:
        count, epoch = self.turns[turn], self.epochs[turn]
        return {
            "stage": f"CE, {count} of {max(self.turns)} seeds at once",
            "at_once": count,
            "epoch_s": round(epoch, 3),
            "step_ms": round(1000 * epoch / self.steps, 2),
            "over_one": round(epoch / self.epochs[0], 3),
            "mps": torch.cuda.is_available() and mps(),
        }

    def failed(self, job: Any, message: str) -> None:
        """What is missing in the figures, and why."""
        print(json.dumps({"stage": "CE, several seeds at once", "failed": message}), flush=True)


def recipe_of(number: int, turns: tuple[int, ...], root: Path, room: Path, data: Path, short: bool) -> Path:
    """The recipe of one process, below `room`."""
    path = recipe_file("ce", root, room, data, short)
    plain = load_recipe(path).source
    (stage,) = plain["stages"]
    steps = -(-len(np.load(data)["train_labels"]) // BATCH)
    length = EPOCHS * len(own_turns(turns, number)) * steps
    options = {"folder": str(room / "meeting"), "number": number, "turns": list(turns)}
    content = {
        "extends": str(path),
        "name": "several_seeds",
        "description": f"cross-entropy, seed {number} of several on one card",
        "diagnostics": "off",
        "methods": {"seed_turns": {"options": options}},
        "stages": {
            stage["name"]: {
                "iterations": length,
                "schedule": {"name": "constant"},
                "methods": [*stage.get("methods", []), "seed_turns"],
                **({"epochs": None} if "epochs" in stage else {}),
            }
        },
    }
    file = room / f"seed-{number}.yaml"
    file.write_text(json.dumps(content))
    return file


def share(root: Path, data: Path, room: Path, short: bool) -> None:
    """Train several seeds on one card, and print how long an epoch of each takes.

    Args:
        root: the project's.
        data: the .npz file of the images.
        room: a folder for all files; what was there goes.
        short: two seeds, for a rehearsal.
    """
    turns = FEW if short else TURNS
    shutil.rmtree(room, ignore_errors=True)
    (room / "meeting").mkdir(parents=True)
    numbers = range(max(turns))
    recipes = [load_recipe(recipe_of(n, turns, root, room, data, short), seed=n) for n in numbers]
    _, jobs = prepared([(f"seed {n}", loaded) for n, loaded in zip(numbers, recipes, strict=True)], room / "sweep")
    steps = -(-len(np.load(data)["train_labels"]) // BATCH)
    Engine(jobs, slots_of(len(jobs), 1), Lines(room / "meeting", turns, steps)).run()

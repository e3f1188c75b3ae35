r"""Training's speed by threads and by how they wait, quiet and beside busy programs; and whether a default is bad.

    python benchmarks/threads.py --table results/threads.md      # the three networks below; about ten minutes
    python benchmarks/threads.py RECIPE --set data.options.root=DIR     # a recipe of yours, on its own data

Each is an ordinary run, whose first stage is trained as long as it takes. One process trains with OpenMP's waiting as
it is by default (active) and one with ``OMP_WAIT_POLICY=PASSIVE``, as the commands set it. Both go through the numbers
of threads by turns, --seconds each time, beside 0, 1 and (cores + 1) programs that keep a core busy. A figure is the
median over the turns. Ends with exit code 1 where the default (what ``threads`` of the recipe says, waiting passively)
reaches less than half of the best choice, quiet or beside one busy program. Beside more programs than there are cores,
a program with more threads gets more of the machine, at the cost of the others; that is shown, and asked of no default.
Other programs disturb the figures: it is for a machine on which nothing else runs.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import date
from pathlib import Path
from typing import Any

from ltcore.training.threads import automatic, usable_cores

RECIPES = Path(__file__).parents[1] / "recipes"
_SYNTHETIC = ["data.use=synthetic", "data.options.max_count=200"]
_CIFAR = [*_SYNTHETIC, "data.options.image_size=32", "data.imbalance=null"]
_PHOTOS = [
    *_SYNTHETIC,
    "data.options.root=null",
    "data.options.image_size=64",
    "data.transform=null",
    "data.normalize=null",
    "backbone.options.pretrained=null",
]
#: What is trained where no recipe is named: its name in the table, the recipe, and changes that need no data.
NETWORKS = {
    "digits, ResNet-8, 8 x 8, batch 64": (RECIPES / "digits_lt_ce.yaml", []),
    "ResNet-32, 32 x 32, batch 128": (RECIPES / "cifar10_lt_ce.yaml", _CIFAR),
    "EfficientNet-Lite0, 64 x 64, batch 64": (RECIPES / "photos_lt_ce.yaml", _PHOTOS),
}
POLICIES = ("PASSIVE", "ACTIVE")
WARM_UP = 0.3  # seconds, and a step at the least
BUSY = "while True: pass"


class _Enough(Exception):
    """All that was asked for is measured."""


def work(recipe: Path, sets: list[str]) -> None:
    """Train, and at every line ``threads seconds`` on standard input print the images a second of that many."""
    import torch

    from ltcore.progress.console import Reporter
    from ltcore.recipe.loading import load_recipe
    from ltcore.training.execute import execute
    from ltcore.training.loop import Loop, Observer

    class Measured(Observer):
        def __init__(self) -> None:
            self.warm, self.began, self.images, self.seconds = True, 0.0, 0, 0.0

        def step_ended(self, loop: Loop) -> None:
            """Measure what was asked for, and then ask for more."""
            passed = time.perf_counter() - self.began
            if not self.warm and passed > WARM_UP:
                self.warm, self.began, self.images = True, time.perf_counter(), loop.position.images
            elif self.warm and passed > self.seconds:
                print((loop.position.images - self.images) / passed, flush=True)
                asked = sys.stdin.readline().split()
                if not asked:
                    raise _Enough
                torch.set_num_threads(int(asked[0]))
                self.seconds, self.warm, self.began = float(asked[1]), False, time.perf_counter()

    loaded = load_recipe(recipe, sets)
    first = loaded.recipe.stages[0].name
    endless = {
        f"stages.{first}.epochs": 1_000_000,
        f"stages.{first}.iterations": None,
        "diagnostics": "off",
        "checkpoint_seconds": 1e9,
        "select": None,
    }
    with tempfile.TemporaryDirectory() as folder:
        try:
            execute(
                loaded.changed(endless, "benchmarks/threads.py"),
                Path(folder),
                False,
                Reporter(io.StringIO()),
                observers=[Measured()],
            )
        except _Enough:
            return


class Worker:
    """A process that trains; `rate` asks it for a figure."""

    def __init__(self, recipe: Path, sets: list[str], policy: str) -> None:
        environment = {**os.environ, "OMP_WAIT_POLICY": policy}
        environment.pop("OMP_NUM_THREADS", None)
        if policy == "ACTIVE":  # as OpenMP is without the variable, which differs from its value ACTIVE
            del environment["OMP_WAIT_POLICY"]
        command = [sys.executable, __file__, "--worker", str(recipe), *(f"--set={text}" for text in sets)]
        self._process = subprocess.Popen(
            command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self._read()  # it stands behind its first step

    def rate(self, threads: int, seconds: float) -> float:
        """Images a second."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{threads} {seconds}\n")
        self._process.stdin.flush()
        return self._read()

    def end(self) -> None:
        """End the process."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()

    def _read(self) -> float:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"the process that trains ended with exit code {self._process.wait()}")
        return float(line)


@contextmanager
def neighbours(count: int) -> Iterator[None]:
    """Programs that keep a core busy each."""
    started = [subprocess.Popen([sys.executable, "-c", BUSY]) for _ in range(count)]
    try:
        yield
    finally:
        for process in started:
            process.kill()
            process.wait()


def choices() -> list[tuple[str, int]]:
    """Waiting and threads: 1, 2, 4, ... and half of the cores and all; a single thread waits for nobody."""
    cores = usable_cores()
    numbers = sorted({*(2**power for power in range(cores.bit_length()) if 2**power <= cores), automatic(), cores})
    return [(policy, threads) for policy in POLICIES for threads in numbers if threads > 1 or policy == POLICIES[0]]


def measure(recipe: Path, sets: list[str], seconds: float, turns: int) -> dict[int, dict[tuple[str, int], float]]:
    """Images a second by neighbours and choice."""
    found: dict[int, dict[tuple[str, int], list[float]]] = {}
    workers = {policy: Worker(recipe, sets, policy) for policy in POLICIES}  # one waits while the other one trains
    for count in (0, 1, usable_cores() + 1):
        found[count] = {choice: [] for choice in choices()}
        with neighbours(count):
            for _ in range(turns):
                for choice, rates in found[count].items():
                    rates.append(workers[choice[0]].rate(choice[1], seconds))
    for worker in workers.values():
        worker.end()
    return {count: {choice: statistics.median(rates) for choice, rates in by.items()} for count, by in found.items()}


def default_of(recipe: Path, sets: list[str]) -> tuple[str, int]:
    """What ``ltcore run`` would do."""
    from ltcore.recipe.loading import load_recipe

    threads = load_recipe(recipe, sets).recipe.threads
    return POLICIES[0], automatic() if threads == "auto" else threads


def table(rows: list[dict[str, Any]]) -> list[str]:
    """Markdown lines; the default's figure is bold."""
    heads = [f"{threads} {policy.lower() if threads > 1 else ''}".strip() for policy, threads in choices()]
    lines = [
        f"| network | busy programs | {' | '.join(heads)} | default / best |",
        "| --- | --- |" + " --- |" * (len(heads) + 1),
    ]
    for row in rows:
        cells = [f"**{rate:,.0f}**" if choice == row["default"] else f"{rate:,.0f}" for choice, rate in row["rates"]]
        lines.append(f"| {row['network']} | {row['neighbours']} | {' | '.join(cells)} | {row['share']:.2f} |")
    return lines


def main() -> None:
    """Measure, print the table, and refuse a bad default."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", nargs="?", type=Path)
    parser.add_argument("--set", dest="sets", action="append", default=[])
    parser.add_argument("--seconds", type=float, default=4.0, help="of one figure")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--table", type=Path)
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        work(arguments.recipe, arguments.sets)
        return
    os.environ.pop("OMP_NUM_THREADS", None)  # it would be the default
    asked = NETWORKS if arguments.recipe is None else {arguments.recipe.stem: (arguments.recipe, [])}
    load, rows = os.getloadavg()[0], []
    for name, (recipe, sets) in asked.items():
        default = default_of(recipe, [*sets, *arguments.sets])
        found = measure(recipe, [*sets, *arguments.sets], arguments.seconds, arguments.turns)
        for count, rates in found.items():
            share = rates[default] / max(rates.values())
            rows.append(
                {"network": name, "neighbours": count, "default": default, "rates": list(rates.items()), "share": share}
            )
            print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
    import torch

    worst = min(row["share"] for row in rows if row["neighbours"] <= 1)
    named = f" {arguments.recipe}" if arguments.recipe else ""
    text = (
        "# Threads\n\nImages a second of training on the CPU, by the number of threads and by how they wait for one "
        "another: asleep (passive) or as OpenMP does by default (active), beside programs that keep a core busy each. "
        f"Bold is the default of `ltcore run`. Quiet or beside one busy program it reaches at worst {worst:.2f} of the "
        "best choice of its row; beside more than there are cores, more threads get more of the machine, at the cost "
        "of the other programs.\n\n"
        + "\n".join(table(rows))
        + f"\n\nMeasured {date.today()} on {usable_cores()} cores ({platform.machine()}), load {load:.1f} before it "
        f"began, python {platform.python_version()}, torch {torch.__version__}, medians of {arguments.turns} turns of "
        f"{arguments.seconds:g} s, with\n\n    python benchmarks/threads.py{named} --seconds {arguments.seconds:g} "
        f"--turns {arguments.turns}{f' --table {arguments.table}' if arguments.table else ''}\n"
    )
    print(text)
    if arguments.table:
        arguments.table.write_text(text)
    if worst < 0.5:
        raise SystemExit(f"a default reaches {worst:.2f} of the best choice")


if __name__ == "__main__":
    main()

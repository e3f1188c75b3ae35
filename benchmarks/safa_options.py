r"""What SAFA's options do, measured on held-out training images.

    python benchmarks/safa_options.py recipes/digits_lt_safa.yaml --seeds 0 1 2 3 4 --json runs/options.json

Held out are training images that the recipe's long tail leaves out, at most --held of each class. The table that
options are chosen by has figures on these alone; --test shows the same runs on the test images, for what was chosen.
Until SAFA starts all arms are one run, bit for bit, so a seed's run is trained up to there once, and goes on in a copy
of the process for each arm (Unix only). An arm changes options of the recipe's SAFA, --arm NAME=KEY:VALUE,...; the arm
`without` has no SAFA, and one with nothing behind the name is the recipe's. Without --arm, those of the card.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import statistics
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import yaml
from generated_rows import Epochs, Watch, watching

import ltcore.training.data
from ltcore.contract.context import Context
from ltcore.data.prepare import PreparedData, prepare
from ltcore.progress.console import Reporter
from ltcore.recipe.loading import load_recipe
from ltcore.training import loop as loop_module
from ltcore.training.execute import execute
from ltcore.training.loop import Loop, Observer

#: The paper's reading of everything that the text leaves open.
PAPER = "generation:whole,standardise:false,detach:false,numerators:trained,generated_weight:1,cycle_halves:printed"
ARMS = (
    ["without", "recipe=", f"paper={PAPER}", "whole=generation:whole", "attached=detach:false"]
    + ["numerators_trained=numerators:trained", "halves_even=cycle_halves:even"]
    + [f"weight_{weight}=generated_weight:{weight}" for weight in ("0.0", "0.2", "0.5", "1.0")]
)


def held_out(limit: int) -> Any:
    """`ltcore.data.prepare.prepare` with training images that the long tail leaves out as the validation images."""

    def change(splits: Any, asked: Any) -> PreparedData:
        data = prepare(splits, asked)
        free = torch.ones(len(splits.train), dtype=torch.bool)
        free[data.kept] = False
        if data.val is not None:
            raise SystemExit("the recipe holds images out itself")
        classes = range(len(data.class_names))
        index = torch.cat([torch.nonzero(free & (splits.train.targets == c)).flatten()[:limit] for c in classes])
        return replace(data, val=splits.train.subset(index))

    return change


class Current(Observer):
    """Knows the loop of the stage that is trained."""

    loop: Loop

    def stage_started(self, loop: Loop) -> None:
        """See `Observer`."""
        self.loop = loop


def set_arm(loop: Loop, changes: str) -> None:
    """Make the run's SAFA, which has not acted yet, that of an arm: its options, and its networks as they begin."""
    method: Any = loop.model.methods["safa"]
    if changes == "without":
        method._active = lambda context: False
        return
    pairs = dict(change.split(":", 1) for change in changes.split(",") if change)
    options = method.options.model_dump() | {key: yaml.safe_load(value) for key, value in pairs.items()}
    method.options = type(method.options)(**options)
    trained = {name: getattr(method, name) for name in "EDGQ"}
    context = Context(loop.state, "safa")
    epoch, stage = loop.state.epoch, loop.state.stage
    loop.state.epoch, loop.state.stage = -1, ""
    context.begin("on_run_start")
    method.on_run_start(context=context)
    loop.state.epoch, loop.state.stage = epoch, stage
    for name, network in trained.items():  # the optimiser knows these
        network.load_state_dict(getattr(method, name).state_dict())
        setattr(method, name, network)


def measure(recipe: Path, sets: list[str], seed: int, out: Path, arms: dict[str, str], held: int) -> list[Any]:
    """A record for each arm of a seed."""
    records: list[Any] = []
    chosen: list[str] = []
    plain = loop_module.refuse_strays
    watch, current = Watch(), Current()

    def fork(*arguments: Any) -> None:
        plain(*arguments)
        loop = current.loop
        start = loop.model.methods["safa"].options.start_epoch
        if chosen or loop.state.epoch != start:
            return
        for name, changes in arms.items():
            read, write = os.pipe()
            child = os.fork()
            if child == 0:
                os.close(read)
                chosen.extend([name, str(write)])
                set_arm(loop, changes)
                return
            os.close(write)
            with os.fdopen(read) as answer:
                text = answer.read()
            os.waitpid(child, 0)
            if not text:
                raise SystemExit(f"arm {name} of seed {seed} failed")
            records.append(json.loads(text))
            print(text.strip(), flush=True)
        raise StopIteration  # the arms have ended; nothing is left to do here

    loop_module.refuse_strays = fork  # what comes between the hooks of an epoch's start and its draws
    ltcore.training.data.prepare = held_out(held)  # type: ignore[attr-defined]
    try:
        with watching(watch):
            result, _ = execute(
                load_recipe(recipe, sets, seed),
                out,
                False,
                Reporter(io.StringIO()),
                observers=[current, Epochs(watch)],
            )
    except StopIteration:
        return records
    except BaseException:
        if chosen:
            import traceback

            traceback.print_exc()
            os._exit(1)
        raise
    finally:
        loop_module.refuse_strays = plain
    stage = result["stages"][-1]
    record = {"arm": chosen[0], "seed": seed}
    for split in ("validation", "test"):
        record[split] = {key: stage[split][key] for key in ("top1", "balanced_accuracy", "many", "medium", "few")}
    record["first"], record["last"] = (watch.epochs or [{}])[0], (watch.epochs or [{}])[-1]
    os.write(int(chosen[1]), (json.dumps(record) + "\n").encode())
    os._exit(0)


def table(records: list[Any], split: str) -> str:
    """Markdown: each arm's mean and standard deviation, and the difference to `without`, paired by seed.

    Args:
        records: of `measure`.
        split: `validation` for the held-out images, or `test`.
    """
    by_arm: dict[str, dict[int, Any]] = defaultdict(dict)
    for record in records:
        by_arm[record["arm"]][record["seed"]] = record
    lines = [
        "| arm | balanced | few | few, less `without` | recognised, first | last | scale, last |",
        "|" + " --- |" * 7,
    ]

    def spread(values: list[float]) -> str:
        return f"{100 * statistics.mean(values):.1f} ± {100 * (statistics.stdev(values) if values[1:] else 0):.1f}"

    for arm, seeds in by_arm.items():
        few = [
            r[split]["few"] - by_arm["without"][s][split]["few"]
            for s, r in seeds.items()
            if s in by_arm.get("without", {})
        ]
        cells = [spread([r[split][key] for r in seeds.values()]) for key in ("balanced_accuracy", "few")]
        cells.append(spread(few) if few and arm != "without" else "")
        for when, key in (("first", "generated"), ("last", "generated"), ("last", "scale")):
            seen = [r[when][key] for r in seeds.values() if key in r[when]]
            cells.append(f"{statistics.mean(seen):.2f}" if seen else "")
        lines.append(f"| `{arm}` | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """Measure and print the table; records are added to those that --json holds already."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2, 3, 4])
    parser.add_argument("--set", dest="sets", action="append", default=[])
    parser.add_argument("--arm", action="append", default=[])
    parser.add_argument("--held", type=int, default=50)
    parser.add_argument("--out", type=Path, default=Path("runs/options"))
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--test", action="store_true")
    arguments = parser.parse_args()
    named = [arm.split("=", 1) if "=" in arm else [arm, arm] for arm in arguments.arm or ARMS]
    records = json.loads(arguments.json.read_text()) if arguments.json.exists() else []
    sets = [*arguments.sets, "diagnostics=off"]
    for seed in arguments.seeds:
        done = {r["arm"] for r in records if r["seed"] == seed}
        arms = {name: changes for name, changes in named if name not in done}
        if arms:
            records += measure(arguments.recipe, sets, seed, arguments.out, arms, arguments.held)
            arguments.json.parent.mkdir(parents=True, exist_ok=True)
            arguments.json.write_text(json.dumps(records, indent=1) + "\n")
    print(table(records, "test" if arguments.test else "validation"))


if __name__ == "__main__":
    main()

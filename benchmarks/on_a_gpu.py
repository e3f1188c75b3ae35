r"""The published protocol on a GPU machine without network that is at hand for minutes: pack, go there, bring home.

    python benchmarks/on_a_gpu.py pack --data FOLDER              # here: fills .gpu/, which git ignores
    python3 .gpu/on_a_gpu.py go --seconds 520                     # there, in the project's root
    python benchmarks/on_a_gpu.py bring OUT                       # here: results/runs/*.json, and tables
    python benchmarks/on_a_gpu.py --rehearse --python python3.12  # here, on the CPU: all of it, in small

`pack` puts into ``.gpu/`` wheels of ltcore and of every plugin, wheels that the other Python lacks (``--carry``, with
what they need), CIFAR-100-LT at imbalance 100, and these scripts; with the repository's files it must stay under
``--limit`` MiB. The images come from ``--data FOLDER``, the folder of the published files (``cifar-100-python/``).

`go` looks at the machine and says what it lacks, runs the tests marked gpu, times five epochs of four methods
(`gpu/timing.py`), then trains the recipes of `gpu.jobs.ORDER` with the engine of ``ltcore sweep``, several at once, in
fp32 (a recipe's ``precision: auto`` would be bf16 there). A first stage that several recipes share is trained once.
Each of the three has a time limit of its own. Everything for home is in ``$OUT``: ``results.jsonl``, a record a run,
written as it ends; ``timing.jsonl``; ``environment.json``; ``log.txt``; ``runs-N.tar`` with first stages and the
checkpoints of what was unfinished. What has ended already, there or under ``results/runs/``, is not trained again, and
unfinished runs are gone on with.
"""

from __future__ import annotations

import argparse
import sys
from importlib import import_module
from pathlib import Path

from gpu.jobs import ORDER
from gpu.packing import PACKED, ROOT

#: The function behind each command; a machine needs only what its own imports.
WHERE = {
    "pack": ("packing", "pack"),
    "go": ("machine", "go"),
    "bring": ("home", "bring"),
    "rehearse": ("rehearsal", "rehearse"),
}


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    packing = commands.add_parser("pack", help="fill .gpu/ with all that the machine needs")
    going = commands.add_parser("go", help="on the GPU machine: test, time, train")
    bringing = commands.add_parser("bring", help="results from the folder that came home")
    rehearsing = commands.add_parser("rehearse", help="all of it on this CPU, in small, with a cut-off")
    for command in (packing, rehearsing):
        command.add_argument("--data", type=Path, help="folder with cifar-100-python/")
        command.add_argument(
            "--carry", nargs="+", default=["pydantic", "packaging", "pluggy"], help="distributions lacking there"
        )
        command.add_argument("--for-python", default="3.12", help="version of the Python there")
        command.add_argument("--machine", default="x86_64", help="processor there")
        command.add_argument("--limit", type=int, default=64, help="MiB that may travel")
    going.add_argument("--seconds", type=float, default=520, help="time for everything")
    going.add_argument("--test-seconds", type=float, default=120, help="time for the tests marked gpu, of it")
    going.add_argument("--timing-seconds", type=float, default=120, help="time for the timed epochs, of it")
    going.add_argument("--jobs", type=int, help="runs at once; by default from cores, memory and timing")
    going.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    going.add_argument("--only", nargs="+", default=ORDER, metavar="NAME", help="recipes cifar100_lt_NAME")
    going.add_argument("--skip", nargs="+", default=[], choices=("tests", "timing"))
    going.add_argument("--short", action="store_true", help="few images and steps, for a rehearsal")
    bringing.add_argument("folder", type=Path, help="what $OUT held")
    bringing.add_argument("--results", type=Path, default=ROOT / "results" / "runs", help="where results go")
    bringing.add_argument("--keep", type=Path, default=PACKED / "sweep", help="where stages and checkpoints go")
    rehearsing.add_argument("--python", default="3.12", help="a Python 3.12: its version or path, as uv takes it")
    rehearsing.add_argument("--torch", help="version of torch there; by default the one that is installed here")
    words = sys.argv[1:]
    arguments = parser.parse_args([word.removeprefix("--") for word in words[:1]] + words[1:])  # --rehearse, too
    module, name = WHERE[arguments.command]
    getattr(import_module(f"gpu.{module}"), name)(arguments)


if __name__ == "__main__":
    main()

r"""All re-balancing methods under one small protocol that two CPU cores finish in about two hours.

    python benchmarks/cpu_league.py --data cifar10.npz --table results/cpu_league.md

The protocol is ours, not a paper's: CIFAR-10 with 1000 images of the first class down to 10 of the last (2,480 in
all), ResNet-8, 40 epochs in batches of 64, the learning rate divided by 10 after epochs 32 and 36, every test image.
Each run is the recipe ``recipes/cifar10_lt_METHOD.yaml`` with `PROTOCOL` set, on one thread; runs that have ended
under --out are read, not repeated, and one that was killed goes on.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).parent.parent
PROTOCOL = [
    "backbone.options.depth=8",
    "stages.representation.epochs=40",
    "stages.representation.batch_size=64",
    "stages.representation.schedule.milestones=[32, 36]",
    "stages.representation.schedule.gamma=0.1",
    "stages.representation.schedule.warmup_epochs=2",
]
#: What a method's recipe needs beside the protocol: what is deferred begins at the first drop of the learning rate.
OWN = {
    "ldam_drw": ["methods.drw.options.start_epoch=32"],
    "ldam_drs": ["methods.drs.options.start_epoch=32"],
    "remix_drw": ["methods.drw.options.start_epoch=32"],
}
METHODS = (
    "ce resampling reweighting focal cb cb_focal ldam ldam_drw ldam_drs crt lws ncm la balanced_softmax mixup "
    "remix_drw mislas"
).split()


def settings(method: str, data: Path) -> list[str]:
    """The ``--set`` values of a method's run."""
    source = (
        f"data={{use: npz, options: {{path: {data}, mean: [0.4914, 0.4822, 0.4465], std: [0.2023, 0.1994, 0.2010], "
        "crop_padding: 4, flip: true}, imbalance: {kind: exponential, factor: 100, max_count: 1000}}"
    )
    return [source, *PROTOCOL, *OWN.get(method, [])]


def run(method: str, seed: int, data: Path, out: Path) -> None:
    """One run in a process of its own, on one thread; a killed one goes on."""
    command = [sys.executable, "-m", "ltcore", "run", str(ROOT / "recipes" / f"cifar10_lt_{method}.yaml")]
    command += ["--seed", str(seed), "--out", str(out)]
    for change in settings(method, data):
        command += ["--set", change]
    surroundings = os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    for attempt in (["--resume"], []):
        done = subprocess.run(command + attempt, env=surroundings, capture_output=True, text=True)
        if done.returncode == 0:
            print(f"{method} seed {seed}: {done.stdout.splitlines()[-1]}", flush=True)
            return
        if attempt and "no run of this recipe" not in done.stderr:
            break
    sys.exit(f"{method} seed {seed}:\n{done.stderr}")


def main() -> None:
    """Run what is missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("methods", nargs="*", default=METHODS)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--out", type=Path, default=Path("runs/cpu_league"))
    parser.add_argument("--workers", type=int, default=2)
    arguments = parser.parse_args()
    data = arguments.data.resolve()
    with ThreadPoolExecutor(arguments.workers) as pool:
        jobs = [(method, seed) for seed in arguments.seeds for method in arguments.methods or METHODS]
        list(pool.map(lambda job: run(*job, data, arguments.out), jobs))


if __name__ == "__main__":
    main()

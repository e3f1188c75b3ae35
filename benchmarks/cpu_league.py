r"""All re-balancing methods under one small protocol that two CPU cores finish in about two hours.

    python benchmarks/cpu_league.py --data cifar10.npz --table results/cpu_league.md

The protocol is ours, not a paper's: CIFAR-10 with 1000 images of the first class down to 10 of the last (2,478 in
all), ResNet-8, 40 epochs in batches of 64, the learning rate divided by 10 after epochs 32 and 36, every test image.
Each run is the recipe ``recipes/cifar10_lt_METHOD.yaml`` with `PROTOCOL` set, on one thread; runs that have ended
under --out are read, not repeated, and one that was killed goes on.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from datetime import date
from pathlib import Path
from typing import Any

from ltcore.errors import RecipeError
from ltcore.files.run_directory import RunDirectory
from ltcore.recipe.loading import load_recipe
from ltcore.recipe.yaml_source import dump_yaml

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
    "ce_tau_norm": ["select.holdout=5"],
    "ce_count_norm": ["select.holdout=5"],
    "cdt": ["methods.cdt.options.gamma=0.2"],
    "cdt_count_norm": ["select.holdout=5", "methods.cdt.options.gamma=0.2"],
    # STG's own later stages with nothing generated: plain cRT on the mixup network.
    "mixup_crt": ["methods.stg.options.threshold=0", "name=cifar10_lt_mixup_crt"],
    # Cross-entropy until every training image is learned, the state that CDT's figure 3 shows.
    "ce_fitted": [
        "name=cifar10_lt_ce_fitted",
        "data.options.crop_padding=0",
        "data.options.flip=false",
        "stages.representation.epochs=80",
        "stages.representation.schedule.milestones=[64, 72]",
    ],
    # Two images a class for the confidence; 40 passes over 10 classes of 1000; four classes of ten are the head.
    "glag": [
        "data.holdout=2",
        "stages.classifier.iterations=6240",
        "stages.classifier.batch_size=64",
        "methods.afg.options.head_images=200",
        "methods.distillation.options.head_images=200",
    ],
}
#: Methods whose recipe has another name.
RECIPE = {"mixup_crt": "stg", "ce_fitted": "ce"}
#: What of a recipe has to go before the protocol can be set: GLAG's own schedule and weight decay.
BEFORE = {
    "glag": [
        "stages.representation.schedule={name: multistep, milestones: [1], gamma: 0.1}",
        "stages.representation.optimizer.weight_decay=2.0e-4",
    ]
}
#: Whose first stage a method's is, so that it is trained once.
FROM = {
    "crt": "ce",
    "lws": "ce",
    "ncm": "ce",
    "mislas": "mixup",
    "ce_tau_norm": "ce",
    "ce_count_norm": "ce",
    "cdt_count_norm": "cdt",
    "mixup_crt": "mixup",
    "stg": "mixup",
}
METHODS = (
    "ce resampling reweighting focal cb cb_focal ldam ldam_drw ldam_drs crt lws ncm la balanced_softmax mixup "
    "remix_drw mislas cdt ce_tau_norm ce_count_norm cdt_count_norm mixup_crt stg gra_loss glag ce_fitted"
).split()
DEVIATION = ("ce", "ce_fitted")
FITTED = """Feature deviation dis(c) (CDT, figure 3 d), mean over the runs. `ce` has not learned its rarest classes
(hardly a training image of theirs is recognised), and their features differ little; `ce_fitted` has learned every
training image, and its deviation grows as counts fall, as the paper says:
"""
FOUND = """\
STG with its default head, a fifth of the classes and here two of ten, is below plain cRT on the same mixup networks
(`mixup_crt`). With `head_fraction: 0.5` it has 43.7 ± 2.4 and with `strength: 0.5` 43.9 ± 1.9, with both 44.4 ±
1.8: level with it, and not above. GLAG is level with balanced softmax, better calibrated, and no better than its
own first stage (`gra_loss`). MiSLAS lifts the mixup networks by fifteen points and is the best calibrated of all.
"""
COLUMNS = {"top-1": "top1", "many": "many", "medium": "medium", "few": "few", "ECE": "ece"}
ABOUT = """# cpu_league

Every re-balancing method under one small protocol. **The protocol is ours, no paper's**; its figures compare with each
other and with nothing else. CIFAR-10 with 1000 images of the first class down to 10 of the last (2,478 in all) and all
10,000 test images; ResNet-8; 40 epochs in batches of 64; learning rate 0.1 with two epochs of warm-up, divided by 10
after epochs 32 and 36; what is deferred begins at epoch 32; second stages as in the recipes. tau is chosen on five
held-out images a class (`select`), and the network then trained on all images; gamma of CDT is 0.2. `mixup_crt` is
STG's recipe with nothing generated; `ce_fitted` is cross-entropy for 80 epochs without random crops and flips. Five
classes have more than 100 images (many), three 20 to 100 (medium), two fewer than 20 (few).
"""


def recipe(method: str) -> Path:
    """The recipe's file."""
    return ROOT / "recipes" / f"cifar10_lt_{RECIPE.get(method, method)}.yaml"


def settings(method: str, data: Path) -> list[str]:
    """The ``--set`` values of a method's run."""
    source = (
        f"data={{use: npz, options: {{path: {data}, mean: [0.4914, 0.4822, 0.4465], std: [0.2023, 0.1994, 0.2010], "
        "crop_padding: 4, flip: true}, imbalance: {kind: exponential, factor: 100, max_count: 1000}}"
    )
    return [source, *BEFORE.get(method, []), *PROTOCOL, *OWN.get(method, [])]


def run(method: str, seed: int, data: Path, out: Path) -> None:
    """One run in a process of its own, on one thread, unless it has ended already; a killed one goes on."""
    try:
        begun = find(method, seed, data, out)
        if begun.finished:
            return
        attempt = ["--resume"]
    except RecipeError:
        attempt = []
    command = [sys.executable, "-m", "ltcore", "run", str(recipe(method))]
    command += ["--seed", str(seed), "--out", str(out)]
    for change in settings(method, data):
        command += ["--set", change]
    if method in FROM:
        command += ["--from", str(find(FROM[method], seed, data, out).path)]
    surroundings = os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    done = subprocess.run(command + attempt, env=surroundings, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{method} seed {seed}:\n{done.stderr}")
    print(f"{method} seed {seed}: {done.stdout.splitlines()[-1]}", flush=True)


def find(method: str, seed: int, data: Path, out: Path) -> RunDirectory:
    """Where a run is, or was begun."""
    loaded = load_recipe(recipe(method), settings(method, data), seed)
    return RunDirectory.find(out, loaded.recipe.name, dump_yaml(loaded.source))


def ended(method: str, seeds: list[int], data: Path, out: Path) -> list[dict[str, Any]]:
    """The results of the runs that have ended."""
    found = []
    for seed in seeds:
        try:
            directory = find(method, seed, data, out)
        except RecipeError:
            continue
        if directory.finished:
            found.append(directory.read_json("result.json"))
    return found


def table(results: dict[str, list[dict[str, Any]]], seeds: list[int], data: Path) -> str:
    """The page: a row a method, then CDT's feature deviation on the cross-entropy runs."""
    lines = ["| method | runs | " + " | ".join(COLUMNS) + " | tau |", "| --- |" + " --- |" * (len(COLUMNS) + 2)]
    for method, found in results.items():
        figures = [r["after_calibration"] for r in found]
        cells = [spread([figure[key] for figure in figures]) for key in COLUMNS.values()]
        chosen = [next(iter(r["selection"]["chosen"].values())) for r in found if "selection" in r]
        lines.append(f"| {method} | {len(found)} | {' | '.join(cells)} | {', '.join(map(str, chosen))} |")
    first = results["ce"]
    rows = [f"| images | {' | '.join(DEVIATION)} |", "| --- |" + " --- |" * len(DEVIATION)]
    for label, count in enumerate(first[0]["class_counts"]):
        means = (statistics.mean(value[label] for value in deviations(results[name])) for name in DEVIATION)
        rows.append(f"| {count} | {' | '.join(f'{mean:.3f}' for mean in means)} |")
    versions = first[0]["versions"]
    return (
        f"{ABOUT}\nMean ± standard deviation over the runs (seeds {', '.join(map(str, seeds))}), percent, last epoch, "
        "after calibration.\n\n"
        + "\n".join(lines)
        + f"\n\n{FOUND}\n{FITTED}\n"
        + "\n".join(rows)
        + f"\n\nMeasured {date.today()} on one CPU thread a run, python {versions['python']}, "
        f"torch {versions['torch']}, ltcore {versions['ltcore']}, with\n\n"
        f"    python benchmarks/cpu_league.py --data {data.name} --table results/cpu_league.md\n"
    )


def deviations(found: list[dict[str, Any]]) -> list[list[float]]:
    """dis(c) of each class, run by run."""
    return [r["stages"][-1]["diagnostics"]["feature_deviation"] for r in found]


def spread(values: list[float]) -> str:
    """Mean and sample standard deviation in percent; of one run the value alone."""
    deviation = f" ± {100 * statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{100 * statistics.mean(values):.1f}{deviation}"


def main() -> None:
    """Run what is missing, then write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("methods", nargs="*")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--out", type=Path, default=Path("runs/cpu_league"))
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--table", type=Path)
    parser.add_argument("--read", action="store_true", help="train nothing; the table has what has ended")
    arguments = parser.parse_args()
    methods, data = arguments.methods or METHODS, arguments.data.resolve()
    if not arguments.read:
        with ThreadPoolExecutor(arguments.workers) as pool:
            jobs = [(method, seed) for seed in arguments.seeds for method in methods]
            list(pool.map(lambda job: run(*job, data, arguments.out), jobs))
    if arguments.table:
        results = {method: ended(method, arguments.seeds, data, arguments.out) for method in methods}
        arguments.table.write_text(table(results, arguments.seeds, data))
        print(arguments.table.read_text())


if __name__ == "__main__":
    main()

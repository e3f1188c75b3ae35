"""What `ltcore train` makes of a folder in a given time, beside scikit-learn on the same features: figures and seconds.

    python benchmarks/folder.py DIR --weights FILE --model NAME --minutes 3 [--seeds 0 1 2] [--rungs 8] [--json OUT]

On the folder's own splits, one thread: what `ltcore train` does for the time, and its baseline without a method; with
weights, plain and balanced logistic regression of scikit-learn on the features of these weights and images, their C
selected on the validation images, or where there are none on one training image in five. Accuracies are on the test
images. With `--rungs M` each rung of `ltcore init` is trained once, too, that is expected to take at most M minutes
with its fewest epochs. `cpu_s` is CPU time of the whole process, imports and reading included; `wall_s` is what the
time promises.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

#: scikit-learn's C that are tried.
GRID = [10.0**power for power in range(-4, 3)]


def ran(words: list[str]) -> dict[str, float]:
    """Wall and CPU seconds of a process."""
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run(words, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(words)}: {done.stdout[-1000:]}{done.stderr[-2000:]}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"wall_s": round(time.perf_counter() - start, 1), "cpu_s": round(cpu, 1)}


def figures(run: Path) -> dict[str, float]:
    """Of a run: accuracies in percent."""
    found = json.loads((run / "result.json").read_text())["after_calibration"]
    names = ("top1", "balanced_accuracy", "many", "medium", "few", "ece")
    return {name: round(100 * found[name], 1) for name in names if found.get(name) is not None}


def newest(folder: Path) -> Path:
    """The last run in a folder of runs."""
    return max(folder.glob("*/*/result.json"), key=lambda path: path.stat().st_mtime).parent


def scikit_learn(run: Path, out: Path) -> None:
    """What a person would write: features of a run's network, and two regressions on them."""
    import numpy as np
    import torch
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import balanced_accuracy_score, log_loss
    from sklearn.preprocessing import StandardScaler

    import ltcore

    torch.set_num_threads(1)
    opened, data = ltcore.load(run), ltcore.load(run).read_data()
    splits = {name: getattr(data, name) for name in ("train", "val", "test") if getattr(data, name) is not None}
    features = {name: opened.features(name) for name in splits}
    labels = {name: np.asarray(split.targets) for name, split in splits.items()}
    scaler = StandardScaler().fit(features["train"])
    x = {name: scaler.transform(rows) for name, rows in features.items()}
    if len(labels.get("val", ())):
        fitted, chosen_on = (x["train"], labels["train"]), (x["val"], labels["val"])
    else:
        fifth = np.arange(len(labels["train"])) % 5 == 4
        fitted, chosen_on = ((x["train"][rows], labels["train"][rows]) for rows in (~fifth, fifth))
    found = {}
    for name, weight in (("plain", None), ("balanced", "balanced")):
        scores = {}
        for strength in GRID:
            model = LogisticRegression(C=strength, class_weight=weight, max_iter=300).fit(*fitted)
            probabilities = model.predict_proba(chosen_on[0])
            counts = np.bincount(chosen_on[1], minlength=len(model.classes_))
            known = np.isin(chosen_on[1], model.classes_)
            scores[strength] = log_loss(
                chosen_on[1][known], probabilities[known], labels=model.classes_,
                sample_weight=None if weight is None else 1 / counts[chosen_on[1][known]],
            )  # fmt: skip
        best = min(scores, key=scores.__getitem__)
        model = LogisticRegression(C=best, class_weight=weight, max_iter=1000).fit(x["train"], labels["train"])
        taken = model.predict(x["test"])
        found[name] = {
            "top1": round(100 * float((taken == labels["test"]).mean()), 1),
            "balanced_accuracy": round(100 * balanced_accuracy_score(labels["test"], taken), 1),
            "C": best,
        }
    out.write_text(json.dumps(found))


def compare(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """All lines for one budget and seed after seed."""
    room, lines = arguments.room, []
    room.mkdir(parents=True, exist_ok=True)
    ltcore = [sys.executable, "-m", "ltcore"]
    start = [
        word
        for name in ("weights", "model")
        if (value := getattr(arguments, name))
        for word in (f"--{name}", str(value))
    ]
    for seed in arguments.seeds:
        recipe, runs = room / f"own{seed}.yaml", room / f"runs{seed}"
        words = [
            "train",
            str(arguments.folder),
            "--minutes",
            str(arguments.minutes),
            "--recipe",
            str(recipe),
            "--force",
            *start,
        ]
        took = ran([*ltcore, *words, "--out", str(runs), "--seeds", str(seed)])
        run = newest(runs)
        lines.append({"what": "ltcore train", "seed": seed, **figures(run), **took})
        print(json.dumps(lines[-1]), flush=True)
        if arguments.train_only:
            continue
        text = recipe.read_text()
        baseline = next(line.removeprefix("#").strip() for line in text.splitlines() if "--set name=" in line)
        took = ran(["sh", "-c", f"{' '.join(ltcore)} {baseline.removeprefix('ltcore ')} --out {runs} --seed {seed}"])
        lines.append({"what": "its baseline", "seed": seed, **figures(newest(runs)), **took})
        print(json.dumps(lines[-1]), flush=True)
        if start:
            out = room / "scikit.json"
            if "trainable: [classifier]" not in text:  # scikit-learn gets the features of the weights as they came
                words = ["epochs=null", "iterations=1", "schedule=null", "optimizer.lr=1.0e-12", "methods=[]"]
                sets = [f"--set=stages.train.{word}" for word in words]
                sets += ["--set=methods={}", f"--set=name={recipe.stem}_frozen"]
                ran([*ltcore, "run", str(recipe), *sets, "--out", str(runs), "--seed", str(seed)])
                run = newest(runs)
            took = ran([sys.executable, __file__, str(run), "--scikit", str(out)])
            for name, found in json.loads(out.read_text()).items():
                lines.append({"what": f"scikit-learn, {name}", "seed": seed, **found, **took})
                print(json.dumps(lines[-1]), flush=True)
    return lines


def every_rung(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Each rung of the ladder with its fewest epochs, for the first seed."""
    from ltcore.init import choices, machine, survey
    from ltcore.init.text import recipe_text

    wishes = choices.Wishes(model=arguments.model, weights=arguments.weights, minutes=arguments.rungs)
    found, here = survey.survey(arguments.folder), machine.this_machine()
    lines = []
    for rung in choices._ladder(found, wishes, here):
        fit = choices._fit(rung, found, wishes, choices._bounds(rung, wishes)[0])
        name = f"{rung.kind} {rung.model} at {rung.size}, {fit.epochs} epochs"
        if fit.minutes > arguments.rungs:
            print(f"left out: {name}, {fit.minutes:.1f} minutes", flush=True)
            continue
        recipe = arguments.room / f"{rung.kind}_{rung.model}_{rung.size}.yaml"
        recipe.write_text(recipe_text(found, choices._choices(fit, None, found, wishes), wishes, here, recipe))
        runs, seed = arguments.room / "rungs", arguments.seeds[0]
        took = ran([sys.executable, "-m", "ltcore", "run", str(recipe), "--out", str(runs), "--seed", str(seed)])
        lines.append(
            {"what": name, "seed": seed, "expected_s": round(60 * fit.minutes), **figures(newest(runs)), **took}
        )
        print(json.dumps(lines[-1]), flush=True)
    return lines


def main() -> None:
    """Compare, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--model")
    parser.add_argument("--minutes", type=float, default=3.0)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--train-only", action="store_true", help="neither the baseline nor scikit-learn")
    parser.add_argument("--rungs", type=float, help="also each rung that takes at most so many minutes")
    parser.add_argument("--room", type=Path, default=Path("folder-benchmark"), help="for recipes and runs")
    parser.add_argument("--json", type=Path, help="lines of JSON, too")
    parser.add_argument("--scikit", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.scikit:
        scikit_learn(arguments.folder, arguments.scikit)
        return
    lines = compare(arguments)
    if arguments.rungs:
        lines += every_rung(arguments)
    if arguments.json:
        arguments.json.write_text("".join(json.dumps(line) + "\n" for line in lines))
    columns = ("top1", "balanced_accuracy", "many", "medium", "few", "ece", "cpu_s", "wall_s")
    print(f"\n| | {' | '.join(columns)} |\n|{' --- |' * (len(columns) + 1)}")
    for line in lines:
        print(f"| {line['what']}, seed {line['seed']} | {' | '.join(str(line.get(name, '')) for name in columns)} |")


if __name__ == "__main__":
    main()

r"""STG and GLAG in arms that differ in nothing else, paired by seed, on networks that are trained once.

    python benchmarks/stg_glag.py digits --seeds 0 1 2
    python benchmarks/stg_glag.py league --data cifar10.npz --seeds 0 1 2
    python benchmarks/stg_glag.py digits --read              # the tables alone, of what has ended

Suites: the digits recipes as they are, and the protocol of `cpu_league.py`. Families: ``stg`` (mixup, then the
classifier for 3,000 steps: cRT, STG with and without its mean term, with several heads) and ``glag`` (stage one, the
classifier's scales alone, AFG, AFG with distillation, and the options of AFG). The first arm of a family trains every
stage; the others take over what they share with it, as ``ltcore run --from`` does.

Beside the figures on test images, each run gets a ``dev.json``: the same on those training images of the data set that
the long tail has left out. No run has seen them, so values may be chosen on them.
"""

from __future__ import annotations

import argparse
import io
import json
import statistics
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from cpu_league import settings
from ltcore_stg.functional import augmented, partly_kept

from ltcore.contract.hookspecs import build_data
from ltcore.data.prepare import prepare
from ltcore.data.streaming import build_loader
from ltcore.discovery.binding import Hooks
from ltcore.evaluation.metrics import evaluate_logits
from ltcore.evaluation.outputs import logits_of, pooled_features
from ltcore.plan.plan import make_plan
from ltcore.progress.console import Reporter
from ltcore.recipe.loading import LoadedRecipe, load_recipe
from ltcore.runs.saved import SavedRun
from ltcore.training.execute import execute

ROOT = Path(__file__).parent.parent
STEPS = ("stages.classifier.epochs=null", "stages.classifier.iterations=3000")
AFG = ("stages.classifier.methods=[lws, afg]", "methods.distillation=null")
PRINTED = "methods.afg.options.space=printed"
STEER = {
    "fixed": ["confidence_step=0"],
    "window4": ["window=4"],
    "pool2": ["pooled_classes=2"],
    "probability": ["score=probability"],
    "probability_window4_pool2": ["score=probability", "window=4", "pooled_classes=2"],
}
#: Two-sided 95 % quantiles of Student's t for 1 to 9 degrees of freedom.
T95 = (12.71, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)
#: So many of the images that are left are looked at.
MOST = 5000
COLUMNS = ("top1", "balanced_accuracy", "many", "medium", "few", "generated_as_own_class")


@dataclass(frozen=True)
class Arm:
    """A run of a family: its name and what it changes in the family's recipe."""

    name: str
    sets: tuple[str, ...]


def stg(heads: tuple[float, ...]) -> list[Arm]:
    """Plain cRT first, which is the recipe with nothing generated."""
    arms = [Arm("mixup_crt", (*STEPS, "methods.stg.options.threshold=0"))]
    for head in heads:
        for mean in ("use", "drop"):
            options = (f"methods.stg.options.head_fraction={head}", f"methods.stg.options.mean={mean}")
            arms.append(Arm(f"stg_{mean}_head{head}", (*STEPS, *options)))
    return arms


def glag(starts: tuple[float, ...]) -> list[Arm]:
    """The scales alone on class-balanced batches first; then AFG, with its distillation, its space and its steering.

    Of `starts`, the confidences to begin with, the first is the paper's, with which every option is tried.
    """
    nothing = ("stages.classifier.methods=[lws]", "methods.afg=null", "methods.distillation=null")
    arms = [Arm("lws", (*nothing, "stages.classifier.sampler=class_balanced"))]
    paper = f"methods.afg.options.confidence={starts[0]}"
    arms += [Arm("afg", (*AFG, paper)), Arm("afg_kd", (paper,)), Arm("afg_kd_printed", (paper, PRINTED))]
    for name, options in STEER.items():
        arms.append(Arm(f"afg_kd_{name}", (paper, *(f"methods.afg.options.{each}" for each in options))))
    return arms + [Arm(f"afg_kd_from{start}", (f"methods.afg.options.confidence={start}",)) for start in starts[1:]]


@dataclass(frozen=True)
class Family:
    """Arms on one recipe, with what all of them change in it."""

    suite: str
    recipe: Path
    sets: tuple[str, ...]
    arms: list[Arm]
    out: Path
    #: Name of runs of the first stage alone, which may have ended already.
    first: str

    def load(self, arm: Arm, seed: int) -> LoadedRecipe:
        """An arm's recipe."""
        sets = [*self.sets, *arm.sets, f"name={self.name(arm)}"]
        if arm != self.arms[0]:
            sets.append("diagnostics=off")  # they take longer than a second stage
        return load_recipe(self.recipe, sets, seed)

    def name(self, arm: Arm) -> str:
        """What an arm's runs are called."""
        return f"claim_{self.suite}_{arm.name}"

    def ended(self, name: str, seed: int) -> Path | None:
        """The latest run of that name and seed that has ended."""
        found = sorted(self.out.glob(f"{name}/*-seed{seed}/result.json"))
        return found[-1].parent if found else None

    def run(self, seed: int) -> None:
        """Run what is missing of a seed; a run that was killed goes on."""
        source = self.ended(self.first, seed)
        for arm in self.arms:
            name = self.name(arm)
            path = self.ended(name, seed)
            if path is None:
                begun = any(self.out.glob(f"{name}/[!.]*-seed{seed}"))
                path = execute(self.load(arm, seed), self.out, begun, Reporter(io.StringIO()), source)[1]
                figures = json.loads((path / "result.json").read_text())["after_calibration"]
                print(f"{name} seed {seed}: {100 * figures['top1']:.2f}", flush=True)
            source = source or path
            if not (path / "dev.json").is_file():
                Dev.of(self, seed, source).write(path)


class Dev:
    """The training images that the long tail has left out, as a network of a family sees them."""

    _known: tuple[tuple[Path, int], Dev] | None = None

    def __init__(self, family: Family, seed: int, network: Path) -> None:
        self._loaded, self._network = family.load(family.arms[0], seed), network

    @classmethod
    def of(cls, family: Family, seed: int, network: Path) -> Dev:
        """The last one again, where it is the same: the arms of a seed share it."""
        if cls._known is None or cls._known[0] != (network, seed):
            cls._known = (network, seed), cls(family, seed, network)
        return cls._known[1]

    @cached_property
    def features(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Pooled features [M, D] and targets [M] of the images that are left."""
        plan, asked = make_plan(self._loaded), self._loaded.recipe.data
        splits = Hooks(plan.answers["data"], {}).call(build_data)
        data = prepare(splits, asked.model_copy(update={"holdout": 0}))
        left = torch.from_numpy(np.setdiff1d(np.arange(len(splits.train)), data.kept.numpy()))
        drawn = torch.randperm(len(left), generator=torch.Generator().manual_seed(0))[:MOST]
        left = left[drawn.sort().values]
        images = splits.train.subset(left)
        loader = build_loader(images, data.transform, data.mean, data.std, 0, torch.device("cpu"))
        return pooled_features(SavedRun(self._network).model, loader, 500), images.targets

    def write(self, path: Path) -> None:
        """Write the figures of a run's classifier into its directory."""
        pooled, targets = self.features
        saved = SavedRun(path)
        figures = evaluate_logits(
            logits_of(saved.model.classifier, pooled, 500), targets, saved.metrics["class_counts"]
        )
        (path / "dev.json").write_text(json.dumps(figures, indent=2) + "\n")


def own_class(saved: SavedRun, pooled: torch.Tensor, targets: torch.Tensor) -> float | None:
    """Of what STG makes of the tail's training images, the share that lies nearest to the mean of its own class.

    The means are those of images that no run has seen; of each training image twenty rows are made.
    """
    method = saved.model.methods["stg"]
    if method.options.threshold == 0:
        return None
    labels = saved.read_data().train.targets
    tail = ~method.head[labels]
    rows = torch.from_numpy(saved.features("train"))[tail].repeat(20, 1)
    labels = labels[tail].repeat(20)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        mean, variance = method._generate(rows)
        noise, uniform = (draw(rows.shape, generator=generator) for draw in (torch.randn, torch.rand))
        moved = augmented(rows, mean, variance, noise, method.strength[labels])
        made = partly_kept(rows, moved, uniform, method.options.threshold)
    means = torch.stack([pooled[targets == label].mean(0) for label in range(int(targets.max()) + 1)])
    return (torch.cdist(made, means).argmin(1) == labels).double().mean().item()


def families(suite: str, data: Path | None, out: Path) -> list[Family]:
    """The families of a suite."""
    recipes = ROOT / "recipes"
    if suite == "digits":
        starts = (0.6, 0.3, 0.0)
        return [
            Family("digits", recipes / "digits_lt_stg.yaml", (), stg((0.2, 0.4, 0.5)), out, "claim_digits_mixup"),
            Family("digits", recipes / "digits_lt_glag.yaml", (), glag(starts), out, "claim_digits_gra_loss"),
        ]
    assert data is not None
    league = [recipes / f"cifar10_lt_{name}.yaml" for name in ("stg", "glag")]
    common = [tuple(settings(name, data)) for name in ("stg", "glag")]
    return [
        Family("league", league[0], common[0], stg((0.2, 0.5)), out, "claim_mixup"),
        Family("league", league[1], common[1], glag((0.6, 0.3)), out, "claim_gra_loss"),
    ]


def table(family: Family, seeds: list[int]) -> str:
    """Figures of each arm in percent, means over the seeds, and how far each lies from the first arm, paired."""
    lines = []
    for split in ("dev", "test"):
        lines += [f"| {split} | runs | " + " | ".join(COLUMNS) + " | top1, paired with the first |"]
        lines += ["| --- |" + " --- |" * (len(COLUMNS) + 2)]
        base: dict[int, float] = {}
        for name, found in figures(family, seeds, split).items():
            base = base or {seed: each["top1"] for seed, each in found.items()}
            cells = [spread([each[key] for each in found.values() if each.get(key) is not None]) for key in COLUMNS]
            paired = difference([each["top1"] - base[seed] for seed, each in found.items() if seed in base])
            lines.append(f"| {name} | {len(found)} | {' | '.join(cells)} | {paired} |")
        lines.append("")
    return "\n".join(lines)


def figures(family: Family, seeds: list[int], split: str) -> dict[str, dict[int, dict[str, Any]]]:
    """For each arm that has ended, and on test images for stage one, the figures of each seed."""
    found: dict[str, dict[int, dict[str, Any]]] = {}
    for arm in family.arms:
        for seed in seeds:
            path = family.ended(family.name(arm), seed)
            if path is None or (split == "dev" and not (path / "dev.json").is_file()):
                continue
            result = json.loads((path / "result.json").read_text())
            if split == "test":
                found.setdefault("stage one", {})[seed] = result["stages"][0]["test"]
                found.setdefault(arm.name, {})[seed] = result["after_calibration"]
            else:
                found.setdefault(arm.name, {})[seed] = json.loads((path / "dev.json").read_text())
    return found


def spread(values: list[float]) -> str:
    """Mean and sample standard deviation in percent."""
    if not values:
        return ""
    return f"{100 * statistics.mean(values):.1f}" + (
        f" ± {100 * statistics.stdev(values):.1f}" if len(values) > 1 else ""
    )


def difference(values: list[float]) -> str:
    """Mean and 95 % confidence interval in points."""
    if len(values) < 2:
        return ", ".join(f"{100 * value:+.1f}" for value in values)
    half = T95[len(values) - 2] * statistics.stdev(values) / len(values) ** 0.5
    return f"{100 * statistics.mean(values):+.1f} ± {100 * half:.1f}"


def main() -> None:
    """Run what is missing, then print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("suite", choices=("digits", "league"))
    parser.add_argument("families", nargs="*", help="stg, glag; by default both")
    parser.add_argument("--data", type=Path, help="cifar10.npz, for the league")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--out", type=Path, default=Path("runs/stg_glag"))
    parser.add_argument("--read", action="store_true", help="train nothing; the tables have what has ended")
    arguments = parser.parse_args()
    if arguments.suite == "league" and arguments.data is None:
        parser.error("the league needs --data cifar10.npz")
    torch.set_num_threads(1)
    data = arguments.data.resolve() if arguments.data else None
    chosen = dict(zip(("stg", "glag"), families(arguments.suite, data, arguments.out), strict=True))
    names = arguments.families or list(chosen)
    for seed in [] if arguments.read else arguments.seeds:
        for name in names:
            chosen[name].run(seed)
    for name in names:
        print(f"## {arguments.suite}, {name}\n\n{table(chosen[name], arguments.seeds)}")


if __name__ == "__main__":
    main()

r"""Runs of two small protocols of ours, from which `claims.py` makes its page.

    python benchmarks/arms.py digits --seeds 0..4
    python benchmarks/arms.py fashion --data DIR --seeds 0..4
    python benchmarks/arms.py fashion --data DIR --seeds 0..2 --arms ce crt lws
    python benchmarks/arms.py systems --data DIR --seeds 0..2

Suites: the digits recipes as they are, tables/league.yaml on Fashion-MNIST, and of the same table the systems that the
papers compare with, each with its own baseline. An arm is a recipe, or a row of the table, with a few changes. Arms of
a seed are paired: they share all that they do not differ in, bit for bit, and what several of them have in common is
trained once. They are trained as `ltcore sweep` trains, each on one thread: what has ended under --out is not repeated,
whoever trained it, and what was killed goes on. The figures of all runs that have ended are written to
results/runs/arms_SUITE.json, and of the systems the table's records, too.

That file has what a table's records do not: diagnostics, what methods have logged, and figures of arms marked `dev` on
training images that the long tail has left out. No run has seen those, so values may be chosen on them.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import systems
import torch
from fashion import FILE, halve
from ltcore_stg import STG, StatisticsGenerator
from ltcore_stg.functional import augmented, partly_kept
from safetensors.torch import load_file

from ltcore.contract.hookspecs import build_data
from ltcore.data.prepare import prepare
from ltcore.data.streaming import build_loader
from ltcore.discovery.binding import Hooks
from ltcore.evaluation.metrics import evaluate_logits
from ltcore.evaluation.outputs import logits_of, pooled_features
from ltcore.plan.plan import make_plan
from ltcore.recipe.loading import LoadedRecipe, load_recipe
from ltcore.runs.saved import SavedRun
from ltcore.sweeps.engine import slots_of
from ltcore.sweeps.grid import seeds_of
from ltcore.sweeps.work import prepared, raise_failed, train
from ltcore.tables.records import record_of, write_record
from ltcore.tables.table import Table

ROOT = Path(__file__).parent.parent
FIGURES = ("top1", "balanced_accuracy", "many", "medium", "few", "ece")
#: At most so many of the left-out training images are looked at.
MOST = 5000


@dataclass(frozen=True)
class Arm:
    """One kind of run.

    Attributes:
        recipe: the recipe's stem, or the row of the suite's table.
        sets: what is changed in it.
        later: it is about what comes behind a first stage, so it has no diagnostics, which take longer than that.
        dev: it is also measured on the images that the long tail has left out.
    """

    recipe: str
    sets: tuple[str, ...] = ()
    later: bool = False
    dev: bool = False


def changed(arm: Arm, *sets: str, later: bool = False) -> Arm:
    """The arm with further changes."""
    return Arm(arm.recipe, (*arm.sets, *sets), later or arm.later, arm.dev)


# --- the digits -------------------------------------------------------------------------------------------------------

STEPS = ("stages.classifier.epochs=null", "stages.classifier.iterations=3000")
WITHOUT_SAFA = ("methods.safa=null", "stages.representation.trainable=[backbone, classifier]")
SAFA_DRS = (
    "methods={ldam: {options: {max_margin: 0.5, scale: 30}}, drs: {options: {start_epoch: 40}}, "
    "safa: {options: {tap: layer2, start_epoch: 40, head_ratio: 0.2}}}"
)
STG_OPTIONS, AFG, GLAG = "methods.stg.options.", "methods.afg.options.", "stages.classifier."


def stg_arms(base: Arm) -> dict[str, Arm]:
    """The same later stages with nothing generated, which is cRT on the mixup network, then STG in four forms."""
    arms = {"mixup_crt": changed(base, f"{STG_OPTIONS}threshold=0")}
    for head in (0.2, 0.4):
        for mean in ("use", "drop"):
            options = (f"{STG_OPTIONS}head_fraction={head}", f"{STG_OPTIONS}mean={mean}")
            arms[f"stg_{mean}_{head}"] = changed(base, *options, later=True)
    return arms


def afg_arms(base: Arm) -> dict[str, Arm]:
    """AFG and distillation from the paper's confidence of 0.6, parts and options of it."""
    forms = {
        "glag_afg": (f"{GLAG}methods=[lws, afg]", "methods.distillation=null"),
        "glag_afg_kd": (),
        "glag_afg_kd_printed": (f"{AFG}space=printed",),
        "glag_afg_kd_fixed": (f"{AFG}confidence_step=0",),
        "glag_afg_kd_steered": (f"{AFG}score=probability", f"{AFG}window=4", f"{AFG}pooled_classes=2"),
        "glag_afg_kd_from_0.3": (f"{AFG}confidence=0.3",),
    }
    return {name: changed(base, *sets, later=True) for name, sets in forms.items()}


def cdt_arms(base: Arm) -> dict[str, Arm]:
    """Gamma selected on held-out images, and two values of it."""
    fixed = {f"cdt_{gamma}": changed(base, "select=null", f"methods.cdt.options.gamma={gamma}") for gamma in (0.2, 0.3)}
    return fixed | {"cdt_selected": base}


LWS = (f"{GLAG}methods=[lws]", "methods.afg=null", "methods.distillation=null", f"{GLAG}sampler=class_balanced")
DIGITS = {
    "ce": Arm("digits_lt_ce"),
    "la": Arm("digits_lt_la_tau_norm", ("calibrate=[]", "methods.tau_norm=null")),
    "gra_loss": Arm("digits_lt_gra_loss"),
    **cdt_arms(Arm("digits_lt_cdt")),
    "ofa_unaugmented": Arm("digits_lt_ofa", ("methods.ofa.options.augmented=0",), later=True),
    "ofa": Arm("digits_lt_ofa", later=True),
    "ldam_drw": Arm("digits_lt_safa", (*WITHOUT_SAFA, "stages.representation.methods=[ldam, drw]")),
    "ldam_drw_safa": Arm("digits_lt_safa"),
    "ldam_drs": Arm("digits_lt_safa", (SAFA_DRS, *WITHOUT_SAFA, "stages.representation.methods=[ldam, drs]")),
    "ldam_drs_safa": Arm("digits_lt_safa", (SAFA_DRS, "stages.representation.methods=[ldam, drs, safa]")),
    **stg_arms(Arm("digits_lt_stg", STEPS, dev=True)),
    "glag_lws": Arm("digits_lt_glag", LWS, dev=True),
    **afg_arms(Arm("digits_lt_glag", (f"{AFG}confidence=0.6",), dev=True)),
}

# --- Fashion-MNIST ----------------------------------------------------------------------------------------------------

LEAGUE = ROOT / "tables" / "league.yaml"
#: Rows about what comes behind the first stage of another row.
LATER = {
    *("ofa", "crt", "lws", "ncm", "mislas", "ce_tau_norm", "ce_count_norm", "cdt_count_norm", "mixup_crt"),
    *("stg_use_0.2", "stg_use_0.4", "stg_drop_0.4", "glag_afg_kd"),
}
#: The longest second stages four times as long: does anything change?
FOUR_TIMES = {
    "mixup_crt": "classifier.iterations=12000",
    "stg_use_0.2": "classifier.iterations=12000",
    "stg_use_0.4": "classifier.iterations=12000",
    "stg_drop_0.4": "classifier.iterations=12000",
    "ofa": "finetune.iterations=8000",
    "glag_lws": "classifier.iterations=6240",
    "glag_afg_kd": "classifier.iterations=6240",
}


def system_arms(table: Table) -> dict[str, Arm]:
    """The systems and their baselines. Diagnostics would take longer than some of them."""
    return {
        row.label: Arm(name, (), later=True) for name, row in table.file.rows.items() if row.label in systems.arms()
    }


def fashion_arms(table: Table) -> dict[str, Arm]:
    """The rows of the table, and what the claims need beside them."""
    arms = {
        row.label: Arm(name, (), row.label in LATER, name.startswith(("mixup_crt", "stg", "glag")))
        for name, row in table.file.rows.items()
        if row.label in systems.SHARED or row.label not in systems.arms()
    }
    arms["ofa_unaugmented"] = changed(arms["ofa"], "methods.ofa.options.augmented=0")
    arms["stg_drop_0.2"] = changed(arms["stg_drop_0.4"], f"{STG_OPTIONS}head_fraction=0.2")
    arms |= afg_arms(arms["glag_afg_kd"])
    longer = {f"{name}_x4": changed(arms[name], f"stages.{steps}", later=True) for name, steps in FOUR_TIMES.items()}
    return arms | longer


# --- running ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Suite:
    """Arms under one protocol, and where their runs are."""

    name: str
    out: Path

    @cached_property
    def _table(self) -> Table | None:
        return None if self.name == "digits" else Table(LEAGUE)

    @cached_property
    def arms(self) -> dict[str, Arm]:
        """The arms by name."""
        if self._table is None:
            return DIGITS
        return system_arms(self._table) if self.name == "systems" else fashion_arms(self._table)

    def load(self, name: str, seed: int) -> LoadedRecipe:
        """An arm's recipe."""
        arm = self.arms[name]
        sets = [f"name={self.name}_{name}", *(["diagnostics=off"] if arm.later else []), *arm.sets]
        if self._table is None:
            return load_recipe(ROOT / "recipes" / f"{arm.recipe}.yaml", sets, seed)
        sets.append(f"data.options.root={self.out.resolve()}")
        return self._table.loaded(self._table.cells[arm.recipe, "top1"], seed, sets)

    def run(self, names: list[str], seeds: list[int], workers: int | None) -> dict[tuple[str, int], Path]:
        """Train what is missing, and measure it on what no run has seen.

        Args:
            names: the arms.
            seeds: of each.
            workers: runs at a time; None to train nothing.

        Returns:
            The directories of the runs that have ended, by arm and seed.
        """
        places = [(name, seed) for seed in seeds for name in names]
        asked = [(f"{self.name}/{name}", self.load(name, seed)) for name, seed in places]
        mine, every = prepared(asked, self.out)
        outcome = None if workers is None else train(every, slots_of(workers, 1))
        ended = {place: run for place, job in zip(places, mine, strict=True) if (run := job.finished)}
        dev = Dev()
        for (name, seed), path in ended.items():
            if self.arms[name].dev and not (path / "dev.json").is_file():
                (path / "dev.json").write_text(json.dumps(dev.figures(self.load(name, seed), path)) + "\n")
        if outcome is not None:
            raise_failed(outcome, self.out)
        return ended

    def record(self, name: str, seed: int, path: Path) -> dict[str, Any]:
        """What of a run that has ended is kept."""
        result = json.loads((path / "result.json").read_text())
        about = result["stages"][-1].get("diagnostics") or {}
        kept: dict[str, Any] = {"arm": name, "seed": seed, "test": chosen(result["after_calibration"])}
        if len(result["stages"]) > 1:
            kept["stage_one"] = chosen(result["stages"][0]["test"])
        kept |= {key: rounded(about[key]) for key in ("train_accuracy", "feature_deviation") if key in about}
        if "selection" in result:
            kept["selected"] = result["selection"]["chosen"]
        if (path / "dev.json").is_file():
            kept["dev"] = json.loads((path / "dev.json").read_text())
        if confidence := logged(path, "confidence"):
            kept["confidence"] = confidence
        return kept

    def collect(self, ended: dict[tuple[str, int], Path]) -> None:
        """Write the figures of what has ended, beside those of other arms and seeds that stand there already."""
        target = ROOT / "results" / "runs" / f"arms_{self.name}.json"
        old = json.loads(target.read_text())["runs"] if target.is_file() else []
        runs = {(run["arm"], run["seed"]): run for run in old if run["arm"] in self.arms}
        if not ended:
            raise SystemExit(f"no run of these arms and seeds has ended in {self.out}; {target} stays as it is")
        runs |= {(name, seed): self.record(name, seed, path) for (name, seed), path in ended.items()}
        about = json.loads((next(iter(ended.values())) / "result.json").read_text())
        order = list(self.arms)
        content = {
            "suite": self.name,
            "class_counts": about["class_counts"],
            "versions": about["versions"],
            "device": about["device"],
            "runs": sorted(runs.values(), key=lambda run: (order.index(run["arm"]), run["seed"])),
        }
        target.parent.mkdir(parents=True, exist_ok=True)
        for (name, _), path in ended.items():
            # Rows of the table whose records this suite makes; the baselines that it shares have others.
            if self._table is not None and self.name == "systems" and name not in systems.SHARED:
                cells = [f"{self._table.name}/{self.arms[name].recipe}/{column}" for column in self._table.file.columns]
                write_record(target.parent, record_of(path, cells))
        lines = ",\n  ".join(json.dumps(run) for run in content.pop("runs"))
        head = json.dumps(content)[1:-1]
        target.write_text(f'{{{head}, "runs": [\n  {lines}\n]}}\n')


def chosen(figures: dict[str, Any]) -> dict[str, float]:
    """The figures that the pages show."""
    return {key: round(figures[key], 5) for key in FIGURES if figures.get(key) is not None}


def rounded(values: list[float]) -> list[float]:
    """To what a table can show."""
    return [round(value, 4) for value in values]


def logged(path: Path, name: str) -> dict[str, list[float | None]]:
    """What a run's methods logged of that name, epoch by epoch: for each class its values."""
    lines = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    found = [value for line in lines for each in line.get("methods", {}).values() if (value := each.get(name))]
    if not found:
        return {}
    tail = [label for label, value in enumerate(found[0]) if value is not None and value == value]
    return {str(label): [round(values[label], 3) for values in found] for label in tail}


class Dev:
    """The training images that the long tail has left out, as the last network that was asked for sees them."""

    def __init__(self) -> None:
        self._network: bytes = b""
        self._features: tuple[torch.Tensor, torch.Tensor]

    def figures(self, loaded: LoadedRecipe, path: Path) -> dict[str, Any]:
        """What a run's classifier answers to them; for STG also `own_class`."""
        saved = SavedRun(path)
        backbone = saved.model.backbone.state_dict()
        network = b"".join(tensor.numpy().tobytes() for tensor in backbone.values())
        if network != self._network:
            self._network, self._features = network, left_out(loaded, saved)
        pooled, targets = self._features
        logits = logits_of(saved.model.classifier, pooled, 500)
        counts = json.loads((path / "result.json").read_text())["class_counts"]
        figures: dict[str, Any] = chosen(evaluate_logits(logits, targets, counts))
        if (method := trained_stg(saved)) is not None:
            figures["own_class"] = own_class(method, saved, pooled, targets)
        return figures


def left_out(loaded: LoadedRecipe, saved: SavedRun) -> tuple[torch.Tensor, torch.Tensor]:
    """Pooled features [M, D] and targets [M] of the training images that the long tail has left out."""
    plan, asked = make_plan(loaded), loaded.recipe.data
    splits = Hooks(plan.answers["data"], {}).call(build_data)
    data = prepare(splits, asked.model_copy(update={"holdout": 0}))
    left = torch.from_numpy(np.setdiff1d(np.arange(len(splits.train)), data.kept.numpy()))
    drawn = torch.randperm(len(left), generator=torch.Generator().manual_seed(0))[:MOST]
    images = splits.train.subset(left[drawn.sort().values])
    loader = build_loader(images, data.transform, data.mean, data.std, 0, torch.device("cpu"))
    return pooled_features(saved.model, loader, 500), images.targets


def trained_stg(saved: SavedRun) -> STG | None:
    """A run's STG as its last stage left it, where it has one that generates."""
    said = saved.recipe.methods.get("stg")
    if said is None or not (method := STG(STG.Options(**said.options))).options.threshold:
        return None
    last = saved.recipe.stages[-1].name
    (path,) = (saved.path / "checkpoints").glob(f"stage-*-{last}.safetensors")
    prefix = "model/methods.stg."
    state = {key.removeprefix(prefix): value for key, value in load_file(path).items() if key.startswith(prefix)}
    number, dim = state["means"].shape
    method.generator = StatisticsGenerator(dim, number, method.options.hidden or dim)
    for name, value in state.items():
        if "." not in name:
            method.register_buffer(name, value)
    method.load_state_dict(state)
    return method


def own_class(method: STG, saved: SavedRun, pooled: torch.Tensor, targets: torch.Tensor) -> float:
    """Of what STG makes of the tail's training images, the share that lies nearest to the mean of its own class.

    The means are those of images that no run has seen; of each training image twenty rows are made.
    """
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
    return round((torch.cdist(made, means).argmin(1) == labels).double().mean().item(), 4)


def main() -> None:
    """Run what is missing, then collect what has ended."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("suite", choices=("digits", "fashion", "systems"))
    parser.add_argument("--data", type=Path, default=Path("/usr/share/datasets/fashion-mnist"))
    parser.add_argument("--seeds", default="0..4", help="0..4, or 0,2,7")
    parser.add_argument("--arms", nargs="+", help="by default all")
    parser.add_argument("--out", type=Path, default=Path("runs/arms"))
    parser.add_argument("--workers", type=int, default=1, help="runs at once, on one thread each")
    parser.add_argument("--collect", action="store_true", help="run nothing")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.suite != "digits" and not (arguments.out / FILE).is_file():
        halve(arguments.data.resolve(), arguments.out)
    suite = Suite(arguments.suite, arguments.out)
    workers = None if arguments.collect else arguments.workers
    suite.collect(suite.run(arguments.arms or list(suite.arms), seeds_of([arguments.seeds]), workers))


if __name__ == "__main__":
    main()

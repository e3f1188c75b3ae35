r"""Runs of two small protocols of ours, shared by the league's table and the claims' page.

    python benchmarks/arms.py digits --seeds 0 1 2 3 4
    python benchmarks/arms.py fashion --data DIR --seeds 0 1 2 3 4
    python benchmarks/arms.py fashion --data DIR --seeds 0 1 2 --arms ce crt lws

Suites: the digits recipes as they are, and Fashion-MNIST, halved, with `PROTOCOL`. An arm is a recipe with a few
changes, and says whose first stage it takes over, so that arms of a seed are paired: they share all that they do not
differ in, bit for bit. Each run is on one thread; what has ended under --out is read and not repeated, and what was
killed goes on. The figures of all runs that have ended are written to results/runs/arms_SUITE.json, from which
`cpu_league.py` and `claims.py` make their pages.

Beside the figures on test images, arms marked `dev` get the same on training images that the long tail has left out.
No run has seen them, so values may be chosen on them.
"""

from __future__ import annotations

import argparse
import io
import json
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ltcore_stg import STG, StatisticsGenerator
from ltcore_stg.functional import augmented, partly_kept
from safetensors.torch import load_file

from ltcore.contract.hookspecs import build_data
from ltcore.data.idx import find_idx, read_idx
from ltcore.data.prepare import prepare
from ltcore.data.streaming import build_loader
from ltcore.data.torchvision_sets import FASHION_STEMS
from ltcore.discovery.binding import Hooks
from ltcore.errors import RecipeError
from ltcore.evaluation.metrics import evaluate_logits
from ltcore.evaluation.outputs import logits_of, pooled_features
from ltcore.files.run_directory import RunDirectory
from ltcore.plan.plan import make_plan
from ltcore.progress.console import Reporter
from ltcore.recipe.loading import LoadedRecipe, load_recipe
from ltcore.recipe.yaml_source import dump_yaml
from ltcore.runs.saved import SavedRun
from ltcore.training.execute import execute

ROOT = Path(__file__).parent.parent
FIGURES = ("top1", "balanced_accuracy", "many", "medium", "few", "ece")
#: At most so many of the left-out training images are looked at.
MOST = 5000


@dataclass(frozen=True)
class Arm:
    """One kind of run: a recipe's stem, what is changed in it, and the arm whose first stages are taken over."""

    recipe: str
    sets: tuple[str, ...] = ()
    first: str | None = None
    dev: bool = False


def changed(arm: Arm, *sets: str, first: str | None = None) -> Arm:
    """The arm with further changes, and its first stages from elsewhere."""
    return Arm(arm.recipe, (*arm.sets, *sets), first or arm.first, arm.dev)


# --- what the two suites share: the arms of the five papers -----------------------------------------------------------


def stg_arms(base: Arm, first: str | None) -> dict[str, Arm]:
    """The same later stages with nothing generated, which is cRT on the mixup network, then STG in four forms."""
    arms = {"mixup_crt": changed(base, "methods.stg.options.threshold=0", first=first)}
    for head in (0.2, 0.4):
        for mean in ("use", "drop"):
            options = (f"methods.stg.options.head_fraction={head}", f"methods.stg.options.mean={mean}")
            arms[f"stg_{mean}_{head}"] = changed(base, *options, first="mixup_crt")
    return arms


def glag_arms(base: Arm) -> dict[str, Arm]:
    """Weight scaling alone on class-balanced batches; AFG; AFG with distillation from the paper's 0.6; options."""
    afg = "methods.afg.options."
    plain = ("stages.classifier.methods=[lws]", "methods.afg=null", "methods.distillation=null")
    base = changed(base, f"{afg}confidence=0.6")
    scaled = Arm(base.recipe, (*base.sets[:-1], *plain, "stages.classifier.sampler=class_balanced"), None, True)
    steered = (f"{afg}score=probability", f"{afg}window=4", f"{afg}pooled_classes=2")
    rest = {
        "glag_afg": ("stages.classifier.methods=[lws, afg]", "methods.distillation=null"),
        "glag_afg_kd": (),
        "glag_afg_kd_printed": (f"{afg}space=printed",),
        "glag_afg_kd_fixed": (f"{afg}confidence_step=0",),
        "glag_afg_kd_steered": steered,
        "glag_afg_kd_from_0.3": (f"{afg}confidence=0.3",),
    }
    return {"glag_lws": scaled} | {name: changed(base, *sets, first="glag_lws") for name, sets in rest.items()}


def cdt_arms(base: Arm) -> dict[str, Arm]:
    """Gamma selected on held-out images, and two values of it."""
    fixed = {f"cdt_{gamma}": changed(base, "select=null", f"methods.cdt.options.gamma={gamma}") for gamma in (0.2, 0.3)}
    return fixed | {"cdt_selected": base}


# --- the digits -------------------------------------------------------------------------------------------------------

STEPS = ("stages.classifier.epochs=null", "stages.classifier.iterations=3000")
WITHOUT_SAFA = ("methods.safa=null", "stages.representation.trainable=[backbone, classifier]")
SAFA_DRS = (
    "methods={ldam: {options: {max_margin: 0.5, scale: 30}}, drs: {options: {start_epoch: %d}}, "
    "safa: {options: {tap: layer2, start_epoch: %d, head_ratio: 0.2}}}"
)
DIGITS = {
    "ce": Arm("digits_lt_ce"),
    "la": Arm("digits_lt_la_tau_norm", ("calibrate=[]", "methods.tau_norm=null")),
    "gra_loss": Arm("digits_lt_gra_loss"),
    **cdt_arms(Arm("digits_lt_cdt")),
    "ofa_unaugmented": Arm("digits_lt_ofa", ("methods.ofa.options.augmented=0",), "ce"),
    "ofa": Arm("digits_lt_ofa", first="ce"),
    "ldam_drw": Arm("digits_lt_safa", (*WITHOUT_SAFA, "stages.representation.methods=[ldam, drw]")),
    "ldam_drw_safa": Arm("digits_lt_safa"),
    "ldam_drs": Arm(
        "digits_lt_safa", (SAFA_DRS % (40, 40), *WITHOUT_SAFA, "stages.representation.methods=[ldam, drs]")
    ),
    "ldam_drs_safa": Arm("digits_lt_safa", (SAFA_DRS % (40, 40), "stages.representation.methods=[ldam, drs, safa]")),
    **stg_arms(Arm("digits_lt_stg", STEPS, dev=True), None),
    **glag_arms(Arm("digits_lt_glag", dev=True)),
}

# --- Fashion-MNIST ----------------------------------------------------------------------------------------------------

#: 250 images of the first class down to 5 of the last, no crops or flips: every method's first stage learns nearly all
#: of its training images, of rare classes too, as those of the published protocols do.
PROTOCOL = (
    "backbone.options.depth=8",
    "stages.representation.epochs=40",
    "stages.representation.batch_size=32",
    "stages.representation.schedule={name: multistep, milestones: [32, 36], gamma: 0.1, warmup_epochs: 2}",
    "stages.representation.optimizer.weight_decay=2.0e-4",
)
#: mixup's networks learn their training images later.
MIXED = (
    "stages.representation.epochs=80",
    "stages.representation.schedule={name: multistep, milestones: [64, 72], gamma: 0.1, warmup_epochs: 2}",
)
#: Long second stages; features of images that are neither cropped nor flipped are exact.
CLASSIFIER = (*STEPS, "stages.classifier.batch_size=64", "stages.classifier.cache=views:1")
DRW, DRS_F = "methods.drw.options.start_epoch=32", "methods.drs.options.start_epoch=32"
SAFA_STARTS = "methods.safa.options.start_epoch=32"
#: 40 generation epochs over 10 classes of 250 in batches of 64; the head has more than 100 images: three classes.
AFG = (
    "stages.classifier.iterations=1560",
    "stages.classifier.batch_size=64",
    "stages.classifier.cache=views:1",
    "methods.afg.options.head_images=100",
    "methods.distillation.options.head_images=100",
)


def fashion_arms() -> dict[str, Arm]:
    """The recipes of CIFAR-10-LT under the protocol: those of the claims first, then the rest of the league."""

    def arm(recipe: str, *sets: str, first: str | None = None, dev: bool = False) -> Arm:
        return Arm(f"cifar10_lt_{recipe}", (*PROTOCOL, *sets), first, dev)

    ofa = ("stages.finetune.iterations=2000", "stages.finetune.cache=views:1")
    stg = ("stages.generator.epochs=null", "stages.generator.iterations=1000", "stages.generator.cache=views:1")
    return {
        "ce": arm("ce"),
        "ldam_drw": arm("ldam_drw", DRW),
        "ldam_drw_safa": arm("safa_ldam_drw", DRW, SAFA_STARTS),
        "ldam_drs": arm("ldam_drs", DRS_F),
        "ldam_drs_safa": arm("safa_ldam_drw", SAFA_DRS % (32, 32), "stages.representation.methods=[ldam, drs, safa]"),
        **cdt_arms(arm("cdt_selected", "select.options={methods.cdt.options.gamma: [0.0, 0.1, 0.2, 0.3]}")),
        "ofa_unaugmented": arm("ofa", *ofa, "methods.ofa.options.augmented=0", first="ce"),
        "ofa": arm("ofa", *ofa, first="ce"),
        "la": arm("la"),
        "gra_loss": arm("gra_loss"),
        "mixup": arm("mixup", *MIXED),
        **stg_arms(arm("stg", *MIXED, *stg, *CLASSIFIER, dev=True), "mixup"),
        **glag_arms(arm("glag", *AFG, dev=True)),
        "resampling": arm("resampling"),
        "reweighting": arm("reweighting"),
        "focal": arm("focal"),
        "cb": arm("cb"),
        "cb_focal": arm("cb_focal"),
        "ldam": arm("ldam"),
        "balanced_softmax": arm("balanced_softmax"),
        "remix_drw": arm("remix_drw", DRW),
        "crt": arm("crt", *CLASSIFIER, first="ce"),
        "lws": arm("lws", *CLASSIFIER, first="ce"),
        "ncm": arm("ncm", first="ce"),
        "mislas": arm("mislas", *MIXED, *CLASSIFIER, first="mixup"),
        "ce_tau_norm": arm("ce_tau_norm", first="ce"),
        "ce_count_norm": arm("ce_count_norm", first="ce"),
        "cdt_count_norm": arm("cdt_count_norm", first="cdt_0.3"),
    }


FASHION = fashion_arms()
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
FASHION |= {
    f"{name}_x4": changed(FASHION[name], f"stages.{steps}", first=FASHION[name].first or name)
    for name, steps in FOUR_TIMES.items()
}


# --- running ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Suite:
    """Arms under one protocol, and where their runs are."""

    name: str
    arms: dict[str, Arm]
    out: Path
    data: str | None = None

    def load(self, name: str, seed: int) -> LoadedRecipe:
        """An arm's recipe. Diagnostics take longer than a second stage, so only first stages have them."""
        arm = self.arms[name]
        sets = [f"name={self.name}_{name}", *([self.data] if self.data else [])]
        if self.data and "glag" in name:
            sets.append("data.holdout=2")
        if arm.first:
            sets.append("diagnostics=off")
        return load_recipe(ROOT / "recipes" / f"{arm.recipe}.yaml", [*sets, *arm.sets], seed)

    def ended(self, name: str, seed: int) -> Path | None:
        """The latest run of exactly an arm's recipe and seed, if it has ended."""
        found = self._begun(name, seed)
        return found.path if found and found.finished else None

    def _begun(self, name: str, seed: int) -> RunDirectory | None:
        loaded = self.load(name, seed)
        try:
            return RunDirectory.find(self.out, loaded.recipe.name, dump_yaml(loaded.source))
        except RecipeError:
            return None

    def run(self, seed: int, names: list[str]) -> None:
        """Run what is missing of a seed; a run that was killed goes on."""
        dev = Dev()
        for name in names:
            arm, path = self.arms[name], self.ended(name, seed)
            if path is None:
                source = self.ended(arm.first, seed) if arm.first else None
                if arm.first and source is None:
                    raise SystemExit(
                        f"{name} takes over the first stage of {arm.first}, which has no run of seed {seed}"
                    )
                begun = self._begun(name, seed) is not None
                path = execute(self.load(name, seed), self.out, begun, Reporter(io.StringIO()), source)[1]
                figures = json.loads((path / "result.json").read_text())["after_calibration"]
                print(f"{self.name} {name} seed {seed}: {100 * figures['top1']:.2f}", flush=True)
            if arm.dev and not (path / "dev.json").is_file():
                (path / "dev.json").write_text(json.dumps(dev.figures(self.load(name, seed), path)) + "\n")

    def record(self, name: str, seed: int) -> dict[str, Any] | None:
        """What of a run that has ended is kept."""
        path = self.ended(name, seed)
        if path is None:
            return None
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

    def collect(self, seeds: list[int]) -> None:
        """Write the figures of what has ended, beside those of other seeds that stand there already."""
        target = ROOT / "results" / "runs" / f"arms_{self.name}.json"
        old = json.loads(target.read_text())["runs"] if target.is_file() else []
        runs = {(run["arm"], run["seed"]): run for run in old if run["arm"] in self.arms}
        found = [each for name in self.arms for seed in seeds if (each := self.record(name, seed))]
        runs |= {(each["arm"], each["seed"]): each for each in found}
        if not found:
            raise SystemExit(f"no run of these seeds has ended in {self.out}; {target} stays as it is")
        first = self.ended(found[0]["arm"], found[0]["seed"])
        assert first is not None
        about = json.loads((first / "result.json").read_text())
        order = list(self.arms)
        content = {
            "suite": self.name,
            "class_counts": about["class_counts"],
            "versions": about["versions"],
            "device": about["device"],
            "runs": sorted(runs.values(), key=lambda run: (order.index(run["arm"]), run["seed"])),
        }
        target.parent.mkdir(parents=True, exist_ok=True)
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


def halve(folder: Path, target: Path) -> None:
    """Write Fashion-MNIST as 14 x 14 images, each pixel the mean of four: a quarter of the work, as hard a problem."""
    arrays = {}
    for split, (images, labels) in FASHION_STEMS.items():
        pair = [(find_idx(folder, stem), ndim) for stem, ndim in ((images, 3), (labels, 1))]
        if None in (pair[0][0], pair[1][0]):
            raise SystemExit(f"{folder} does not hold Fashion-MNIST's files ({images}.gz, ...); see --data")
        large, arrays[f"{split}_labels"] = (read_idx(path, ndim) for path, ndim in pair if path)
        means = large.reshape(len(large), 14, 2, 14, 2).mean((2, 4))
        arrays[f"{split}_images"] = np.rint(means).astype(np.uint8)[..., None]
    target.parent.mkdir(parents=True, exist_ok=True)
    np.savez(target, **arrays)  # type: ignore[arg-type]


def suite(name: str, out: Path, data: Path | None = None) -> Suite:
    """A suite by its name; Fashion-MNIST's files are in `data`."""
    if name == "digits":
        return Suite(name, DIGITS, out)
    if not (halved := (out / "fashion_14x14.npz").resolve()).is_file():
        assert data is not None
        halve(data, halved)
    source = (
        f"data={{use: npz, options: {{path: {halved}, mean: [0.286], std: [0.33], crop_padding: 0, flip: false}}, "
        "imbalance: {kind: exponential, factor: 50, max_count: 250}}"
    )
    return Suite(name, FASHION, out, source)


def main() -> None:
    """Run what is missing, then collect what has ended."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("suite", choices=("digits", "fashion"))
    parser.add_argument("--data", type=Path, default=Path("/usr/share/datasets/fashion-mnist"))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2, 3, 4])
    parser.add_argument("--arms", nargs="+", help="by default all; arms that others build on come first")
    parser.add_argument("--out", type=Path, default=Path("runs/arms"))
    parser.add_argument("--workers", type=int, default=1, help="seeds at once, on one thread each")
    parser.add_argument("--collect", action="store_true", help="run nothing")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    chosen_suite = suite(arguments.suite, arguments.out, arguments.data.resolve())
    names = arguments.arms or list(chosen_suite.arms)
    if not arguments.collect:
        with ProcessPoolExecutor(arguments.workers) as pool:
            for job in [pool.submit(chosen_suite.run, seed, names) for seed in arguments.seeds]:
                job.result()
    chosen_suite.collect(arguments.seeds)


if __name__ == "__main__":
    main()

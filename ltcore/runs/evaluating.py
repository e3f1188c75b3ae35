"""``ltcore evaluate``: a run's model on any labelled images, as they are or as frequent as they will be in use."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ltcore.contract.figures import CONSOLE, FIGURES
from ltcore.contract.splits import ArraySplit, StreamedSplit
from ltcore.data.fingerprint import Fingerprint, alike, print_of
from ltcore.data.labelled import read_labelled
from ltcore.data.streaming import ArrayImages, Broken, build_loader, worker_count
from ltcore.errors import DataError, RecipeError, RunError
from ltcore.evaluation.classes import class_figures, intervals
from ltcore.evaluation.images import ImageRows, image_names
from ltcore.evaluation.metrics import evaluate_logits
from ltcore.evaluation.outputs import image_logits
from ltcore.evaluation.priors import Prior, adjusted, expected, read_prior
from ltcore.evaluation.suspects import folds_of, held_out_probabilities
from ltcore.evaluation.unsure import summary, sureness
from ltcore.files.run_directory import RunDirectory
from ltcore.files.writing import telling, write_atomically
from ltcore.plan.plan import make_plan, provider
from ltcore.recipe.loading import load_recipe
from ltcore.runs.predicting import streaming
from ltcore.runs.suspecting import FOLDS, trained
from ltcore.training.data import read_splits
from ltcore.training.loop import Observer

if TYPE_CHECKING:
    from ltcore.contract.method import Method
    from ltcore.runs.saved import SavedRun
    from ltcore.training.loop import Loop

#: Hooks by which a method makes rare classes count for more while the classifier trains.
_BALANCING = ("class_distribution", "class_weights", "adjust_logits", "build_sampler", "sample_weights")
_WORST = 5
#: Training images times classes up to which they are judged by held-out folds in passing: some seconds.
_MOST_JUDGED = 150_000


@dataclass(frozen=True)
class Evaluated:
    """What an evaluation found.

    Attributes:
        content: for ``evaluation.json``; docs/use.md has its fields.
        images: image by image.
        notes: what the user should be told, a sentence each.
    """

    content: dict[str, Any]
    images: ImageRows
    notes: list[str]


def evaluate(
    saved: SavedRun,
    data: Path,
    prior: str | None = None,
    assumed: str | None = None,
    batch_size: int = 64,
    workers: int | None = None,
    run_code: bool = False,
) -> Evaluated:
    """Evaluate a run's calibrated model on labelled images.

    Args:
        saved: the run.
        data: see `ltcore.data.labelled.read_labelled`.
        prior: how frequent the classes will be (`ltcore.evaluation.priors.read_prior`); the logits are adjusted to it,
            and figures are also given as they would be there. None leaves the logits as they are.
        assumed: how frequent the classes are for which the model's outputs hold; None for what its recipe suggests.
        batch_size: images at a time.
        workers: processes that decode; None for one per core, at most 8.
        run_code: whether code that lies beside a recipe may be run, see `ltcore.load`.

    Raises:
        DataError: the images cannot be read, or are not of the run's classes.
        RecipeError: there is no such prior, or `assumed` is given without one.
    """
    if assumed is not None and prior is None:
        raise RecipeError("--assumes says what the model's outputs hold for, which only --prior needs; give both")
    counts, names = saved.result["class_counts"], saved.class_names
    wanted = None if prior is None else read_prior(prior, counts, names)
    notes: list[str] = []

    def read_recipe(path: Path) -> tuple[ArraySplit | StreamedSplit, Sequence[str]]:
        loaded = load_recipe(path, runs_code=run_code)
        splits = read_splits(loaded, provider(loaded, "data", loaded.recipe.data.use)[1])
        notes.append(f"the images are the test images of {path}")
        return splits.test, splits.class_names

    found = read_labelled(data, names, read_recipe)
    notes += found.notes
    logits, kept, broken = _logits(saved, found.split, batch_size, workers)
    notes += [f"{each.said}: cannot be decoded, left out" for each in broken]
    if (crops := saved.description.transform.crops) > 1:
        notes.append(f"of each image {crops} crops are looked at, whose logits are averaged, as the run's recipe says")
    targets = found.split.targets[kept]
    shown = image_names(found.split)
    about: dict[str, Any] = {}
    if wanted is not None:
        start, why = (read_prior(assumed, counts, names), "as asked for") if assumed else _assumed(saved)
        notes.append(f"the model's outputs are taken to hold for {_said(start)} ({why}); --assumes says otherwise")
        logits = adjusted(logits, start, wanted)
        about = {"prior": wanted.name, "shares": wanted.shares.tolist(), "assumed": start.name}
        about["expected"] = expected(logits, targets, wanted)
    thresholds = saved.description.unsure
    if thresholds is not None and wanted is not None:
        notes.append("the thresholds below which predictions are unsure do not hold for adjusted outputs; left out")
        thresholds = None
    if thresholds is not None:
        about["unsure"] = {"asked": thresholds.precision, **sureness(thresholds, logits, targets)}
    rows = ImageRows.of([shown[place] for place in kept.tolist()], logits, targets, thresholds)
    predictions = torch.from_numpy(rows.predictions)
    support = torch.bincount(targets, minlength=len(names))
    seen = _trained_on(saved, found.split)
    if seen:
        notes.append(
            f"{seen} of {len(found.split)} images look like ones that the run was trained on (the same pixels, or the "
            "same size, name and folder); figures on these say nothing of new images"
        )
    if absent := [name for name, count in zip(names, support.tolist(), strict=True) if not count]:
        notes.append(f"{len(absent)} of {len(names)} classes have no image here, first '{absent[0]}'")
    content = {
        "run": str(saved.path),
        "data": str(data),
        "images": len(targets),
        "trained_on": seen,
        "class_names": list(names),
        "class_counts": list(counts),
        **about,
        "figures": evaluate_logits(logits, targets, counts),
        "intervals": intervals(predictions, targets, counts),
        "classes": class_figures(predictions, targets, len(names)),
    }
    return Evaluated(content, rows, notes)


def _logits(
    saved: SavedRun, split: ArraySplit | StreamedSplit, batch_size: int, workers: int | None
) -> tuple[Tensor, Tensor, list[Broken]]:
    """Logits [M, C] of the images that can be decoded, where they stand [M], and the others."""
    model = saved.model.to("cuda" if torch.cuda.is_available() else "cpu")
    device, told = next(model.parameters()).device, saved.description
    crops = told.transform.crops
    found: list[Tensor] = []
    broken: list[Broken] = []
    with torch.no_grad():
        if isinstance(split, ArraySplit) and told.transform.whole_batches:
            size, channels = told.transform.image_size, len(told.mean)
            if split.images.shape[1:] != (channels, size, size):
                raise DataError(
                    f"the images are {list(split.images.shape[1:])} (channels, height, width), but the model takes "
                    f"{[channels, size, size]}"
                )
            loader = build_loader(split, told.transform, told.mean, told.std, 0, device, training=False)
            batches = loader.eval_batches(batch_size, crops > 1)
            found = [image_logits(model, images, crops).cpu() for images in batches]
        else:
            opened = ArrayImages(split) if isinstance(split, ArraySplit) else split
            count = worker_count("auto") if workers is None else workers
            for images, unread in streaming(told, opened, count, device).readable_batches(batch_size):
                broken += unread
                if len(images):
                    found.append(image_logits(model, images, crops).cpu())
    if not found:
        raise DataError(f"no image can be decoded; the first is {broken[0].said}")
    kept = torch.ones(len(split), dtype=torch.bool)
    kept[[each.index for each in broken]] = False
    return torch.cat(found), torch.nonzero(kept).flatten(), broken


def _trained_on(saved: SavedRun, split: ArraySplit | StreamedSplit) -> int:
    """How many of the images the run's training split has, too, before its long tail was cut."""
    path = RunDirectory(saved.path).data
    if not path.exists():
        return 0  # of an earlier version
    try:
        return alike(print_of(split), Fingerprint.from_bytes(path.read_bytes()).splits["train"])
    except (OSError, ValueError, KeyError) as error:
        raise RunError(f"{path} is damaged ({error}); copy it again from where the run was trained") from error


def _assumed(saved: SavedRun) -> tuple[Prior, str]:
    """How frequent the classes are for which the model's outputs hold, as its recipe suggests, and why."""
    counts, names = saved.result["class_counts"], saved.class_names
    plan = make_plan(saved.loaded.without_weights()[0], to_run=False)
    methods = {name: entry.method for name, entry in plan.entries.items()}
    by = [name for name in saved.result["calibration"] if methods[name].balances is not False]
    reason = f"its classifier is calibrated by {', '.join(by)}" if by else ""
    for stage in reversed(plan.stages):
        if reason or not any(each.partition(".")[0] in ("classifier", "*") for each in stage.stage.trainable):
            continue
        if stage.stage.sampler not in (None, "instance"):
            reason = f"stage '{stage.stage.name}' samples {stage.stage.sampler}"
        hooked = [answer.entry.key for hook in _BALANCING for answer in stage.answers[hook]]
        balancing = [name for name in stage.stage.methods if _balances(methods[name], name in hooked)]
        if not reason and balancing:
            reason = f"stage '{stage.stage.name}' has {balancing[0]}"
        break
    if reason:
        return read_prior("uniform", counts, names), reason
    return read_prior("training", counts, names), "nothing in its recipe balances the classes"


def _balances(method: Method, hooked: bool) -> bool:
    """Whether a stage's method balances: as it says, else where it has one of the hooks."""
    return hooked if method.balances is None else method.balances


class TrainingFeatures(Observer):
    """Looks on while a run is trained, and keeps the features of its training images where they are at hand.

    Attributes:
        found: features [N, D] and labels [N] of the last stage, for `trade`.
    """

    def __init__(self) -> None:
        self.found: tuple[Tensor, Tensor] | None = None

    def stage_ended(self, loop: Loop) -> None:
        """Take what was computed for the stage anyway."""
        features = loop.state.provider.at_hand("train")
        if features is not None:
            self.found = features.flatten(1).cpu(), loop.state.training_targets


def trade(saved: SavedRun, seen: tuple[Tensor, Tensor] | None = None) -> str | None:
    """What balancing costs in accuracy where images are as unbalanced as in training, by images that are held out.

    These are the run's validation images. Where it has none, and its network stays as it was, they are its training
    images, each judged by a balanced classifier of the features of other training images.

    Args:
        saved: the run.
        seen: what `TrainingFeatures` has found.

    Returns:
        Lines for a terminal; None for a model whose outputs hold for the training images' classes already.

    Raises:
        DataError: the images cannot be read.
    """
    start, _ = _assumed(saved)
    if start.name == "training":
        return None
    counts, names = saved.result["class_counts"], saved.class_names
    if "validation" in saved.result["stages"][-1]:
        split = saved.read_data().val
        assert split is not None
        logits, kept, _ = _logits(saved, split, saved.recipe.eval_batch_size, None)
        targets, whose = split.targets[kept], f"the {len(kept)} validation images"
    elif seen is not None and not trained(saved) and len(seen[1]) * len(names) <= _MOST_JUDGED:
        folds = folds_of(seen[1].numpy(), FOLDS, saved.result["seed"])
        shares = held_out_probabilities(seen[0].float().numpy(), seen[1].numpy(), len(names), folds)
        judged = torch.from_numpy(folds >= 0)
        logits, targets = torch.from_numpy(shares).clamp(min=1e-12).log()[judged], seen[1][judged]
        start, whose = read_prior("uniform", counts, names), f"{len(targets)} training images, each held out once"
    else:
        return (
            "What balancing costs in top-1 is not known, as no images are held out to tell;\ndata.holdout in the "
            "recipe holds some out."
        )
    training = read_prior("training", counts, names)
    there = adjusted(logits, start, training)
    plain, other = (f"{100 * (expected(each, targets, training)['top1'] or 0):.1f}" for each in (logits, there))
    balanced = evaluate_logits(there, targets, counts)["balanced_accuracy"]
    known = len(set(targets.tolist()))
    covered = "" if known == len(counts) else f", of {known} of {len(counts)} classes"
    return (
        f"Of images as unbalanced as the training images top-1 would be {plain}, and {other} with\noutputs adjusted to "
        f"them (ltcore evaluate RUN DATA --prior training), whose\nbalanced accuracy is {100 * balanced:.1f}.\n"
        f"(By {whose}{covered}.)"
    )


def _said(prior: Prior) -> str:
    return {"uniform": "classes that are all as frequent", "training": "classes as frequent as in training"}.get(
        prior.name, f"classes as frequent as {prior.name} says"
    )


def render(found: Evaluated) -> list[str]:
    """The figures as lines for a terminal of 80 columns."""
    content = found.content
    figures, ends, classes = content["figures"], content["intervals"], content["classes"]
    shown = [name for name in CONSOLE if figures[name] is not None]
    rows = [
        ["", *(FIGURES[name].short for name in shown)],
        ["percent", *(f"{100 * figures[name]:.1f}" for name in shown)],
        ["95 % interval", *(_ends(ends.get(name)) for name in shown)],
    ]
    if "expected" in content:
        told = content["expected"]
        rows.append([f"if {content['prior']}", *(f"{100 * told[name]:.1f}" if name in told else "" for name in shown)])
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [f"{content['images']} images in {content['data']}"]
    for first, *others in rows:
        cells = (text.rjust(width) for text, width in zip(others, widths[1:], strict=True))
        lines.append("  ".join([first.ljust(widths[0]), *cells]).rstrip())
    if "unsure" in content:
        lines.append(f"of the images {summary(content['unsure'], content['unsure']['asked'])}")
    known = [label for label, value in enumerate(classes["recall"]) if value is not None]
    worst = sorted(known, key=lambda label: (classes["recall"][label], -classes["support"][label]))[:_WORST]
    lines += ["", "the classes with the lowest accuracy:"]
    for label in worst:
        right, tested = classes["correct"][label], classes["support"][label]
        lines.append(
            f"  {content['class_names'][label]}: {right} of {tested} right, {_ends(classes['recall_interval'][label])} "
            f"percent; {content['class_counts'][label]} training images"
        )
    return lines


def _ends(ends: Sequence[float] | None) -> str:
    return "" if ends is None else f"{100 * ends[0]:.0f}-{100 * ends[1]:.0f}"


def refuse_folder(folder: Path) -> None:
    """Refuse, before any work is done, a place where no folder can be made.

    Raises:
        RecipeError: a file is there, or it is in no folder.
    """
    if folder.exists() and not folder.is_dir():
        raise RecipeError(f"--out {folder}: a file is there; name a folder")
    if not folder.parent.is_dir():
        raise RecipeError(f"--out {folder}: there is no folder {folder.parent}; make it, or name another one")


def write(found: Evaluated, folder: Path) -> None:
    """Write ``evaluation.json``, ``predictions.csv`` and ``errors.csv`` into a folder, which is made.

    Raises:
        RunError: it cannot be written.
    """
    with telling(folder, "or name another folder"):
        folder.mkdir(exist_ok=True)
    found.images.write(folder, found.content["class_names"])
    write_atomically(folder / "evaluation.json", as_json(found).encode(), "or name another folder")


def as_json(found: Evaluated) -> str:
    """The content of ``evaluation.json``."""
    return json.dumps(found.content, indent=2) + "\n"

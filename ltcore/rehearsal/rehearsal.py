"""``ltcore rehearse RECIPE``: what a recipe will take, found out without its data and without a result."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from ltcore.contract.facts import DataFacts
from ltcore.contract.imbalance import Imbalance
from ltcore.data.counts import photographs, read_counts
from ltcore.data.prepare import PreparedData, prepare
from ltcore.errors import DataError, RecipeError
from ltcore.files.run_directory import RunDirectory
from ltcore.plan.plan import Plan, make_plan
from ltcore.recipe.loading import load_recipe
from ltcore.rehearsal.run import WARM_UP, Rehearsal
from ltcore.training.data import choose_device, read_data
from ltcore.training.selection import Selection
from ltcore.training.threads import computing_with
from ltcore.training.trace import STEPS

_NO_FOLDER = "/LTCORE_DATA is not set"


def rehearse(
    recipe: Path,
    sets: Sequence[str] = (),
    seed: int | None = None,
    steps: int = 5,
    counts: Path | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:
    """Go through every stage of a recipe for a few steps, and project what the whole run takes.

    Args:
        recipe: the recipe file.
        sets: changes ``PATH=VALUE``.
        seed: overrides the recipe's seed.
        steps: measured steps of the first and of the last epoch of each stage, after a warm-up.
        counts: a file of class counts, in place of those that the data set states.
        say: tells the user which stage is rehearsed.

    Returns:
        What ``--json`` prints; seconds, and bytes.

    Raises:
        LtcoreError: as in a run; or the class counts are not known, or memory has run out.
    """
    with _rehearsal(recipe, sets, seed, steps, counts, say) as (run, networks, notes):
        run.train()
        at_the_end, threads = run.finish(), torch.get_num_threads()
    loaded, data = run.plan.loaded, run.assembly.data.whole
    notes += run.notes.notes
    if run.loaders.reduced:
        notes.append(
            f"a batch of evaluation (eval_batch_size {loaded.recipe.eval_batch_size}) takes longer than a rehearsal "
            "should: its time is projected from a few images, and its memory is not among the figures"
        )
    return {
        "recipe": loaded.recipe.name,
        "estimate": True,
        "device": str(run.device),
        "threads": threads,
        "workers": run.loaders.workers,
        "load": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        "measured_steps": steps,
        "warm_up_steps": WARM_UP,
        "data": {
            "use": loaded.recipe.data.use,
            "classes": len(data.class_counts),
            "largest": int(data.class_counts.max()),
            "smallest": int(data.class_counts.min()),
            "train": len(data.train),
            "validation": len(data.val or ()),
            "test": len(data.test or ()),
            "image_size": data.transform.image_size,
        },
        "backbone": loaded.recipe.backbone.use,
        "parameters": sum(p.numel() for p in run.assembly.model.parameters()),
        "notes": [*notes, *data.notes],
        "stages": run.stopwatch.stages,
        "end_seconds": at_the_end,
        "networks": networks,
        "seconds": networks * (sum(stage["seconds"] for stage in run.stopwatch.stages) + at_the_end),
        "memory": run.stopwatch.memory,
        "checkpoint_bytes": run.stopwatch.checkpoint_bytes,
    }


def trace_hooks(
    recipe: Path,
    sets: Sequence[str] = (),
    counts: Path | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:
    """Train the first steps of every stage of a recipe, and time the methods' hooks in them.

    Args:
        recipe: the recipe file.
        sets: changes ``PATH=VALUE``.
        counts: a file of class counts, in place of those that the data set states.
        say: tells the user which stage is rehearsed.

    Returns:
        What ``ltcore trace --json`` prints.

    Raises:
        LtcoreError: as `rehearse`.
    """
    with _rehearsal(recipe, sets, None, STEPS - WARM_UP, counts, say, tracing=True) as (run, _, notes):
        run.train()
    return {
        "recipe": run.plan.loaded.recipe.name,
        "device": str(run.device),
        "notes": [*notes, *run.assembly.data.whole.notes, *run.notes.notes],
        "stages": run.traces,
    }


@contextmanager
def _rehearsal(
    recipe: Path,
    sets: Sequence[str],
    seed: int | None,
    steps: int,
    counts: Path | None,
    say: Callable[[str], None],
    tracing: bool = False,
) -> Iterator[tuple[Rehearsal, int, list[str]]]:
    """A rehearsal that is ready to train, how many networks the recipe trains, and what to say about it."""
    with _any_folder():
        loaded = load_recipe(recipe, sets, seed)
    loaded, left_out = loaded.without_weights()
    notes = [
        f"{path}: no weights are fetched or read; the network starts at random ones"
        if path.startswith("backbone.")
        else f"{path}: no weights are fetched or read; the method goes on as without them"
        for path in left_out
    ]
    networks = 1
    if loaded.recipe.select is not None:
        selection = Selection(loaded)
        networks = len(selection.networks) + selection.asked.retrain
        candidate = {path: values[0] for path, values in selection.asked.options.items()}
        loaded = loaded.changed({**candidate, "select": None}, loaded.where("select"))
        notes.append(f"{networks} networks are trained one after another; one is rehearsed, with the first candidates")
    plan = make_plan(loaded)
    device = choose_device(loaded)
    cut, about = _data(plan, counts)
    notes += [*about, *plan.warnings]
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    temporary = Path(tempfile.mkdtemp(prefix="ltcore-rehearsal-"))
    try:
        with computing_with(loaded.recipe.threads):
            yield Rehearsal(plan, cut, _directory(temporary), device, steps, say, tracing=tracing), networks, notes
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def _any_folder() -> Iterator[None]:
    """Let a recipe name its folder by LTCORE_DATA where that is not set: a rehearsal does not look there."""
    named = os.environ.get("LTCORE_DATA")
    os.environ["LTCORE_DATA"] = _NO_FOLDER if named is None else named
    try:
        yield
    finally:
        if named is None:
            del os.environ["LTCORE_DATA"]


def _directory(path: Path) -> RunDirectory:
    (path / "checkpoints").mkdir()
    return RunDirectory(path)


def _data(plan: Plan, counts: Path | None) -> tuple[Callable[[Imbalance | None], PreparedData], list[str]]:
    """What the run trains on, given an imbalance in place of the recipe's or None, and what to say about it.

    Raises:
        DataError: the class counts are not known and the data is not there, or the file of counts is wrong.
    """
    loaded = plan.loaded
    asked = loaded.recipe.data
    facts: DataFacts | None = plan.data.method.facts()
    if counts is not None:
        given = read_counts(counts)
        facts = photographs(given, asked.transform.image_size or 224) if facts is None else facts.with_counts(given)
    if facts is None:

        def read(imbalance: Imbalance | None) -> PreparedData:
            try:
                return read_data(loaded, plan.answers["data"], imbalance)
            except DataError as error:
                error.within(
                    after=". A rehearsal without the data needs its class counts: --counts FILE, a JSON list of the "
                    "training images of each class"
                )
                raise

        return read, [f"{asked.use} states no class counts, so its own images were read"]
    notes = ["noise stands for the images" + _decoded(facts)]
    if facts.approximate:
        notes.append(f"{facts.approximate}; --counts FILE replaces the counts")
    if asked.broken == "skip":
        asked = asked.model_copy(update={"broken": "error"})
        notes.append("data.broken: skip decodes every image once before training, which is not in the projection")
    splits = facts.splits()

    def stand_in(imbalance: Imbalance | None) -> PreparedData:
        try:
            return prepare(splits, asked if imbalance is None else asked.model_copy(update={"imbalance": imbalance}))
        except (DataError, RecipeError) as error:
            error.within(f"{loaded.where('data')}: ")
            raise

    return stand_in, notes


def _decoded(facts: DataFacts) -> str:
    if facts.stored is None:
        return ""
    width, height = facts.stored
    return f": JPEGs of {width} x {height} pixels in memory, decoded as files would be; reading a disk is not counted"

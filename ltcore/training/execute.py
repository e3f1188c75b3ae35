"""From a recipe to a run that has ended, with what is chosen or taken over before it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from ltcore import ranks
from ltcore.data.streaming import naming_dead_workers
from ltcore.errors import DataError, RecipeError
from ltcore.files.run_directory import RunDirectory
from ltcore.plan.plan import Plan, make_plan
from ltcore.progress.console import Reporter
from ltcore.recipe.yaml_source import dump_yaml
from ltcore.training import reuse
from ltcore.training.acceleration import chosen
from ltcore.training.assembly import Assembly
from ltcore.training.data import RunData, choose_device, inspected, known, read_data, read_splits
from ltcore.training.loop import Observer
from ltcore.training.result import result_rows
from ltcore.training.run import Run
from ltcore.training.selection import Selection
from ltcore.training.threads import as_the_recipe_says
from ltcore.training.unchanged import Allowed, begin, environment_of

if TYPE_CHECKING:
    import torch

    from ltcore.contract.result import Result
    from ltcore.data.prepare import PreparedData
    from ltcore.recipe.loading import LoadedRecipe


@as_the_recipe_says
def execute(
    loaded: LoadedRecipe,
    out: Path,
    resume: bool | RunDirectory,
    reporter: Reporter,
    source: Path | None = None,
    observers: Sequence[Observer] = (),
    allowed: Allowed | None = None,
    verify: bool = False,
    features: Path | None = None,
) -> tuple[Result, Path]:
    """Run a recipe, or go on with its latest run.

    Args:
        loaded: the recipe.
        out: where run directories are made.
        resume: go on with the latest run of exactly this recipe, or with this one.
        reporter: tells the user how it goes.
        source: directory of a run whose stages are taken over, as many as are the same.
        observers: look on while stages are trained, but for the networks of a selection.
        allowed: what may differ from what the run, or the one whose stages are taken over, was trained with.
        verify: decode all images before training.
        features: a folder in which other runs look for features of frozen stages, too.

    Returns:
        The content of ``result.json`` and the run directory.

    Raises:
        LtcoreError: anything that the user can put right, as one message.
    """
    plan, device = make_plan(loaded), choose_device(loaded)
    with ranks.together(device.type), naming_dead_workers():
        reporter = reporter if ranks.leading() else Reporter.silent()
        return _execute(
            loaded, plan, device, out, resume, reporter, source, observers, allowed or Allowed(), verify, features
        )


def _execute(
    loaded: LoadedRecipe,
    plan: Plan,
    device: torch.device,
    out: Path,
    resume: bool | RunDirectory,
    reporter: Reporter,
    source: Path | None,
    observers: Sequence[Observer],
    allowed: Allowed,
    verify: bool,
    features: Path | None,
) -> tuple[Result, Path]:
    recipe = loaded.recipe
    for index in range(len(plan.stages)):
        chosen(plan, index, device)  # which may refuse the stage, before data is read
    selection = Selection(loaded) if recipe.select else None
    text = dump_yaml(loaded.source)
    with ranks.first():  # which may make a new one behind that
        if isinstance(resume, RunDirectory):
            found: RunDirectory | None = resume
        else:
            found = _begun(out, recipe.name, text, resume)
    if found and found.finished:
        reporter.note(f"{found.path} has already ended; this is its result")
        result = found.read_result()
        reporter.finished(result_rows(result), found.path)
        return result, found.path
    reused = None if source is None else reuse.find(source, selection.settled(source) if selection else loaded)
    with ranks.first():  # which may have to fetch it
        splits = read_splits(loaded, plan.answers["data"])
    weights = plan.skeleton.pretraining
    data = inspected(loaded, read_data(loaded, plan.answers["data"], splits=splits, weights=weights), verify)
    if found and recipe.data.broken == "skip" and not found.skips_broken:
        _refuse_missing(loaded, found, data)
    fingerprint = known(loaded, splits)
    del splits  # of a long tail, most images of a set that lies in memory are not needed any more
    surroundings = environment_of(plan, device)
    ranks.refuse_differences(
        {
            "recipe": text,
            "data set": fingerprint.digests(),
            "version of the code": [surroundings["code"], surroundings["versions"]],
        }
    )
    taken = reused.record(fingerprint, surroundings, allowed, reporter.note) if reused else None
    code = {file.name: file.content for file in loaded.code.values()}
    directory = found or RunDirectory.create(out, recipe.name, recipe.seed, text, code)
    with directory.lock():
        if directory.keep_recipe(text):
            reporter.note("note: the run's recipe.yaml is brought up to date with what was changed of this recipe")
        about = begin(directory, fingerprint, surroundings, allowed, reporter.note)
        directory.keep_code(code)
        if selection:
            first = selection.networks[0][0][1]
            held = read_data(first.loaded, plan.answers["data"], weights=first.skeleton.pretraining)
            selected = selection.run(held, directory, device, reporter)
            plan, about["selection"] = make_plan(selected.loaded), selected.record
            if not selection.asked.retrain:
                selected.adopt(directory)
                data = replace(held, notes=data.notes, duplicates=data.duplicates)
        if taken:
            about["reused"] = taken
        assembly = Assembly(plan, RunData(plan, data, device), device)
        run = Run(assembly, directory, reporter, reused, observers, features=features)
        return run.execute(about, surroundings), directory.path


def _begun(out: Path, name: str, text: str, resume: bool) -> RunDirectory | None:
    """The run to go on with; None for a new one.

    What torchrun has started again goes on by itself, where there is something to go on with.

    Raises:
        RecipeError: one was asked for, and there is none.
    """
    if resume or not ranks.restarted():
        return RunDirectory.find(out, name, text) if resume else None
    try:
        found = RunDirectory.find(out, name, text)
    except RecipeError:
        return None
    return None if found.finished else found


def _refuse_missing(loaded: LoadedRecipe, found: RunDirectory, data: PreparedData) -> None:
    """A run that ended at a broken image goes on without such images, unless it has trained with them.

    Raises:
        DataError: training images are left out, and the run has begun to train.
    """
    if data.left_out and found.checkpoints():
        raise DataError(
            f"{loaded.where('data')}: data.broken=skip leaves {data.left_out} training images out, with which "
            f"{found.path} has begun; going on without them would be no run of either recipe. Replace them and go on, "
            "or start anew without --resume"
        )

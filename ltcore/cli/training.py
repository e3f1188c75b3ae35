"""The commands that train: `run`, and `train`, which writes the recipe first."""

from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ltcore import ranks
from ltcore.cli.parser import add_command, run_named, whole
from ltcore.cli.recipes import add_wishes
from ltcore.errors import RecipeError, RunError
from ltcore.untrusted import printable

if TYPE_CHECKING:
    from ltcore.files.run_directory import RunDirectory
    from ltcore.recipe.loading import LoadedRecipe
    from ltcore.training.loop import Observer

#: Words that the command to go on with leaves out: one is added anew, and what was allowed is recorded.
_ONCE = ("--resume", "--data-changed", "--environment-changed", "--debug")


def run(
    recipe: Path | None = None,
    sets: Sequence[str] = (),
    seed: int | None = None,
    threads: int | None = None,
    out: Path = Path("runs"),
    resume: bool = False,
    source: Path | None = None,
    log: Sequence[str] = (),
    data_changed: bool = False,
    environment_changed: bool = False,
    verify: bool = False,
    seeds: Sequence[str] = (),
    features: Path | None = None,
    again: Sequence[str] | None = None,
    observers: Sequence[Observer] = (),
) -> list[Path]:
    """Train, evaluate and calibrate what a recipe describes.

    Without RECIPE, --resume goes on with the latest run that has not ended. SIGTERM, SIGHUP, SIGUSR1 and SIGUSR2 end a
    run after its step with a checkpoint and exit code 143.

    Example: ltcore run recipes/digits_lt_ofa_focal.yaml --set stages.finetune.iterations=100
    """
    from ltcore.recipe.loading import load_recipe

    if recipe is None and (not resume or sets or seed is not None or threads is not None or source):
        raise RecipeError(
            "ltcore run: name a RECIPE; only --resume goes without one, and then without --set, --seed, --threads and "
            "--from"
        )
    chosen: list[int | None] = [seed]
    if seeds:
        from ltcore.sweeps.grid import seeds_of

        if recipe is None or seed is not None:
            raise RecipeError("--seeds trains a RECIPE once for each seed, in place of --seed; name one")
        chosen = list(seeds_of(seeds))
    named = [load_recipe(recipe, sets, each, threads) for each in chosen] if recipe else []

    from ltcore.progress.logs import LoggingReporter, refuse_missing

    refuse_missing(log)

    from ltcore.training.stopping import catching

    with catching():
        from ltcore.files.run_directory import RunDirectory
        from ltcore.training.execute import execute
        from ltcore.training.unchanged import Allowed

        going_on: bool | RunDirectory = resume
        if not named:
            going_on, others = RunDirectory.latest_unfinished(out)
            named = [load_recipe(going_on.path / "recipe.yaml")]
            more = f"; {others} more have not ended" if others else ""
            print(f"going on with {going_on.path}, the latest run in {out} that has not ended{more}", flush=True)
        allowed, ended = Allowed(data_changed, environment_changed), []
        for loaded in named:
            reporter = LoggingReporter(log, loaded.source)
            if resume and seeds:
                going_on = _begun(loaded, out)
            try:
                _, path = execute(
                    loaded,
                    out,
                    going_on,
                    reporter,
                    source,
                    observers,
                    allowed=allowed,
                    verify=verify,
                    features=features,
                )
                ended.append(path)
            except KeyboardInterrupt as stop:
                text = str(stop) or "stopped"
                stop.args = (f"{text}; {_way_on(loaded, out, going_on, sys.argv[1:] if again is None else again)}",)
                raise
    if len(ended) > 1 and ranks.leading():
        from ltcore.compare import compare
        from ltcore.compare.text import render

        print()
        print(render(compare(ended), "table"), end="")
    return ended


def train(
    folder: Path,
    recipe: Path | None = None,
    out: Path = Path("runs"),
    seeds: Sequence[str] = (),
    force: bool = False,
    method: str | None = None,
    **wished: Any,
) -> None:
    """Write a recipe for a folder of images or a table of labels, train it and draw the report: init, run and report.

    The recipe is left as `ltcore init` writes it. DIR is what `ltcore init` takes. With --method all a recipe is
    trained for each method that says what suits it, all within the time. They are compared on held-out images.

    Example: ltcore train photos --minutes 3
    """
    from tempfile import TemporaryDirectory

    from ltcore.init import ALL, write_recipe, write_recipes
    from ltcore.report import write_report
    from ltcore.runs.evaluating import TrainingFeatures, trade
    from ltcore.runs.saved import load

    name = folder.expanduser().absolute().name or "photos"
    named = f"{name}.yaml" if method in (None, ALL) else f"{name}_{method}.yaml"
    path = Path(named) if recipe is None else recipe
    seen = TrainingFeatures()
    more = [word for each in seeds for word in ("--seeds", each)]

    def trained(recipe: Path, features: Path | None = None) -> list[Path]:
        again = ["run", str(recipe), "--out", str(out), *more]
        return run(recipe, out=out, seeds=seeds, features=features, again=again, observers=[seen])

    if method == ALL:
        from ltcore.init.comparing import Compared, held_out_table
        from ltcore.sweeps.grid import seeds_of

        number = len(seeds_of(seeds)) or 1
        made = write_recipes(folder, path, force, say=lambda text: print(text, flush=True), runs=number, **wished)
        found: dict[str, Compared] = {}
        out.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(prefix=".features-", dir=out) as features:
            for each, one, summary in made.written:
                print(f"== {each}\n{summary}\n", flush=True)
                start = time.perf_counter()
                try:
                    runs = trained(one, Path(features))
                except RunError as error:  # as where a loss is not finite; the others go on
                    print(f"{printable(str(error))}\n", flush=True)
                    made.left_out[each] = str(error)
                    continue
                found[each] = Compared(runs, time.perf_counter() - start)
        if not found:
            raise RunError("none of the recipes could be trained; see above")
        print("\n" + held_out_table(found, made.left_out, made.held_out))
        best = max(found, key=lambda each: found[each].score)
        # The best one last, whose errors and use are named below.
        ended = [path for each in found if each != best for path in found[each].runs] + found[best].runs
        page = path.with_name(f"{path.stem}_methods.html")
    else:
        print(write_recipe(folder, path, force, method=method, **wished) + "\n", flush=True)
        ended, page = trained(path), path.with_suffix(".html")
    for note in write_report(ended, page, features=False):  # whose map would need all images once more
        print(f"note: {printable(note)}")
    last = ended[-1]
    if cost := trade(load(last), seen.found):
        print(f"\n{cost}")
    print(f"\nreport       {printable(page)}")
    print(f"errors       {printable(last / 'errors.csv')}")
    print(f"labels       ltcore suspects {shlex.quote(str(last))}")
    print(f"use it       ltcore predict {shlex.quote(str(last))} IMAGES")


def _begun(loaded: LoadedRecipe, out: Path) -> bool:
    """Whether there is a run of this very recipe and seed to go on with."""
    from ltcore.files.run_directory import RunDirectory
    from ltcore.recipe.yaml_source import dump_yaml

    try:
        RunDirectory.find(out, loaded.recipe.name, dump_yaml(loaded.source))
    except RecipeError:
        return False
    return True


def _way_on(loaded: LoadedRecipe, out: Path, going_on: bool | RunDirectory, given: Sequence[str]) -> str:
    """The command that goes on with what was interrupted: the one that was given, with --resume."""
    from ltcore.files.run_directory import RunDirectory
    from ltcore.recipe.yaml_source import dump_yaml

    if ranks.started().size > 1:
        return "to go on: the same torchrun command, with --resume behind the recipe"
    words = [word for word in given if word not in _ONCE]
    try:
        if isinstance(going_on, RunDirectory):
            words.insert(1, str(going_on.path / "recipe.yaml"))
        elif RunDirectory.find(out, loaded.recipe.name, dump_yaml(loaded.source)).finished:
            return "nothing was begun"
    except RecipeError:
        return "nothing was begun"
    return f"to go on: {shlex.join(['ltcore', *words, '--resume'])}"


def add(commands: Any) -> None:
    """Add these commands to the command line."""
    command = add_command(commands, "train", train)
    add_wishes(command)
    text = "the recipe to write; by default the folder's name with .yaml, here"
    command.add_argument("--recipe", type=Path, metavar="RECIPE", help=text)
    command.add_argument("--out", type=Path, metavar="DIR", help="where run directories are made; by default runs")
    text = "train once for each seed, one after the other, and average: 0..4, or 0,2,7"
    command.add_argument("--seeds", action="append", metavar="SEEDS", help=text)
    command = add_command(commands, "run", run)
    command.recipe(required=False)
    command.seed()
    text = "train once for each seed, one after the other, and average: 0..4, or 0,2,7; --resume keeps what is there"
    command.add_argument("--seeds", action="append", metavar="SEEDS", help=text)
    text = "threads that PyTorch computes with on the CPU, in place of the recipe's; figures depend on it"
    command.add_argument("--threads", type=whole, metavar="N", help=text)
    command.add_argument("--out", type=Path, metavar="DIR", help="where run directories are made; by default runs")
    command.flag("--resume", "go on with the latest run of this very recipe; without RECIPE, the latest unfinished")
    text = "go on although the data is not what the run, or that of --from, was trained on; its result says so"
    command.flag("--data-changed", text, "data_changed")
    text = "go on although code, versions, device or threads are not what they were; its result says so"
    command.flag("--environment-changed", text, "environment_changed")
    command.flag("--verify", "decode every image before training, and name those that cannot be")
    text = "take over the first stages of a run that has ended, as many as are the same in both recipes"
    command.add_argument("--from", type=run_named, dest="source", metavar="RUN", help=text)
    text = "keep features of frozen stages there, and take those that another run of the same frozen part has left"
    command.add_argument("--features", type=Path, metavar="DIR", help=text)
    text = "also log to tensorboard or wandb (extras tb and wandb of ltcore); may be repeated"
    command.add_argument("--log", action="append", choices=("tensorboard", "wandb"), metavar="WHERE", help=text)

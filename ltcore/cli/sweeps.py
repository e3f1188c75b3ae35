"""The command `sweep`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ltcore.cli.parser import add_command, show, whole
from ltcore.errors import RecipeError

if TYPE_CHECKING:
    from ltcore.sweeps.engine import Outcome
    from ltcore.sweeps.folder import JobFolder


def sweep(
    recipe: Path | None = None,
    sets: Sequence[str] = (),
    grid: Sequence[str] = (),
    seeds: Sequence[str] = ("0",),
    out: Path = Path("sweep"),
    jobs: int | None = None,
    threads: int | None = None,
    search: int | None = None,
    holdout: int = 3,
    on: str | None = None,
    cluster: Sequence[str] = (),
    status: Path | None = None,
    as_json: bool = False,
) -> None:
    """Train a recipe with every combination of some values and seeds, several at a time.

    What is done is never trained again, and what was killed goes on: start the same command again. Two of them on one
    directory share the work. Stages that several runs have in common are trained once.

    Example: ltcore sweep recipes/digits_lt_ofa.yaml --grid methods.ofa.options.head_ratio=0.2,0.4 --jobs 2
    """
    if status is not None:
        _status(status, as_json)
        return
    if recipe is None:
        raise RecipeError("ltcore sweep: name a RECIPE, or a sweep's directory with --status DIR")
    if search is not None:
        _search(recipe, sets, grid, seeds, out, jobs, threads, search, holdout, on, cluster)
        return

    from ltcore.sweeps.engine import slots_of
    from ltcore.sweeps.grid import combinations, seeds_of
    from ltcore.sweeps.text import figures_of
    from ltcore.sweeps.work import prepared, raise_failed, train

    slots = slots_of(jobs, threads) if on is None else None
    chosen = combinations(recipe, sets, grid, seeds_of(seeds))
    asked = [(combination.name, loaded) for combination in chosen for loaded in combination.runs]
    mine, every = prepared(asked, out)
    by_name: dict[str, list[JobFolder]] = {combination.name: [] for combination in chosen}
    for (name, _), job in zip(asked, mine, strict=True):
        by_name[name].append(job)
    try:
        if slots is None:
            outcome = _elsewhere(every, jobs or 1, threads or 1, str(on), out, cluster)
        else:
            outcome = train(every, slots, lambda: figures_of(by_name))
    except KeyboardInterrupt as stop:
        stop.args = (f"{stop}; to go on, start the same command again",)
        raise
    print(figures_of(by_name), end="")
    raise_failed(outcome, out)


def _status(folder: Path, as_json: bool) -> None:
    from ltcore.sweeps.folder import folders
    from ltcore.sweeps.view import status, status_text

    if (folder / "search.json").is_file():
        from ltcore.sweeps.search import Search, text_of

        show(Search(folder).rows(), lambda rows: text_of(rows).rstrip(), as_json)
    elif (folder / "jobs").is_dir():
        show(status(list(folders(folder))), lambda rows: status_text(rows).rstrip(), as_json)
    else:
        raise RecipeError(f"--status {folder}: no sweep is there; name the directory that --out named")


def _elsewhere(
    jobs: Sequence[JobFolder], workers: int, threads: int, on: str, folder: Path, cluster: Sequence[str]
) -> Outcome:
    """Train on a cluster's machines, and tell how it goes."""
    import time

    from ltcore.sweeps.view import status, status_text
    from ltcore.sweeps.workers import Worker, outcome_of, submitted, wait

    began, told = time.time(), [""]
    call = Worker([job.path.absolute() for job in jobs], threads)
    submissions = submitted(call, workers, on, folder, _settings(cluster))
    print(f"{workers} workers on {on}: {', '.join(str(one.job_id) for one in submissions)}", flush=True)

    def look() -> None:
        line = status_text(status(jobs)).splitlines()[0]
        if line != told[0]:
            told[0] = line
            print(line, flush=True)

    wait(submissions, look)
    return outcome_of(jobs, began)


def _settings(texts: Sequence[str]) -> dict[str, Any]:
    """What ``--cluster KEY=VALUE`` says, the values in YAML."""
    from ltcore.recipe.yaml_source import parse

    found = {}
    for text in texts:
        key, equals, value = text.partition("=")
        where = f"--cluster {text}"
        if not equals:
            raise RecipeError(f"{where}: write KEY=VALUE, such as --cluster gpus_per_node=1")
        found[key] = parse(value, lambda line, where=where: where).plain()  # type: ignore[misc]
    return found


def _search(
    recipe: Path,
    sets: Sequence[str],
    grid: Sequence[str],
    seeds: Sequence[str],
    out: Path,
    jobs: int | None,
    threads: int | None,
    trials: int,
    holdout: int,
    on: str | None,
    cluster: Sequence[str],
) -> None:
    """Choose values on held-out images."""
    from ltcore.recipe.loading import load_recipe
    from ltcore.sweeps.engine import slots_of
    from ltcore.sweeps.grid import seeds_of
    from ltcore.sweeps.search import Search, begin, text_of
    from ltcore.sweeps.workers import searching, submitted, wait

    numbers = seeds_of(seeds)
    if len(numbers) > 1:
        raise RecipeError(
            "--search: searches with one seed; then train the best with all of them: ltcore sweep best.yaml"
        )
    begin(out, load_recipe(recipe, sets, numbers[0]), grid, trials, holdout)
    found, told = Search(out), [""]

    def look() -> None:
        line = text_of(found.rows(), 1).splitlines()
        text = " ".join(part.strip() for part in line[:2])
        if text != told[0]:
            told[0] = text
            print(text, flush=True)

    if on is None:
        slots = slots_of(jobs, threads)
        searching(out, slots.jobs, slots.threads, look)
    else:
        from functools import partial

        from ltcore.sweeps.search import _main

        wait(submitted(partial(_main, str(out.absolute())), jobs or 1, on, out, _settings(cluster)), look)
    print(text_of(found.rows()), end="")
    if best := found.write_best():
        print(f"the recipe with the best values: {best}. To train it: ltcore sweep {best} --seeds 0..4 --out DIR")


def add(commands: Any) -> None:
    """Add this command to the command line."""
    command = add_command(commands, "sweep", sweep)
    command.recipe(required=False)
    text = "values of a setting, every one of which is trained with; may be repeated, for every combination"
    command.add_argument("--grid", action="append", metavar="PATH=V,V", help=text)
    command.add_argument("--seeds", action="append", metavar="SEEDS", help="0..4, or 0,2,7; by default 0")
    command.add_argument("--out", type=Path, metavar="DIR", help="the sweep's directory; by default sweep")
    text = "runs at a time; by default one, or one for each GPU. More than there are GPUs share them"
    command.add_argument("--jobs", type=whole, metavar="N", help=text)
    text = "threads of each run, where its recipe does not say; by default the cores are divided"
    command.add_argument("--threads", type=whole, metavar="N", help=text)
    text = "choose among the values and ranges (LOW..HIGH, log:LOW..HIGH) of --grid in N trials (extra hpo of ltcore)"
    command.add_argument("--search", type=whole, metavar="N", help=text)
    text = "with --search, training images per class that are held out to choose on; by default 3; 0 for the set's own"
    command.add_argument("--holdout", type=int, metavar="N", help=text)
    text = "train elsewhere: slurm, slurm:PARTITION or local, with --jobs workers (extra slurm of ltcore)"
    command.add_argument("--on", metavar="WHERE", help=text)
    text = "with --on, what to ask for, as submitit calls it: gpus_per_node=1, timeout_min=600; may be repeated"
    command.add_argument("--cluster", action="append", metavar="KEY=VALUE", help=text)
    text = "tell what has become of a sweep's runs, from its directory, and do nothing else"
    command.add_argument("--status", type=Path, metavar="DIR", help=text)
    command.json()

"""The command `sweep`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ltcore.cli.parser import add_command, show, whole
from ltcore.errors import RecipeError

if TYPE_CHECKING:
    from ltcore.sweeps.folder import JobFolder


def sweep(
    recipe: Path | None = None,
    sets: Sequence[str] = (),
    grid: Sequence[str] = (),
    seeds: Sequence[str] = ("0",),
    out: Path = Path("sweep"),
    jobs: int | None = None,
    threads: int | None = None,
    status: Path | None = None,
    as_json: bool = False,
) -> None:
    """Train a recipe with every combination of some values and seeds, several at a time.

    What is done is never trained again, and what was killed goes on: start the same command again. Two of them on one
    directory share the work. Stages that several runs have in common are trained once.

    Example: ltcore sweep recipes/digits_lt_ofa.yaml --grid methods.ofa.options.head_ratio=0.2,0.4 --seeds 0..2 --jobs 2
    """
    if status is not None:
        from ltcore.sweeps.folder import folders
        from ltcore.sweeps.view import status as status_of
        from ltcore.sweeps.view import status_text

        if not (status / "jobs").is_dir():
            raise RecipeError(f"--status {status}: no sweep is there; name the directory that --out named")
        show(status_of(list(folders(status))), lambda rows: status_text(rows).rstrip(), as_json)
        return
    if recipe is None:
        raise RecipeError("ltcore sweep: name a RECIPE, or a sweep's directory with --status DIR")

    from ltcore.sweeps.engine import slots_of
    from ltcore.sweeps.grid import combinations, seeds_of
    from ltcore.sweeps.text import figures_of
    from ltcore.sweeps.work import prepared, raise_failed, train

    slots = slots_of(jobs, threads)
    chosen = combinations(recipe, sets, grid, seeds_of(seeds))
    asked = [(combination.name, loaded) for combination in chosen for loaded in combination.runs]
    mine, every = prepared(asked, out)
    by_name: dict[str, list[JobFolder]] = {combination.name: [] for combination in chosen}
    for (name, _), job in zip(asked, mine, strict=True):
        by_name[name].append(job)
    try:
        outcome = train(every, slots, lambda: figures_of(by_name))
    except KeyboardInterrupt as stop:
        stop.args = (f"{stop}; to go on, start the same command again",)
        raise
    print(figures_of(by_name), end="")
    raise_failed(outcome, out)


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
    text = "tell what has become of a sweep's runs, from its directory, and do nothing else"
    command.add_argument("--status", type=Path, metavar="DIR", help=text)
    command.json()

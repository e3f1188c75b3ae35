"""A search over ranges with Optuna, on held-out training images only; several workers share one journal.

``DIR/search.json`` says what is searched, ``DIR/search.journal`` is Optuna's storage, and ``DIR/search/trial-N/``
the run of a trial, made without test data. A worker is a process on any machine that sees the directory. A trial whose
worker was killed is gone on with by whoever finds its lock free.
"""

from __future__ import annotations

import fcntl
import io
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ltcore.errors import LtcoreError, RecipeError, RunError
from ltcore.files.reading import read_json
from ltcore.files.writing import write_atomically
from ltcore.recipe.loading import LoadedRecipe, load_recipe
from ltcore.recipe.yaml_source import dump_yaml
from ltcore.sweeps.folder import AGAIN
from ltcore.sweeps.grid import axis, refuse_neutral

if TYPE_CHECKING:
    import optuna


@dataclass(frozen=True)
class Axis:
    """What a path may be.

    Attributes:
        path: as of ``--set``.
        choices: the values to choose among; empty for a range.
        low: the range's lower end.
        high: its upper end.
        log: whether it is looked at on a logarithmic scale.
    """

    path: str
    choices: tuple[Any, ...] = ()
    low: float = 0.0
    high: float = 0.0
    log: bool = False

    @property
    def whole(self) -> bool:
        """Whether the range is of whole numbers."""
        return isinstance(self.low, int) and isinstance(self.high, int)


def axis_of(text: str) -> Axis:
    """What ``PATH=1,2``, ``PATH=0.1..0.5`` or ``PATH=log:1e-4..0.1`` means.

    Raises:
        RecipeError: it is no such text.
    """
    path, _, values = text.partition("=")
    scale, _, span = values.strip().rpartition("log:")
    low, dots, high = span.partition("..")
    if not dots or scale or "," in values:
        path, choices = axis(text)
        return Axis(path, tuple(choices))
    try:
        ends = [int(end) if end.strip().lstrip("+-").isdecimal() else float(end) for end in (low, high)]
    except ValueError:
        raise RecipeError(f"--grid {text}: a range has a number at both ends, such as 0.1..0.5") from None
    log = values.strip().startswith("log:")
    if not ends[0] < ends[1] or (log and ends[0] <= 0):
        raise RecipeError(
            f"--grid {text}: a range begins with its lower end{', above 0,' * log} and ends with its upper"
        )
    return Axis(path.strip(), low=ends[0], high=ends[1], log=log)


def begin(folder: Path, loaded: LoadedRecipe, grid: Sequence[str], trials: int, holdout: int) -> None:
    """Write what is searched; a search that is there is gone on with, with another number of trials if asked.

    Args:
        folder: the sweep's directory.
        loaded: the recipe.
        grid: values and ranges by path.
        trials: how many combinations are tried in all.
        holdout: training images per class that are held out to choose on; 0 where the data set has a validation split.

    Raises:
        RecipeError: the directory holds another search, or a path or value is wrong.
        RunError: it cannot be written.
    """
    _optuna()
    axes = [axis_of(text) for text in grid]
    if not axes:
        raise RecipeError("--search: say what to search with --grid PATH=LOW..HIGH, or --grid PATH=VALUE,VALUE")
    if loaded.recipe.select is not None:
        raise RecipeError(
            f"{loaded.where('select')}: --search chooses values itself; leave select out (--set select=null)"
        )
    for tried in axes:
        refuse_neutral(tried.path)
        value = tried.choices[0] if tried.choices else tried.low
        loaded.changed({tried.path: value}, f"--grid {tried.path}")
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "search.json"
    asked: dict[str, Any] = {"recipe": dump_yaml(loaded.source), "grid": list(grid), "holdout": holdout}
    if path.exists():
        there = read_json(path)
        different = [key for key, value in asked.items() if there.get(key) != value]
        if different:
            raise RecipeError(
                f"{folder}: another search is there, with another {' and '.join(different)}; name another directory "
                "with --out"
            )
    (folder / "search").mkdir(exist_ok=True)
    recipe = folder / "search" / "recipe"
    recipe.mkdir(exist_ok=True)
    for file in loaded.code.values():
        write_atomically(recipe / file.name, file.content, AGAIN)
    write_atomically(recipe / "recipe.yaml", asked["recipe"].encode(), AGAIN)
    write_atomically(path, (json.dumps({**asked, "trials": trials}, indent=1) + "\n").encode(), AGAIN)


class Search:
    """A search that has begun.

    Args:
        folder: the sweep's directory.

    Raises:
        RecipeError: Optuna is not installed.
        RunError: what is there is damaged.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        about = read_json(folder / "search.json")
        try:
            self.trials, self.holdout = int(about["trials"]), int(about["holdout"])
            self.axes = [axis_of(text) for text in about["grid"]]
        except (KeyError, TypeError, ValueError) as error:
            raise RunError(
                f"{folder / 'search.json'} is damaged ({error}); name another directory with --out"
            ) from error
        self.loaded = load_recipe(folder / "search" / "recipe" / "recipe.yaml")

    def study(self) -> optuna.Study:
        """Optuna's study; each call reads the journal anew."""
        _optuna()
        import optuna
        from optuna.storages import JournalStorage
        from optuna.storages.journal import JournalFileBackend

        study: optuna.Study = optuna.create_study(
            study_name="ltcore",
            storage=JournalStorage(JournalFileBackend(str(self.folder / "search.journal"))),
            direction="maximize",
            load_if_exists=True,
            pruner=optuna.pruners.MedianPruner(),
        )
        return study

    def work(self) -> None:
        """Try combinations until there are as many as were asked for. To be called in a worker process."""
        while (taken := self._next()) is not None:
            study, trial, lock = taken
            try:
                self._try(study, trial)
            finally:
                lock.close()

    def _next(self) -> tuple[optuna.Study, optuna.Trial, io.BufferedRandom] | None:
        """A trial that another worker has left, or a new one; None where nothing is left to begin."""
        optuna = _optuna()
        with self._alone():
            study = self.study()
            for left in study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.RUNNING,)):
                if lock := self._lock(left.number):
                    return study, optuna.trial.Trial(study, left._trial_id), lock
            if len(study.get_trials(deepcopy=False)) >= self.trials:
                return None
            # Workers that begin at the same time must not draw the same, nor one that is started again what it drew.
            number = len(study.get_trials(deepcopy=False))
            study.sampler = _sampler(self.loaded.recipe.seed * 10007 + number)
            trial = study.ask()
            lock = self._lock(trial.number)
            assert lock is not None
            return study, trial, lock

    def _values(self, trial: optuna.Trial) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for tried in self.axes:
            if tried.choices:
                index = trial.suggest_categorical(tried.path, list(range(len(tried.choices))))
                found[tried.path] = tried.choices[index]
            elif tried.whole:
                found[tried.path] = trial.suggest_int(tried.path, int(tried.low), int(tried.high), log=tried.log)
            else:
                found[tried.path] = trial.suggest_float(tried.path, tried.low, tried.high, log=tried.log)
        return found

    def _try(self, study: optuna.Study, trial: optuna.Trial) -> None:
        optuna = _optuna()
        values = self._values(trial)
        trial.set_user_attr("values", values)
        try:
            score = self._score(values, trial)
        except optuna.TrialPruned:
            study.tell(trial, state=optuna.trial.TrialState.PRUNED)
            return
        except LtcoreError as error:
            trial.set_user_attr("message", str(error))
            study.tell(trial, state=optuna.trial.TrialState.FAIL)
            return
        study.tell(trial, score)

    def _score(self, values: Mapping[str, Any], trial: optuna.Trial) -> float:
        """Balanced accuracy on the held-out images; the test images are not there."""
        from dataclasses import replace

        from ltcore.errors import DataError
        from ltcore.files.run_directory import RunDirectory
        from ltcore.plan.plan import make_plan
        from ltcore.progress.console import Reporter
        from ltcore.training.assembly import Assembly
        from ltcore.training.data import RunData, choose_device, read_data
        from ltcore.training.loop import Observer
        from ltcore.training.run import Run
        from ltcore.training.threads import as_the_recipe_says

        held = {"data.holdout": self.holdout} if self.holdout else {}
        loaded = self.loaded.changed({**values, **held, "diagnostics": "off"}, f"trial {trial.number}")

        class Reports(Observer):
            """Tells Optuna of each stage, which may say that it is not worth going on."""

            run: Run

            def stage_left(self, index: int) -> None:
                """A stage is trained and evaluated."""
                figures = self.run.position.results[-1].get("validation")
                if figures is not None and index < len(loaded.recipe.stages) - 1:
                    trial.report(figures["balanced_accuracy"], index)
                    if trial.should_prune():
                        raise _optuna().TrialPruned

        @as_the_recipe_says
        def train(loaded: LoadedRecipe) -> float:
            plan = make_plan(loaded)
            device = choose_device(loaded)
            data = replace(read_data(loaded, plan.answers["data"], weights=plan.skeleton.pretraining), test=None)
            if data.val is None:
                raise DataError(f"{loaded.where('data')}: no image is held out to choose on; use --holdout 3")
            directory = RunDirectory(self._place(trial.number))
            reports = Reports()
            run = Run(
                Assembly(plan, RunData(plan, data, device), device),
                directory,
                Reporter.silent(),
                observers=[reports],
            )
            reports.run = run
            run.train()
            return run.evaluation.validation_score()

        return train(loaded)

    def _place(self, number: int) -> Path:
        place = self.folder / "search" / f"trial-{number}"
        (place / "checkpoints").mkdir(parents=True, exist_ok=True)
        return place

    def _lock(self, number: int) -> io.BufferedRandom | None:
        file = open(self._place(number) / "lock", "ab+")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            file.close()
            return None
        return file

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """One worker at a time decides what comes next."""
        with open(self.folder / "search" / "next.lock", "wb") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def rows(self) -> list[dict[str, Any]]:
        """The trials so far, the best first: ``number``, ``state``, ``score``, ``values`` and ``message``."""
        found = []
        for trial in self.study().get_trials(deepcopy=False):
            about = trial.user_attrs
            found.append(
                {
                    "number": trial.number,
                    "state": trial.state.name.lower(),
                    "score": trial.value,
                    "values": about.get("values", {}),
                    "message": about.get("message", ""),
                }
            )
        return sorted(found, key=lambda row: (row["score"] is None, -(row["score"] or 0), row["number"]))

    def write_best(self) -> Path | None:
        """The recipe with the best values, ``DIR/best.yaml``; None where no trial has ended.

        Raises:
            RunError: it cannot be written.
        """
        rows = [row for row in self.rows() if row["score"] is not None]
        if not rows:
            return None
        loaded = self.loaded.changed(rows[0]["values"], f"trial {rows[0]['number']}")
        for file in loaded.code.values():
            write_atomically(self.folder / file.name, file.content, AGAIN)
        write_atomically(self.folder / "best.yaml", dump_yaml(loaded.source).encode(), AGAIN)
        return self.folder / "best.yaml"


def text_of(rows: Sequence[Mapping[str, Any]], most: int = 10) -> str:
    """The best trials, a line each, and how many there are of each kind."""
    states = [row["state"] for row in rows]
    counts = ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states)) or "none"
    lines = [f"{len(rows)} trials ({counts}); balanced accuracy on held-out training images:"]
    for row in [row for row in rows if row["score"] is not None][:most]:
        values = ", ".join(
            f"{path}={value:.6g}" if isinstance(value, float) else f"{path}={value}"
            for path, value in row["values"].items()
        )
        lines.append(f"  {100 * row['score']:5.1f}  {values}")
    lines += [f"trial {row['number']} failed: {row['message']}" for row in rows if row["message"]]
    return "\n".join(lines) + "\n"


def _sampler(seed: int) -> Any:
    return _optuna().samplers.TPESampler(seed=seed, constant_liar=True)


def _optuna() -> Any:
    """Optuna, which only a search needs.

    Raises:
        RecipeError: it is not installed.
    """
    try:
        import optuna
    except ImportError:
        raise RecipeError("--search needs Optuna. Try: pip install 'ltcore[hpo]'") from None
    import warnings

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
    return optuna


def _main(folder: str) -> None:
    from ltcore.training.stopping import catching

    with suppress(KeyboardInterrupt), catching():
        Search(Path(folder)).work()


if __name__ == "__main__":
    try:
        _main(sys.argv[1])
    except LtcoreError as error:
        sys.exit(str(error))

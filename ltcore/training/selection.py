"""Choosing values of a recipe on held-out training images (CDT, appendix B.6), before the run proper.

Each network that the candidates need is trained once, in a run of its own under ``select/``, without test data. What
only calibrates is tried on the trained network. A killed selection goes on as any run does.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch

from ltcore import ranks
from ltcore.errors import DataError, RecipeError
from ltcore.files.run_directory import RunDirectory
from ltcore.files.writing import copy_atomically
from ltcore.plan.plan import Plan, make_plan
from ltcore.progress.console import Reporter
from ltcore.training.assembly import Assembly
from ltcore.training.data import RunData
from ltcore.training.run import Run

if TYPE_CHECKING:
    from pathlib import Path

    from ltcore.contract.recipe import Recipe
    from ltcore.contract.result import Candidate, SelectionRecord
    from ltcore.data.prepare import PreparedData
    from ltcore.recipe.loading import LoadedRecipe

Values = dict[str, Any]


def as_selected(loaded: LoadedRecipe, record: SelectionRecord | None) -> LoadedRecipe:
    """The recipe by which the network of a run was trained.

    Args:
        loaded: the run's recipe.
        record: what its ``result.json`` has under ``selection``; None where nothing was selected.
    """
    if record is None:
        return loaded
    held = {} if record["retrained"] else {"data.holdout": record["holdout"]}
    return loaded.changed({**record["chosen"], **held, "select": None}, loaded.where("select"))


@dataclass(frozen=True)
class Selected:
    """What a selection has come to.

    Attributes:
        loaded: the recipe with the chosen values.
        record: for ``result.json``: how it was chosen, and every candidate with its score.
        network: the run directory of the chosen network.
    """

    loaded: LoadedRecipe
    record: SelectionRecord
    network: RunDirectory

    def adopt(self, directory: RunDirectory) -> None:
        """Make the chosen network that of `directory`'s run, as if all its stages had been trained there.

        A resumed run does it again: nothing is trained there, so that nothing can be lost.
        """
        for kind in ("stage-*", "boundary-*"):
            for path in sorted(self.network.path.glob(f"checkpoints/{kind}")):
                copy_atomically(path, directory.last.parent / path.name)
        if (metrics := self.network.path / "metrics.jsonl").exists():
            copy_atomically(metrics, directory.path / metrics.name)
        copy_atomically(self.network.last, directory.last)  # what says that all is there comes last


class Selection:
    """The candidates of a recipe, planned, so that a mistake in one is known before any is trained.

    Args:
        loaded: a recipe with `select`.

    Raises:
        LtcoreError: a candidate does not make a sound recipe; the message says which.
    """

    def __init__(self, loaded: LoadedRecipe) -> None:
        assert loaded.recipe.select is not None
        self.loaded, self.asked = loaded, loaded.recipe.select
        after = {path: values for path, values in self.asked.options.items() if only_calibrates(loaded.recipe, path)}
        before = {path: values for path, values in self.asked.options.items() if path not in after}
        #: For each network to train, its candidates: values and plan.
        self.networks: list[list[tuple[Values, Plan]]] = [
            [self._candidate(trained | calibrated) for calibrated in combinations(after)]
            for trained in combinations(before)
        ]
        self._refuse_other_weights()

    def settled(self, source: Path) -> LoadedRecipe:
        """The recipe that is trained in the end, where the selection cannot change that.

        Raises:
            RecipeError: it can; then no stages of `source` can be taken over.
        """
        if len(self.networks) > 1 or not self.asked.retrain:
            raise RecipeError(
                f"--from {source}: what {self.loaded.where('select')} selects decides what is trained, so no stage "
                "is known to be the same; run it without --from"
            )
        return self.loaded.changed({**self.networks[0][0][0], "select": None}, self.loaded.where("select"))

    def _refuse_other_weights(self) -> None:
        """All candidates see the same images, so weights that want them otherwise are no candidates of one recipe."""
        asked = self.loaded.recipe.data
        wanted = [plan.skeleton.pretraining for network in self.networks for _, plan in network]
        values = {weights and (weights.mean, weights.std, weights.interpolation) for weights in wanted}
        if len(values) > 1 and (asked.normalize is None or asked.transform.interpolation is None):
            raise RecipeError(
                f"{self.loaded.where('select', 'options')}: the candidates' pre-trained weights were trained on images "
                "prepared in different ways; say data.normalize and data.transform.interpolation, which hold for all"
            )

    def _candidate(self, values: Values) -> tuple[Values, Plan]:
        where = self.loaded.where("select", "options")
        ordered = {path: values[path] for path in self.asked.options}
        changes = ordered | {"data.holdout": self.asked.holdout, "select": None, "diagnostics": "off"}
        return ordered, make_plan(self.loaded.changed(changes, f"{where}: candidate {shown(ordered)}"))

    def run(self, data: PreparedData, directory: RunDirectory, device: torch.device, reporter: Reporter) -> Selected:
        """Train what is not trained yet, score every candidate and choose; of equal scores, the first.

        Args:
            data: the recipe's data with its held-out images; its test images are not looked at.
            directory: the run's directory.
            device: where to train.
            reporter: tells the user how it goes.

        Raises:
            DataError: there is no validation image.
        """
        if data.val is None:
            raise DataError(
                f"{self.loaded.where('select')}: select.holdout is 0, and the data set has no validation split of its "
                "own; hold out some training images, such as select.holdout=3"
            )
        validation, data = data.val, replace(data, test=None)
        candidates: list[Candidate] = []
        directories = []
        for number, network in enumerate(self.networks):
            text = "" if len(self.networks) == 1 else f" with {shown(network[0][0])}"
            reporter.note(f"selection: network {number + 1} of {len(self.networks)}{text}")
            inner = directory.inner(f"select/network-{number}")
            directories.append(inner)
            for (values, _), score in zip(network, self._scores(network, data, inner, device, reporter), strict=True):
                candidates.append({"options": values, "network": number, "score": score})
        best = max(candidates, key=lambda candidate: candidate["score"])
        record: SelectionRecord = {
            "holdout": self.asked.holdout,
            "images": len(validation),
            "classes": int((torch.bincount(validation.targets) > 0).sum()),
            "score": "balanced accuracy on the validation images, after calibration",
            "retrained": self.asked.retrain,
            "candidates": candidates,
            "chosen": best["options"],
        }
        for line in table(record):
            reporter.note(line)
        held = {} if self.asked.retrain else {"data.holdout": self.asked.holdout}
        chosen = self.loaded.changed({**best["options"], **held, "select": None}, self.loaded.where("select"))
        return Selected(chosen, record, directories[best["network"]])

    @staticmethod
    def _scores(
        network: list[tuple[Values, Plan]],
        data: PreparedData,
        directory: RunDirectory,
        device: torch.device,
        reporter: Reporter,
    ) -> list[float]:
        """The scores of a network's candidates, trained now or in an earlier process."""
        if ranks.told((directory.path / "scores.json").exists()):
            scores: list[float] = directory.read_json("scores.json")["scores"]
            return scores
        first, *others = network
        run = _run(first[1], data, directory, device, reporter)
        with reporter:
            run.train()
        scores = [run.evaluation.validation_score()]
        for _, plan in others:  # the same network, read from its files
            run = _run(plan, data, directory, device, Reporter.silent())
            run.train()
            scores.append(run.evaluation.validation_score())
        directory.write_json("scores.json", {"scores": scores})
        return scores


def _run(plan: Plan, data: PreparedData, directory: RunDirectory, device: torch.device, reporter: Reporter) -> Run:
    return Run(Assembly(plan, RunData(plan, data, device), device), directory, reporter)


def only_calibrates(recipe: Recipe, path: str) -> bool:
    """Whether `path` is an option of a method that only calibrates, so that it cannot change what is trained."""
    keys = path.split(".")
    training = [recipe.backbone.adapt, *(stage.methods for stage in recipe.stages)]
    calibrating = set(recipe.calibrate).difference(*training)
    return len(keys) > 3 and keys[0] == "methods" and keys[1] in calibrating and keys[2] == "options"


def combinations(options: dict[str, list[Any]]) -> Iterable[Values]:
    """Every combination of the paths' candidates; the last path varies fastest."""
    return (dict(zip(options, values, strict=True)) for values in itertools.product(*options.values()))


def shown(values: Values) -> str:
    """``gamma=0.2, tau=0.5``: the last part of each path; whole paths where two end alike."""
    names = [path.rsplit(".", 1)[-1] for path in values]
    named = zip(values if len(set(names)) < len(names) else names, values.values(), strict=True)
    return ", ".join(f"{name}={value}" for name, value in named)


def table(record: SelectionRecord) -> list[str]:
    """The candidates and their scores as lines of text."""
    lines = [f"selection on {record['images']} held-out images of {record['classes']} classes, balanced accuracy:"]
    width = max(len(shown(candidate["options"])) for candidate in record["candidates"])
    for candidate in record["candidates"]:
        mark = "  chosen" if candidate["options"] == record["chosen"] else ""
        lines.append(f"  {shown(candidate['options']):{width}}  {100 * candidate['score']:5.1f}{mark}")
    return lines

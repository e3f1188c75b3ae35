"""What a report shows of a run, read from the run's directory: nothing here trains, and no image is read."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ltcore.contract.result import Figures, Result, StageResult
from ltcore.errors import LtcoreError, RecipeError
from ltcore.evaluation import metrics
from ltcore.evaluation.images import wrong_places
from ltcore.files import checkpoint, reading
from ltcore.files.run_directory import RunDirectory
from ltcore.plan.plan import make_plan
from ltcore.plan.text import describe, render
from ltcore.recipe.loading import load_recipe


@dataclass(frozen=True)
class Outcome:
    """What a classifier said of the test images, also by confidence bin ([`ltcore.evaluation.metrics.ECE_BINS`])."""

    predictions: NDArray[np.int64]  # [N]
    samples: list[float]  # test images of each bin
    right: list[float]  # right predictions of each bin
    confidence: list[float]  # summed confidence of each bin

    @classmethod
    def of(cls, predictions: Tensor, confidences: Tensor, targets: Tensor) -> Outcome:
        """From predicted labels, their probabilities and the labels, each [N]."""
        samples, right, summed = metrics.reliability(confidences, predictions == targets)
        return cls(predictions.numpy(), samples.tolist(), right.tolist(), summed.tolist())


#: How many of the errors a page lists, the surest first.
SUREST = 20


@dataclass(frozen=True)
class ImageError:
    """A test image that is taken for another class."""

    name: str  # its path relative to the data set's root; its number where the images lie in memory
    label: int
    said: int  # what it is taken for
    probability: float  # of that class
    own: float  # probability of its own class


@dataclass(frozen=True)
class Outcomes:
    """What is said of the test images, before and after calibration."""

    targets: NDArray[np.int64]  # [N]
    before: Outcome | None  # None where nothing calibrates
    after: Outcome
    errors: tuple[int, list[ImageError]]  # how many there are after calibration, and the surest of them

    @cached_property
    def confusion(self) -> list[tuple[int, int, int]]:
        """The cells of the confusion matrix that are not zero: class, prediction and number of test images."""
        width = int(max(self.targets.max(), self.after.predictions.max())) + 1
        cells, images = np.unique(self.targets * width + self.after.predictions, return_counts=True)
        return list(zip((cells // width).tolist(), (cells % width).tolist(), images.tolist(), strict=True))


@dataclass(frozen=True)
class ReportedRun:
    """A run as its directory tells it."""

    path: Path
    name: str  # the recipe's
    seed: int | None  # None where the recipe cannot be read any more
    recipe_text: str
    plan_text: str  # what ``ltcore plan`` says of it, or why it says nothing
    result: Result | None  # ``result.json``; None while the run has not ended
    stages: list[StageResult]  # of those that have ended, as in ``result.json``
    epochs: list[dict[str, Any]]  # the lines of ``metrics.jsonl``
    environment: dict[str, Any]  # the last entry of ``environment.json``; empty where there is none
    predictions: Outcomes | None  # None while the run has not ended

    @property
    def counts(self) -> list[int]:
        """Training images of each class; empty while the run has not ended."""
        return self.result["class_counts"] if self.result else []

    @property
    def names(self) -> list[str]:
        """Names of the classes; empty while the run has not ended."""
        return self.result["class_names"] if self.result else []

    @property
    def calibrated(self) -> bool:
        """Whether the run has calibrated its classifier."""
        return bool(self.result and self.result["calibration"])

    @property
    def order(self) -> list[int]:
        """The classes, the most frequent first."""
        return sorted(range(len(self.counts)), key=lambda label: (-self.counts[label], label))

    @property
    def figures(self) -> list[tuple[str, str, Figures]]:
        """Every evaluation in order: its name, where it stands in ``result.json``, and its figures."""
        rows = []
        for index, stage in enumerate(self.stages):
            if "validation" in stage:
                name = f"{stage['name']}, validation images"
                rows.append((name, f"stages/{index}/validation", stage["validation"]))
            if "test" in stage:
                rows.append((stage["name"], f"stages/{index}/test", stage["test"]))
        if self.result and self.calibrated:
            rows.append(("before calibration", "before_calibration", self.result["before_calibration"]))
            rows.append(("after calibration", "after_calibration", self.result["after_calibration"]))
        return rows


def read_run(path: Path, run_code: bool = False) -> ReportedRun:
    """Read a run's directory.

    Args:
        path: the directory.
        run_code: see `ltcore.load`.

    Raises:
        RecipeError: it is no run's, or it holds nothing to show yet.
        RunError: one of its files is damaged.
    """
    if not (path / "recipe.yaml").is_file():
        runs = sorted(each.parent for each in path.glob("*/recipe.yaml")) or sorted(
            each.parent for each in path.glob("*/*/recipe.yaml")
        )
        hint = f"; name one of the runs in it, such as {runs[-1]}" if runs else ", such as runs/NAME/DATE-seed0"
        raise RecipeError(f"{path} is no run directory (it holds no recipe.yaml){hint}")
    directory = RunDirectory(path)
    text = reading.read_text(path / "recipe.yaml")
    result = directory.read_result() if directory.finished else None
    name, seed, plan = _planned(path, run_code)
    if result:
        name, seed = result["recipe"], result["seed"]
    epochs = [dict(line) for line in reading.read_lines(path / "metrics.jsonl")]
    stages = result["stages"] if result else _ended_stages(directory)
    if not (result or epochs or stages):
        raise RecipeError(f"{path}: this run has not ended its first epoch, so there is nothing to report yet")
    told = path / "environment.json"
    environments = reading.read_environments(told) if told.is_file() else []
    environment = dict(environments[-1]) if environments else {}
    predictions = _predictions(path, result) if result else None
    return ReportedRun(path, name, seed, text, plan, result, stages, epochs, environment, predictions)


def _planned(path: Path, run_code: bool) -> tuple[str, int | None, str]:
    """The recipe's name, its seed and the plan's text; a plugin may be missing where a run is only looked at."""
    try:
        loaded = load_recipe(path / "recipe.yaml", runs_code=run_code)
    except LtcoreError as error:
        return path.resolve().parent.name, None, f"The recipe cannot be read here: {error}"
    try:
        plan = render(describe(make_plan(loaded, to_run=False)))
    except LtcoreError as error:
        plan = f"The plan cannot be made here: {error}"
    return loaded.recipe.name, loaded.recipe.seed, plan


def _ended_stages(directory: RunDirectory) -> list[StageResult]:
    """The stages' records that a run keeps in its checkpoint until it has ended."""
    if not directory.last.is_file():
        return []
    _, state = checkpoint.load(directory.last)
    position = state.get("position")
    return reading.stage_results(directory.last, position.get("results") if isinstance(position, dict) else None)


def _predictions(path: Path, result: Result) -> Outcomes | None:
    if not (path / "predictions.npz").is_file():
        return None  # somebody has made room
    stored = reading.read_predictions(path / "predictions.npz", result["num_classes"])
    targets = torch.from_numpy(stored.targets)
    logits = torch.from_numpy(stored.calibrated_logits)
    predictions, _, confidences = metrics.rank(logits, targets)
    after, before = Outcome.of(predictions, confidences, targets), None
    if result["calibration"]:
        told, _, sure = metrics.rank(torch.from_numpy(stored.logits), targets)
        before = Outcome.of(told, sure, targets)
    wrong = wrong_places(after.predictions, stored.targets, confidences.numpy())
    shown = wrong[:SUREST]
    names = shown if stored.names is None else stored.names[shown].tolist()
    own = logits[shown].double().softmax(1).gather(1, targets[shown, None])[:, 0]
    said = (targets[shown], predictions[shown], confidences[shown], own)
    surest = [ImageError(str(name), *each) for name, *each in zip(names, *(one.tolist() for one in said), strict=True)]
    return Outcomes(stored.targets, before, after, (len(wrong), surest))

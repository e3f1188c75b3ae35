"""What a report shows of a run's images and models: maps of features, an analysis, examples of the hardest classes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ltcore.errors import LtcoreError
from ltcore.report import analysis, maps
from ltcore.report.analysis import Analysis
from ltcore.report.chosen import named, spread
from ltcore.report.doubtful import Doubtful, read_doubtful
from ltcore.report.maps import FeatureMap
from ltcore.report.sampling import rank_within
from ltcore.report.thumbnails import thumbnail
from ltcore.runs.saved import load

if TYPE_CHECKING:
    from ltcore.data.prepare import PreparedData
    from ltcore.report.data import ReportedRun
    from ltcore.runs.reopening import StageEnd
    from ltcore.runs.saved import SavedRun

#: Classes shown as the hardest, and example images of each.
CLASSES, EXAMPLES = 9, 4

_TOLERANCE = 0.01  # of accuracy; another processor or number of threads moves an image or two


@dataclass(frozen=True)
class Example:
    """A test image that was taken for another class.

    Attributes:
        index: its place in the test split.
        said: the class it was taken for.
        image: its picture as a data URI; None where there is none.
        small: whether the picture is so small that its pixels should be seen as squares.
    """

    index: int
    said: int
    image: str | None = None
    small: bool = False


@dataclass(frozen=True)
class HardClass:
    """A class that the run recognises least.

    Attributes:
        label: the class.
        images: its test images.
        right: how many of them are recognised.
        taken_for: other classes and how many images were taken for them, the most frequent first.
        examples: some of these images.
    """

    label: int
    images: int
    right: int
    taken_for: list[tuple[int, int]]
    examples: list[Example]


@dataclass(frozen=True)
class Choices:
    """What is asked of a report, beside its runs.

    Attributes:
        features: whether features are mapped, for which the model is rebuilt.
        images: whether example images are shown.
        analysis: whether all images go through the run's models once more.
        classes: names or numbers of the classes that are drawn one by one; empty for all, or some.
        run_code: see `ltcore.load`.
    """

    features: bool = True
    images: bool = True
    analysis: bool = False
    classes: tuple[str, ...] = ()
    run_code: bool = False


@dataclass
class Material:
    """What was found out about a run, and why something is missing.

    Attributes:
        chosen: the labels that were asked for.
        maps: maps of features.
        hardest: the classes that the run recognises least.
        analysis: what the run's models give once more.
        doubtful: what ``ltcore suspects`` has left; None where it did not run.
        notes: what is missing and why, a sentence each.
    """

    chosen: list[int] = field(default_factory=list)
    maps: list[FeatureMap] = field(default_factory=list)
    hardest: list[HardClass] = field(default_factory=list)
    analysis: Analysis | None = None
    doubtful: Doubtful | None = None
    notes: list[str] = field(default_factory=list)


def gather(run: ReportedRun, choices: Choices) -> Material:
    """Look at a run's images and models, as far as it is asked for.

    Raises:
        RecipeError: the run has no class of a name or number that is asked for.
    """
    found = Material(named(run, choices.classes))
    if run.predictions is None:
        return found
    found.hardest = hardest(run)
    found.doubtful = read_doubtful(run.path)
    if not (choices.features or choices.images or choices.analysis):
        return found
    saved = load(run.path, choices.run_code)
    missing = "no feature map, no example images and no analysis, for the data"
    try:
        data = saved.read_data()
    except LtcoreError as error:
        found.notes.append(f"{run.path}: {missing} cannot be read: {error}")
        return found
    if not _is_the_same(data, run):
        found.notes.append(f"{run.path}: {missing} is not what it was")
        return found
    if choices.images:
        found.hardest = [_with_images(each, data) for each in found.hardest]
        if found.doubtful:
            found.doubtful.add_pictures(data)
    if choices.features or choices.analysis:
        _Look(run, saved, data, choices, found).through()
    return found


class _Look:
    """Looks through a run's stages and its final model; what fails is a note, and the rest comes all the same."""

    def __init__(
        self, run: ReportedRun, saved: SavedRun, data: PreparedData, choices: Choices, found: Material
    ) -> None:
        self._run, self._saved, self._data, self._choices, self._found = run, saved, data, choices, found
        self._predictions: list[analysis.StagePredictions] = []
        self._backbones: list[str] = []
        self._offered: list[analysis.Offered] = []
        self._mapped: set[int] = set()

    def through(self) -> None:
        """Fill the material."""
        made: list[int] = []
        with self._noting("no feature map"):
            made = self._saved.acting_on_features() if self._choices.features else []
        if made or self._choices.analysis:
            with self._noting("its stages cannot be opened again"):
                self._saved.for_each_stage(self._data, lambda end: self._stage(end, end.index in made))
        if self._choices.features and len(self._run.stages) - 1 not in self._mapped:
            with self._noting("no feature map"):
                saved = self._saved
                self._found.maps.append(maps.of_result(saved.model, self._data, saved.recipe, self._found.chosen))
        if self._choices.analysis:
            with self._noting("no analysis of the result"):
                self._analyse()

    def _stage(self, end: StageEnd, made: bool) -> None:
        if made:
            with self._noting(f"no map of stage '{end.name}'"):
                mapped = maps.of_stage(end, self._data, self._found.chosen)
                if mapped is not None:
                    self._found.maps.append(mapped)
                    self._mapped.add(end.index)
        if not self._choices.analysis:
            return
        with self._noting(f"no predictions of stage '{end.name}'"):
            predictions = end.logits("test").argmax(1).cpu().numpy()
            self._predictions.append(analysis.StagePredictions(end.name, predictions, False))
            self._backbones.append(end.backbone())
            self._compare(end.index, predictions)
        for entry in end.ending():
            with self._noting(f"nothing that '{entry.key}' shows"):
                classes = self._found.chosen or spread(self._run)
                for content in end.reported(entry, classes):
                    if shown := analysis.offered(entry.key, content, self._choices.features):
                        self._offered.append(shown)

    def _analyse(self) -> None:
        assert self._run.predictions is not None
        stages = [
            replace(each, same_features=backbone == self._backbones[-1])
            for each, backbone in zip(self._predictions, self._backbones, strict=True)
        ]
        if self._run.calibrated:
            after = self._run.predictions.after.predictions
            stages.append(analysis.StagePredictions("calibration", after, True))
        self._found.analysis = analysis.Analysis(stages=stages, offered=self._offered)
        saved = self._saved
        found, features = analysis.of_result(saved.model, self._data, saved.recipe, stages)
        found.offered, self._found.analysis = self._offered, found
        if self._choices.features:
            with self._noting("no map of decisions"):
                classes = self._found.chosen or spread(self._run)
                targets = self._run.predictions.targets
                found.decisions = analysis.decision_map(features, targets, stages, classes)

    def _compare(self, index: int, predictions: NDArray[np.int64]) -> None:
        """Note where a stage's accuracy is not what the run recorded, as when a plugin has changed since."""
        assert self._run.predictions is not None
        recorded = self._run.stages[index].get("test")
        now = float((predictions == self._run.predictions.targets).mean())
        if recorded is not None and abs(now - recorded["top1"]) > _TOLERANCE:
            self._found.notes.append(
                f"{self._run.path}: stage '{self._run.stages[index]['name']}' has {100 * now:.1f} percent of the test "
                f"images right now, and had {100 * recorded['top1']:.1f} in the run: a plugin or a library has changed"
            )

    @contextmanager
    def _noting(self, missing: str) -> Iterator[None]:
        try:
            yield
        except LtcoreError as error:
            if not any(note.endswith(f": {error}") for note in self._found.notes):  # one cause, one note
                self._found.notes.append(f"{self._run.path}: {missing}: {error}")


def _is_the_same(data: PreparedData, run: ReportedRun) -> bool:
    """Whether the classes, their training images and the test labels are what they were when the run was trained."""
    assert run.predictions is not None
    return (
        data.test is not None
        and list(data.class_names) == run.names
        and data.class_counts.tolist() == run.counts
        and data.test.targets.tolist() == run.predictions.targets.tolist()
    )


def hardest(run: ReportedRun) -> list[HardClass]:
    """The classes with the lowest accuracy that have an error at all; of equal ones, the rarer first."""
    assert run.predictions is not None and run.result is not None
    targets, said = run.predictions.targets, run.predictions.after.predictions
    accuracy = run.result["after_calibration"]["per_class_accuracy"]
    known = [(value, run.counts[label], label) for label, value in enumerate(accuracy) if value is not None]
    found = []
    for label in [label for value, _, label in sorted(known) if value < 1][:CLASSES]:
        own = np.flatnonzero(targets == label)
        missed = own[said[own] != label]
        taken_for = sorted(Counter(said[missed].tolist()).items(), key=lambda pair: (-pair[1], pair[0]))
        # One image of each class that it was taken for, then a second of each, and so on.
        places = {other: rank for rank, (other, _) in enumerate(taken_for)}
        place = np.array([places[other] for other in said[missed].tolist()])
        order = np.lexsort((place, rank_within(said[missed])))
        examples = [Example(int(index), int(said[index])) for index in missed[order][:EXAMPLES]]
        found.append(HardClass(label, len(own), len(own) - len(missed), taken_for, examples))
    return found


def _with_images(found: HardClass, data: PreparedData) -> HardClass:
    assert data.test is not None
    examples = []
    for each in found.examples:
        picture = thumbnail(data.test, each.index, data.transform, len(data.mean))
        examples.append(each if picture is None else Example(each.index, each.said, *picture))
    return HardClass(found.label, found.images, found.right, found.taken_for, examples)

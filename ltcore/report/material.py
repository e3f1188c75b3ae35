"""What a report shows of a run's images and models: maps of features, an analysis, examples of the hardest classes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np

from ltcore.errors import LtcoreError
from ltcore.report import analysis, maps
from ltcore.report.analysis import Analysis, Integers, StagePredictions
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

_CONFUSIONS = 3  # that are named of each class
_TOLERANCE = 0.01  # of accuracy; another processor or number of threads moves an image or two


@dataclass(frozen=True)
class Example:
    """A test image that was taken for another class."""

    index: int  # its place in the test split
    said: int  # the class it was taken for
    image: str | None = None  # its picture as a data URI; None where there is none
    small: bool = False  # whether its pixels should be seen as squares


@dataclass(frozen=True)
class HardClass:
    """A class that the run recognises least."""

    label: int
    images: int  # its test images
    right: int  # how many of them are recognised
    taken_for: list[tuple[int, int]]  # other classes and how many images were taken for them, the most frequent first
    examples: list[Example]  # some of these images

    def said(self, names: Sequence[str]) -> str:
        """The classes that it was taken for most often, and how many more there are."""
        first = ", ".join(f"{names[label]} ({images})" for label, images in self.taken_for[:_CONFUSIONS])
        more = len(self.taken_for) - _CONFUSIONS
        return first + (f" and {more} more" if more > 0 else "")


@dataclass(frozen=True)
class Choices:
    """What is asked of a report, beside its runs."""

    features: bool = True  # whether features are mapped, for which the model is rebuilt
    images: bool = True  # whether example images are shown
    analysis: bool = False  # whether all images go through the run's models once more
    classes: tuple[str, ...] = ()  # names or numbers of classes that are drawn one by one; empty for all, or some
    run_code: bool = False  # see `ltcore.load`


@dataclass
class Material:
    """What was found out about a run, and why something is missing."""

    chosen: list[int] = field(default_factory=list)  # the labels that were asked for
    maps: list[FeatureMap] = field(default_factory=list)
    hardest: list[HardClass] = field(default_factory=list)
    analysis: Analysis = field(default_factory=Analysis)  # what the run's models give once more
    doubtful: Doubtful | None = None  # what ``ltcore suspects`` has left; None where it did not run
    notes: list[str] = field(default_factory=list)  # what is missing and why, a sentence each


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
    _Look(run, saved, data, choices, found).through()
    return found


@dataclass
class _Look:
    """Looks through a run's stages and its final model; what fails is a note, and the rest comes all the same."""

    run: ReportedRun
    saved: SavedRun
    data: PreparedData
    choices: Choices
    found: Material
    backbones: list[str] = field(default_factory=list)  # of each of the analysis's stages
    mapped: set[int] = field(default_factory=set)  # stages that have a map of their own

    def through(self) -> None:
        """Fill the material."""
        made: list[int] = []
        if self.choices.features:
            with self._noting("no feature map"):
                made = self.saved.acting_on_features()
        if made or self.choices.analysis:
            with self._noting("its stages cannot be opened again"):
                self.saved.for_each_stage(self.data, lambda end: self._stage(end, end.index in made))
        if self.choices.features and len(self.run.stages) - 1 not in self.mapped:
            with self._noting("no feature map"):
                saved = self.saved
                self.found.maps.append(maps.of_result(saved.model, self.data, saved.recipe, self.found.chosen))
        if self.choices.analysis:
            with self._noting("no analysis of the result"):
                self._analyse()

    def _stage(self, end: StageEnd, made: bool) -> None:
        if made:
            with self._noting(f"no map of stage '{end.name}'"):
                mapped = maps.of_stage(end, self.data, self.found.chosen)
                if mapped is not None:
                    self.found.maps.append(mapped)
                    self.mapped.add(end.index)
        if not self.choices.analysis:
            return
        with self._noting(f"no predictions of stage '{end.name}'"):
            predictions, backbone = end.logits("test").argmax(1).cpu().numpy(), end.backbone()
            self.found.analysis.stages.append(StagePredictions(end.name, predictions, False))
            self.backbones.append(backbone)
            self._compare(end.index, predictions)
        for entry in end.ending():
            with self._noting(f"nothing that '{entry.key}' shows"):
                for content in end.reported(entry, self._classes()):
                    if shown := analysis.offered(entry.key, content, self.choices.features):
                        self.found.analysis.offered.append(shown)

    def _classes(self) -> list[int]:
        return self.found.chosen or spread(self.run)

    def _analyse(self) -> None:
        said, found = self.run.predictions, self.found.analysis
        assert said is not None
        found.stages = [
            replace(each, same_features=backbone == self.backbones[-1])
            for each, backbone in zip(found.stages, self.backbones, strict=True)
        ]
        if self.run.calibrated:
            found.stages.append(StagePredictions("calibration", said.after.predictions, True))
        features = found.look(self.saved.model, self.data, self.saved.recipe)
        if self.choices.features:
            with self._noting("no map of decisions"):
                found.decisions = analysis.decision_map(features, said.targets, found.stages, self._classes())

    def _compare(self, index: int, predictions: Integers) -> None:
        """Note where a stage's accuracy is not what the run recorded, as when a plugin has changed since."""
        assert self.run.predictions is not None
        stage = self.run.stages[index]
        recorded, now = stage.get("test"), float((predictions == self.run.predictions.targets).mean())
        if recorded is not None and abs(now - recorded["top1"]) > _TOLERANCE:
            self.found.notes.append(
                f"{self.run.path}: stage '{stage['name']}' has {100 * now:.1f} percent of the test images right now, "
                f"and had {100 * recorded['top1']:.1f} in the run: a plugin or a library has changed"
            )

    @contextmanager
    def _noting(self, missing: str) -> Iterator[None]:
        try:
            yield
        except LtcoreError as error:
            if not any(note.endswith(f": {error}") for note in self.found.notes):  # one cause, one note
                self.found.notes.append(f"{self.run.path}: {missing}: {error}")


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
    return replace(found, examples=examples)

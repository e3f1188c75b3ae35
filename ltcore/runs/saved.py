"""Runs from Python: train one, open one that has ended, use its model, read its results as arrays."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ltcore.contract.model import Model
from ltcore.contract.result import Figures, Result
from ltcore.contract.splits import ArraySplit
from ltcore.data.streaming import build_loader, worker_count
from ltcore.discovery.unpackaged import File
from ltcore.errors import DataError, LtcoreError, RecipeError, RunError, listed
from ltcore.evaluation.calibrated import TOLERANCE, Calibrated, Description, read, relative_difference
from ltcore.evaluation.outputs import pooled_features
from ltcore.files import checkpoint
from ltcore.files.reading import Outputs, read_predictions
from ltcore.files.run_directory import RunDirectory
from ltcore.files.unfinished import command
from ltcore.plan.plan import make_plan, provider
from ltcore.progress.console import Reporter
from ltcore.recipe.loading import LoadedRecipe, load_recipe
from ltcore.runs.predicting import Predictions, predict
from ltcore.runs.rebuilding import rebuild
from ltcore.training.data import known, read_data, read_splits
from ltcore.training.execute import execute
from ltcore.training.selection import as_selected
from ltcore.training.unchanged import Allowed, data_changes

if TYPE_CHECKING:
    from ltcore.contract.recipe import Recipe
    from ltcore.data.prepare import PreparedData
    from ltcore.runs.predicting import Images
    from ltcore.runs.reopening import StageEnd

Floats = NDArray[np.float32]
Integers = NDArray[np.int64]


def run(
    recipe: Path | str,
    set: Sequence[str] = (),
    seed: int | None = None,
    out: Path | str = "runs",
    resume: bool = False,
    quiet: bool = True,
    data_changed: bool = False,
    environment_changed: bool = False,
    source: Path | str | None = None,
) -> SavedRun:
    """Train, evaluate and calibrate what a recipe describes, as ``ltcore run`` does.

    Args:
        recipe: the recipe file.
        set: changes ``"PATH=VALUE"``, such as ``"stages.finetune.epochs=4"``.
        seed: in place of the recipe's.
        out: where run directories are made.
        resume: go on with the latest run of this very recipe.
        quiet: print nothing.
        data_changed: go on although the data is not what the run was begun on.
        environment_changed: go on although what changes figures, such as PyTorch's version, is not what it was.
        source: a run whose stages are taken over, as many as are the same.

    Raises:
        LtcoreError: anything that the user can put right, as one message.
    """
    loaded = load_recipe(recipe, set, seed)
    reporter = Reporter.silent() if quiet else Reporter()
    allowed = Allowed(data_changed, environment_changed)
    taken = None if source is None else Path(source)
    return SavedRun(execute(loaded, Path(out), resume, reporter, taken, allowed=allowed)[1], run_code=True)


def load(run: Path | str, run_code: bool = False) -> SavedRun:
    """A run that has ended, from its directory.

    Results are read at once; the model is built when it is first asked for, and only that needs the run's plugins.

    Args:
        run: the run's directory.
        run_code: run the files of Python that the run keeps in its directory, where its recipe named some
            (``use: ./mine.py:Mine``). Without it, its model and its data are refused; results are read all the same.

    Raises:
        RecipeError: no run that has ended is there.
    """
    return SavedRun(Path(run), run_code)


class SavedRun:
    """A run that has ended.

    Args:
        path: the run's directory.
        run_code: see `load`.

    Attributes:
        path: the run's directory.
        result: the content of ``result.json``, see `ltcore.contract.result.Result`.
        class_names: C names, in label order.
        class_counts: [C] int64, training images of each class.

    Raises:
        RecipeError: no run that has ended is there.
        RunError: its ``result.json`` is damaged.
    """

    def __init__(self, path: Path, run_code: bool = False) -> None:
        self.path, self._run_code = path, run_code
        self._directory = RunDirectory(path)
        if not self._directory.finished:
            raise RecipeError(_not_a_run(path))
        self.result: Result = self._directory.read_result()
        self.class_names: tuple[str, ...] = tuple(self.result["class_names"])
        self.class_counts: Integers = np.array(self.result["class_counts"], dtype=np.int64)

    def __repr__(self) -> str:
        top1 = self.metrics["top1"]
        return f"<run {self.path}: {self.result['recipe']}, seed {self.result['seed']}, top-1 {100 * top1:.1f} %>"

    @cached_property
    def loaded(self) -> LoadedRecipe:
        """The recipe as it was trained, with where each of its values came from."""
        loaded = load_recipe(self.path / "recipe.yaml", runs_code=self._run_code)
        return as_selected(loaded, self.result.get("selection"))

    @property
    def recipe(self) -> Recipe:
        """The recipe as it was trained, with what was selected."""
        return self.loaded.recipe

    @property
    def metrics(self) -> Figures:
        """The figures on the test images after calibration, fractions: ``top1``, ``balanced_accuracy``, ``ece``, ..."""
        return self.result["after_calibration"]

    @cached_property
    def _predictions(self) -> Outputs:
        return read_predictions(self.path / "predictions.npz", self.result["num_classes"])

    @property
    def targets(self) -> Integers:
        """[N] labels of the test images.

        Raises:
            RunError: ``predictions.npz`` is missing or damaged; so for the logits, too.
        """
        return self._predictions.targets

    @property
    def logits(self) -> Floats:
        """[N, C] of the test images, before calibration."""
        return self._predictions.logits

    @property
    def calibrated_logits(self) -> Floats:
        """[N, C] of the test images, after calibration."""
        return self._predictions.calibrated_logits

    @property
    def image_names(self) -> NDArray[np.str_] | None:
        """[N] what the test images are called, relative to the data set's root; None where they lie in memory."""
        return self._predictions.names

    @cached_property
    def calibrated(self) -> Calibrated:
        """What ``calibrated.safetensors`` holds: tensors, description, and the probe's images and logits.

        Raises:
            RunError: the file is missing or damaged.
        """
        if not self._directory.calibrated.is_file():
            raise RunError(
                f"{self._directory.calibrated}: the run's calibrated model is missing; copy it again from where the "
                "run was trained, or train the run again"
            )
        return read(self._directory.calibrated)

    @property
    def description(self) -> Description:
        """How evaluation prepares images, and the classes."""
        return self.calibrated.description

    @cached_property
    def model(self) -> Model:
        """The trained network with its calibrated classifier, in eval mode, on the CPU: `backbone` and `classifier`.

        It is built without the data, and compared with what the run's own model gave on a few images.

        Raises:
            PluginError: a plugin that the recipe names is missing, or the run's own code may not be run.
            RunError: the model differs from the run's, as when a plugin has changed.
        """
        found = self.calibrated
        try:
            model = rebuild(self.loaded, found.description)
            checkpoint.restore_model(model, found.tensors, found.path)
        except LtcoreError as error:
            error.within(after=self._changed())
            raise
        model.eval().requires_grad_(False)
        difference = relative_difference(model(found.description.normalised(found.images)), found.logits)
        if not difference <= TOLERANCE:
            raise RunError(
                f"{found.path}: the model built from it is not the run's: on images with known logits it is off by "
                f"{difference:.2g} of the largest, because a plugin has changed, or keeps values of the trained "
                f"classifier elsewhere than in tensors{self._changed()}"
            )
        return model

    def _changed(self) -> str:
        """Which distributions are not those of the run, for messages; empty where all are."""
        changed = []
        for name, then in self.result["versions"].items():
            try:
                now = version(name)
            except PackageNotFoundError:
                now = "not installed as a distribution"
            if name.startswith("ltcore") and now != then:
                changed.append(f"{name} was {then} and is {now}")
        codes = self.result.get("code", {})
        changed += [f"{file.path} has changed" for file in self._files() if codes.get(file.name) != file.digest]
        return f" (since the run, {'; '.join(changed)})" if changed else ""

    def _files(self) -> list[File]:
        """The files of Python that the run keeps and that are there."""
        return [file for file in self.loaded.code.values() if file.path.is_file()]

    def predict(self, images: Images, batch_size: int = 64) -> Predictions:
        """What the calibrated model takes images for. See `ltcore.runs.predicting.predict`.

        Args:
            images: a path of an image or of a folder of images, or several; a Pillow image, or several; or pixels,
                uint8: an array [N, H, W] or [N, H, W, channels], or a tensor [N, channels, H, W].
            batch_size: images at a time.

        Raises:
            DataError: an image is missing or cannot be decoded.
        """
        return predict(self.model, self.description, images, batch_size)

    def read_data(self, data_changed: bool = False) -> PreparedData:
        """The data as the run had it, with its long tail and its held-out images.

        Args:
            data_changed: take it although it is not what it was; a run of a version that kept no fingerprint of its
                data is not asked.

        Raises:
            DataError: it is not where the recipe says, or not what it was.
        """
        answers = provider(self.loaded, "data", self.recipe.data.use)[1]
        splits = read_splits(self.loaded, answers)
        data = read_data(self.loaded, answers, splits=splits)
        if self._directory.data.exists() and not data_changed:
            changes = data_changes(self._directory, known(self.loaded, splits))
            if changes:
                raise DataError(
                    f"{self.path}: its data is not what it was trained and tested on: {'; '.join(changes)}. Bring it "
                    "back as it was, or take it all the same with SavedRun.read_data(data_changed=True)"
                )
        if not self._directory.calibrated.is_file():
            return data
        told = self.description  # pre-trained weights may have decided it, and another version might decide otherwise
        return replace(data, mean=told.mean, std=told.std, transform=told.transform)

    @cached_property
    def _data(self) -> PreparedData:
        return self.read_data()

    def acting_on_features(self) -> list[int]:
        """The places in the recipe of the stages in which a method acts on features, and so may make rows.

        Raises:
            LtcoreError: a plugin is missing or refuses.
        """
        stages = make_plan(self.loaded.without_weights()[0], to_run=False).stages
        return [index for index, stage in enumerate(stages) if stage.answers["augment_features"]]

    def for_each_stage(self, data: PreparedData, visit: Callable[[StageEnd], None]) -> None:
        """Open the run's stages again as they ended, one after the other. See `ltcore.runs.reopening.for_each_stage`.

        Args:
            data: what `read_data` gives.
            visit: is called once for each stage.

        Raises:
            LtcoreError: a plugin is missing, refuses or fails, or a stage's file is missing or does not fit.
        """
        from ltcore.runs.reopening import for_each_stage

        for_each_stage(self.loaded, data, self._directory, visit)

    def features(self, split: str, tap: str = "pooled") -> Floats:
        """Features of the run's images without augmentation, in the order of its data.

        Args:
            split: ``train``, ``val`` or ``test``.
            tap: a tap of the backbone.

        Returns:
            [N, D] at ``pooled``, elsewhere [N, D, H, W] or the tap's own shape; [N, E, ...] where the network has split
            into E experts.

        Raises:
            DataError: the data is not where the recipe says, is not what it was, or has no such split.
            RecipeError: the backbone has no such tap.
        """
        model, data = self.model, self._data
        if tap not in model.backbone.taps:
            raise RecipeError(f"the backbone has no tap '{tap}'; it has {listed(model.backbone.taps)}")
        images = {"train": data.train, "val": data.val, "test": data.test}.get(split)
        if images is None:
            raise DataError(f"the run has no '{split}' images; 'train' and 'test' are always there")
        device = next(model.parameters()).device
        workers = 0 if isinstance(images, ArraySplit) else worker_count(self.recipe.data.workers)
        loader = build_loader(images, data.transform, data.mean, data.std, workers, device, training=False)
        return pooled_features(model, loader, self.recipe.eval_batch_size, tap).float().cpu().numpy()


def _not_a_run(path: Path) -> str:
    if not path.exists():
        return f"{path}: there is no such run"
    if (path / "recipe.yaml").is_file():
        return f"{path}: the run has not ended (it has no result.json); to go on: {command(path)}"
    runs = sorted(found.parent for found in path.glob("*/result.json")) if path.is_dir() else []
    if runs:
        return f"{path} is no run but holds {len(runs)}; name one, such as {runs[-1]}"
    return f"{path} is no run: it has no result.json"

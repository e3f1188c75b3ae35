"""A run: one recipe with one seed, from data to ``result.json``."""

from __future__ import annotations

import copy
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ltcore import calibrated, checkpoint, diagnostics, metrics, reuse, trace
from ltcore.checks import check_groups
from ltcore.context import Context, RunState
from ltcore.data.imbalance import Imbalance
from ltcore.data.prepare import PreparedData, prepare
from ltcore.data.streaming import build_loader, worker_count
from ltcore.errors import DataError, RecipeError, RunError
from ltcore.evaluation import logits_of, pooled_features
from ltcore.features import FeatureProvider
from ltcore.hooks import Answers, Hooks
from ltcore.model import Model
from ltcore.plan import Plan, make_plan
from ltcore.recipe.loading import LoadedRecipe
from ltcore.recipe.yaml_source import dump_yaml
from ltcore.rundir import RunDirectory, environment
from ltcore.seeding import derive_seed, generator_for
from ltcore.selection import Selection
from ltcore.stage import Position, StageTrainer

if TYPE_CHECKING:
    from ltcore.console import Reporter
    from ltcore.data.loader import Loader
    from ltcore.data.splits import ArraySplit, StreamedSplit


def execute(
    loaded: LoadedRecipe, out: Path, resume: bool, reporter: Reporter, source: Path | None = None
) -> tuple[dict[str, Any], Path]:
    """Run a recipe, or go on with its latest run.

    Args:
        loaded: the recipe.
        out: where run directories are made.
        resume: go on with the latest run of exactly this recipe.
        reporter: tells the user how it goes.
        source: directory of a run whose stages are taken over, as many as are the same.

    Returns:
        The content of ``result.json`` and the run directory.

    Raises:
        LtcoreError: anything that the user can put right, as one message.
    """
    recipe = loaded.recipe
    plan = make_plan(loaded)
    selection = Selection(loaded) if recipe.select else None
    text = dump_yaml(loaded.source)
    found = RunDirectory.find(out, recipe.name, text) if resume else None
    if found and found.finished:
        reporter.note(f"{found.path} has already ended; this is its result")
        result = found.read_json("result.json")
        reporter.finished(result_rows(result), found.path)
        return result, found.path
    reused = None if source is None else reuse.find(source, selection.settled(source) if selection else loaded)
    device = choose_device(loaded)
    data = read_data(loaded, plan.answers["data"])
    directory = found or RunDirectory.create(out, recipe.name, recipe.seed, text)
    directory.lock()
    about: dict[str, Any] = {}
    if selection:
        held = read_data(selection.networks[0][0][1].loaded, plan.answers["data"])
        selected = selection.run(held, directory, device, reporter)
        plan, about["selection"] = make_plan(selected.loaded), selected.record
        if not selection.asked.retrain:
            selected.adopt(directory)
            data = held
    if reused:
        about["reused"] = reused.record()
    return Run(plan, data, directory, device, reporter, reused).execute(about), directory.path


def choose_device(loaded: LoadedRecipe) -> torch.device:
    """The device that the recipe asks for; ``auto`` is CUDA where there is one.

    Raises:
        RecipeError: it asks for CUDA and there is none.
    """
    name = loaded.recipe.device
    available = torch.cuda.is_available()
    if name.startswith("cuda") and not available:
        raise loaded.fail(("device",), f"device '{name}': this machine has no CUDA device; use device: auto")
    return torch.device(("cuda" if available else "cpu") if name == "auto" else name)


def read_data(loaded: LoadedRecipe, answers: Answers, imbalance: Imbalance | None = None) -> PreparedData:
    """Build the recipe's data and cut its long tail.

    Args:
        loaded: the recipe.
        answers: what its data method implements.
        imbalance: in place of the recipe's.

    Raises:
        DataError: the data is missing, damaged or does not suit the recipe.
    """
    asked = loaded.recipe.data
    if imbalance is not None:
        asked = asked.model_copy(update={"imbalance": imbalance})
    hooks = Hooks(answers, {})
    try:
        return prepare(hooks.build_data(), asked)
    except (DataError, RecipeError) as error:
        raise type(error)(f"{loaded.where('data')}: {error}") from error


class Run:
    """The state of a run, and the order of its stages.

    Args:
        plan: the plan.
        data: the data, long-tailed.
        directory: the run's directory, new or of a run to go on with.
        device: where to train.
        reporter: tells the user how it goes.
        reused: what is taken over from another run.
    """

    #: What trains a stage.
    trainer: type[StageTrainer] = StageTrainer

    def __init__(
        self,
        plan: Plan,
        data: PreparedData,
        directory: RunDirectory,
        device: torch.device,
        reporter: Reporter,
        reused: reuse.Reuse | None = None,
    ) -> None:
        self.reused, self.tracing = reused, trace.asked()
        self.plan, self.data, self.directory, self.device, self.reporter = plan, data, directory, device, reporter
        self.recipe = recipe = plan.loaded.recipe
        self.position = Position()
        self._classifier_by: str | None = None
        #: The data of stages that have their own, by index; and that of the stage in which the run stands.
        self.cuts = {index: self._cut(stage.data.imbalance) for index, stage in enumerate(recipe.stages) if stage.data}
        self.current = data
        splits = {"train": data.train, "val": data.val, "test": data.test}
        self.loaders = {name: self._loader(split) for name, split in splits.items() if split is not None}
        # Test data reaches no method: the provider, which answers their questions, does not have it.
        provider = FeatureProvider({k: v for k, v in self.loaders.items() if k != "test"}, recipe.eval_batch_size)
        torch.manual_seed(derive_seed(recipe.seed, "backbone"))
        backbone = Hooks(plan.answers["backbone"], {}).build_backbone(len(data.mean), data.transform.image_size)
        self.model = Model(
            backbone,
            nn.Linear(backbone.feature_dim, len(data.class_names)),
            {key: entry.method for key, entry in plan.entries.items()},
        )
        self._move()
        self.state = RunState(
            seed=recipe.seed,
            device=device,
            num_classes=len(data.class_names),
            class_counts=data.class_counts.to(device),
            training_targets=data.train.targets,
            validation_targets=None if data.val is None else data.val.targets,
            model=self.model,
            provider=provider,
            progress=torch.zeros((), device=device),
        )
        provider.state = self.state
        self.provider = provider
        self.contexts = {key: Context(self.state, key) for key in plan.entries}

    def _move(self) -> None:
        self.model.to(device=self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]

    def _cut(self, imbalance: Imbalance | None) -> PreparedData:
        """The data with a stage's own imbalance."""
        return read_data(self.plan.loaded, self.plan.answers["data"], imbalance)

    def _loader(self, split: ArraySplit | StreamedSplit) -> Loader:
        data, workers = self.data, worker_count(self.recipe.data.workers)
        return build_loader(split, data.transform, data.mean, data.std, workers, self.device)

    def _enter(self, stage: str, index: int) -> None:
        """Stand before a stage's first epoch, or before calibration, with the training images that it asks for."""
        state, data = self.state, self.cuts.get(index, self.data)
        if data is not self.current:
            self.current = data
            self.loaders["train"] = self._loader(data.train)
            self.provider.train_on(self.loaders["train"])
            state.class_counts, state.training_targets = data.class_counts.to(self.device), data.train.targets
        state.enter(stage, index)

    def execute(self, about: dict[str, Any] | None = None) -> dict[str, Any]:
        """Train the stages that are not done yet, calibrate, and write the result.

        Args:
            about: for the result, how the recipe's values were chosen and what was taken over.
        """
        used = {entry.offer.distribution for entry in [*self.plan.entries.values(), self.plan.data, self.plan.backbone]}
        surroundings = environment(str(self.device), used)
        self.directory.write_json("environment.json", surroundings)
        with self.reporter:
            self.reporter.run_started(self.recipe.name, self.directory.path, self._summary())
            self.train()
            result = self._finish(surroundings, about or {})
            self.reporter.finished(result_rows(result), self.directory.path)
        return result

    def start(self) -> None:
        """Let every method make what depends on the data."""
        torch.manual_seed(derive_seed(self.recipe.seed, "methods"))
        Hooks(self.plan.start, self.contexts).event("on_run_start")
        self._move()

    def train(self) -> None:
        """Train the stages that are not done yet; the others are read from their files."""
        self.start()
        check_groups(self.plan, self.model)
        if self.reused and not self.directory.last.exists():
            self.reused.into(self)
        tensors, plain = self._restore()
        for index, stage_plan in enumerate(self.plan.stages):
            name = stage_plan.stage.name
            hooks = Hooks(stage_plan.answers, self.contexts, stage_plan.stage.auxiliary_weights)
            if index < self.position.stage:
                # Done before the run was killed: only its shape, and its model for later stages, are needed.
                self._enter(name, index)
                self._prepare_classifier(index, hooks)
                path = self.directory.stage_file(index, name)
                checkpoint.restore_model(self.model, checkpoint.load(path, self.device)[0], path)
                self.provider.freeze(name)
                if self.data.test is not None and "test" not in self.position.results[index]:
                    self.position.results[index] |= self._evaluate()  # trained by a selection, which has no test data
                continue
            self._train_stage(index, hooks, tensors, plain)
            tensors, plain = None, {}

    def _summary(self) -> list[str]:
        counts, data, backbone = self.data.class_counts, self.data, self.model.backbone
        millions = sum(p.numel() for p in backbone.parameters()) / 1e6
        held = f", {len(data.val)} held out" if data.val is not None else ""
        return [
            f"data      {self.recipe.data.use}: {len(counts)} classes of {int(counts.max())} to {int(counts.min())} "
            f"images, {int(counts.sum())} to train on{held}, {len(data.test or ())} to test on",
            *(f"note      {note}" for note in data.notes),
            *(f"warning   {text}" for text in self.plan.warnings),
            f"backbone  {self.recipe.backbone.use}, {millions:.2f} million parameters, on {self.device}",
        ]

    def _restore(self) -> tuple[dict[str, Tensor] | None, dict[str, Any]]:
        if not self.directory.last.exists():
            self.directory.cut_metrics(0)
            return None, {}
        tensors, state = checkpoint.load(self.directory.last, self.device)
        try:
            self.position, optimizer = Position(**state["position"]), state["optimizer"]
        except (KeyError, TypeError) as error:
            raise RunError(
                f"{self.directory.last} is no checkpoint of this version of ltcore ({error}). "
                "Begin the run anew, without --resume"
            ) from error
        self.directory.cut_metrics(self.position.metrics_size)
        self.reporter.note(
            f"going on from stage {self.position.stage + 1}, epoch {self.position.epoch + 1}, "
            f"step {self.position.step + 1}"
            if self.position.stage < len(self.plan.stages)
            else "every stage had ended; only the results are missing"
        )
        return tensors, optimizer

    def _prepare_classifier(self, index: int, hooks: Hooks) -> None:
        """Build the stage's classifier, where the recipe or one of its methods asks for a new one."""
        plan = self.plan.stages[index]
        answers = plan.answers["build_classifier"]
        builder = answers[0].entry.key if answers else None
        if index and plan.stage.classifier == "keep" and builder in (None, self._classifier_by):
            return
        width, classes = self.model.backbone.feature_dim, self.state.num_classes
        torch.manual_seed(derive_seed(self.recipe.seed, "classifier", plan.stage.name))
        built = hooks.build_classifier(width, classes, self.model.classifier if index else None)
        self.model.classifier = default_classifier(width, classes) if built is None else built
        self._classifier_by = builder
        self._move()

    def _train_stage(self, index: int, hooks: Hooks, tensors: dict[str, Tensor] | None, plain: dict[str, Any]) -> None:
        stage, position = self.plan.stages[index].stage, self.position
        self._enter(stage.name, index)
        watch = trace.Watch(stage, hooks, self.state, trace.STEPS if self.tracing else 0)
        self._prepare_classifier(index, hooks)
        if tensors:
            checkpoint.restore_model(self.model, tensors, self.directory.last)
        trainer = self.trainer(self, self.plan.stages[index], hooks, watch)
        trainer.train(tensors, plain)
        figures = self._evaluate()
        position.results.append(
            {
                "name": stage.name,
                "seconds": round(position.seconds, 3),
                "images_per_second": round(position.images / max(position.seconds, 1e-9), 1),
                **figures,
            }
        )
        self.reporter.stage_ended(stage.name, figures.get("test", figures.get("validation", {})), position.seconds)
        checkpoint.save(self.directory.stage_file(index, stage.name), checkpoint.model_tensors(self.model), {})
        self.provider.freeze(stage.name)
        position.stage, position.epoch, position.step, position.begun = index + 1, 0, 0, False
        position.seconds, position.images = 0.0, 0
        # The next stage begins with the model in the stage's file and an optimiser of its own.
        checkpoint.save(self.directory.last, {}, {"position": asdict(position), "optimizer": {}})

    def _outputs(self, split: str) -> tuple[Tensor, Tensor, Tensor]:
        """Pooled features, logits and targets of a split's images as they are, for the model as it is."""
        found = {"train": self.current.train, "val": self.data.val, "test": self.data.test}[split]
        assert found is not None
        pooled = pooled_features(self.model, self.loaders[split], self.recipe.eval_batch_size)
        return pooled, logits_of(self.model.classifier, pooled, self.recipe.eval_batch_size), found.targets

    def _evaluate(self) -> dict[str, Any]:
        """Figures of the model as it is on the test images, and on the validation images where there are any."""
        figures: dict[str, Any] = {}
        test = None if self.data.test is None else self._outputs("test")
        if test is not None:
            figures["test"] = metrics.evaluate_logits(*test[1:], self.data.class_counts)
        if self.data.val is not None:
            figures["validation"] = metrics.evaluate_logits(*self._outputs("val")[1:], self.data.class_counts)
        if self.recipe.diagnostics != "off":
            figures["diagnostics"] = self.diagnose(test)
        return figures

    def diagnose(self, test: tuple[Tensor, Tensor, Tensor] | None = None) -> dict[str, Any]:
        """See `ltcore.diagnostics.diagnose`; `test` saves computing what `_outputs` gave already."""
        state = self.state
        generator = generator_for("cpu", state.seed, "diagnostics", state.stage)
        test = test or self._outputs("test")
        return diagnostics.diagnose(self.model.classifier, self._outputs("train"), test, state.num_classes, generator)

    def _calibrated(self) -> nn.Module:
        """A copy of the classifier after `calibrate`."""
        self._enter("calibration", len(self.plan.stages))
        with torch.no_grad():
            return Hooks(self.plan.calibration, self.contexts).post_calibrate(copy.deepcopy(self.model.classifier))

    def validate(self) -> float:
        """Balanced accuracy of the trained and calibrated model on the validation images."""
        classifier = self._calibrated()
        pooled, _, targets = self._outputs("val")
        logits = logits_of(classifier, pooled, self.recipe.eval_batch_size)
        score: float = metrics.evaluate_logits(logits, targets, self.data.class_counts)["balanced_accuracy"]
        return score

    def _finish(self, surroundings: dict[str, Any], about: dict[str, Any]) -> dict[str, Any]:
        """Calibrate a copy of the classifier, evaluate, and write the model, predictions.npz and result.json."""
        import numpy as np

        recipe, data, state = self.recipe, self.data, self.state
        classifier = self._calibrated()
        pooled, before, targets = self._outputs("test")
        after = logits_of(classifier, pooled, recipe.eval_batch_size)
        calibrated.write(self.directory.calibrated, self.model, classifier, data, recipe.seed)
        temporary = self.directory.path / "predictions.tmp.npz"
        np.savez_compressed(
            temporary, targets=targets.numpy(), logits=before.cpu().numpy(), calibrated_logits=after.cpu().numpy()
        )
        temporary.replace(self.directory.path / "predictions.npz")
        result = {
            "recipe": recipe.name,
            "seed": recipe.seed,
            "data": recipe.data.use,
            "num_classes": state.num_classes,
            "class_counts": data.class_counts.tolist(),
            "class_names": list(data.class_names),
            "reported_epoch": "last",
            **about,
            "calibration": list(recipe.calibrate),
            "before_calibration": metrics.evaluate_logits(before, targets, data.class_counts),
            "after_calibration": metrics.evaluate_logits(after, targets, data.class_counts),
            "stages": self.position.results,
            "device": surroundings["device"],
            "versions": {"python": surroundings["python"], **surroundings["versions"]},
        }
        self.directory.write_json("result.json", result)
        return result


def result_rows(result: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """The rows of the table at a run's end, from ``result.json``: each stage, then calibration."""
    rows = [(entry["name"], entry["test"]) for entry in result["stages"]]
    return rows + ([("after calibration", result["after_calibration"])] if result["calibration"] else [])


def default_classifier(feature_dim: int, num_classes: int) -> nn.Linear:
    """Core's classifier: linear, with Kaiming-normal weights and no bias at the start."""
    classifier = nn.Linear(feature_dim, num_classes)
    nn.init.kaiming_normal_(classifier.weight)
    nn.init.zeros_(classifier.bias)
    return classifier

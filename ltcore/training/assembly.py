"""A run's parts, put together: backbone, classifier, methods and what they may know, stage by stage."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from typing import TypeVar

import torch
from torch import nn

from ltcore import ranks
from ltcore.contract.backbone import Backbone
from ltcore.contract.classifier import wrong_weight
from ltcore.contract.context import Context, RunState
from ltcore.contract.experts import ExpertClassifiers
from ltcore.contract.hookspecs import build_backbone, build_classifier, build_ensemble, on_run_start, post_calibrate
from ltcore.contract.model import Model
from ltcore.discovery.binding import Hooks, Implementation
from ltcore.errors import PluginError
from ltcore.evaluation.pooled import PooledFeatures
from ltcore.networks.synchronised import synchronise
from ltcore.plan.adapting import adapted
from ltcore.plan.plan import Plan
from ltcore.seeding import derive_seed, seed_globally
from ltcore.training.data import RunData
from ltcore.training.features import FeatureProvider

T = TypeVar("T")


class Assembly:
    """The model of a run, and the record of where it stands that methods read.

    Args:
        plan: the plan.
        data: the run's images.
        device: where the model is.
        provider: answers methods' questions about features; by default from the images.

    Attributes:
        model: backbone, classifier and methods.
        state: where the run stands.
        contexts: what each method may know, by its name in the recipe; core's own under the empty name.
        tested: pooled features of the test images; those of the others are the provider's.
    """

    def __init__(
        self, plan: Plan, data: RunData, device: torch.device, provider: FeatureProvider | None = None
    ) -> None:
        self.plan, self.data, self.device = plan, data, device
        self.recipe = recipe = plan.loaded.recipe
        whole = data.whole
        # Test data reaches no method: the provider, which answers their questions, does not have it.
        untested = {name: loader for name, loader in data.loaders.items() if name != "test"}
        self.provider = provider or FeatureProvider(untested, recipe.eval_batch_size)
        self.tested = PooledFeatures()
        backbone = self._backbone()
        self.model = Model(
            backbone,
            nn.Linear(backbone.feature_dim, len(whole.class_names)),
            {key: entry.method for key, entry in plan.entries.items()},
        )
        self._move()
        self.state = RunState(
            seed=recipe.seed,
            device=device,
            num_classes=len(whole.class_names),
            class_names=whole.class_names,
            class_counts=whole.class_counts.to(device),
            training_targets=whole.train.targets,
            validation_targets=None if whole.val is None else whole.val.targets,
            model=self.model,
            provider=self.provider,
            progress=torch.zeros((), device=device),
        )
        self.provider.state = self.state
        self.contexts = {key: Context(self.state, key) for key in ("", *plan.entries)}
        self._classifier_by: str | None = None
        self._ensemble_by: str | None = None

    def _backbone(self, *stage: str) -> Backbone:
        """A new backbone; a stage that asks for one of its own gets other random numbers."""
        seed_globally(derive_seed(self.recipe.seed, "backbone", *stage))
        whole, hooks = self.data.whole, Hooks(self.plan.answers["backbone"], {})
        built = hooks.call(build_backbone, len(whole.mean), whole.transform.image_size)
        found = adapted(built, len(whole.class_names), self.plan.adaptation, self.plan.loaded)
        if self.recipe.sync_batch_norm and ranks.size() > 1:
            synchronise(found)
        return found

    def _move(self) -> None:
        self.model.to(device=self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]

    def hooks(self, index: int) -> Hooks:
        """A stage's methods, bound."""
        stage = self.plan.stages[index]
        return Hooks(stage.answers, self.contexts, stage.stage.auxiliary_weights)

    def start(self) -> None:
        """Let every method make what depends on the data."""
        seed_globally(derive_seed(self.recipe.seed, "methods"))
        Hooks(self.plan.start, self.contexts).call(on_run_start)
        self._move()

    def enter(self, stage: str, index: int) -> None:
        """Stand before a stage's first epoch, or before calibration, with the training images that it asks for."""
        if self.data.enter(index):
            self.provider.train_on(self.data.loaders["train"])
            current = self.data.current
            self.state.class_counts = current.class_counts.to(self.device)
            self.state.training_targets = current.train.targets
        self.state.enter(stage, index)

    def prepare(self, index: int, hooks: Hooks) -> None:
        """Build the stage's backbone and classifier, where the recipe or one of its methods asks for new ones."""
        plan, experts = self.plan.stages[index], self.model.backbone.experts
        if index and plan.stage.backbone == "rebuild":
            self.model.backbone = self._backbone(plan.stage.name)
            self._move()
        kept = bool(index) and plan.stage.classifier == "keep"
        builder, combiner = _who(plan.answers["build_classifier"]), _who(plan.answers["build_ensemble"])
        new = not (kept and builder in (None, self._classifier_by))
        combined = experts > 1 and not (kept and combiner in (None, self._ensemble_by))
        if not new and not combined:
            return
        seed_globally(derive_seed(self.recipe.seed, "classifier", plan.stage.name))
        width, classes, previous = self.model.backbone.feature_dim, self.state.num_classes, self.model.classifier

        def build(before: nn.Module | None) -> nn.Module:
            made = hooks.call(build_classifier, width, classes, before)
            if builder and (wrong := wrong_weight(made, width)):
                whose = plan.answers["build_classifier"][0].entry.whose
                raise PluginError(
                    f"stage '{plan.stage.name}': the classifier of {whose} says what is not so: {wrong}. Calibrations "
                    "and activation maps read 'weight' [C, D] and 'bias' [C] or None as they are applied: make them "
                    "properties that compute it; tell its author"
                )
            return made

        if experts == 1:
            self.model.classifier = build(previous if index else None)
        else:
            trained = previous if isinstance(previous, ExpertClassifiers) else None
            before = list(trained.experts) if trained else [None] * experts
            self.model.classifier = ExpertClassifiers(
                [one if one and not new else self._of_expert(number, build, one) for number, one in enumerate(before)],
                trained.ensemble if trained and not combined else hooks.call(build_ensemble, width, classes, experts),
            )
        self._classifier_by = builder if new else self._classifier_by
        self._ensemble_by = combiner if combined else self._ensemble_by
        self._move()

    def calibrated(self) -> nn.Module:
        """A copy of the classifier after `calibrate`; each expert's goes through it by itself."""
        self.enter("calibration", len(self.plan.stages))
        hooks = Hooks(self.plan.calibration, self.contexts)
        classifier = copy.deepcopy(self.model.classifier)
        with torch.no_grad():
            if not isinstance(classifier, ExpertClassifiers):
                return hooks.call(post_calibrate, classifier)
            for number, one in enumerate(classifier.experts):
                classifier.experts[number] = self._of_expert(number, partial(hooks.call, post_calibrate), one)
            return classifier

    def _of_expert(self, number: int, change: Callable[[T], nn.Module], classifier: T) -> nn.Module:
        """What is made of one expert's classifier, while methods are told of that expert's features."""
        self.state.expert = number
        try:
            return change(classifier)
        finally:
            self.state.expert = None


def _who(answers: list[Implementation]) -> str | None:
    """The one method that answers, by its name in the recipe."""
    return answers[0].entry.key if answers else None

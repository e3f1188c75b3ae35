"""What a method may know about the run: a read-only view, one for each method."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from ltcore.errors import RunError
from ltcore.seeding import derive_seed, seed_globally

if TYPE_CHECKING:
    from ltcore.contract.images import ImageFunction
    from ltcore.contract.model import Model


#: What is said to a method that asks for validation images where there are none.
NO_VALIDATION = (
    "there are no validation images; set data.holdout in the recipe. A method that needs them says so in `requires` "
    "(validation), and is then refused before data is read"
)


class Provider(Protocol):
    """What the trainer computes for methods on demand."""

    def frozen_model(self, stage: str | None) -> Model:
        """See `Context.frozen_model`."""

    def features(self, split: str, tap: str) -> Tensor:
        """See `Context.training_features` and `Context.validation_features`."""

    def at_hand(self, split: str) -> Tensor | None:
        """Pooled features of a split where the network need not run for them."""

    def feature_shape(self, tap: str) -> tuple[int, ...]:
        """See `Context.feature_shape`."""

    def images(
        self,
        split: str,
        indices: Tensor,
        transform: ImageFunction | None,
        augmented: bool,
        generator: torch.Generator,
    ) -> Tensor:
        """See `Context.images`; all draws come from `generator`, on the CPU."""


@dataclass
class RunState:
    """Where the run stands; written by the trainer, read through `Context`.

    `expert`: whose classifier is being built or calibrated, in a network with experts.
    """

    seed: int
    device: torch.device
    num_classes: int
    class_counts: Tensor
    training_targets: Tensor
    validation_targets: Tensor | None
    model: Model
    provider: Provider
    stage: str = ""
    stage_index: int = 0
    epoch: int = -1
    epochs: int = 0
    step: int = -1
    learning_rate: float = 0.0
    progress: Tensor = field(default_factory=lambda: torch.zeros(()))
    expert: int | None = None
    class_names: tuple[str, ...] = ()

    def enter(self, stage: str, index: int) -> None:
        """Stand before the first epoch of a stage; nothing of the stage before shows, which a resumed run never saw."""
        self.stage, self.stage_index = stage, index
        self.epoch, self.epochs, self.step, self.learning_rate = -1, 0, -1, 0.0
        self.progress.zero_()


class Context:
    """A method's view of the run. Test data is not in it.

    Args:
        state: the trainer's record of where the run stands.
        owner: the method's name in the recipe; its randomness is its own.
    """

    def __init__(self, state: RunState, owner: str) -> None:
        self._state = state
        self._owner = owner
        self._generator = torch.Generator(device=state.device)
        self._cpu_generator = self._generator if state.device.type == "cpu" else torch.Generator()
        self._drawn_for: tuple[str, int, int] | None = None

    @property
    def name(self) -> str:
        """The method's name in the recipe."""
        return self._owner

    @property
    def num_classes(self) -> int:
        """C."""
        return self._state.num_classes

    @property
    def class_names(self) -> tuple[str, ...]:
        """C names, in label order, as the data set says them."""
        return self._state.class_names

    @property
    def class_counts(self) -> Tensor:
        """Training images per class, [C] int64, on the device. Held-out images are not counted."""
        return self._state.class_counts

    @property
    def training_targets(self) -> Tensor:
        """Labels of the training split, [N] int64, on the CPU; a row's ``source_index`` points into it."""
        return self._state.training_targets

    @property
    def validation_targets(self) -> Tensor:
        """Labels of the validation images, [M] int64, on the CPU.

        Raises:
            RunError: there are none. A method whose `requires` has ``validation`` is refused in the plan then.
        """
        if self._state.validation_targets is None:
            raise RunError(NO_VALIDATION)
        return self._state.validation_targets

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self._state.device

    @property
    def stage(self) -> str:
        """Name of the current stage."""
        return self._state.stage

    @property
    def stage_index(self) -> int:
        """0 for the first stage."""
        return self._state.stage_index

    @property
    def epoch(self) -> int:
        """Epoch of the stage, from 0; -1 before the first."""
        return self._state.epoch

    @property
    def epochs(self) -> int:
        """Number of epochs in the stage."""
        return self._state.epochs

    @property
    def step(self) -> int:
        """Step of the epoch, from 0: which of the batches that ``extra_rows`` is given.

        -1 before the first; the number of the epoch's steps behind the last.
        """
        return self._state.step

    @property
    def progress(self) -> Tensor:
        """How much of the stage is done, 0-d float32 in [0, 1) on the device: a schedule that reads it never waits."""
        return self._state.progress

    @property
    def learning_rate(self) -> float:
        """The rate of the step's update, of the epoch's first step before it; 0 outside of a stage's epochs.

        A parameter in a group of the optimiser with a rate of its own trains with that, scaled alike.
        """
        return self._state.learning_rate

    @property
    def generator(self) -> torch.Generator:
        """Randomness for what this method draws on the device.

        Its seed is a function of the run's seed, the method's name, stage, epoch and step. Outside of a step, the
        hook's name is added (see `begin`). So a resumed run draws the same numbers.
        """
        self.stand()
        return self._generator

    @property
    def cpu_generator(self) -> torch.Generator:
        """As `generator`, on the CPU: for what is drawn there, such as indices of images; no draw waits for the device.

        Where the device is the CPU, it is `generator`.
        """
        self.stand()
        return self._cpu_generator

    def stand(self) -> None:
        """Seed the generators where this step has not drawn from them; core calls it before a step is replayed."""
        now = (self._state.stage, self._state.epoch, self._state.step)
        if now != self._drawn_for:
            self._seed(derive_seed(self._state.seed, "method", self._owner, *now))
            self._drawn_for = now

    def _seed(self, seed: int) -> None:
        self._generator.manual_seed(seed)
        self._cpu_generator.manual_seed(seed)

    def restart(self) -> None:
        """Draw the same numbers again in this step; core calls it before each pass of a step that has several."""
        self._drawn_for = None

    def standing(self) -> Callable[[], None]:
        """What puts the generators back to where they are now; core tries a step with it."""
        generators = {self._generator, self._cpu_generator}
        states, drawn_for = [(each, each.get_state()) for each in generators], self._drawn_for

        def put_back() -> None:
            for generator, state in states:
                generator.set_state(state)
            self._drawn_for = drawn_for

        return put_back

    def begin(self, hook: str) -> None:
        """Seed what the method draws in a hook outside of a step; core calls it before each.

        A resumed run does not call all the hooks that came before, so the draws must not depend on them. This holds for
        `generator` and for torch's global one, which initialises modules.
        """
        state = self._state
        which = () if state.expert is None else ("expert", state.expert)
        seed = derive_seed(state.seed, "method", self._owner, hook, state.stage, state.epoch, *which)
        seed_globally(seed)
        self._seed(seed)
        self._drawn_for = (state.stage, state.epoch, state.step)

    @property
    def model(self) -> Model:
        """The model as it is now."""
        return self._state.model

    def frozen_model(self, stage: str | None = None) -> Model:
        """The model as it was at the end of an earlier stage (default: the one before), frozen, in eval mode.

        Raises:
            RunError: there is no such earlier stage.
        """
        return self._state.provider.frozen_model(stage)

    def feature_shape(self, tap: str) -> tuple[int, ...]:
        """Shape of one row at a tap: (D, H, W), or (D,) at ``pooled``."""
        return self._state.provider.feature_shape(tap)

    def training_features(self, tap: str = "pooled") -> Tensor:
        """Features of all training images without augmentation, model in eval mode, [N, ...] on the device.

        Computed once for a given state of the backbone. Behind the split of a backbone with E experts [N, E, ...];
        while an expert's classifier is built or calibrated, that expert's alone, [N, ...].
        """
        return self._state.provider.features("train", tap)

    def validation_features(self, tap: str = "pooled") -> Tensor:
        """Features of the held-out validation images, [M, ...] on the device; of experts as `training_features`.

        Raises:
            RunError: the recipe holds nothing out and the data set has no validation split.
        """
        return self._state.provider.features("val", tap)

    def images(
        self, split: str, indices: Tensor, transform: ImageFunction | None = None, augmented: bool = False
    ) -> Tensor:
        """Images of the training or the validation split, to look at: [M, C, H, W] float32, normalised, on the device.

        They are decoded, and may be many: a method asks for as many at a time as fit into memory. In a rehearsal some
        of many stand for all.

        Args:
            split: ``train`` or ``val``; ``source_index`` points into ``train``.
            indices: [M] int64, on any device; on the CPU nothing waits for another one.
            transform: what is done to each image before it is normalised, as ``image_transform`` describes it. It is
                drawn from `cpu_generator`, so that it differs from call to call.
            augmented: prepare them as training does, with crop, flip and policy drawn likewise; else as evaluation
                does.

        Raises:
            PluginError: there is no such split or image, or `transform` cannot be sent to another process.
            RunError: there are no validation images; or `transform` failed.
        """
        return self._state.provider.images(split, indices, transform, augmented, self.cpu_generator)

    def class_means(self) -> Tensor:
        """Mean pooled training feature of each class, [C, D]; with E experts [C, E, D], as `training_features`."""
        features = self.training_features().float()
        targets, shape = self.training_targets.to(features.device), features.shape[1:]
        sums = torch.zeros(self.num_classes, *shape, device=features.device).index_add_(0, targets, features)
        return sums / self.class_counts.view(-1, *(1 for _ in shape))

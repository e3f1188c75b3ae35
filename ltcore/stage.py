"""The training loop of one stage."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ltcore import checkpoint, trace
from ltcore.errors import PluginError, RunError
from ltcore.features import FeatureCache
from ltcore.model import matches, public_name, set_trainable
from ltcore.optim import build_optimizer, set_learning_rate
from ltcore.records import Batch
from ltcore.samplers import DISTRIBUTIONS, EpochBatches, PlainSampler, Sampler
from ltcore.schedules import learning_rate
from ltcore.seeding import derive_seed, generator_for
from ltcore.step import StepForward

if TYPE_CHECKING:
    from ltcore.data.loader import Loader
    from ltcore.hooks import Hooks
    from ltcore.plan import StagePlan
    from ltcore.runner import Run

#: On an accelerator, how many steps pass before the loss is looked at: looking waits for the device.
_STEPS_BETWEEN_LOOKS = 100
_SECONDS_BETWEEN_SHOWS = 0.2

#: How many times all others together a loss term must be to be blamed for weights that are not finite.
_BY_FAR = 10


@dataclass
class Position:
    """Where a run stands, as a checkpoint keeps it.

    Attributes:
        stage: index of the stage.
        epoch: epoch of the stage.
        step: steps of the epoch that are done.
        begun: whether the stage's on_stage_start has been called.
        seconds: training time of the stage so far.
        images: rows trained on in the stage so far.
        metrics_size: bytes of metrics.jsonl.
        results: what `Run` recorded for the stages that have ended.
    """

    stage: int = 0
    epoch: int = 0
    step: int = 0
    begun: bool = False
    seconds: float = 0.0
    images: int = 0
    metrics_size: int = 0
    results: list[dict[str, Any]] = field(default_factory=list)


class StageTrainer:
    """Trains one stage, from its beginning or from a checkpoint inside it.

    Args:
        run: the run that the stage belongs to.
        plan: the stage's plan.
        hooks: the stage's methods, bound.
        watch: sees them being called in the first steps.
    """

    def __init__(self, run: Run, plan: StagePlan, hooks: Hooks, watch: trace.Watch) -> None:
        self.run, self.plan, self.hooks, self.stage = run, plan, hooks, plan.stage
        self.state, self.model, self.position = run.state, run.model, run.position
        self.watch: trace.Watch | None = watch
        self.names = self._trainable_names()
        set_trainable(self.model, self.names, self.stage.batch_norm == "adapt")
        self.sampler: Sampler
        self.optimizer: torch.optim.Optimizer
        self.terms: list[str] = []
        #: For each loss term the first step at which it was not finite, -1 before; kept on the device.
        self.not_finite: Tensor | None = None
        #: For each loss term the last value that was finite; kept on the device.
        self.last_finite: Tensor | None = None
        self.loss_sum = torch.zeros((), dtype=torch.float64, device=run.device)
        self.saved_at = self.shown_at = time.perf_counter()

    def _trainable_names(self) -> set[str]:
        names = {name: public_name(name, self.model.backbone) for name, _ in self.model.named_parameters()}
        for position, pattern in enumerate(self.stage.trainable):
            if not any(matches(public, pattern) for public in names.values()):
                raise self.run.plan.loaded.fail(
                    ("stages", self.position.stage, "trainable", position),
                    f"stage '{self.stage.name}': trainable '{pattern}' matches nothing; "
                    "the method has no parameters of that name",
                )
        return {name for name, public in names.items() if any(matches(public, p) for p in self.stage.trainable)}

    def train(self, restored: dict[str, Tensor] | None, plain: dict[str, Any]) -> None:
        """Go through the stage's remaining epochs.

        Args:
            restored: tensors of the checkpoint that the stage goes on from; None or empty at its beginning.
            plain: the optimiser's plain state in that checkpoint.
        """
        stage, state, position = self.stage, self.state, self.position
        if not position.begun:
            shapes = {name: tensor.shape for name, tensor in self.model.state_dict().items()}
            self.hooks.event("on_stage_start")
            for name, tensor in self.model.state_dict().items():
                if tensor.shape != shapes.get(name):
                    public = public_name(name, self.model.backbone)
                    raise PluginError(
                        f"stage '{stage.name}': on_stage_start made or resized {public}, which a resumed run "
                        "could not restore; a method makes its buffers in __init__ or on_run_start"
                    )
            position.begun = True
        self.optimizer = self._build_optimizer()
        if restored:
            checkpoint.restore_optimizer(self.optimizer, restored, plain)
            self.loss_sum.copy_(restored["trainer/loss_sum"])
        self.sampler = self.hooks.build_sampler(stage.batch_size) or PlainSampler(
            state.training_targets, state.num_classes, stage.batch_size
        )
        per_epoch = self.sampler.steps_per_epoch()
        total = stage.iterations or (stage.epochs or 0) * per_epoch
        state.epochs = math.ceil(total / per_epoch)
        began = time.perf_counter()
        source = self._source()
        position.seconds += time.perf_counter() - began
        start = source.tap if isinstance(source, FeatureCache) else "images"
        bf16 = stage.precision == "bf16" or (stage.precision == "auto" and self.run.device.type == "cuda")
        forward = StepForward(self.model, self.hooks, start, stage.classification, torch.bfloat16 if bf16 else None)
        self.run.reporter.stage_started(
            stage.name,
            position.stage,
            len(self.run.plan.stages),
            state.epochs,
            min(per_epoch, total),
            position.epoch,
            position.step,
        )
        for epoch in self._epochs():
            steps = min(per_epoch, total - epoch * per_epoch)
            state.epoch, state.step = epoch, -1
            state.progress.fill_(epoch * per_epoch / total)
            if position.step == 0:
                self.hooks.event("on_epoch_start")
                self._refuse_strays()
            weights = self.hooks.class_weights()
            distribution = self._distribution()
            drawn = self.sampler.draw(
                steps, distribution, generator_for("cpu", state.seed, "sampler", stage.name, epoch)
            )
            self._epoch(drawn, forward, source, weights, total, per_epoch)
            # Also where a resumed epoch had no step left. Not -1: the features of on_epoch_start are out of date.
            state.step = steps
            state.progress.fill_((epoch * per_epoch + steps - 1) / total)
            self.hooks.event("on_epoch_end")
            position.epoch, position.step = epoch + 1, 0
        if self.watch is not None:
            self._watched(self.watch)

    def _watched(self, watch: trace.Watch) -> None:
        """The first steps are done: tell what was seen, and let the hooks be called as they are."""
        watch.leave()
        self.watch = None
        if watch.traced:
            watch.write(self.run.directory.path / "trace.jsonl")
            for line in trace.render(watch.describe(), self.run.device.type):
                self.run.reporter.note(line)

    def _epochs(self) -> Iterable[int]:
        """The epochs that remain."""
        return range(self.position.epoch, self.state.epochs)

    def _build_optimizer(self) -> torch.optim.Optimizer:
        self._refuse_strays()
        optimizer, wanted = self.stage.optimizer, [p for p in self.model.parameters() if p.requires_grad]
        return build_optimizer(optimizer.name, wanted, optimizer.lr, optimizer.model_extra or {}, self.run.device.type)

    def _refuse_strays(self) -> None:
        """What requires a gradient is what the recipe names, whatever a hook has done.

        Raises:
            PluginError: a parameter does, and is not.
        """
        for name, parameter in self.model.named_parameters():
            if parameter.requires_grad and name not in self.names:
                raise PluginError(
                    f"stage '{self.stage.name}': parameter '{public_name(name, self.model.backbone)}' would be trained "
                    "by no optimiser; a method makes its parameters in __init__ or on_run_start, and the recipe names "
                    "them in 'trainable'"
                )

    def _distribution(self) -> Tensor | None:
        named = DISTRIBUTIONS[self.stage.sampler] if self.stage.sampler else None
        if named:
            return named(self.state.class_counts.cpu())
        drawn = self.hooks.class_distribution()
        if drawn is None:
            return None
        drawn = drawn.detach().cpu().double()
        if drawn.shape != (self.state.num_classes,) or not (drawn >= 0).all() or not 0 < drawn.sum() < math.inf:
            raise PluginError(
                f"stage '{self.stage.name}': {self.plan.answers['class_distribution'][0].entry.whose} gave no "
                f"distribution over the {self.state.num_classes} classes (hook class_distribution); tell its author"
            )
        return drawn

    def _source(self) -> Loader | FeatureCache:
        """Where batches come from: the training images, or a cache of their features."""
        loader = self.run.loaders["train"]
        if self.stage.cache == "off":
            return loader
        tap = "maps" if "maps" in self.hooks.taps else "pooled"
        views = None if self.stage.cache == "eval" else self.stage.cache_views
        seed = (self.state.seed, "cache", self.stage.name)
        return FeatureCache(self.model, loader, tap, views, self.run.recipe.eval_batch_size, seed)

    def _epoch(
        self,
        drawn: EpochBatches,
        forward: StepForward,
        source: Loader | FeatureCache,
        class_weights: Tensor | None,
        total: int,
        per_epoch: int,
    ) -> None:
        state, position, stage, device = self.state, self.position, self.stage, self.run.device
        source_only = None if drawn.source_only is None else drawn.source_only.to(device)
        trained = [p for p in self.model.parameters() if p.requires_grad]
        targets = state.training_targets
        began, began_images = time.perf_counter(), position.images
        counted = began
        if position.step == 0:
            self.loss_sum.zero_()

        def rate_at(step: int) -> float:
            return learning_rate(stage.schedule, stage.optimizer.lr, state.epoch, state.epochs, step, per_epoch)

        remaining = range(position.step, len(drawn.indices))
        seed = (state.seed, stage.name, state.epoch)
        generators = (generator_for(source.generator_device, "images", *seed, step) for step in remaining)
        batches = source.train_batches(drawn.indices[position.step :], generators)
        if self.watch is not None:
            self.watch.steps_begin()
        for step, images in zip(remaining, batches, strict=True):
            state.step = step
            done = state.epoch * per_epoch + step
            state.progress.fill_(done / total)
            # Dropout and the like draw from torch's global generator: seeded a step, it has nothing to remember.
            torch.manual_seed(derive_seed("global", *seed, step))
            indices = drawn.indices[step]
            batch = Batch(
                images=images,
                targets=targets[indices].to(device, non_blocking=True),
                source_index=indices.to(device, non_blocking=True),
                source_only=source_only,
            )
            terms = forward(batch, class_weights)
            loss = torch.stack(list(terms.values())).sum()
            self._note_not_finite(terms, step)
            set_learning_rate(self.optimizer, rate_at(step))
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            if stage.clip_grad_norm is not None:
                torch.nn.utils.clip_grad_norm_(trained, stage.clip_grad_norm)
            self.optimizer.step()
            self.loss_sum += loss.detach()
            position.step, position.images = step + 1, position.images + len(indices)
            if self.watch is not None:
                for text in self.watch.step_ended():
                    self.run.reporter.note(f"warning: {text}")
                if self.watch.done:
                    self._watched(self.watch)
            now = time.perf_counter()
            if now - self.shown_at > _SECONDS_BETWEEN_SHOWS:
                self.shown_at = now
                speed = (position.images - began_images) / (now - began)
                self.run.reporter.step(state.epoch, step, self._mean_loss, speed)
            if now - self.saved_at >= self.run.recipe.checkpoint_seconds:
                self._look()
                position.seconds, counted = position.seconds + now - counted, now
                self.save()
                self.saved_at = time.perf_counter()
        self._look()
        self._refuse_broken_weights()
        ended = time.perf_counter()
        seconds = ended - began
        position.seconds += ended - counted
        mean, rate = self._mean_loss(), rate_at(len(drawn.indices) - 1)
        speed = (position.images - began_images) / max(seconds, 1e-9)
        line: dict[str, Any] = {"stage": stage.name, "epoch": state.epoch, "loss": mean, "lr": rate}
        line |= {"seconds": round(seconds, 3), "images_per_second": round(speed, 1)}
        if self.run.recipe.diagnostics == "epoch":
            line["diagnostics"] = self.run.diagnose()
        position.metrics_size = self.run.directory.append_metrics(line)
        self.run.reporter.epoch_ended(state.epoch, state.epochs, mean, rate, seconds, speed)

    def _mean_loss(self) -> float:
        """Mean over the epoch's steps so far; waits for the device."""
        return float(self.loss_sum) / max(self.position.step, 1)

    def save(self) -> None:
        """Write ``checkpoints/last.safetensors``: everything that the rest of the run depends on.

        Raises:
            RunError: the weights are not finite; the checkpoint before stays.
        """
        self._refuse_broken_weights()
        tensors, plain = checkpoint.optimizer_tensors(self.optimizer)
        tensors |= checkpoint.model_tensors(self.model)
        tensors["trainer/loss_sum"] = self.loss_sum
        checkpoint.save(self.run.directory.last, tensors, {"position": asdict(self.position), "optimizer": plain})

    def _note_not_finite(self, terms: dict[str, Tensor], step: int) -> None:
        values = torch.stack([term.detach().float() for term in terms.values()])
        if self.not_finite is None or self.last_finite is None:
            self.terms = list(terms)
            self.not_finite = torch.full(values.shape, -1, dtype=torch.int64, device=values.device)
            self.last_finite = torch.zeros_like(values)
        first = (self.not_finite < 0) & ~values.isfinite()
        self.not_finite = torch.where(first, step, self.not_finite)
        self.last_finite = torch.where(values.isfinite(), values, self.last_finite)
        if self.run.device.type == "cpu" or (step + 1) % _STEPS_BETWEEN_LOOKS == 0:
            self._look()

    def _look(self) -> None:
        """End the run if a loss was not finite.

        Raises:
            RunError: naming the step, the term and the likely cause.
        """
        if self.not_finite is None or bool((self.not_finite < 0).all()):
            return
        steps = self.not_finite.tolist()
        broken = [(step, term) for step, term in zip(steps, self.terms, strict=True) if step >= 0]
        step, term = min(broken, key=lambda found: found[0])  # of one step the classification loss, which comes first
        raise RunError(self._diagnosis(step, f"the {term} loss is", term))

    def _refuse_broken_weights(self) -> None:
        """End the run if the last step broke the model, which the next loss would show.

        A method's buffers may hold infinities on purpose, so only what trains and the backbone's statistics count.

        Raises:
            RunError: naming the step and the likely cause.
        """
        trained = [p.detach() for p in self.model.parameters() if p.requires_grad]
        looked_at = [t for t in (*trained, *self.model.backbone.buffers()) if t.is_floating_point()]
        if not bool(torch.stack([t.isfinite().all() for t in looked_at]).all()):
            raise RunError(self._diagnosis(self.position.step - 1, "the trained weights or batch statistics are"))

    def _diagnosis(self, step: int, what: str, term: str = "") -> str:
        stage, loaded = self.stage, self.run.plan.loaded
        index = self.position.stage
        largest = float(
            torch.stack([p.detach().abs().max().float() for p in self.model.parameters() if p.numel()]).max()
        )
        message = f"stage '{stage.name}', epoch {self.state.epoch + 1}, step {step + 1}: {what} not finite. "
        lr = f"the learning rate {stage.optimizer.lr:g} ({loaded.where('stages', index, 'optimizer', 'lr')})"
        acting = [
            answer.entry.whose
            for hook in ("augment_features", "adjust_logits", "compute_loss", "class_weights")
            for answer in self.plan.answers[hook]
        ]
        sizes = [] if self.last_finite is None else self.last_finite.abs().tolist()
        size, loudest = max(zip(sizes, self.terms, strict=True), default=(0.0, ""))
        far = "/" in loudest and size > _BY_FAR * (sum(sizes) - size)
        if not largest < 1e4 and (far or "/" in term):
            culprit, why = (loudest, f"at {size:.0e} by far the largest term") if far else (term, "the first to break")
            owner = self.run.plan.entries[culprit.split("/")[0]]
            message += f"Likely cause: the auxiliary loss {culprit} of {owner.whose}, {why}; give it a smaller weight, "
            message += f"then look at {lr}."
        elif not largest < 1e4:
            grown = f"have grown to {largest:.0e}" if math.isfinite(largest) else "are not finite any more"
            message += f"Likely cause: {lr} is too high, for weights {grown}; lower it, warm up, or set clip_grad_norm."
        elif "/" in term:
            owner = self.run.plan.entries[term.split("/")[0]]
            message += f"Likely cause: the auxiliary loss of {owner.whose}, for the weights are still small."
        elif acting:
            message += (
                f"The weights are still small, so look at {', '.join(dict.fromkeys(acting))} first, then at {lr}."
            )
        else:
            message += f"Likely cause: {lr}, or images that are not finite once normalised."
        kept = self.run.directory.last
        return message + (f" The last good checkpoint is {kept}" if kept.exists() else "")

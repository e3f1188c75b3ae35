"""What stands beside the loop of every stage: the guard against values that are not finite, progress, checkpoints."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ltcore import ranks
from ltcore.errors import RunError
from ltcore.files import checkpoint
from ltcore.training import stopping
from ltcore.training.logged import logged_values
from ltcore.training.loop import Loop, Losses, Observer

if TYPE_CHECKING:
    from ltcore.files.run_directory import RunDirectory
    from ltcore.plan.plan import Plan
    from ltcore.progress.console import Reporter

#: On an accelerator, how many steps pass before the loss is looked at: looking waits for the device.
_STEPS_BETWEEN_LOOKS = 100
_SECONDS_BETWEEN_SHOWS = 0.2

#: Hooks whose methods are looked at first where weights that are small are not finite.
_ACTING = (
    "augment_features",
    "adjust_logits",
    "compute_loss",
    "class_weights",
    "sample_weights",
    "compute_gradients",
    "after_step",
    "on_stage_end",
)

#: How many times all others together a loss term must be to be blamed for weights that are not finite.
_BY_FAR = 10


def _finite(loop: Loop) -> bool:
    """Whether what trains, and the backbone's statistics, are finite; a method's buffers may be infinite on purpose."""
    trained = [p.detach() for p in loop.model.parameters() if p.requires_grad]
    looked_at = [t for t in (*trained, *loop.model.backbone.buffers()) if t.is_floating_point()]
    return bool(torch.stack([t.isfinite().all() for t in looked_at]).all())


class FiniteGuard(Observer):
    """Ends a run whose losses or weights are not finite, before a checkpoint keeps them.

    Args:
        plan: the plan, for messages.
        directory: the run's, for messages.
    """

    def __init__(self, plan: Plan, directory: RunDirectory) -> None:
        self._plan, self._directory = plan, directory
        self._terms: list[str] = []
        #: For each loss term the first step at which it was not finite, -1 before; kept on the device.
        self._not_finite: Tensor | None = None
        #: For each loss term the last value that was finite; kept on the device.
        self._last_finite: Tensor | None = None

    def losses_computed(self, loop: Loop, losses: Losses) -> None:
        """Note which terms are not finite; on the CPU, and now and then on an accelerator, end the run."""
        step = loop.state.step
        values = torch.stack([term.detach().float() for term in losses.values()])
        if self._not_finite is None or self._last_finite is None:
            self._terms = list(losses)
            self._not_finite = torch.full(values.shape, -1, dtype=torch.int64, device=values.device)
            self._last_finite = torch.zeros_like(values)
        first = (self._not_finite < 0) & ~values.isfinite()
        self._not_finite = torch.where(first, step, self._not_finite)
        self._last_finite = torch.where(values.isfinite(), values, self._last_finite)
        if values.device.type == "cpu" or (step + 1) % _STEPS_BETWEEN_LOOKS == 0:
            self._look(loop)

    def epoch_ended(self, loop: Loop) -> None:
        """Look at losses and weights."""
        self.look(loop)

    def stage_ended(self, loop: Loop) -> None:
        """End the run if what ``on_stage_end`` has written is not finite.

        Raises:
            RunError: naming its methods.
        """
        writers = [answer.entry.whose for answer in loop.plan.answers["on_stage_end"]]
        if writers and not _finite(loop):
            raise RunError(
                f"stage '{loop.stage.name}': the weights that {' and '.join(writers)} ended it with are not finite "
                "(hook on_stage_end); tell the author"
            )

    def look(self, loop: Loop) -> None:
        """End the run if a loss was not finite, or the last step broke the model, which the next loss would show.

        Raises:
            RunError: naming the step and the likely cause.
        """
        self._look(loop)
        if not _finite(loop):
            what = "the trained weights or batch statistics are"
            raise RunError(self._diagnosis(loop, loop.position.step - 1, what))

    def _look(self, loop: Loop) -> None:
        if self._not_finite is None or bool((self._not_finite < 0).all()):
            return
        steps = self._not_finite.tolist()
        broken = [(step, term) for step, term in zip(steps, self._terms, strict=True) if step >= 0]
        step, term = min(broken, key=lambda found: found[0])  # of one step the classification loss, which comes first
        raise RunError(self._diagnosis(loop, step, f"the {term} loss is", term))

    def _diagnosis(self, loop: Loop, step: int, what: str, term: str = "") -> str:
        stage, loaded, index = loop.stage, self._plan.loaded, loop.position.stage
        largest = float(
            torch.stack([p.detach().abs().max().float() for p in loop.model.parameters() if p.numel()]).max()
        )
        message = f"stage '{stage.name}', epoch {loop.state.epoch + 1}, step {step + 1}: {what} not finite. "
        lr = f"the learning rate {stage.optimizer.lr:g} ({loaded.where('stages', index, 'optimizer', 'lr')})"
        acting = [answer.entry.whose for hook in _ACTING for answer in loop.plan.answers[hook]]
        sizes = [] if self._last_finite is None else self._last_finite.abs().tolist()
        size, loudest = max(zip(sizes, self._terms, strict=True), default=(0.0, ""))
        far = "/" in loudest and size > _BY_FAR * (sum(sizes) - size)
        if not largest < 1e4 and (far or "/" in term):
            culprit, why = (loudest, f"at {size:.0e} by far the largest term") if far else (term, "the first to break")
            owner = self._plan.entries[culprit.split("/")[0]]
            message += f"Likely cause: the auxiliary loss {culprit} of {owner.whose}, {why}; give it a smaller weight, "
            message += f"then look at {lr}."
        elif not largest < 1e4:
            grown = f"have grown to {largest:.0e}" if math.isfinite(largest) else "are not finite any more"
            message += f"Likely cause: {lr} is too high, for weights {grown}; lower it, warm up, or set clip_grad_norm."
        elif "/" in term:
            owner = self._plan.entries[term.split("/")[0]]
            message += f"Likely cause: the auxiliary loss of {owner.whose}, for the weights are still small."
        elif acting:
            message += (
                f"The weights are still small, so look at {', '.join(dict.fromkeys(acting))} first, then at {lr}."
            )
        else:
            message += f"Likely cause: {lr}, or images that are not finite once normalised."
        kept = self._directory.last
        return message + (f" The last good checkpoint is {kept}" if kept.exists() else "")


class Progress(Observer):
    """Tells the user how a stage goes, and writes a line of ``metrics.jsonl`` per epoch.

    Args:
        reporter: tells the user.
        directory: the run's.
        stages: number of stages.
        diagnose: gives an epoch's diagnostics; None where none are wanted.
        validated: gives the epoch's figures on held-out images; None where it was not its turn.
    """

    def __init__(
        self,
        reporter: Reporter,
        directory: RunDirectory,
        stages: int,
        diagnose: Callable[[], Mapping[str, Any]] | None,
        validated: Callable[[], Mapping[str, float | None] | None],
    ) -> None:
        self._reporter, self._directory, self._stages, self._diagnose = reporter, directory, stages, diagnose
        self._validated = validated
        self._began = self._shown = time.perf_counter()
        self._images = 0

    def stage_started(self, loop: Loop) -> None:
        """Show the stage."""
        for text in loop.notes:
            self._reporter.note(f"note      {text}")
        position, steps = loop.position, min(loop.steps_per_epoch, loop.total)
        self._reporter.stage_started(
            loop.stage.name, position.stage, self._stages, loop.epochs, steps, position.epoch, position.step
        )

    def epoch_started(self, loop: Loop) -> None:
        """Count the epoch's time and images from here."""
        self._began, self._images = time.perf_counter(), loop.position.images

    def _speed(self, loop: Loop, now: float) -> float:
        return (loop.position.images - self._images) / max(now - self._began, 1e-9)

    def step_ended(self, loop: Loop) -> None:
        """Show how far the epoch is, now and then."""
        now = time.perf_counter()
        if now - self._shown > _SECONDS_BETWEEN_SHOWS:
            self._shown = now
            self._reporter.step(loop.state.epoch, loop.state.step, loop.mean_loss, self._speed(loop, now))

    def epoch_ended(self, loop: Loop) -> None:
        """Write the epoch's line, and show it."""
        now = time.perf_counter()
        epoch, seconds, speed = loop.state.epoch, now - self._began, self._speed(loop, now)
        mean, rate = loop.mean_loss(), loop.rate(epoch, len(loop.batches) - 1)
        line: dict[str, Any] = {"stage": loop.stage.name, "epoch": epoch, "loss": mean, "lr": rate}
        line |= {"seconds": round(seconds, 3), "images_per_second": round(speed, 1)}
        if validation := self._validated():
            line["validation"] = dict(validation)
        if self._diagnose is not None:
            line["diagnostics"] = self._diagnose()
        if methods := logged_values(loop.plan.entries, loop.state.num_classes):
            line["methods"] = methods
        loop.position.metrics_size = self._directory.append_metrics(line)
        self._reporter.epoch_ended(epoch, loop.epochs, mean, rate, seconds, speed, validation)


class Checkpointer(Observer):
    """Writes ``checkpoints/last.safetensors`` at the end of a step when it is time, or when a signal ends the run.

    Args:
        directory: the run's.
        seconds: time between two checkpoints.
        guard: keeps what is not finite out of them.
    """

    def __init__(self, directory: RunDirectory, seconds: float, guard: FiniteGuard) -> None:
        self._directory, self._seconds, self._guard = directory, seconds, guard
        self._saved = time.perf_counter()

    def step_ended(self, loop: Loop) -> None:
        """Write one if it is time.

        Raises:
            Stopped: a signal has come.
        """
        asked = ranks.any_of(stopping.asked())
        if asked or time.perf_counter() - self._saved >= self._seconds:
            loop.count_time()
            self.save(loop)
            self._saved = time.perf_counter()
        if asked:
            position = loop.position
            raise stopping.stop(f"in stage '{loop.stage.name}' after epoch {position.epoch + 1}, step {position.step}")

    def stage_ended(self, loop: Loop) -> None:
        """Write one where a signal has come since the last step.

        Raises:
            Stopped: it has.
        """
        if ranks.any_of(stopping.asked()):
            self.save(loop)
            raise stopping.stop(f"at the end of stage '{loop.stage.name}', before its evaluation")

    def save(self, loop: Loop) -> None:
        """Write everything that the rest of the run depends on.

        Raises:
            RunError: losses or weights are not finite; the checkpoint before stays.
        """
        self._guard.look(loop)
        tensors, plain = checkpoint.optimizer_tensors(loop.optimizer)
        tensors |= checkpoint.model_tensors(loop.model)
        tensors |= {f"kept/{name}": tensor for name, tensor in loop.kept.items()}
        tensors["trainer/loss_sum"] = loop.loss_sum
        self._directory.write_last(tensors, {"position": asdict(loop.position), "optimizer": plain})
        for observer in loop.observers:
            observer.checkpoint_written(loop)

"""Validation while a stage is trained: figures on held-out images every so many epochs, and an early end."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from ltcore.contract.figures import FIGURES
from ltcore.contract.result import ValidationRecord
from ltcore.files import checkpoint
from ltcore.training.evaluation import Evaluation
from ltcore.training.loop import Loop, Observer

#: What is compared, as where values are selected: rare classes count as much as frequent ones.
SCORE = "balanced_accuracy"


class Validation(Observer):
    """Looks at the held-out images, and says when a stage has stopped to improve.

    What it finds is a function of the weights, and what it remembers is in the run's position. So a run that
    is killed and goes on stops at the same epoch with the same weights.

    Args:
        evaluation: of the run's model.
        tell: tells the user that a stage was ended early.

    Attributes:
        figures: those of the epoch that has just ended, with ``loss``, the mean cross-entropy of the logits as they
            are. None where it was not its turn.
    """

    def __init__(self, evaluation: Evaluation, tell: Callable[[str], None]) -> None:
        self._evaluation, self._tell = evaluation, tell
        self._pooled: tuple[Tensor, ...] | None = None
        self.figures: dict[str, float | None] | None = None

    def epoch_ended(self, loop: Loop) -> None:
        """Validate if it is time, remember what is best, and end the stage if it improves no more."""
        self.figures, stage, epoch = None, loop.stage, loop.state.epoch
        if stage.validate_every is None or ((epoch + 1) % stage.validate_every and epoch + 1 < loop.epochs):
            return
        logits, targets = self._outputs(loop)
        found: dict[str, Any] = dict(self._evaluation.figures_of(logits, targets))
        loss = float(cross_entropy(logits.double().cpu(), targets))
        self.figures = {"loss": loss, **{name: found[name] for name in FIGURES}}
        score, record = found[SCORE], loop.position.validation
        if record is None or score > record["best"]:
            record = {"best": score, "best_epoch": epoch, "since": 0, "epochs": epoch + 1, "stopped": False}
            if stage.keep == "best":
                # On the CPU, and copies: the steps that follow write into the model's own.
                tensors = checkpoint.model_tensors(loop.model)
                loop.kept = {name: tensor.detach().cpu().clone() for name, tensor in tensors.items()}
        else:
            record = {**record, "since": record["since"] + 1, "epochs": epoch + 1}
        record["stopped"] = record["since"] == stage.stop_after and epoch + 1 < loop.epochs
        loop.position.validation = record

    def stage_ended(self, loop: Loop) -> None:
        """Say that the stage was ended early."""
        record = loop.position.validation
        if record is not None and record["stopped"]:
            self._tell(said(record, loop))

    def _outputs(self, loop: Loop) -> tuple[Tensor, Tensor]:
        """Logits [M, C] and targets [M] of the held-out images; features that cannot change are computed once."""
        backbone, classifier = loop.model.backbone, loop.model.classifier
        fixed = loop.stage.batch_norm == "frozen" and not _trains(backbone)
        if self._pooled is None or not fixed:
            self._pooled, logits, self._targets = self._evaluation.outputs("val")
        else:
            logits = self._evaluation.logits(classifier, self._pooled)
        return logits, self._targets


def _trains(module: nn.Module) -> bool:
    return any(parameter.requires_grad for parameter in module.parameters())


def said(record: ValidationRecord, loop: Loop) -> str:
    """What the user is told of a stage that ends early."""
    best = f"epoch {record['best_epoch'] + 1} (held out {100 * record['best']:.1f})"
    kept = "and is kept" if loop.stage.keep == "best" else "the last is kept"
    return f"  stopped after epoch {record['epochs']} of {loop.epochs}: the best was {best}, {kept}"

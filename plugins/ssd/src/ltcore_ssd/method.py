"""The method `ssd`."""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor, nn

from ltcore import Context, Features, Method, Options, RecipeError, Stage, hookimpl
from ltcore_ssd.functional import soft_label_loss


class SSDOptions(Options):
    """Options of SSD's last stage; the defaults are those of the authors' code."""

    temperature: float = Field(default=2.0, gt=0.0)
    """T: what the logits of teacher and soft head are divided by."""
    teacher: str | None = None
    """The earlier stage whose model gives the soft labels; by default the stage before."""


class SSD(Method[SSDOptions]):
    """Self supervision to distillation (Li et al. 2021), its last stage: one network with a hard and a soft head.

    The stage's classifier is the soft head: it learns what an earlier stage's model says of the images, and alone is
    tested. Made when the run starts: the `hard` head, which learns the labels, with whatever loss the stage has.
    """

    interface = "1.1"
    requires = frozenset({"earlier_stage", "one_network", "own_parameters_train"})
    auxiliary = ("soft",)
    hard: nn.Module

    def check_stage(self, stage: Stage) -> None:
        """Refuse a cache, for the teacher looks at the images, and a stage in which the hard head learns nothing.

        Raises:
            RecipeError: the stage has one or is without classification.
        """
        if stage.cache != "off":
            raise RecipeError("its teacher looks at the images of the batch, and a cache has none; use cache: off")
        if not stage.classification:
            raise RecipeError("without classification its hard head learns nothing; leave classification: false out")

    @hookimpl
    def on_run_start(self, context: Context) -> None:
        """Make the hard head."""
        (width,) = context.feature_shape("pooled")
        self.hard = nn.Linear(width, context.num_classes)

    @hookimpl
    def on_stage_start(self, context: Context) -> None:
        """See that the teacher's stage is there.

        Raises:
            RunError: it is not.
        """
        context.frozen_model(self.options.teacher)

    @hookimpl
    def adjust_logits(self, features: Features) -> Tensor:
        """The hard head's logits [N, C] in place of the classifier's."""
        with torch.autocast(features.features.device.type, enabled=False):
            logits: Tensor = self.hard(features.features.float())
        return logits

    @hookimpl
    def auxiliary_losses(self, features: Features, logits: Tensor, context: Context) -> dict[str, Tensor]:
        """The distillation of the classifier, the mean over the rows that are images of the batch."""
        images = features.images
        assert images is not None  # only a cache has none
        rows = len(images)  # rows that others have appended stand behind them
        with torch.no_grad():
            teacher = context.frozen_model(self.options.teacher)(images)
        real = (~features.synthetic[:rows]).float()
        with torch.autocast(logits.device.type, enabled=False):
            values = soft_label_loss(logits[:rows], teacher.float(), self.options.temperature)
            return {"soft": (values * real).sum() / real.sum().clamp(min=1)}

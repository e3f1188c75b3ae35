"""The methods `l2rw` and `meta_weight_net`."""

from __future__ import annotations

from typing import ClassVar, TypeVar

import torch
from pydantic import Field
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import cross_entropy

from ltcore import Context, Method, Objective, Options, RecipeError, Stage, hookimpl
from ltcore_reweighting_net.functional import aligned_weights, balanced_draw, look_ahead
from ltcore_reweighting_net.network import WeightNet


class L2RWOptions(Options):
    """Options of learning to reweight."""

    meta_batch_size: int = Field(default=100, ge=1)
    """Held-out images that are drawn in each step, all classes alike; all of them where there are no more."""
    augmented: bool = True
    """Whether they are prepared as training images are, with crops, flips and policies; else as test images."""


class MetaWeightNetOptions(L2RWOptions):
    """Options of Meta-Weight-Net."""

    hidden: int = Field(default=100, ge=1)
    """Units of the hidden layer of the network from a loss to a weight."""
    normalise: bool = True
    """Whether the weights of a batch are divided by their mean; the code for label noise does not."""
    through_loss: bool = True
    """Whether the look-ahead's gradient goes through the loss that is the network's input, too, as in the code for long
    tails; in the paper's equations, and the code for label noise, it does not."""


#: Attention that can be differentiated twice; its fast forms cannot.
_TWICE = sdpa_kernel(SDPBackend.MATH)

OptionsT = TypeVar("OptionsT", bound=L2RWOptions)


class _Reweighting(Method[OptionsT]):
    """Weighs training images so that held-out ones, balanced over the classes, are classified better."""

    interface = "1.1"
    requires: ClassVar = {"validation", "second_order"}

    def check_stage(self, stage: Stage) -> None:
        """Refuse a stage without classification, in which there is nothing to weigh.

        Raises:
            RecipeError: the stage has ``classification: false``.
        """
        if not stage.classification:
            raise RecipeError("without classification there are no loss values of images to weigh; leave it out")

    def _meta_set(self, context: Context) -> tuple[Tensor, Tensor]:
        """The step's held-out images [M, C, H, W], and their labels [M]; drawn on the CPU, where both are looked up."""
        targets, options = context.validation_targets, self.options
        drawn = balanced_draw(targets, context.num_classes, options.meta_batch_size, context.cpu_generator)
        images = context.images("val", drawn, augmented=options.augmented)
        return images, targets[drawn].to(context.device, non_blocking=True)


class L2RW(_Reweighting[L2RWOptions]):
    """Learning to reweight (Ren et al. 2018): an image weighs as much as its gradient helps the held-out images.

    See `aligned_weights`. Nothing is remembered from step to step.
    """

    @hookimpl
    @_TWICE
    def compute_gradients(self, objective: Objective, context: Context) -> dict[str, Tensor]:
        """The gradient of the batch's loss with those weights."""
        images, targets = self._meta_set(context)
        epsilon = torch.zeros(objective.size, device=context.device, requires_grad=True)
        steps = objective.gradients(objective(sample_weights=epsilon), create_graph=True)
        # With weights of 0 the look-ahead stands where the weights are, whatever its rate.
        wanted = objective.gradients(cross_entropy(objective.logits(images), targets))
        names = [name for name, step in steps.items() if step.requires_grad and name in wanted]
        (alignments,) = torch.autograd.grad(
            [steps[name] for name in names], epsilon, [wanted[name] for name in names], allow_unused=True
        )
        weights = aligned_weights(alignments)
        return objective.gradients(objective(sample_weights=weights))


class MetaWeightNet(_Reweighting[MetaWeightNetOptions]):
    """Meta-Weight-Net (Shu et al. 2019): a small network learns to weigh images by their loss, see `WeightNet`.

    It learns from the loss of the held-out images one step ahead.
    """

    requires: ClassVar = {"validation", "own_parameters_train", "second_order"}

    def __init__(self, options: MetaWeightNetOptions | None = None) -> None:
        """Make the network."""
        super().__init__(options)
        self.network = WeightNet(self.options.hidden)
        self._learns = False

    @hookimpl
    def sample_weights(self, values: Tensor) -> Tensor:
        """Weights [N] of loss values [N], with a gradient while the network learns."""
        if not self._learns:
            with torch.no_grad():
                return self._weights(values)
        return self._weights(values if self.options.through_loss else values.detach())

    def _weights(self, values: Tensor) -> Tensor:
        logs: Tensor = self.network(values)
        # The share of each in the sum, in logarithms; as factors of a mean their sum is N.
        return len(logs) * torch.softmax(logs, 0) if self.options.normalise else logs.exp()

    @hookimpl
    @_TWICE
    def compute_gradients(self, objective: Objective, context: Context) -> dict[str, Tensor]:
        """The gradient of the weighed loss, and that of the meta loss one step ahead in the network's parameters."""
        images, targets = self._meta_set(context)
        mine = {id(parameter) for parameter in self.parameters()}
        own = {name: value for name, value in objective.parameters.items() if id(value) in mine}
        others = {name: value for name, value in objective.parameters.items() if name not in own}
        self._learns = True
        try:
            steps = objective.gradients(objective(), at=others, create_graph=True)
        finally:
            self._learns = False
        there = look_ahead(others, steps, context.learning_rate)
        learned = objective.gradients(cross_entropy(objective.logits(images, at=there), targets), at=own)
        return objective.gradients(objective(), at=others) | learned

"""Methods that are wrong in one way each, and their correct twins; `ltcore check` must tell them apart."""

import os
import random
import sys
from dataclasses import replace
from typing import ClassVar

import numpy as np
import torch
from torch import nn

from ltcore import Batch, Context, EpochBatches, Features, Method, Options, RecipeError, hookimpl
from ltcore.contract.classifier import CalibratedClassifier
from ltcore.contract.samplers import PlainSampler
from ltcore.data.synthetic import Synthetic

# -- the eight of the issue ---------------------------------------------------------------------------------------


class ChangesItsInput(Method):
    @hookimpl
    def mix_inputs(self, batch: Batch) -> Batch:
        return replace(batch, images=batch.images.mul_(0.9))


class LeavesItsInput(Method):
    @hookimpl
    def mix_inputs(self, batch: Batch) -> Batch:
        return replace(batch, images=batch.images * 0.9)


class ForgetsALoss(Method):
    auxiliary = ("norm", "late")

    @hookimpl
    def auxiliary_losses(self, features: Features, context: Context) -> dict[str, torch.Tensor]:
        norm = features.features.square().mean()
        return {"norm": norm, "late": norm} if context.epoch else {"norm": norm}


class ReturnsEveryLoss(Method):
    auxiliary = ("norm", "late")

    @hookimpl
    def auxiliary_losses(self, features: Features, context: Context) -> dict[str, torch.Tensor]:
        norm = features.features.square().mean()
        return {"norm": norm, "late": norm * (context.epoch > 0)}


class UsesGlobalRandomState(Method):
    @hookimpl
    def augment_features(self, features: Features) -> Features:
        return replace(features, features=features.features + 0.1 * torch.randn_like(features.features))


class UsesItsGenerator(Method):
    @hookimpl
    def augment_features(self, features: Features, context: Context) -> Features:
        noise = torch.randn(features.features.shape, generator=context.generator, device=context.device)
        return replace(features, features=features.features + 0.1 * noise)


class HidesAParameter(Method):
    def __init__(self, options=None) -> None:
        super().__init__(options)
        self.scales = [nn.Parameter(torch.ones(()))]

    @hookimpl
    def adjust_logits(self, logits: torch.Tensor) -> torch.Tensor:
        return logits * self.scales[0]


class RegistersItsParameter(Method):
    def __init__(self, options=None) -> None:
        super().__init__(options)
        self.scales = nn.ParameterList([nn.Parameter(torch.ones(()))])

    @hookimpl
    def adjust_logits(self, logits: torch.Tensor) -> torch.Tensor:
        return logits * self.scales[0]


class KeepsStateOutside(Method):
    def __init__(self, options=None) -> None:
        super().__init__(options)
        self.running = torch.zeros(4)

    @hookimpl
    def adjust_logits(self, logits: torch.Tensor) -> torch.Tensor:
        self.running = 0.9 * self.running + 0.1 * logits.detach().mean(0)
        return logits - self.running


class KeepsStateInABuffer(Method):
    running: torch.Tensor

    def __init__(self, options=None) -> None:
        super().__init__(options)
        self.register_buffer("running", torch.zeros(4))

    @hookimpl
    def adjust_logits(self, logits: torch.Tensor) -> torch.Tensor:
        self.running.copy_(0.9 * self.running + 0.1 * logits.detach().mean(0))
        return logits - self.running.clone()


class IsNaNForOneImage(Method):
    @hookimpl
    def adjust_logits(self, logits: torch.Tensor) -> torch.Tensor:
        return logits / (1 + logits.detach().std(0))


class IsFiniteForOneImage(Method):
    @hookimpl
    def adjust_logits(self, logits: torch.Tensor) -> torch.Tensor:
        return logits / (1 + logits.detach().std(0, correction=0))


class RefusesOneImage(IsNaNForOneImage):
    def check_stage(self, stage) -> None:
        if stage.batch_size < 2:
            raise RecipeError("one image has no deviation; use a batch_size of at least 2")


class ReadsTestData(Method):
    @hookimpl
    def post_calibrate(self, classifier: nn.Module) -> nn.Module:
        test = Synthetic(Synthetic.Options(num_classes=4, max_count=4, image_size=8)).build_data().test
        return CalibratedClassifier(classifier, scale=1 / (1 + test.images.float().std()))


class ReadsValidationData(Method):
    requires = frozenset({"validation"})

    @hookimpl
    def post_calibrate(self, classifier: nn.Module, context: Context) -> nn.Module:
        return CalibratedClassifier(classifier, scale=1 / (1 + context.validation_features().std()))


class MisspellsAHook(Method):
    @hookimpl
    def on_epoch_start(self) -> None:
        pass

    def adjust_logit(self, logits: torch.Tensor) -> torch.Tensor:
        return 2 * logits


class SpellsAHook(Method):
    @hookimpl
    def on_epoch_start(self) -> None:
        pass

    @hookimpl
    def adjust_logits(self, logits: torch.Tensor) -> torch.Tensor:
        return 2 * logits


# -- more, so that each check has one -------------------------------------------------------------------------------


class MarksAMisspelledHook(Method):
    @hookimpl
    def compute_los(self, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return nn.functional.cross_entropy(logits, targets, reduction="none")


class TakesAForeignArgument(Method):
    @hookimpl
    def adjust_logits(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return logits


class UndescribedOptions(Options):
    strength: float = 1.0


class DoesNotDescribeAnOption(Method[UndescribedOptions]):
    @hookimpl
    def adjust_logits(self, logits: torch.Tensor) -> torch.Tensor:
        return logits * self.options.strength


class DropsItsOptions(Method):
    def __init__(self, options=None) -> None:
        super().__init__()

    class Options(Options):
        strength: float = 1.0
        """What logits are multiplied with."""

    checked_with: ClassVar = {"strength": 2.0}

    @hookimpl
    def adjust_logits(self, logits: torch.Tensor) -> torch.Tensor:
        return logits * self.options.strength


class IsFromTheFuture(Method):
    interface = "99.0"

    @hookimpl
    def adjust_logits(self, logits: torch.Tensor) -> torch.Tensor:
        return logits


class Fails(Method):
    @hookimpl
    def adjust_logits(self, logits: torch.Tensor) -> torch.Tensor:
        return logits @ logits


class HasAnEndlessGradient(Method):
    @hookimpl
    def adjust_logits(self, logits: torch.Tensor) -> torch.Tensor:
        distance = (logits - logits.detach()).square().sum(1, keepdim=True).sqrt()
        return logits + 0.1 * distance


class NeverUsesItsParameter(Method):
    def __init__(self, options=None) -> None:
        super().__init__(options)
        self.scale = nn.Parameter(torch.ones(()))

    @hookimpl
    def adjust_logits(self, logits: torch.Tensor) -> torch.Tensor:
        return logits * self.scale.detach()


class ChangesTheModel(Method):
    @hookimpl
    def on_epoch_end(self, context: Context) -> None:
        context.model.classifier.weight.data.mul_(0.9)


class WritesIntoWhatTrains(Method):
    interface = "1.1"

    @hookimpl
    def after_step(self, context: Context) -> None:
        for parameter in context.model.parameters():
            if parameter.requires_grad:
                parameter.mul_(0.999)


class UsesPythonsRandom(Method):
    @hookimpl
    def class_weights(self, context: Context) -> torch.Tensor:
        return torch.full((context.num_classes,), 1 + random.random())


class Shuffled(PlainSampler):
    def draw(self, *arguments) -> EpochBatches:
        return EpochBatches(
            [torch.from_numpy(np.random.permutation(b.numpy())) for b in super().draw(*arguments).indices]
        )


class UsesNumpysRandom(Method):
    @hookimpl
    def build_sampler(self, batch_size: int, context: Context) -> PlainSampler:
        return Shuffled(context.training_targets, context.num_classes, batch_size)


class SeedsTorch(Method):
    @hookimpl
    def on_epoch_start(self, context: Context) -> None:
        torch.manual_seed(context.epoch)


def _global_noise(image: torch.Tensor, target: int, generator: torch.Generator) -> torch.Tensor:
    return image ^ torch.randint(2, image.shape, dtype=torch.uint8)


def _own_noise(image: torch.Tensor, target: int, generator: torch.Generator) -> torch.Tensor:
    return image ^ torch.randint(2, image.shape, dtype=torch.uint8, generator=generator)


class _Counting:
    """Every other image is another one, whatever it is."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, image: torch.Tensor, target: int, generator: torch.Generator) -> torch.Tensor:
        self.calls += 1
        return image ^ (self.calls % 2)


class ImagesDrawGlobally(Method):
    interface = "1.1"

    @hookimpl
    def image_transform(self):
        return _global_noise


class ImagesDrawTheirOwn(Method):
    interface = "1.1"

    @hookimpl
    def image_transform(self):
        return _own_noise


class ImagesKeepAState(Method):
    interface = "1.1"

    @hookimpl
    def image_transform(self):
        return _Counting()


class WaitsForTheDevice(Method):
    @hookimpl
    def adjust_logits(self, logits: torch.Tensor) -> torch.Tensor:
        return logits / 2 if logits.detach().abs().max() > 1e6 else logits


class SelectsWithAMask(Method):
    auxiliary = ("tail",)

    @hookimpl
    def auxiliary_losses(self, features: Features) -> dict[str, torch.Tensor]:
        return {"tail": features.features[features.targets > 0].square().sum()}


class FindsTheRun(Method):
    @hookimpl
    def post_calibrate(self, classifier: nn.Module) -> nn.Module:
        frame = sys._getframe()
        while "self" not in frame.f_locals or not hasattr(frame.f_locals["self"], "loaders"):
            frame = frame.f_back
        images = frame.f_locals["self"].loaders["test"].eval_batch(0, 8)
        return CalibratedClassifier(classifier, scale=1 / (1 + images.std()))


class DrawsFromTheSystem(Method):
    @hookimpl
    def on_stage_start(self, context: Context) -> None:
        self.scale = 1 + os.urandom(1)[0] / 256

    @hookimpl
    def adjust_logits(self, logits: torch.Tensor) -> torch.Tensor:
        return logits * getattr(self, "scale", 1)


class DependsOnHashes(Method):
    @hookimpl
    def adjust_logits(self, logits: torch.Tensor) -> torch.Tensor:
        return logits * (1 + hash("ltcore") % 1000 / 1000)


class NeedsPlainRows(Method):
    """Works on the batch's own rows, and does not say so."""

    @hookimpl
    def augment_features(self, features: Features) -> Features:
        if bool(features.synthetic.any()) or features.source_only is not None:
            raise RecipeError("these are not the rows that I know")
        return replace(features, features=2 * features.features)

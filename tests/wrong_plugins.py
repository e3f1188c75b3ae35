"""Methods that are wrong in one way each, and their correct twins; `ltcore check` must tell them apart."""

import os
import random
import sys
from dataclasses import replace
from typing import ClassVar

import numpy as np
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from ltcore import Batch, Context, EpochBatches, Features, Method, Options, RecipeError, hookimpl
from ltcore.contract.classifier import CalibratedClassifier
from ltcore.contract.samplers import PlainSampler
from ltcore.data.synthetic import Synthetic


def method(base: type[Method] = Method, **parts) -> type[Method]:
    """A class with these attributes and, for hooks, these functions. It is called what it is assigned to below."""
    return type("_", (base,), {name: hookimpl(part) if callable(part) else part for name, part in parts.items()})


# -- the eight of the issue ---------------------------------------------------------------------------------------


ChangesItsInput = method(mix_inputs=lambda self, batch: replace(batch, images=batch.images.mul_(0.9)))
LeavesItsInput = method(mix_inputs=lambda self, batch: replace(batch, images=batch.images * 0.9))


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
        noise = 0.1 * torch.randn_like(features.features) * ~features.synthetic[:, None]
        return replace(features, features=features.features + noise)


class UsesItsGenerator(Method):
    @hookimpl
    def augment_features(self, features: Features, context: Context) -> Features:
        noise = torch.randn(features.features.shape, generator=context.generator, device=context.device)
        return replace(features, features=features.features + 0.1 * noise * ~features.synthetic[:, None])


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


IsNaNForOneImage = method(adjust_logits=lambda self, logits: logits / (1 + logits.detach().std(0)))
IsFiniteForOneImage = method(adjust_logits=lambda self, logits: logits / (1 + logits.detach().std(0, correction=0)))


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


MarksAMisspelledHook = method(
    compute_los=lambda self, logits, targets: nn.functional.cross_entropy(logits, targets, reduction="none")
)
TakesAForeignArgument = method(adjust_logits=lambda self, logits, labels: logits)


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


IsFromTheFuture = method(interface="99.0", adjust_logits=lambda self, logits: logits)
Fails = method(adjust_logits=lambda self, logits: logits @ logits)


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


UsesPythonsRandom = method(class_weights=lambda self, context: torch.full((context.num_classes,), 1 + random.random()))


class Shuffled(PlainSampler):
    def draw(self, *arguments) -> EpochBatches:
        return EpochBatches(
            [torch.from_numpy(np.random.permutation(b.numpy())) for b in super().draw(*arguments).indices]
        )


UsesNumpysRandom = method(
    build_sampler=lambda self, batch_size, context: Shuffled(context.training_targets, context.num_classes, batch_size)
)


class Turning(PlainSampler):
    """Every second epoch has its batches the other way round, by a count of its own."""

    calls = 0

    def draw(self, *arguments) -> EpochBatches:
        self.calls += 1
        found = super().draw(*arguments).indices
        return EpochBatches([batch.flip(0) for batch in found] if self.calls % 2 else found)


SamplerKeepsAState = method(
    build_sampler=lambda self, batch_size, context: Turning(context.training_targets, context.num_classes, batch_size)
)


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


ImagesDrawGlobally = method(interface="1.1", image_transform=lambda self: _global_noise)
ImagesDrawTheirOwn = method(interface="1.1", image_transform=lambda self: _own_noise)
ImagesKeepAState = method(interface="1.1", image_transform=lambda self: _Counting())
WaitsForTheDevice = method(
    adjust_logits=lambda self, logits: logits / 2 if logits.detach().abs().max() > 1e6 else logits
)


class SelectsWithAMask(Method):
    auxiliary = ("tail",)

    @hookimpl
    def auxiliary_losses(self, features: Features) -> dict[str, torch.Tensor]:
        return {"tail": features.features[features.targets > 0].square().sum()}


class FindsTheRun(Method):
    @hookimpl
    def post_calibrate(self, classifier: nn.Module) -> nn.Module:
        frame = sys._getframe()
        while not hasattr(data := getattr(frame.f_locals.get("self"), "data", None), "loaders"):
            frame = frame.f_back
        loaders = data.loaders  # a run that is opened again has no test images
        images = loaders["test" if "test" in loaders else "train"].eval_batch(0, 8)
        return CalibratedClassifier(classifier, scale=1 / (1 + images.std()))


class DrawsFromTheSystem(Method):
    @hookimpl
    def on_stage_start(self, context: Context) -> None:
        self.scale = 1 + os.urandom(1)[0] / 256

    @hookimpl
    def adjust_logits(self, logits: torch.Tensor) -> torch.Tensor:
        return logits * getattr(self, "scale", 1)


DependsOnHashes = method(adjust_logits=lambda self, logits: logits * (1 + hash("ltcore") % 1000 / 1000))


class NeedsPlainRows(Method):
    """Works on the batch's own rows, and does not say so."""

    @hookimpl
    def augment_features(self, features: Features) -> Features:
        if bool(features.synthetic.any()):
            raise RecipeError("these are not the rows that I know")
        return replace(features, features=2 * features.features)


# -- what methods get wrong in meaning ------------------------------------------------------------------------------


class CutsTheGradient(Method):
    """Tail rows are moved without gradients, and so are all the others, for ease."""

    @hookimpl
    @torch.no_grad()
    def augment_features(self, features: Features, context: Context) -> Features:
        noise = torch.randn(features.features.shape, generator=context.generator, device=context.device)
        tail = (context.class_counts < 10)[features.targets] & ~features.synthetic
        return replace(features, features=features.features + 0.1 * noise * tail[:, None])


class CutsTheGradientOfTheTail(Method):
    """The rows that it moves lose their gradient, and are not marked as made."""

    @hookimpl
    def augment_features(self, features: Features, context: Context) -> Features:
        noise = torch.randn(features.features.shape, generator=context.generator, device=context.device)
        tail = (context.class_counts < 10)[features.targets] & ~features.synthetic
        moved = features.features.detach() + 0.1 * noise
        return replace(features, features=torch.where(tail[:, None], moved, features.features))


class MakesTailRowsOfNoGradient(CutsTheGradientOfTheTail):
    """The same, and marks them."""

    @hookimpl
    def augment_features(self, features: Features, context: Context) -> Features:
        changed = super().augment_features(features, context)
        tail = (context.class_counts < 10)[features.targets]
        return replace(changed, synthetic=features.synthetic | tail)


class CutsTheGradientOfLogits(Method):
    """Margins are subtracted in place, from what autograd does not see."""

    @hookimpl
    def adjust_logits(self, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        adjusted = logits.data.clone()
        adjusted[torch.arange(len(targets)), targets] -= 0.5
        return adjusted


class _Detaching(nn.Module):
    bias = None

    def __init__(self, feature_dim: int, num_classes: int, detach: bool) -> None:
        super().__init__()
        self.weight, self.detach = nn.Parameter(0.1 * torch.randn(num_classes, feature_dim)), detach

    def forward(self, pooled: torch.Tensor) -> torch.Tensor:
        unit = nn.functional.normalize(pooled.detach() if self.detach else pooled)
        return unit @ self.weight.T


BuildsAClassifierThatDetaches = method(
    build_classifier=lambda self, feature_dim, num_classes: _Detaching(feature_dim, num_classes, detach=True)
)
BuildsAClassifierThatDoesNot = method(
    build_classifier=lambda self, feature_dim, num_classes: _Detaching(feature_dim, num_classes, detach=False)
)
DetachesOnPurpose = method(BuildsAClassifierThatDetaches, breaks=frozenset({"backbone_gradient"}))


class NormalisesTheTeacher(Method):
    """Its teacher's classifier, normalised: in the teacher itself."""

    auxiliary = ("distance",)
    requires = frozenset({"earlier_stage"})

    @hookimpl
    def on_stage_start(self, context: Context) -> None:
        weight = context.frozen_model().classifier.weight
        weight.data.div_(weight.norm(dim=1, keepdim=True))

    @hookimpl
    def auxiliary_losses(self, features: Features, logits: torch.Tensor, context: Context) -> dict[str, torch.Tensor]:
        taught = context.frozen_model().classifier(features.features).detach()
        return {"distance": 0.1 * (logits - taught).square().mean()}


class NormalisesACopy(NormalisesTheTeacher):
    """The same, without touching it."""

    requires = frozenset({"earlier_stage", "one_network"})

    @hookimpl
    def on_run_start(self, context: Context) -> None:
        shape = (context.num_classes, *context.feature_shape("pooled"))
        self.register_buffer("weight", torch.zeros(shape, device=context.device))

    @hookimpl
    def on_stage_start(self, context: Context) -> None:
        self.weight.copy_(nn.functional.normalize(context.frozen_model().classifier.weight))

    @hookimpl
    def auxiliary_losses(self, features: Features, logits: torch.Tensor, context: Context) -> dict[str, torch.Tensor]:
        taught = (features.features @ self.weight.T).detach()
        return {"distance": 0.1 * (logits - taught).square().mean()}


class TrainsTheTeacher(Method):
    """A teacher in train mode learns from the student's batches, in its batch norms."""

    auxiliary = ("distance",)
    requires = frozenset({"earlier_stage"})

    @hookimpl
    def auxiliary_losses(self, features: Features, context: Context) -> dict[str, torch.Tensor]:
        teacher = context.frozen_model().backbone.train()
        with torch.no_grad():
            taught = teacher(features.images)
        return {"distance": 0.1 * (features.features[: len(taught)] - taught).square().mean()}


class NormalisesWhatAllAreGiven(Method):
    """A bank of unit features, made where all others read theirs."""

    @hookimpl
    def on_run_start(self, context: Context) -> None:
        self.register_buffer("centre", torch.zeros(context.feature_shape("pooled"), device=context.device))

    @hookimpl
    def on_epoch_start(self, context: Context) -> None:
        bank = context.training_features()
        bank /= bank.norm(dim=1, keepdim=True).clamp(min=1e-6)
        self.centre.copy_(bank.mean(0))

    @hookimpl
    def adjust_logits(self, logits: torch.Tensor) -> torch.Tensor:
        return logits * (1 + self.centre.norm())


def _blend(features: Features, context: Context) -> tuple[torch.Tensor, torch.Tensor]:
    """A made row for each of the first four, between it and one of the others; and which the others are."""
    donors = torch.randint(len(features.targets), (4,), generator=context.generator, device=context.device)
    rows = torch.arange(4, device=context.device) % len(features.targets)
    return 0.7 * features.features[rows] + 0.3 * features.features[donors], donors


class DoesNotMarkItsRows(Method):
    order_matters = True

    @hookimpl
    def augment_features(self, features: Features, context: Context) -> Features:
        made, _ = _blend(features, context)
        rows = torch.arange(4, device=context.device) % len(features.targets)
        changed = features.append(made, features.targets[rows], features.source_index[rows])
        return replace(changed, synthetic=torch.cat([features.synthetic, torch.zeros_like(rows, dtype=torch.bool)]))


class MarksItsRows(Method):
    order_matters = True

    @hookimpl
    def augment_features(self, features: Features, context: Context) -> Features:
        made, _ = _blend(features, context)
        rows = torch.arange(4, device=context.device) % len(features.targets)
        expert = None if features.expert is None else features.expert[rows]
        return features.append(made, features.targets[rows], features.source_index[rows], expert)


class NamesTheDonor(Method):
    """A made row carries its own label, and names the image that it borrowed from."""

    order_matters = True

    @hookimpl
    def augment_features(self, features: Features, context: Context) -> Features:
        made, donors = _blend(features, context)
        rows = torch.arange(4, device=context.device) % len(features.targets)
        return features.append(made, features.targets[rows], features.source_index[donors])


class ForgetsToMoveSources(Method):
    """Rows are sorted by class, and what says whose they are is not."""

    @hookimpl
    def mix_inputs(self, batch: Batch) -> Batch:
        order = batch.targets.argsort(stable=True)
        return replace(batch, images=batch.images[order], targets=batch.targets[order])


class MovesAll(Method):
    @hookimpl
    def mix_inputs(self, batch: Batch) -> Batch:
        order = batch.targets.argsort(stable=True)
        return replace(
            batch, images=batch.images[order], targets=batch.targets[order], source_index=batch.source_index[order]
        )


class Relabels(Method):
    """An image of a frequent class that lies near a rare one's is given the rare label."""

    @hookimpl
    def augment_features(self, features: Features, context: Context) -> Features:
        often = (context.class_counts > 20)[features.targets] & ~features.synthetic
        return replace(features, targets=torch.where(often, 3, features.targets))


RelabelsAndSaysSo = method(Relabels, breaks=frozenset({"hard_labels"}))


class MixesInSilence(Method):
    """Mixup that does not tell the methods that count on one label per image."""

    @hookimpl
    def mix_inputs(self, batch: Batch, context: Context) -> Batch:
        order = torch.randperm(len(batch.targets), generator=context.generator, device=context.device)
        share = torch.rand(len(order), generator=context.generator, device=context.device)
        images = share[:, None, None, None] * batch.images + (1 - share)[:, None, None, None] * batch.images[order]
        return replace(batch, images=images, partner_targets=batch.targets[order], target_weight=share)


class MixesAndSaysSo(MixesInSilence):
    breaks = frozenset({"hard_labels"})

    @hookimpl
    def mix_inputs(self, batch: Batch, context: Context) -> Batch:
        if batch.partner_targets is not None:
            batch = replace(batch, partner_targets=None, target_weight=None)
        return super().mix_inputs(batch, context)


class LearnsFromHeldOutImages(Method):
    """Class weights from the scores on validation images, which no recipe was asked to hold out."""

    def __init__(self, options=None) -> None:
        super().__init__(options)
        self.register_buffer("weights", torch.ones(4))

    @hookimpl
    def on_epoch_start(self, context: Context) -> None:
        logits = context.model.classifier(context.validation_features()).detach()
        right = (logits.softmax(1) * nn.functional.one_hot(context.validation_targets, 4)).sum(0)
        self.weights.copy_(1 / (0.1 + right))

    @hookimpl
    def class_weights(self) -> torch.Tensor:
        return self.weights.clone()


LearnsFromHeldOutImagesAndSaysSo = method(LearnsFromHeldOutImages, requires=frozenset({"validation"}))


class KeepsEveryLoss(Method):
    """A history of losses to log, each with the graph of its step."""

    def __init__(self, options=None) -> None:
        super().__init__(options)
        self.history = []

    @hookimpl
    def compute_loss(self, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        loss = nn.functional.cross_entropy(logits, targets, reduction="none")
        self.history.append(loss.mean())
        return loss


class ChainsItsSteps(Method):
    """A running mean to log, which hangs on every step that there was."""

    def __init__(self, options=None) -> None:
        super().__init__(options)
        self.mean = torch.zeros(())

    @hookimpl
    def compute_loss(self, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        loss = nn.functional.cross_entropy(logits, targets, reduction="none")
        self.mean = 0.9 * self.mean + 0.1 * loss.mean()
        return loss


class KeepsTheLastLoss(ChainsItsSteps):
    @hookimpl
    def compute_loss(self, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        loss = nn.functional.cross_entropy(logits, targets, reduction="none")
        self.mean = 0.9 * self.mean + 0.1 * loss.mean().detach()
        return loss


_SEEN: list[torch.Tensor] = []


class KeepsEveryLossElsewhere(Method):
    @hookimpl
    def compute_loss(self, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        loss = nn.functional.cross_entropy(logits, targets, reduction="none")
        _SEEN.append(loss.detach().mean())
        return loss


class AsksForAllImagesInEveryStep(Method):
    """Pulls rows to their class's mean, of all training images, as they are now."""

    auxiliary = ("pull",)

    @hookimpl
    def auxiliary_losses(self, features: Features, context: Context) -> dict[str, torch.Tensor]:
        return {"pull": 0.1 * (features.features - context.class_means()[features.targets]).square().mean()}


class AsksForAllImagesInEveryEpoch(Method):
    auxiliary = ("pull",)
    requires = frozenset({"one_network"})

    @hookimpl
    def on_run_start(self, context: Context) -> None:
        shape = (context.num_classes, *context.feature_shape("pooled"))
        self.register_buffer("means", torch.zeros(shape, device=context.device))

    @hookimpl
    def on_epoch_start(self, context: Context) -> None:
        self.means.copy_(context.class_means())

    @hookimpl
    def auxiliary_losses(self, features: Features) -> dict[str, torch.Tensor]:
        return {"pull": 0.1 * (features.features - self.means[features.targets]).square().mean()}


ReturnsSmallLabels = method(
    augment_features=lambda self, features: replace(features, targets=features.targets.to(torch.int32))
)


class ReturnsLargeLogits(Method):
    """A prior worked out in NumPy, in its type."""

    @hookimpl
    def adjust_logits(self, logits: torch.Tensor, context: Context) -> torch.Tensor:
        return logits + torch.from_numpy(np.log(np.array([0.4, 0.3, 0.2, 0.1]))).to(logits.device)


ReturnsFloatLogits = method(
    adjust_logits=lambda self, logits, context: logits + logits.new_tensor(np.log(np.array([0.4, 0.3, 0.2, 0.1])))
)


class MakesItsMarginsOnTheCPU(Method):
    @hookimpl
    def adjust_logits(self, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        margins = torch.tensor([0.1, 0.2, 0.3, 0.4])
        return logits - margins[None] * nn.functional.one_hot(targets, 4)


class MakesItsMarginsWhereTheLogitsAre(Method):
    @hookimpl
    def adjust_logits(self, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        margins = logits.new_tensor([0.1, 0.2, 0.3, 0.4])
        rows = torch.arange(len(targets)).to(logits.device)
        return logits - margins * nn.functional.one_hot(targets[rows], 4)


class WeighsOnTheCPU(Method):
    interface = "1.1"

    @hookimpl
    def sample_weights(self, values: torch.Tensor) -> torch.Tensor:
        return torch.linspace(0.5, 1.5, len(values)).flip(0).mean(0, keepdim=True).expand(len(values))


class MixesOneSideOnly(Method):
    """The share of a first label, without a second one."""

    breaks = frozenset({"hard_labels"})

    @hookimpl
    def mix_inputs(self, batch: Batch) -> Batch:
        return replace(batch, target_weight=torch.ones(len(batch.targets), device=batch.images.device))


#: Weights from labels of the batch, for rows that are half as many.
WeighsTheBatchAsItWas = method(
    interface="1.1", sample_weights=lambda self, values: torch.ones(max(1, len(values) // 2), device=values.device)
)


class DropsOthersRows(Method):
    """Goes on with the rows of the batch, as they came from the backbone."""

    @hookimpl
    def augment_features(self, features: Features) -> Features:
        rows = torch.arange(len(features.features), device=features.features.device)
        first = rows[: 16 if len(rows) > 16 else len(rows)]

        def of(values):
            return None if values is None else values[first]

        return replace(
            features,
            features=1.1 * features.features[first],
            targets=features.targets[first],
            source_index=features.source_index[first],
            synthetic=features.synthetic[first],
            partner_targets=of(features.partner_targets),
            target_weight=of(features.target_weight),
        )


ChangesOthersRows = method(augment_features=lambda self, features: replace(features, features=1.1 * features.features))


class LeavesOthersRows(Method):
    @hookimpl
    def augment_features(self, features: Features) -> Features:
        x = features.features
        return replace(features, features=torch.where(features.synthetic[:, None], x, 1.1 * x))


class MakesANewRecord(Method):
    """Builds the record anew, and so loses all that it did not think of."""

    @hookimpl
    def augment_features(self, features: Features) -> Features:
        x = torch.where(features.synthetic[:, None], features.features, 1.1 * features.features)
        return Features(x, features.targets, features.source_index, features.synthetic)


class TakesTheMarkAway(Method):
    """Marks its own rows, and thinks that there are no others."""

    @hookimpl
    def augment_features(self, features: Features, context: Context) -> Features:
        tail = (context.class_counts < 10)[features.targets] & ~features.synthetic
        x = torch.where(tail[:, None], 1.1 * features.features, features.features)
        return replace(features, features=x, synthetic=tail)


class HasAnIdleModule(Method):
    """A residual branch whose gate and whose last layer both start at 0, so that neither ever moves."""

    @hookimpl
    def on_run_start(self, context: Context) -> None:
        (width,) = context.feature_shape("pooled")
        self.branch = nn.Linear(width, width)
        self.gate = nn.Parameter(torch.zeros(()))
        nn.init.zeros_(self.branch.weight)
        nn.init.zeros_(self.branch.bias)

    @hookimpl
    def augment_features(self, features: Features) -> Features:
        x = features.features + self.gate * self.branch(features.features)
        return replace(features, features=torch.where(features.synthetic[:, None], features.features, x))


class HasAModuleThatMoves(HasAnIdleModule):
    @hookimpl
    def on_run_start(self, context: Context) -> None:
        super().on_run_start(context)
        nn.init.normal_(self.branch.weight, std=self.branch.in_features**-0.5)


class _Warm(nn.Module):
    """Logits over a temperature, which is a number or a buffer."""

    def __init__(self, classifier: nn.Module, temperature: torch.Tensor, kept: bool) -> None:
        super().__init__()
        self.classifier = classifier
        if kept:
            self.register_buffer("temperature", temperature)
        else:
            self.temperature = float(temperature)

    def forward(self, pooled: torch.Tensor) -> torch.Tensor:
        return self.classifier(pooled) / self.temperature

    @property
    def weight(self) -> torch.Tensor:
        return self.classifier.weight / self.temperature

    @property
    def bias(self) -> torch.Tensor:
        return self.classifier.bias / self.temperature


class KeepsItsTemperatureAside(Method):
    """A temperature from the spread of the training logits, which the model that is opened again does not have."""

    kept = False

    @hookimpl
    def post_calibrate(self, classifier: nn.Module, context: Context) -> nn.Module:
        return _Warm(classifier, 1 + classifier(context.training_features()).std(), self.kept)


KeepsItsTemperatureInABuffer = method(KeepsItsTemperatureAside, kept=True)


class _Branching(_Detaching):
    def forward(self, pooled: torch.Tensor) -> torch.Tensor:
        logits = super().forward(pooled)
        return logits if float(pooled.square().mean()) < 1 else 2 * logits


class BranchesOnTheBatch(Method):
    """Its logits depend on the batch that an image is in, and no export can follow."""

    @hookimpl
    def post_calibrate(self, classifier: nn.Module, context: Context) -> nn.Module:
        branching = _Branching(context.model.backbone.feature_dim, context.num_classes, detach=False)
        branching.weight.copy_(classifier.weight)
        return branching


class TakesTheFirstHalfForTheTail(Method):
    """Counts on a sampler that puts rare classes first, and neither brings nor requires one."""

    @hookimpl
    def adjust_logits(self, logits: torch.Tensor) -> torch.Tensor:
        first = torch.arange(len(logits), device=logits.device) < len(logits) / 2
        return torch.where(first[:, None], 2 * logits, logits)


SaysThatOrderMatters = method(TakesTheFirstHalfForTheTail, order_matters=True)


class GoesByLabels(Method):
    @hookimpl
    def adjust_logits(self, logits: torch.Tensor, targets: torch.Tensor, context: Context) -> torch.Tensor:
        noise = torch.rand(len(logits), generator=context.generator, device=context.device)
        rare = (context.class_counts < 20)[targets]
        return torch.where(rare[:, None], (1.5 + noise)[:, None] * logits, logits)


class LetsExtraRowsThrough(Method):
    """More images of rare classes, added to the batch as if a sampler had drawn them."""

    interface = "1.1"
    through = True

    @hookimpl
    def extra_rows(self, indices: list[torch.Tensor], context: Context) -> list[torch.Tensor]:
        rare = (context.training_targets == 3).nonzero()[:, 0]
        return [rare[:2] for _ in indices]

    @hookimpl
    def augment_features(self, features: Features) -> Features:
        extra = features.extra
        made = extra.features if self.through else 0.5 * (extra.features + extra.features.flip(0))
        changed = features.append(made, extra.targets, extra.source_index, extra.expert)
        return replace(changed, extra=None)


MakesRowsOfExtraRows = method(LetsExtraRowsThrough, through=False)


class DropsTheRowsOfAnExpert(Method):
    """Keeps the first expert's rows where the network has several."""

    interface = "1.1"
    requires = frozenset({"experts"})

    @hookimpl
    def augment_features(self, features: Features) -> Features:
        first = features.expert_rows[0]
        return replace(
            features,
            features=features.features[first],
            targets=features.targets[first],
            source_index=features.source_index[first],
            synthetic=features.synthetic[first],
        )


class KeepsItsGateAside(Method):
    """An adapter whose strength is chosen from the training images, and kept as a number."""

    interface = "1.1"

    @hookimpl
    def adapt_backbone(self, backbone):
        self.gate = backbone.layer3.strength = _Strength()
        backbone.layer3.register_forward_hook(lambda module, given, answer: answer * module.strength.value)
        return backbone

    @hookimpl
    def on_stage_end(self, context: Context) -> None:
        self.gate.value = 1 + float(context.training_features().std())


class _Strength:
    value = 1.0


class GivesGradientsOfWhatIsFrozen(Method):
    """Goes by the model's parameters, and not by what the stage trains."""

    interface = "1.1"

    def __init__(self, options=None) -> None:
        super().__init__(options)
        self.scale = nn.Parameter(torch.ones(()))

    @hookimpl
    def adjust_logits(self, logits: torch.Tensor) -> torch.Tensor:
        return self.scale * logits

    @hookimpl
    def compute_gradients(self, objective, context: Context) -> dict[str, torch.Tensor]:
        given = objective.gradients(objective())
        named = context.model.named_parameters()
        return {name: given.get(name, torch.zeros_like(parameter)) for name, parameter in named}


class PerturbsTheWeightsAndLeavesThem(Method):
    """A look ahead, written into the weights themselves, that is not taken back."""

    interface = "1.1"

    @hookimpl
    def compute_gradients(self, objective) -> dict[str, torch.Tensor]:
        ahead = objective.gradients(objective())
        with torch.no_grad():
            for name, gradient in ahead.items():
                objective.parameters[name].add_(0.01 * gradient)
        return objective.gradients(objective())


class LooksAhead(Method):
    interface = "1.1"

    @hookimpl
    def compute_gradients(self, objective) -> dict[str, torch.Tensor]:
        ahead = objective.gradients(objective())
        at = {name: each + 0.01 * ahead.get(name, 0) for name, each in objective.parameters.items()}
        return objective.gradients(objective(at=at), at=at)


# -- in two processes ------------------------------------------------------------------------------------------------


class DrawsByRank(Method):
    """Noise that is other noise in each process, as one would have it who shares out the batch himself."""

    @hookimpl
    def adjust_logits(self, logits: torch.Tensor) -> torch.Tensor:
        noise = torch.Generator(logits.device).manual_seed(int(os.environ.get("RANK", "0")))
        return logits + 0.1 * torch.randn(logits.shape, generator=noise, device=logits.device)


class KeepsStatisticsOfItsOwnRows(Method):
    """A mean of features, of the rows that are this process's by its own count."""

    auxiliary = ("pull",)
    requires = frozenset({"one_network"})

    @hookimpl
    def on_run_start(self, context: Context) -> None:
        self.register_buffer("mean", torch.zeros(context.feature_shape("pooled"), device=context.device))

    def own(self, rows: torch.Tensor) -> torch.Tensor:
        if not dist.is_initialized():
            return rows
        return rows[dist.get_rank() :: dist.get_world_size()]

    @hookimpl
    def auxiliary_losses(self, features: Features) -> dict[str, torch.Tensor]:
        loss = 0.1 * (features.features - self.mean).square().mean()
        self.mean.copy_(0.9 * self.mean + 0.1 * self.own(features.features.detach()).mean(0))
        return {"pull": loss}


class KeepsStatisticsOfTheBatch(KeepsStatisticsOfItsOwnRows):
    def own(self, rows: torch.Tensor) -> torch.Tensor:
        return rows


class SumsWhatAllHave(Method):
    """Counts a batch's classes, and those of all processes, which have seen the same batch."""

    @hookimpl
    def adjust_logits(self, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        counts = nn.functional.one_hot(targets, logits.shape[1]).sum(0).to(logits.dtype)
        if dist.is_initialized():
            dist.all_reduce(counts)
        return logits + 0.1 * counts


class _OwnShare:
    """Every second row of each batch, the process's share."""

    def __init__(self, sampler: PlainSampler) -> None:
        self.sampler = sampler

    def steps_per_epoch(self) -> int:
        return self.sampler.steps_per_epoch()

    def draw(self, steps: int, distribution: torch.Tensor | None, generator: torch.Generator) -> EpochBatches:
        drawn = self.sampler.draw(steps, distribution, generator)
        if not dist.is_initialized():
            return drawn
        rank, size = dist.get_rank(), dist.get_world_size()
        return EpochBatches([each[rank::size] for each in drawn.indices], drawn.layout)


class DrawsItsShareOfTheBatch(Method):
    @hookimpl
    def build_sampler(self, batch_size: int, context: Context) -> _OwnShare:
        return _OwnShare(PlainSampler(context.training_targets, context.num_classes, batch_size))


class TakesGradientsOfGradients(Method):
    """A penalty on the gradient's size."""

    interface = "1.1"

    @hookimpl
    @sdpa_kernel(SDPBackend.MATH)
    def compute_gradients(self, objective) -> dict[str, torch.Tensor]:
        loss = objective()
        given = objective.gradients(loss, create_graph=True)
        return objective.gradients(loss + 0.01 * sum(each.square().sum() for each in given.values()))


SaysThatItTakesGradientsOfGradients = method(TakesGradientsOfGradients, requires=frozenset({"second_order"}))
DrawsByRankAndSaysSo = method(DrawsByRank, requires=frozenset({"one_process"}))


class _Stale(nn.Module):
    """A cosine classifier whose `weight` was worked out once, when it was built."""

    bias = None

    def __init__(self, feature_dim: int, num_classes: int) -> None:
        super().__init__()
        self.raw = nn.Parameter(torch.randn(num_classes, feature_dim))
        self.register_buffer("weight", 16 * nn.functional.normalize(self.raw.detach()))

    def forward(self, pooled: torch.Tensor) -> torch.Tensor:
        return 16 * nn.functional.normalize(pooled) @ nn.functional.normalize(self.raw).T


BuildsAClassifierWithAnOldWeight = method(
    build_classifier=lambda self, feature_dim, num_classes: _Stale(feature_dim, num_classes)
)


for name, made in list(globals().items()):
    if getattr(made, "__name__", "") == "_":
        made.__name__ = made.__qualname__ = name

"""What suits the images and the machine: network, size of the images, epochs, methods. Each rule is stated here."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ltcore.contract.suited import Suited
from ltcore.discovery import catalogue
from ltcore.errors import RecipeError
from ltcore.init.machine import Machine, images_per_second, last_part_of, normalises_batches, pretrained_config
from ltcore.init.methods import NO_STEP, PROBE, suited
from ltcore.init.survey import Survey

#: Below this, cross-entropy alone serves every class, and there is little for a method to correct.
NEARLY_BALANCED = 3
#: Networks from scratch with the size of their images, the most capable first, each with its multiplications
#: for an image in millions and the number of images from which it is worth having.
LADDER = (
    ("resnet50", 224, 4089, 20_000),
    ("resnet50", 160, 2086, 20_000),
    ("resnet18", 224, 1814, 5_000),
    ("resnet18", 160, 926, 5_000),
    ("resnet18", 128, 593, 0),
    ("resnet18", 96, 334, 0),
    ("resnet18", 64, 149, 0),
    ("resnet10t", 64, 90, 0),
)
#: Sizes that pre-trained networks are tried at, below the one that their weights were trained at.
PRETRAINED_SIZES = (384, 224, 192, 160, 128, 96, 64)
#: Fewest and most epochs, from scratch and fine-tuning; with fewer there would be little to have.
EPOCHS = {"scratch": (15, 100), "last": (4, 10), "tuned": (5, 10)}
BATCH = {"scratch": 64, "last": 32, "tuned": 32, "frozen": 2}
LEARNING_RATE = {"scratch": 2.0e-3, "last": 1.0e-3, "tuned": 3.0e-4, "frozen": NO_STEP}
#: What fine-tuning divides these by for networks without batch norm, such as transformers, as is usual for them.
WITHOUT_BATCH_NORM = 10
#: timm's own weights where --pretrained names no model: small on a CPU.
DEFAULT_PRETRAINED = {"cpu": "resnet18", "cuda": "resnet50"}
#: Minutes before the first image and behind the last one; and seconds for an image and a class of fitting a classifier.
AROUND, FITTING = 0.3, 1e-4
#: Minutes around a run that follows another one in the same process.
BESIDE = 0.15
#: How much longer methods may take than one pass and the steps of the network alone: features at other taps, steps of
#: their own, and being rehearsed.
SPARE = 3.0
#: Pixels of a side from which on a CPU's time for an image is estimated.
MEASURED = 128
#: A method on a network that stays as it is: epochs over features that are kept, images in a batch; and the seconds of
#: a step on such features.
KEPT_EPOCHS, KEPT_BATCH, KEPT_STEP = (10, 30), 128, 0.01
TEMPERATURE, ADJUSTMENT = "temperature", "logit_adjustment"
#: What to install where a method that suits is not there.
LACKING = {PROBE: "ltcore-probe", ADJUSTMENT: "ltcore-logit-adjustment"}


class TooShort(RecipeError):
    """The time is too short for what is asked for."""


@dataclass(frozen=True)
class Wishes:
    """What the command line asks for; None where it leaves the choice to us.

    Attributes:
        model: a timm model.
        weights: a file of its weights.
        pretrained: timm's own weights.
        image_size: height and width in pixels.
        epochs: epochs of the training stage, however long they take.
        minutes: how long a run may take.
        method: a method, or the distribution of one, to train with.
        holdout: training images per class to hold out, where the images have no validation split.
        beside: the rung of a recipe that this one is compared with, and whose features it finds where that is frozen.
    """

    model: str | None = None
    weights: Path | None = None
    pretrained: bool = False
    image_size: int | None = None
    epochs: int | None = None
    minutes: float = 30
    method: str | None = None
    holdout: int = 0
    beside: Rung | None = None

    @property
    def fine_tunes(self) -> bool:
        """Whether training starts from weights."""
        return self.pretrained or self.weights is not None


@dataclass(frozen=True)
class Rung:
    """One way to train; further up the ladder is better and slower.

    Attributes:
        kind: ``scratch``, ``frozen`` (a classifier on the features of pre-trained weights), ``last`` (that, and then
            the last part of the network, too) or ``tuned`` (and then all of it).
        model: a timm model.
        size: height and width of the images in pixels.
        once: minutes of all that is done once.
        epoch: minutes of an epoch; 0 where there are none.
        training: seconds for an image that it trains on, or its last part.
        forward: seconds for an image that it takes features of.
    """

    kind: str
    model: str
    size: int
    once: float
    epoch: float
    training: float
    forward: float

    @property
    def rate(self) -> float:
        """Images a second that it trains on, or takes features of."""
        return 1 / (self.forward if self.kind == "frozen" else self.training)


@dataclass(frozen=True)
class Fit:
    """A rung with so many epochs.

    Attributes:
        rung: network, size of the images, and how they train.
        epochs: epochs of the training stage; 0 where only a classifier is fitted.
        minutes: what the run is expected to take.
        suited: what the method that was asked for needs; None where none was.
    """

    rung: Rung
    epochs: int
    minutes: float
    suited: Suited | None


@dataclass(frozen=True)
class Choices:
    """What the recipe will say.

    Attributes:
        rung: network, size of the images, and how they train.
        above: the next rung up with its fewest epochs; None at the top.
        weights: an absolute path, or None.
        pretrained: timm's own weights.
        transform: a name of `ltcore.data.transforms`.
        normalize: mean and standard deviation of the weights; None for those of the reader.
        stage: the training stage, as a recipe writes it.
        epochs: epochs of the training stage; 0 where only a classifier is fitted.
        minutes: what the run is expected to take.
        methods: those of the training stage.
        calibrate: those of the calibration.
        missing: the distribution that would have offered a method that suits.
        suited: what the method that was asked for needs; None where none was.
    """

    rung: Rung
    above: Fit | None
    weights: str | None
    pretrained: bool
    transform: str
    normalize: tuple[tuple[float, ...], tuple[float, ...]] | None
    stage: dict[str, Any]
    epochs: int
    minutes: float
    methods: tuple[str, ...]
    calibrate: tuple[str, ...]
    missing: str | None
    suited: Suited | None = None

    @property
    def rebuilds(self) -> bool:
        """Whether a second stage trains the classifier anew (cRT), for want of the method."""
        return self.missing is not None and self.rung.kind != "frozen"


def choose(
    found: Survey, wishes: Wishes, machine: Machine, measure: Callable[[Choices], float] | None = None
) -> Choices:
    """Choose for the images and the machine.

    Args:
        found: the images.
        wishes: what is asked for.
        machine: where it will run.
        measure: minutes that a recipe with a named method takes, whose steps may cost more than those of the network
            alone. The time that it takes to measure counts.

    Raises:
        RecipeError: the wishes contradict each other, name a model or file that is not there, or leave too little time
            for anything.
    """
    _check(wishes)
    with catalogue.lent({}):  # what is installed is looked up once
        fit, above = _highest(found, wishes, machine, measure)
    return _choices(fit, above, found, wishes)


def choose_for_all(found: Survey, wishes: Wishes, machine: Machine, methods: Sequence[str]) -> Choices:
    """Choose the recipe without a method, where the time is also for one with each of these on the same rung.

    Raises:
        RecipeError: as for `choose`; the time is too short for all of them on any rung.
    """
    _check(wishes)
    lowest = 0.0
    with catalogue.lent({}):
        for rung in _ladder(found, wishes, machine, named=True):
            fewest = wishes.epochs or _bounds(rung, wishes)[0]
            own = _fit(rung, found, wishes, fewest)
            if rung.kind == "frozen":
                lowest = own.minutes + SPARE * sum(least_minutes(rung, found, wishes, methods).values())
            else:  # each has a network to train, for as long
                lowest = (1 + len(methods)) * own.minutes
                share = wishes.minutes / (1 + len(methods))
                own = _longest(rung, found, replace(wishes, minutes=share)) or own
            if lowest <= wishes.minutes or wishes.epochs:
                return _choices(own, None, found, wishes)
    raise RecipeError(
        f"--minutes {wishes.minutes:g} are too short for {1 + len(methods)} recipes, which take about "
        f"{math.ceil(lowest)} on {machine.name}; give --minutes {math.ceil(lowest)}, or name one --method"
    )


def least_minutes(rung: Rung, found: Survey, wishes: Wishes, methods: Sequence[str]) -> dict[str, float]:
    """Minutes of each method with its fewest epochs, beside a recipe on the same rung and before it is rehearsed.

    Methods that cannot work with these images are left out, which is told when their recipe is written.
    """
    minutes = {}
    for method in methods:
        asked = replace(wishes, beside=rung, method=method)
        with contextlib.suppress(RecipeError):
            minutes[method] = _fit(rung, found, asked, wishes.epochs or _bounds(rung, asked)[0]).minutes
    return minutes


def _highest(
    found: Survey, wishes: Wishes, machine: Machine, measure: Callable[[Choices], float] | None
) -> tuple[Fit, Fit | None]:
    """The highest rung that fits the time, and the one above it."""
    # Measured one after the other, and only as far down as the time asks for.
    above: Fit | None = None
    fit: Fit | None = None
    start = time.perf_counter()
    for rung in _ladder(found, wishes, machine):
        fit, factor = _longest(rung, found, wishes), 1.0
        if fit is not None and measure is not None and wishes.method and wishes.epochs is None:
            projected = measure(_choices(fit, None, found, wishes)) - _spared(rung, found, wishes) / 60
            factor = (_around(wishes) + max(projected, 0.0)) / fit.minutes
            left = wishes.minutes - (time.perf_counter() - start) / 60
            fit = _longest(rung, found, replace(wishes, minutes=left / factor))
            fit = fit and replace(fit, minutes=fit.minutes * factor)
        if fit is not None:
            break
        above = _fit(rung, found, wishes, wishes.epochs or _bounds(rung, wishes)[0])
        above = replace(above, minutes=above.minutes * factor)
    if fit is None:
        assert above is not None
        if wishes.epochs is None:
            raise TooShort(_too_short(above, wishes, machine))
        return above, None  # as asked for, whatever it takes
    return fit, above


def _choices(fit: Fit, above: Fit | None, found: Survey, wishes: Wishes) -> Choices:
    """What the recipe will say of a rung."""
    rung, kind, tuned = fit.rung, fit.rung.kind, wishes.fine_tunes
    config = pretrained_config(rung.model)
    methods, calibrate, missing = _methods(found, kind) if wishes.method is None else ((), (), None)
    return Choices(
        rung=rung,
        above=above,
        weights=None if wishes.weights is None else str(wishes.weights.expanduser().absolute()),
        pretrained=wishes.pretrained,
        transform="resize_crop" if tuned else "cifar" if rung.size <= 64 else "imagenet",
        normalize=(tuple(config.mean), tuple(config.std)) if tuned else None,
        stage=_stage(rung, found.images["train"], fit.epochs),
        epochs=fit.epochs,
        minutes=fit.minutes,
        methods=methods,
        calibrate=calibrate,
        missing=missing,
        suited=fit.suited,
    )


def _bounds(rung: Rung, wishes: Wishes) -> tuple[int, int]:
    """Fewest and most epochs of a rung."""
    if rung.kind != "frozen":
        return EPOCHS[rung.kind]
    return (0, 0) if wishes.method is None else KEPT_EPOCHS


def _longest(rung: Rung, found: Survey, wishes: Wishes) -> Fit | None:
    """As many epochs as fit the time, within bounds, or as are asked for; None where too few do."""
    fewest, most = _bounds(rung, wishes) if wishes.epochs is None else (wishes.epochs, wishes.epochs)
    fits = (_fit(rung, found, wishes, epochs) for epochs in range(most, fewest - 1, -1))
    return next((fit for fit in fits if fit.minutes <= wishes.minutes), None)


def _fit(rung: Rung, found: Survey, wishes: Wishes, epochs: int) -> Fit:
    """So many epochs, and what they take."""
    if wishes.method is None:
        return Fit(rung, epochs, rung.once + epochs * rung.epoch, None)
    train, spared = found.images["train"], _spared(rung, found, wishes)
    made = suited(wishes.method, rung.kind, _stage(rung, train, epochs, kept=True), found)
    seconds = (found.images["val"] + found.images["test"]) * rung.forward
    for stage in made.stages:
        per_epoch = math.ceil(train / stage["batch_size"])
        steps = stage.get("iterations") or stage["epochs"] * per_epoch
        if any(part.partition(".")[0] == "backbone" for part in stage["trainable"]) or "cache" not in stage:
            seconds += steps * stage["batch_size"] * rung.training
        else:  # the network runs once over the images
            seconds += (0.0 if spared else train * rung.forward) + steps * KEPT_STEP
    return Fit(rung, epochs, _around(wishes) + seconds / 60, made)


def _around(wishes: Wishes) -> float:
    """Minutes before the first image and behind the last one."""
    return AROUND if wishes.beside is None else BESIDE


def _spared(rung: Rung, found: Survey, wishes: Wishes) -> float:
    """Seconds of the features that another recipe's run leaves."""
    return found.images["train"] * rung.forward if wishes.beside and rung.kind == "frozen" else 0.0


def _stage(rung: Rung, images: int, epochs: int, kept: bool = False) -> dict[str, Any]:
    """The training stage without a method, as a recipe writes it.

    Args:
        rung: how it trains.
        images: training images.
        epochs: how many; 0 where a classifier is fitted when the stage begins, which has one step then.
        kept: whether a classifier is trained on features that are kept.
    """
    kind = rung.kind
    batch = KEPT_BATCH if kept and kind == "frozen" else BATCH[kind]
    stage: dict[str, Any] = {"name": "train"} | ({"epochs": epochs} if epochs else {"iterations": 1})
    stage |= {"batch_size": max(2, min(batch, images // 4)), "methods": []}
    if kind != "frozen":
        rate = LEARNING_RATE[kind]
        if kind != "scratch" and not normalises_batches(rung.model):
            rate /= WITHOUT_BATCH_NORM
        part = [f"backbone.{name}" for name in last_part_of(rung.model)] if kind == "last" else ["backbone"]
        return stage | {
            "trainable": [*part, "classifier"],
            "optimizer": {"name": "adamw", "lr": rate, "weight_decay": 0.05},
            "schedule": {"name": "cosine", "warmup_epochs": 1 if epochs > 1 else 0},
            "clip_grad_norm": 5.0,
        }
    stage["trainable"] = ["classifier"]
    if not kept:
        return stage | {"optimizer": {"name": "sgd", "lr": LEARNING_RATE[kind]}}
    return stage | {
        "optimizer": {"name": "sgd", "lr": 0.1, "momentum": 0.9, "weight_decay": 5e-4},
        "schedule": {"name": "cosine"},
        "cache": "eval",
    }


def _ladder(found: Survey, wishes: Wishes, machine: Machine, named: bool = False) -> Iterator[Rung]:
    """The rungs from the top.

    Args:
        found: the images.
        wishes: what is asked for.
        machine: where it will run.
        named: whether they are for methods, which know networks that train and networks that do not, and no parts.
    """
    if wishes.beside is not None:
        yield wishes.beside
        return
    train, others = found.images["train"], found.images["val"] + found.images["test"]
    speed = _Speed(machine, found.decoding, scratch=not wishes.fine_tunes)

    def scratch(model: str, size: int) -> Rung:
        training, _, forward = speed(model, size)
        return Rung("scratch", model, size, AROUND + others * forward / 60, train * training / 60, training, forward)

    def frozen(model: str, size: int) -> Rung:
        training, _, forward = speed(model, size)
        once = AROUND + ((train + others) * forward + FITTING * train * len(found.counts)) / 60
        return Rung("frozen", model, size, once, 0.0, training, forward)

    def last(model: str, size: int) -> Rung:
        _, training, forward = speed(model, size)
        return Rung("last", model, size, frozen(model, size).once, train * training / 60, training, forward)

    def tuned(model: str, size: int) -> Rung:
        training, _, forward = speed(model, size)
        return Rung("tuned", model, size, frozen(model, size).once, train * training / 60, training, forward)

    if wishes.fine_tunes:
        model = wishes.model or DEFAULT_PRETRAINED[machine.device]
        own = int(pretrained_config(model).input_size[1])
        sizes = [wishes.image_size or own]
        if wishes.image_size is None and not pretrained_config(model).fixed_input_size:
            sizes += [size for size in PRETRAINED_SIZES if size < own]
        if wishes.epochs is not None:
            yield from (tuned(model, size) for size in sizes)
            return
        yield tuned(model, sizes[0])
        if not named and wishes.method is None and last_part_of(model):
            yield last(model, sizes[0])
        yield from (frozen(model, size) for size in sizes)
        return
    if wishes.model is not None:
        config = pretrained_config(wishes.model)
        own = int(config.input_size[1])
        sizes = [wishes.image_size or own]
        if wishes.image_size is None and not config.fixed_input_size:
            sizes = [size for size in PRETRAINED_SIZES if size <= found.side] or [PRETRAINED_SIZES[-1]]
        yield from (scratch(wishes.model, size) for size in sizes)
        return
    for name, size, _, enough in LADDER:
        if train >= enough and (wishes.image_size or size <= max(found.side, LADDER[-1][1])):
            yield scratch(name, wishes.image_size or size)


def _too_short(lowest: Fit, wishes: Wishes, machine: Machine) -> str:
    """Why there is no recipe, and what there could be."""
    least = math.ceil(lowest.minutes)
    rung = lowest.rung
    what = f"{rung.model} at {rung.size} pixels"
    if rung.kind == "frozen":
        doing = f"the features of {what} and a classifier on them"
        ways = ["--image-size for fewer pixels", "a smaller --model"]
    else:
        doing = f"{lowest.epochs} epochs of {what}"
        ways = [
            "--epochs for fewer, and worse",
            "--pretrained (or --weights with --model), whose features need no training",
        ]
    if wishes.method:
        doing += f", with '{wishes.method}'"
    if wishes.beside:
        share, takes = (f"{60 * minutes:.0f} s" for minutes in (wishes.minutes, lowest.minutes))
        return f"its share of the time is {share}, and {doing}, takes about {takes}"
    return (
        f"nothing fits {wishes.minutes:g} minutes on {machine.name}: the quickest, {doing}, takes about {least}; give "
        f"--minutes {least}, or {', or '.join(ways)}"
    )


def _check(wishes: Wishes) -> None:
    if wishes.weights is not None and wishes.pretrained:
        raise RecipeError("--pretrained loads timm's weights and --weights those of a file; keep one")
    if wishes.weights is not None and wishes.model is None:
        raise RecipeError("--weights needs --model, the name by which timm knows the network of that file")
    if wishes.weights is not None and not wishes.weights.expanduser().is_file():
        raise RecipeError(f"--weights: {wishes.weights.expanduser().absolute()} is not there")


class _Speed:
    """Seconds for an image of a network at a size, its decoding included.

    To train on, to train its last part on, and to take features of. On a CPU, where a measurement takes its time,
    those of large images go by the pixels from one of `MEASURED`, which large images use better. From scratch one
    small network is measured, at 64 pixels, for all of `LADDER`: the others' time goes by their multiplications.
    """

    def __init__(self, machine: Machine, decoding: float, scratch: bool) -> None:
        self.machine, self.decoding, self.scratch = machine, decoding / machine.cores, scratch
        self._measured: dict[tuple[str, int], tuple[float, ...]] = {}

    def __call__(self, model: str, size: int) -> tuple[float, ...]:
        work = {name: cost / side**2 for name, side, cost, _ in LADDER}
        tried, scale = (model, size), 1.0
        if self.machine.device == "cpu":
            if self.scratch and model in work:
                tried = "resnet10t", 64
                scale = work[model] / work[tried[0]]
            elif size > MEASURED and not pretrained_config(model).fixed_input_size:
                tried = model, MEASURED
            scale *= (size / tried[1]) ** 2
        if tried not in self._measured:
            self._measured[tried] = images_per_second(*tried, self.machine.device)
        seconds = (scale / rate for rate in self._measured[tried])
        if self.machine.device == "cuda":  # decoding goes on meanwhile
            return tuple(max(each, self.decoding) for each in seconds)
        return tuple(each + self.decoding for each in seconds)


def _methods(found: Survey, kind: str) -> tuple[tuple[str, ...], tuple[str, ...], str | None]:
    """Methods of the stage, of the calibration, and a distribution to install for want of one."""
    offered = {offer.name for offer in catalogue.offers()}
    rare = found.imbalance >= NEARLY_BALANCED
    wanted = {"frozen": [PROBE], "scratch": [ADJUSTMENT]}.get(kind, [PROBE, ADJUSTMENT])
    wanted = [name for name in wanted if rare or name != ADJUSTMENT]
    lacking = [name for name in wanted if name not in offered]
    calibrate = (TEMPERATURE,) if kind == "frozen" and TEMPERATURE in offered and found.images["val"] else ()
    missing = LACKING[lacking[-1]] if lacking else None
    return tuple(name for name in wanted if name in offered), calibrate, missing

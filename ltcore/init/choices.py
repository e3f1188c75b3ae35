"""What suits the images and the machine: network, size of the images, epochs, methods. Each rule is stated here."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ltcore.discovery import catalogue
from ltcore.errors import RecipeError
from ltcore.init.machine import DECODED, Machine, images_per_second, pretrained_config
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
#: Sizes that pre-trained networks are tried at, and how far photographs are enlarged to use their features.
FINE_TUNED_SIZES, ENLARGED = (224, 192, 160, 128, 96, 64), 1.5
#: Fewest and most epochs: from scratch, and from pre-trained weights.
EPOCHS = {False: (15, 100), True: (5, 20)}
BATCH = {False: 64, True: 32}
#: timm's own weights where --pretrained names no model: small on a CPU.
DEFAULT_PRETRAINED = {"cpu": "resnet18", "cuda": "resnet50"}


@dataclass(frozen=True)
class Wishes:
    """What the command line asks for; None where it leaves the choice to us.

    Attributes:
        model: a timm model.
        weights: a file of its weights.
        pretrained: timm's own weights.
        image_size: height and width in pixels.
        epochs: epochs of the training stage.
        minutes: how long a run may take.
    """

    model: str | None = None
    weights: Path | None = None
    pretrained: bool = False
    image_size: int | None = None
    epochs: int | None = None
    minutes: float = 30

    @property
    def fine_tunes(self) -> bool:
        """Whether training starts from weights."""
        return self.pretrained or self.weights is not None


@dataclass(frozen=True)
class Choices:
    """What the recipe will say.

    Attributes:
        model: a timm model.
        weights: an absolute path, or None.
        pretrained: timm's own weights.
        image_size: height and width in pixels.
        transform: a name of `ltcore.data.transforms`.
        normalize: mean and standard deviation of the weights; None for those of the reader.
        epochs: epochs of the training stage.
        batch_size: images in a batch.
        lr: AdamW's learning rate.
        rate: images trained on in a second, decoding included.
        minutes: what the run is expected to take.
        method: the method of the training stage, or None for cross-entropy alone.
        missing: the distribution that would have offered the method.
    """

    model: str
    weights: str | None
    pretrained: bool
    image_size: int
    transform: str
    normalize: tuple[tuple[float, ...], tuple[float, ...]] | None
    epochs: int
    batch_size: int
    lr: float
    rate: float
    minutes: float
    method: str | None
    missing: str | None

    @property
    def rebuilds(self) -> bool:
        """Whether a second stage trains the classifier anew (cRT), for want of the method."""
        return self.missing is not None


def choose(found: Survey, wishes: Wishes, machine: Machine) -> Choices:
    """Choose for the images and the machine.

    Raises:
        RecipeError: the wishes contradict each other, or name a model or file that is not there.
    """
    _check(wishes)
    tuned, images = wishes.fine_tunes, found.images["train"]
    per_image = _Rate(machine)
    fewest, most = EPOCHS[tuned]

    def epochs_in_time(rate: float) -> int:
        return int(wishes.minutes * 60 * rate / images)

    if wishes.model is not None or tuned:
        model = wishes.model or DEFAULT_PRETRAINED[machine.device]
        config = pretrained_config(model)
        size = wishes.image_size
        if size is None and config.fixed_input_size:
            size = int(config.input_size[1])
        if size is None:
            sizes = [s for s in FINE_TUNED_SIZES if s <= ENLARGED * found.side] or [FINE_TUNED_SIZES[-1]]
            size = next((s for s in sizes if epochs_in_time(per_image(model, s)) >= fewest), sizes[-1])
    else:
        rungs = [
            (name, wishes.image_size or size)
            for name, size, _, enough in LADDER
            if images >= enough and (wishes.image_size or size <= max(found.side, LADDER[-1][1]))
        ]
        model, size = next((rung for rung in rungs if epochs_in_time(per_image(*rung)) >= fewest), rungs[-1])
        config = pretrained_config(model)
    rate = per_image(model, size)
    epochs = wishes.epochs or min(max(epochs_in_time(rate), fewest), most)
    method, missing = _method(found)
    return Choices(
        model=model,
        weights=None if wishes.weights is None else str(wishes.weights.expanduser().absolute()),
        pretrained=wishes.pretrained,
        image_size=size,
        transform="resize_crop" if tuned else "cifar" if size <= 64 else "imagenet",
        normalize=(tuple(config.mean), tuple(config.std)) if tuned else None,
        epochs=epochs,
        batch_size=max(2, min(BATCH[tuned], images // 4)),
        lr=5.0e-4 if tuned else 2.0e-3,
        rate=rate,
        minutes=epochs * images / rate / 60,
        method=method,
        missing=missing,
    )


def _check(wishes: Wishes) -> None:
    if wishes.weights is not None and wishes.pretrained:
        raise RecipeError("--pretrained loads timm's weights and --weights those of a file; keep one")
    if wishes.weights is not None and wishes.model is None:
        raise RecipeError("--weights needs --model, the name by which timm knows the network of that file")
    if wishes.weights is not None and not wishes.weights.expanduser().is_file():
        raise RecipeError(f"--weights: {wishes.weights.expanduser().absolute()} is not there")


class _Rate:
    """Images a second of a network at a size.

    Each network is measured once; the time of other sizes follows their pixels, and that of the ladder's networks
    their multiplications.
    """

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self._measured: dict[str, tuple[int, float]] = {}

    def __call__(self, model: str, size: int) -> float:
        work = {name: cost / side**2 for name, side, cost, _ in LADDER}
        # On a CPU one small network stands for all of the ladder, whose speed goes by their multiplications.
        stand_in = "resnet10t" if model in work and self.machine.device == "cpu" else model
        if stand_in not in self._measured:
            fixed = pretrained_config(stand_in).fixed_input_size
            tried = size if fixed or self.machine.device == "cuda" else 64
            self._measured[stand_in] = tried, images_per_second(stand_in, tried, self.machine.device)
        tried, speed = self._measured[stand_in]
        scale = work[stand_in] / work[model] if stand_in != model else 1.0
        trained = speed * scale * (tried / size) ** 2
        return min(trained, DECODED * self.machine.cores * max(1.0, (224 / size) ** 2))


def _method(found: Survey) -> tuple[str | None, str | None]:
    """The method for this imbalance, or the distribution to install for it."""
    if found.imbalance < NEARLY_BALANCED:
        return None, None
    if any(offer.name == "logit_adjustment" for offer in catalogue.offers()):
        return "logit_adjustment", None
    return None, "ltcore-logit-adjustment"

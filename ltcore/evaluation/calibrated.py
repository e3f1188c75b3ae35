"""``checkpoints/calibrated.safetensors``: a run's calibrated model with all that using it takes, apart from the data.

It holds the backbone, the calibrated classifier, how evaluation prepares an image, the classes, and a probe. The probe
is a few images made from a seed, with the logits that the run's model gave on them. Whoever builds the model again
compares.
"""

from __future__ import annotations

import copy
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from ltcore.contract.model import Model, evaluating
from ltcore.data.loader import Normalizer
from ltcore.data.transforms import ImageTransform
from ltcore.errors import RunError
from ltcore.evaluation.unsure import Thresholds
from ltcore.files import checkpoint
from ltcore.seeding import generator_for

if TYPE_CHECKING:
    from ltcore.data.prepare import PreparedData

PROBES = 4
#: Largest difference of two logits, relative to the largest logit, that is still the same model on another machine.
TOLERANCE = 1e-3
_PATCHES = 4


@dataclass(frozen=True)
class Description:
    """What is known of a trained model without its data.

    Attributes:
        transform: how evaluation prepares an image: size, and how it is resized and cropped.
        mean: per channel, on the scale 0..1; as many as the images have channels.
        std: per channel, on the scale 0..1.
        class_names: C names, in label order.
        class_counts: training images of each class.
        unsure: below which probabilities predictions are unsure; None where the recipe did not ask.
    """

    transform: ImageTransform
    mean: tuple[float, ...]
    std: tuple[float, ...]
    class_names: tuple[str, ...]
    class_counts: tuple[int, ...]
    unsure: Thresholds | None = None

    @classmethod
    def of(cls, data: PreparedData, unsure: Thresholds | None = None) -> Description:
        """That of a model trained on `data`."""
        counts = tuple(data.class_counts.tolist())
        return cls(data.transform, data.mean, data.std, data.class_names, counts, unsure)

    def normalised(self, images: Tensor) -> Tensor:
        """Prepared images [N, C, H, W] uint8 as the model takes them: float32, on the CPU."""
        return Normalizer(self.mean, self.std, images.shape[3], torch.device("cpu"))(images)


@dataclass(frozen=True)
class Calibrated:
    """The file's content.

    Attributes:
        path: the file.
        tensors: ``model/backbone. ...`` and ``model/classifier. ...``.
        description: how images are prepared, and the classes.
        images: [P, C, H, W] uint8; the probe.
        logits: [P, C] float32; what the run's model gave on the probe.
    """

    path: Path
    tensors: dict[str, Tensor]
    description: Description
    images: Tensor
    logits: Tensor


def relative_difference(logits: Tensor, expected: Tensor) -> float:
    """The largest difference, relative to the largest expected logit; infinite where a logit is not finite."""
    found = float((logits.double() - expected.double()).abs().max() / expected.double().abs().max().clamp(min=1e-6))
    return found if found == found else float("inf")


def write(
    path: Path,
    model: Model,
    classifier: nn.Module,
    data: PreparedData,
    seed: int,
    unsure: Thresholds | None = None,
) -> None:
    """Write the file, atomically.

    Args:
        path: where to.
        model: the trained model.
        classifier: its calibrated classifier.
        data: what the run was trained on.
        seed: the run's, which the probe is drawn with.
        unsure: below which probabilities predictions are unsure.
    """
    description = Description.of(data, unsure)
    # On the CPU, whose arithmetic is the same everywhere up to the order of sums.
    final = Model(copy.deepcopy(model.backbone), copy.deepcopy(classifier), {}).cpu()
    images = probe_images(seed, len(data.mean), data.transform.image_size)
    with evaluating(final):
        logits = final(description.normalised(images)).float()
    tensors = checkpoint.model_tensors(final) | {"probe/images": images, "probe/logits": logits}
    checkpoint.save(path, tensors, {"calibrated": asdict(description)})


def read(path: Path) -> Calibrated:
    """Read the file.

    Raises:
        RunError: it is missing, damaged or of another version of ltcore.
    """
    tensors, state = checkpoint.load(path, advice="Train the run again, or copy it again from where it was trained")
    try:
        description = _description(state["calibrated"])
        images, logits = tensors.pop("probe/images"), tensors.pop("probe/logits")
    except (KeyError, TypeError) as error:
        raise RunError(f"{path} was not written by this version of ltcore ({error}); train the run again") from error
    return Calibrated(path, tensors, description, images, logits)


def _description(state: dict[str, Any]) -> Description:
    unsure = state.get("unsure")
    return Description(
        ImageTransform(**state["transform"]),
        tuple(state["mean"]),
        tuple(state["std"]),
        tuple(state["class_names"]),
        tuple(state["class_counts"]),
        None if unsure is None else Thresholds(unsure["precision"], tuple(unsure["values"])),
    )


def probe_images(seed: int, channels: int, size: int) -> Tensor:
    """Images [P, C, H, W] uint8 of a few random colours that run into each other, [P, H, W, C] in memory.

    Plain noise would not do: to a network all of it looks alike.
    """
    generator = generator_for("cpu", seed, "probe")
    patches = torch.rand(PROBES, channels, _PATCHES, _PATCHES, generator=generator)
    smooth = interpolate(patches, size=(size, size), mode="bilinear", align_corners=True)
    grain = 0.2 * torch.rand(smooth.shape, generator=generator) - 0.1
    return ((smooth + grain).clamp(0, 1) * 255).to(torch.uint8).contiguous(memory_format=torch.channels_last)

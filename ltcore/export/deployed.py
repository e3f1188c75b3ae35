"""What is exported: the network and its calibrated classifier, without what only training needs."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ltcore.contract.backbone import Mergeable
from ltcore.contract.experts import ExpertClassifiers, by_image
from ltcore.contract.interface import __version__
from ltcore.evaluation.calibrated import TOLERANCE, relative_difference

if TYPE_CHECKING:
    from ltcore.contract.backbone import Backbone
    from ltcore.evaluation.unsure import Thresholds
    from ltcore.runs.saved import SavedRun

_ROWS = 32
#: Norms that features are given to see whether a classifier is linear in them; a cosine does not grow with the norm.
_SCALES = (0.1, 1.0, 10.0)


class Deployed(nn.Module):
    """Images [N, C, H, W], normalised, to calibrated logits [N, classes].

    Args:
        backbone: the network.
        classifier: the calibrated classifier.
    """

    def __init__(self, backbone: Backbone, classifier: nn.Module) -> None:
        super().__init__()
        self.backbone, self.classifier = backbone, classifier

    def forward(self, images: Tensor) -> Tensor:
        """[N, C, H, W] float32 to [N, classes] float32."""
        pooled = self.backbone.pool(self.backbone.forward_maps(images))
        logits: Tensor = self.classifier(by_image(pooled, self.backbone.experts))
        return logits

    @property
    def is_linear(self) -> bool:
        """Whether the classifier is a plain linear layer."""
        return type(self.classifier) is nn.Linear

    @property
    def told(self) -> str:
        """What the classifier is, for messages."""
        each = list(self.classifier.experts) if isinstance(self.classifier, ExpertClassifiers) else [self.classifier]
        if all(type(one) is nn.Linear for one in each):
            linear = "a linear classifier" if len(each) == 1 else f"{len(each)} experts with linear classifiers"
            return f"{linear}, calibration folded in"
        return "the method's own classifier" if len(each) == 1 else f"{len(each)} experts with the method's classifiers"


class Marked(nn.Module):
    """Images [N, C, H, W], normalised, to calibrated logits [N, classes] and whether each prediction is unsure, [N].

    Args:
        model: gives the logits.
        thresholds: of the classes.
    """

    lowest: Tensor

    def __init__(self, model: Deployed, thresholds: Thresholds) -> None:
        super().__init__()
        self.model = model
        self.register_buffer("lowest", thresholds.lowest.float())

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """[N, C, H, W] float32 to [N, classes] float32 and [N] bool."""
        logits = self.model(images)
        return logits, logits.softmax(1).amax(1) < self.lowest[logits.argmax(1)]


def marked(saved: SavedRun, model: Deployed) -> nn.Module:
    """The model, which also marks what is unsure where the run has thresholds."""
    thresholds = saved.description.unsure
    return model if thresholds is None else Marked(model, thresholds).eval()


def deploy(saved: SavedRun) -> Deployed:
    """The run's model, on the CPU, its calibration folded into a linear classifier where it is one, adapters merged.

    Raises:
        LtcoreError: as `SavedRun.model`.
    """
    model = copy.deepcopy(saved.model).to(device="cpu", memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    classifier = folded(model.classifier, model.backbone.feature_dim)
    merge(model.backbone)
    return Deployed(model.backbone, classifier).eval().requires_grad_(False)


def merge(module: nn.Module) -> None:
    """Replace what an adapter has put into a network, and can be merged, by the plain modules."""
    with torch.no_grad():
        for name, child in module.named_children():
            if isinstance(child, Mergeable):
                setattr(module, name, child.merged())
            else:
                merge(child)


def folded(classifier: nn.Module, feature_dim: int) -> nn.Module:
    """A linear layer with the classifier's weight and bias as they are applied, if it does the same; else itself.

    The classifiers of experts are folded one by one. Whether it does is tried on random features, in float64.

    Args:
        classifier: maps [N, D] to [N, C].
        feature_dim: D.
    """
    if isinstance(classifier, ExpertClassifiers):
        return ExpertClassifiers((folded(each, feature_dim) for each in classifier.experts), classifier.ensemble)
    weight, bias = torch.as_tensor(classifier.weight).detach(), getattr(classifier, "bias", None)
    linear = nn.Linear(feature_dim, len(weight), dtype=weight.dtype)
    with torch.no_grad():
        linear.weight.copy_(weight)
        linear.bias.zero_() if bias is None else linear.bias.copy_(torch.as_tensor(bias))
        exact, tried = copy.deepcopy(classifier).double(), copy.deepcopy(linear).double()
        rows = torch.randn(_ROWS, feature_dim, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        differences = [relative_difference(tried(scale * rows), exact(scale * rows)) for scale in _SCALES]
    return linear if max(differences) < TOLERANCE else classifier


def about(saved: SavedRun) -> dict[str, Any]:
    """What goes along with every format, as JSON: how images are prepared, the classes, and where the model is from."""
    found = saved.description
    transform, channels = found.transform, len(found.mean)
    return {
        "input": {
            "shape": ["batch", channels, transform.image_size, transform.image_size],
            "type": "float32",
            "mode": transform.mode if channels in (1, 3) else f"{channels} channels",
        },
        "preprocessing": {
            "exif_orientation": "applied",
            "transparency": "over white",
            "sixteen_bits": "upper half" if transform.window is None else "from {:g} to {:g}".format(*transform.window),
            "resize_shorter_side": transform.shorter_side,
            "interpolation": transform.interpolation,
            "center_crop": transform.image_size,
            "scale": "1/255",
            "mean": list(found.mean),
            "std": list(found.std),
        },
        "output": "logits, calibrated; softmax gives probabilities",
        # A program (TorchScript, torch.export, ONNX) has a second output then; tensors alone have none.
        **({} if found.unsure is None else {"unsure": _unsure(found.unsure)}),
        "class_names": list(found.class_names),
        "class_counts": list(found.class_counts),
        "recipe": saved.recipe.name,
        "seed": saved.recipe.seed,
        "calibration": saved.result["calibration"],
        "test": {name: value for name, value in saved.metrics.items() if isinstance(value, int | float)},
        "test_crops": transform.crops,
        "ltcore": __version__,
    }


def _unsure(thresholds: Thresholds) -> dict[str, Any]:
    return {
        "rule": "unsure where the largest softmax value is below its class's threshold; null: always",
        "precision": thresholds.precision,
        "thresholds": list(thresholds.values),
    }

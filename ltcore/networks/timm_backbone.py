"""Core's own backbone: any classification model of timm, with taps at its stages and blocks."""

from __future__ import annotations

import re
from functools import cached_property
from typing import Any, ClassVar

import torch
from pydantic import field_validator, model_validator
from torch import Tensor, nn

from ltcore.contract.backbone import Backbone, Pretraining
from ltcore.contract.hook import hookimpl
from ltcore.contract.method import Method, Options
from ltcore.errors import RecipeError, nearest
from ltcore.networks.tap_probe import Findings, probe
from ltcore.networks.weights import load_weights

#: Arguments of timm's models that are not to be given as such, and where they come from.
_SET_BY = {
    "pretrained": "by the option pretrained",
    "num_classes": "the classifier is core's",
    "in_chans": "by the data",
    "img_size": "by data.transform.image_size",
    "layers": "by the option layers",
    "drop_path_rate": "by the option drop_path_rate",
}


class TimmOptions(Options):
    """Options of the timm backbone."""

    model: str
    """A model name of timm, e.g. resnet50; a tag may follow (resnet50.a1_in1k)."""
    pretrained: bool = False
    """Load timm's pre-trained weights (from its hub, or the local cache)."""
    weights: str | None = None
    """A file of pre-trained weights of this very model: safetensors, or a state dict saved by PyTorch."""
    layers: list[int] | None = None
    """Blocks of each stage where they are not the model's own (ResNets only): [1, 1, 1, 1] makes resnet18 the papers'
    ResNet-10."""
    drop_path_rate: float = 0.0
    """Stochastic depth, for models that have it."""
    cifar_stem: bool = False
    """For images of 32 pixels: a 3 x 3 first convolution of stride 1 and no max pool (ResNets only)."""
    arguments: dict[str, Any] | None = None
    """Further arguments of the model in timm: {patch_size: 4, embed_dim: 96, depth: 6, num_heads: 3} makes a small
    transformer of vit_tiny_patch16_224."""

    @field_validator("arguments")
    @classmethod
    def _not_ours(cls, arguments: dict[str, Any] | None) -> dict[str, Any] | None:
        for name in sorted(_SET_BY.keys() & (arguments or {}).keys()):
            raise ValueError(f"'{name}' is set otherwise: {_SET_BY[name]}")
        return arguments

    @model_validator(mode="after")
    def _one_source(self) -> TimmOptions:
        if self.pretrained and self.weights is not None:
            raise ValueError("pretrained loads timm's weights and weights those of a file; keep one")
        return self


class TimmBackbone(Backbone):
    """A timm model without its classifier.

    What can be a tap is found out by trying, on the meta device, where it takes no values and little time.

    Args:
        model: made with ``num_classes=0``.
        in_channels: channels of the images.
        image_size: the size that the model was made for, where it takes one only.
    """

    net = "model"

    def __init__(self, model: Any, in_channels: int, image_size: int | None) -> None:
        super().__init__()
        self.model = model
        self.feature_dim = int(getattr(model, "head_hidden_size", None) or model.num_features)
        size = (getattr(model, "pretrained_cfg", None) or {}).get("input_size", (3, 224, 224))[1:]
        self._input_size = (in_channels, *((image_size, image_size) if image_size else size))

    @cached_property
    def _findings(self) -> Findings:
        return probe(self, _candidates(self.model), self._input_size)

    @cached_property
    def inner_taps(self) -> tuple[str, ...]:  # type: ignore[override]
        """The model's stages and blocks whose output may be changed and get more rows, in forward order."""
        return tuple(self._findings.inner)

    @property
    def spatial(self) -> bool:
        """Read off the shape of the maps, and off what timm computes between them and the classifier."""
        return self._findings.plain_mean

    @property
    def after_pool(self) -> tuple[str, ...]:
        """Found by trying, like the taps."""
        return self._findings.after_pool

    def has_maps(self, tap: str) -> bool:
        """Read off the shape at the tap; transformers have tokens, and some put the channels last."""
        if tap == "pooled" or getattr(self.model, "output_fmt", "NCHW") != "NCHW":
            return False
        shape = self._findings.maps if tap == "maps" else self._findings.inner[tap]
        return len(shape) == 3

    def forward_maps(self, images: Tensor) -> Tensor:
        """Timm's ``forward_features``."""
        maps: Tensor = self.model.forward_features(images)
        return maps

    def pool(self, maps: Tensor) -> Tensor:
        """Timm's ``forward_head`` up to the classifier."""
        pooled: Tensor = self.model.forward_head(maps, pre_logits=True)
        return pooled


def _candidates(model: Any) -> list[str]:
    """Modules that may be taps: those that timm names as feature stages, and their like.

    timm names one module for each resolution (``blocks.2``, ``blocks.4``); those beside it whose names differ in the
    number only are of the same kind.
    """
    names = [info["module"] for info in getattr(model, "feature_info", None) or []]
    kinds = {re.sub(r"\d+$", "", name) for name in names}
    return [
        name
        for name, module in model.named_modules()
        if name in names or (name != (kind := re.sub(r"\d+$", "", name)) and kind in kinds and any(module.children()))
    ]


class Timm(Method[TimmOptions]):
    """Any classification model of timm as the backbone (https://github.com/huggingface/pytorch-image-models)."""

    checked_with: ClassVar = {"model": "test_resnet"}

    @hookimpl
    def build_backbone(self, in_channels: int, image_size: int) -> Backbone:
        """Make the model; on the meta device (``ltcore plan``) a file of weights is compared and not loaded.

        Raises:
            RecipeError: timm has no such model, its weights could not be fetched, or the file's do not fit it.
        """
        import timm

        options = self.options
        name, known = options.model, timm.list_models()
        if name.split(".")[0] not in known:
            raise RecipeError(f"backbone.options.model: timm has no model '{name}'{nearest(name, known)}")
        real = torch.get_default_device().type != "meta"
        pretrained = options.pretrained and real
        arguments: dict[str, Any] = {"pretrained": pretrained, "num_classes": 0, "in_chans": in_channels}
        arguments |= options.arguments or {}
        if options.layers is not None:
            arguments["layers"] = options.layers
        if options.drop_path_rate:
            arguments["drop_path_rate"] = options.drop_path_rate
        fixed = bool(getattr(timm.get_pretrained_cfg(name.split(".")[0]), "fixed_input_size", False))
        # Transformers are made for one size of images. A file's weights are for timm's own size, so that comes first.
        sized = {"img_size": image_size} if fixed and options.weights is None else {}
        try:
            model = _create(name, {**arguments, **sized})
        except Exception as error:
            raise RecipeError(
                f"backbone.options: timm could not make '{name}': {type(error).__name__}: {error}"
                + (". Its weights come from the Hugging Face hub; is it reachable?" if pretrained else "")
            ) from error
        if options.cifar_stem:
            _use_cifar_stem(model, name)
        notes: tuple[str, ...] = ()
        if options.weights is not None:
            notes = load_weights(model, options.weights, name)
            if fixed:
                model = _resized(model, name, image_size, arguments, options.weights)
        backbone = TimmBackbone(model, in_channels, image_size if fixed else None)
        if options.pretrained or options.weights is not None:
            backbone.pretraining = _pretraining(model, name, notes)
        return backbone


def _create(name: str, arguments: dict[str, Any]) -> Any:
    import timm

    try:
        return timm.create_model(name, **arguments)
    except Exception:
        if torch.get_default_device().type != "meta" or arguments.pop("img_size", None) is None:
            raise
        return timm.create_model(name, **arguments)  # a plan made without data does not know the images' size


def _pretraining(model: Any, name: str, notes: tuple[str, ...]) -> Pretraining:
    """What timm says of its weights of the model, which a file's are taken to share."""
    config = model.pretrained_cfg
    bilinear = config["interpolation"] == "bilinear"  # timm has these two
    return Pretraining(name, tuple(config["mean"]), tuple(config["std"]), "bilinear" if bilinear else "bicubic", notes)


def _resized(model: Any, name: str, image_size: int, arguments: dict[str, Any], weights: str) -> Any:
    """A transformer with loaded weights, fitted to the images: its position embeddings are resampled as timm does.

    One that timm cannot change, but whose tensors are the same for any size (XCiT), is made anew for that size.
    """
    own = model.pretrained_cfg["input_size"][1]
    if image_size == own:
        return model
    reason = ""
    try:
        if hasattr(model, "set_input_size"):
            model.set_input_size(img_size=(image_size, image_size))
            return model
        other = _create(name, {**arguments, "img_size": image_size})
        load_weights(other, weights, name)
        return other
    except (AttributeError, TypeError, RecipeError):  # timm has no way to
        pass
    except Exception as error:
        reason = f" ({type(error).__name__}: {error})"
    if torch.get_default_device().type == "meta":
        return model  # as in `_create`
    raise RecipeError(
        f"backbone.options.weights: '{name}' with weights cannot be changed to images of {image_size} pixels{reason}; "
        f"set data.transform.image_size to {own}, for which it was made"
    )


def _use_cifar_stem(model: Any, name: str) -> None:
    """Replace the first convolution and the max pool of a timm ResNet, as is usual on CIFAR."""
    first = getattr(model, "conv1", None)
    if not isinstance(first, nn.Conv2d) or not isinstance(getattr(model, "maxpool", None), nn.MaxPool2d):
        raise RecipeError(f"backbone.options.cifar_stem: '{name}' has no ResNet stem (conv1, maxpool) to replace")
    model.conv1 = nn.Conv2d(first.in_channels, first.out_channels, 3, stride=1, padding=1, bias=False)
    nn.init.kaiming_normal_(model.conv1.weight, mode="fan_out", nonlinearity="relu")
    model.maxpool = nn.Identity()

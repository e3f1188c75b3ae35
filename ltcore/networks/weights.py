"""Pre-trained weights out of a file of the user's: read without running any of it, compared key by key, loaded."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ltcore.errors import RecipeError

_WHERE = "backbone.options.weights"

#: Where training programs keep the model in what they save.
_INSIDE = ("state_dict", "model")


def load_weights(model: nn.Module, path: str, name: str) -> None:
    """Load a timm model's weights from a file. On the meta device the file is compared and nothing is loaded.

    The file's classifier is left out. A first convolution for 3 channels is adapted to other numbers as timm does: its
    weights are summed for one channel, repeated and scaled for more.

    Args:
        model: a timm model without classifier.
        path: a safetensors file, or a state dict saved with ``torch.save``; relative to the working directory.
        name: the model's name, for messages.

    Raises:
        RecipeError: the file is missing, unreadable, holds more than tensors, or is another network's.
    """
    file = Path(path).expanduser()
    if not file.is_file():
        raise RecipeError(f"{_WHERE}: {file.absolute()} is not there")
    with torch.device("cpu"):
        found = _tensors(file)
    wanted = model.state_dict()
    found = _without_classifier(found, wanted, getattr(model, "pretrained_cfg", None) or {})
    on_meta = any(value.is_meta for value in wanted.values())
    for key in _names(getattr(model, "pretrained_cfg", None) or {}, "first_conv"):
        _adapt(found, wanted, f"{key}.weight", on_meta)
    _compare(found, wanted, file, name)
    if not on_meta:
        model.load_state_dict(found, strict=False)  # what may be missing was looked at


def _tensors(file: Path) -> dict[str, Tensor]:
    """The file's tensors by name."""
    content: Any
    try:
        if file.suffix == ".safetensors":
            from safetensors.torch import load_file

            content = load_file(file)
        else:
            content = torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise RecipeError(
            f"{_WHERE}: {file} holds more than tensors, or is damaged, and nothing else is read from it since that "
            "could run code; where you trust it, load it yourself and save its state dict as safetensors"
        ) from error
    except Exception as error:
        first = str(error).strip().partition("\n")[0]
        raise RecipeError(
            f"{_WHERE}: {file} is neither a safetensors file nor a PyTorch file that can be read "
            f"({type(error).__name__}: {first})"
        ) from error
    for key in _INSIDE:
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if not isinstance(content, Mapping) or not all(isinstance(value, Tensor) for value in content.values()):
        raise RecipeError(f"{_WHERE}: {file} holds no state dict: names with a tensor each")
    tensors = {str(key): value for key, value in content.items()}
    if tensors and all(key.startswith("module.") for key in tensors):  # saved from a model on several devices
        tensors = {key.removeprefix("module."): value for key, value in tensors.items()}
    return tensors


def _names(config: Mapping[str, Any], key: str) -> tuple[str, ...]:
    names = config.get(key) or ()
    return (names,) if isinstance(names, str) else tuple(names)


def _without_classifier(
    found: Mapping[str, Tensor], wanted: Mapping[str, Tensor], config: Mapping[str, Any]
) -> dict[str, Tensor]:
    classifiers = tuple(f"{name}." for name in _names(config, "classifier"))
    return {key: value for key, value in found.items() if key in wanted or not key.startswith(classifiers)}


def _adapt(found: dict[str, Tensor], wanted: Mapping[str, Tensor], key: str, on_meta: bool) -> None:
    """Fit the first convolution to the number of channels, where only that differs."""
    if key not in found or key not in wanted:
        return
    have, want = found[key].shape, wanted[key].shape
    if have == want or len(have) != 4 or have[0] != want[0] or have[2:] != want[2:]:
        return
    if on_meta:  # a plan made without data does not know the images' channels
        found[key] = wanted[key]
    elif have[1] == 3:
        from timm.models import adapt_input_conv

        found[key] = adapt_input_conv(want[1], found[key])


def _compare(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor], file: Path, name: str) -> None:
    missing, unexpected = (
        [key for key in names if key not in others and not key.endswith("num_batches_tracked")]  # which nothing reads
        for names, others in ((wanted, found), (found, wanted))
    )
    shapes = [
        f"{key} {list(found[key].shape)} for {list(wanted[key].shape)}"
        for key in wanted
        if key in found and found[key].shape != wanted[key].shape
    ]
    parts = [
        f"{len(keys)} {what} ({', '.join(keys[:3])}{', ...' if len(keys) > 3 else ''})"
        for what, keys in (("missing", missing), ("unexpected", unexpected), ("of another shape", shapes))
        if keys
    ]
    if parts:
        raise RecipeError(
            f"{_WHERE}: {file} does not fit '{name}': of its {len(wanted)} tensors without the classifier, "
            f"{'; '.join(parts)}. Name the model that the file was made with"
        )

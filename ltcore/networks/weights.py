"""Pre-trained weights out of a file of the user's: read without running any of it, compared key by key, loaded."""

from __future__ import annotations

import pickle
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ltcore.errors import RecipeError

_WHERE = "backbone.options.weights"

#: Where training programs keep the model in what they save, and beside it the mean of its weights over the training.
_INSIDE, _AVERAGED = ("state_dict", "model"), ("state_dict_ema", "model_ema")


def load_weights(model: nn.Module, path: str, name: str) -> tuple[str, ...]:
    """Load a timm model's weights from a file. On the meta device the file is compared and nothing is loaded.

    The file's classifier is left out, and a prefix that all its names have and the model's have not. A first
    convolution for 3 channels is adapted to other numbers as timm does. Its weights are summed for one channel,
    repeated and scaled for more.

    Args:
        model: a timm model without classifier.
        path: a safetensors file, or a state dict saved with ``torch.save``; relative to the working directory.
        name: the model's name, for messages.

    Returns:
        What the user should be told of the file, a sentence each.

    Raises:
        RecipeError: the file is missing, unreadable, holds more than tensors or values that are not finite, or is
            another network's.
    """
    file = Path(path).expanduser()
    if not file.is_file():
        raise RecipeError(f"{_WHERE}: {file.absolute()} is not there")
    with torch.device("cpu"):
        found, notes = _tensors(file)
    wanted = model.state_dict()
    found = _without_prefix(found, wanted)
    found = _without_classifier(found, wanted, getattr(model, "pretrained_cfg", None) or {})
    on_meta = any(value.is_meta for value in wanted.values())
    for key in _names(getattr(model, "pretrained_cfg", None) or {}, "first_conv"):
        _adapt(found, wanted, f"{key}.weight", on_meta)
    _compare(found, wanted, file, name)
    _refuse_not_finite(found, file)
    if not on_meta:
        model.load_state_dict(found, strict=False)  # what may be missing was looked at
    return notes


def _tensors(file: Path) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """The file's tensors by name, and what the user should be told of what else it holds."""
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
    whole, read, notes = content, "", []
    for key in (*_INSIDE, *_AVERAGED):
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content, read = content[key], key
    for key in _AVERAGED:
        if isinstance(whole, Mapping) and isinstance(whole.get(key), Mapping) and read != key:
            notes.append(
                f"{_WHERE}: {file} also holds {key}, the mean of the weights over the training, which is often "
                f"better; '{read}' is read: save the other one alone to use it"
            )
    if not isinstance(content, Mapping) or not all(isinstance(value, Tensor) for value in content.values()):
        raise RecipeError(f"{_WHERE}: {file} holds no state dict: names with a tensor each")
    return {str(key): value for key, value in content.items()}, tuple(notes)


def _without_prefix(found: dict[str, Tensor], wanted: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Names without what wrappers have put before all of them (``module.``, ``_orig_mod.``, ``encoder_q.``, ...)."""
    parts = next(iter(found), "").split(".")
    before = ["".join(f"{part}." for part in parts[:depth]) for depth in range(len(parts))]
    common = [prefix for prefix in before if all(key.startswith(prefix) for key in found)]
    best = max(common, key=lambda prefix: sum(f"{prefix}{key}" in found for key in wanted))
    return {key.removeprefix(best): value for key, value in found.items()}


def _fitting_prefix(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> tuple[str, int]:
    """The prefix under which most of the wanted names stand in the file, and how many do."""
    ends: Counter[str] = Counter()
    for key in found:
        parts = key.split(".")
        ends.update(".".join([*parts[:cut], ""]) for cut in range(len(parts)) if ".".join(parts[cut:]) in wanted)
    return max(ends.items(), key=lambda item: item[1], default=("", 0))


def _refuse_not_finite(found: Mapping[str, Tensor], file: Path) -> None:
    wrong = [
        key for key, value in found.items() if not value.is_meta and value.is_floating_point() and not _finite(value)
    ]
    if wrong:
        raise RecipeError(
            f"{_WHERE}: {file} holds values that are not finite in {len(wrong)} of its tensors ({_first(wrong)}): the "
            "training that wrote it has failed, or the file is damaged. Take one from before that"
        )


def _finite(value: Tensor) -> bool:
    return bool(torch.isfinite(value).all())


def _first(keys: list[str]) -> str:
    return f"{', '.join(keys[:3])}{', ...' if len(keys) > 3 else ''}"


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
        f"{len(keys)} {what} ({_first(keys)})"
        for what, keys in (("missing", missing), ("unexpected", unexpected), ("of another shape", shapes))
        if keys
    ]
    if parts:
        prefix, count = _fitting_prefix(found, wanted)
        advice = "Name the model that the file was made with"
        if prefix and count > len(wanted) // 2:
            advice = (
                f"{count} of them stand there under '{prefix}', beside other names: save these alone, and without it"
            )
        raise RecipeError(
            f"{_WHERE}: {file} does not fit '{name}': of its {len(wanted)} tensors without the classifier, "
            f"{'; '.join(parts)}. {advice}"
        )

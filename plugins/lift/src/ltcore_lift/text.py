"""The text encoder of a CLIP model, through open_clip."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from ltcore import RecipeError
from ltcore_lift.functional import feature_directions, prompts

#: Texts that are encoded at a time.
_AT_ONCE = 256


def check_open_clip() -> None:
    """Refuse where open_clip is missing, without importing it.

    Raises:
        RecipeError: it is not installed.
    """
    if find_spec("open_clip") is None:
        raise RecipeError(
            "features of the class names need open_clip, which is not installed. Try: pip install 'ltcore-lift[text]'; "
            "or begin at the class means: take the option pretrained out"
        )


def text_directions(pretrained: str, class_names: Sequence[str], template: str, feature_dim: int) -> Tensor:
    """Directions of classes among a network's features, from the text encoder that was trained with it.

    Args:
        pretrained: ``MODEL/TAG`` of open_clip, such as ``ViT-B-16/openai``; weights come from the hub or its cache.
        class_names: C names.
        template: see `prompts`.
        feature_dim: D, the width of the network's features.

    Returns:
        [C, D] of norm 1, on the CPU.

    Raises:
        RecipeError: open_clip is missing or has no such model, its weights could not be fetched, or its image tower is
            not of the network's kind.
    """
    check_open_clip()
    import open_clip

    name, tag = pretrained.split("/", 1)
    try:
        # Weights that were trained with the quick GELU are not what they were with another.
        quick = bool((open_clip.get_pretrained_cfg(name, tag) or {}).get("quick_gelu"))
        clip: Any = open_clip.create_model(name, pretrained=tag, force_quick_gelu=quick)
        tokenizer = open_clip.get_tokenizer(name)
    except Exception as error:
        raise RecipeError(
            f"open_clip could not make '{pretrained}': {type(error).__name__}: {error}. Its weights come from the "
            "Hugging Face hub; is it reachable? open_clip.list_pretrained() has its models and tags"
        ) from error
    projection = getattr(clip.visual, "proj", None)
    if not isinstance(projection, Tensor) or projection.shape[0] != feature_dim:
        width = f"features of width {projection.shape[0]}" if isinstance(projection, Tensor) else "no plain projection"
        raise RecipeError(
            f"the image tower of '{pretrained}' has {width}, and the network's features have the width {feature_dim}; "
            "name the model that the network's weights come from (ViT-B-16/openai for "
            "vit_base_patch16_clip_quickgelu_224.openai), or begin at the class means: take the option pretrained out"
        )
    sentences = prompts(class_names, template)
    clip.eval()
    with torch.no_grad():
        parts = [
            clip.encode_text(tokenizer(sentences[start : start + _AT_ONCE])).float()
            for start in range(0, len(sentences), _AT_ONCE)
        ]
        return feature_directions(torch.cat(parts), projection.detach().float())

"""What core does where no method answers a hook of kind ``one``, and what is wrong with some answers.

Imported with the hooks' declarations, and so free of torch until something is called.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor, nn

    from ltcore.contract.backbone import Backbone
    from ltcore.contract.context import Context
    from ltcore.contract.objective import Objective
    from ltcore.contract.records import Batch, Features
    from ltcore.contract.samplers import Sampler


def linear_classifier(feature_dim: int, num_classes: int) -> nn.Linear:
    """Linear, with Kaiming-normal weights and a bias of zero."""
    from torch import nn

    classifier = nn.Linear(feature_dim, num_classes)
    nn.init.kaiming_normal_(classifier.weight)
    nn.init.zeros_(classifier.bias)
    return classifier


def mean_of_experts() -> nn.Module:
    """The mean of the experts' logits."""
    from ltcore.contract.experts import MeanOfExperts

    return MeanOfExperts()


def plain_batches(batch_size: int, context: Context) -> Sampler:
    """Batches of any images."""
    from ltcore.contract.samplers import PlainSampler

    return PlainSampler(context.training_targets, context.num_classes, batch_size)


def instance_balanced() -> None:
    """Every image once in an epoch."""


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy, one value per sample."""
    from torch.nn import functional

    return functional.cross_entropy(logits, targets, reduction="none")


def one_backward_pass(objective: Objective) -> dict[str, Tensor]:
    """The gradient of the loss as it is."""
    return objective.gradients(objective())


# What is right is told first and cheaply: these are asked in every step.


def wrong_batch(changed: Any, batch: Batch) -> str | None:
    """What is wrong with an answer to ``mix_inputs``: every row has its image, label, source and share, as it came."""
    if changed is batch:
        return None
    if type(changed) is not type(batch):
        return f"returned {_kind(changed)}; it returns a Batch"
    images, like = changed.images, batch.images
    if images is not like and (
        not _is_tensor(images)
        or images.dtype != like.dtype
        or images.device != like.device
        or images.shape[1:2] != like.shape[1:2]
    ):
        return f"returned images as {_shown(images)}; they came as {_shown(like)}"
    return _wrong_labels(changed, batch, len(images), like.device)


def no_backbone(changed: Any, backbone: Backbone, num_classes: int) -> str | None:
    """What is wrong with an answer to ``adapt_backbone``."""
    from ltcore.contract.backbone import Backbone

    if isinstance(changed, Backbone):
        return None
    return f"returned {type(changed).__name__}, which is no ltcore.Backbone"


def wrong_features(changed: Any, features: Features) -> str | None:
    """What is wrong with an answer to ``augment_features``: every row has its features, target, source and mark."""
    if changed is features:
        return None
    if type(changed) is not type(features):
        return f"returned {_kind(changed)}; it returns Features"
    x, like = changed.features, features.features
    if x is not like and (
        not _is_tensor(x)
        or x.device != like.device
        or (x.dtype != like.dtype and _is_no_float(x))
        or x.ndim != like.ndim
    ):
        return f"returned features as {_shown(x)}; they came as {_shown(like)}"
    if (changed.expert is None) != (features.expert is None) or changed.expert_rows != features.expert_rows:
        return "dropped 'expert', which says of which expert of the network a row is, or made it up"
    if changed.expert is not None and len(changed.expert) != len(x):
        return f"returned {len(x)} rows of features and {len(changed.expert)} in 'expert', which says whose each is"
    rows, device, mark = len(x), like.device, features.synthetic
    return _wrong_labels(changed, features, rows, device) or _wrong_column(
        "synthetic", changed.synthetic, rows, mark.dtype, device
    )


def wrong_logits(changed: Any, logits: Tensor, *_: Any) -> str | None:
    """What is wrong with an answer to ``adjust_logits``: logits as they came."""
    try:
        if changed.dtype is logits.dtype and changed.shape == logits.shape and changed.device == logits.device:
            return None
    except AttributeError:
        pass
    return f"returned logits as {_shown(changed)}; they came as {_shown(logits)}"


def wrong_loss(loss: Any, logits: Tensor, targets: Tensor, features: Features) -> str | None:
    """What is wrong with an answer to ``compute_loss``: one value per sample, where and of what the logits are."""
    try:
        if loss.shape == targets.shape and loss.dtype is logits.dtype and loss.device == logits.device:
            return None
    except AttributeError:
        pass
    if (shape := getattr(loss, "shape", ())) != targets.shape:
        return f"returned shape {list(shape)} for {len(targets)} samples; it returns one value per sample"
    return f"returned its values as {_shown(loss)}; the logits are {_shown(logits)}"


def wrong_factors(weights: Any, values: Tensor, *_: Any) -> str | None:
    """What is wrong with an answer to ``sample_weights``: one float per row, where the values are; None is none."""
    return None if weights is None else _wrong_column("weights", weights, len(values), "", values.device)


def wrong_terms(terms: Any, features: Features, logits: Tensor, *_: Any) -> str | None:
    """What is wrong with an answer to ``auxiliary_losses``: floats by name, on the logits' device."""
    if not isinstance(terms, dict):
        return f"returned {_kind(terms)}; it returns its terms by name"
    for name, value in terms.items():
        if _is_tensor(value) and (value.device != logits.device or not value.is_floating_point()):
            return f"returned '{name}' as {_shown(value)}; a term is a float on {logits.device}"
    return None


def wrong_weights(weights: Any) -> str | None:
    """What is wrong with an answer to ``class_weights``: a float for each class; None is none."""
    if weights is None or (_is_tensor(weights) and weights.is_floating_point() and weights.ndim == 1):
        return None
    return f"returned {_shown(weights)}; it returns a float a class, [C]"


def _wrong_labels(changed: Any, given: Any, rows: int, device: Any) -> str | None:
    """What is wrong with the labels and sources of a batch's or features' rows."""
    integer = given.targets.dtype
    if wrong := _wrong_column("targets", changed.targets, rows, integer, device):
        return wrong
    if wrong := _wrong_column("source_index", changed.source_index, rows, integer, device):
        return wrong
    partners, share = changed.partner_targets, changed.target_weight
    if partners is None and share is None:
        return None
    if partners is None or share is None:
        there, lacking = ("partner_targets", "target_weight")[:: 1 if share is None else -1]
        return f"returned '{there}' without '{lacking}'; a mixed row has a second label and the share of its first"
    return _wrong_column("partner_targets", partners, rows, integer, device) or _wrong_column(
        "target_weight", share, rows, "", device
    )


def _wrong_column(name: str, value: Any, rows: int, dtype: Any, device: Any) -> str | None:
    """What is wrong with one value a row; `dtype` is empty where any float will do."""
    try:
        typed = value.dtype is dtype or (not dtype and value.is_floating_point())
        if typed and value.device == device and value.shape == (rows,):
            return None
    except AttributeError:
        pass
    wanted = str(dtype).removeprefix("torch.") or "a float type"
    return f"returned '{name}' as {_shown(value)}; for {rows} rows it is {wanted} [{rows}] on {device}"


def _is_tensor(value: Any) -> bool:
    return hasattr(value, "is_floating_point")


def _is_no_float(value: Tensor) -> bool:
    """Whether it is none of the types that a network computes in; float64 is none."""
    return not value.is_floating_point() or value.element_size() > 4


def _kind(value: Any) -> str:
    return "nothing" if value is None else f"a {type(value).__name__}"


def _shown(value: Any) -> str:
    """``float32 [8, 3] on cpu``."""
    if not _is_tensor(value):
        return _kind(value)
    return f"{str(value.dtype).removeprefix('torch.')} {list(value.shape)} on {value.device}"

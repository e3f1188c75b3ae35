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
    from ltcore.contract.records import Features
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


def not_one_value_per_sample(loss: Any, logits: Tensor, targets: Tensor, features: Features) -> str | None:
    """What is wrong with an answer to ``compute_loss``."""
    shape = getattr(loss, "shape", ())
    if shape == targets.shape:
        return None
    return f"returned shape {list(shape)} for {len(targets)} samples; it returns one value per sample"


def not_one_weight_per_sample(weights: Any, values: Tensor, features: Features) -> str | None:
    """What is wrong with an answer to ``sample_weights``."""
    shape = getattr(weights, "shape", ())
    if weights is None or shape == values.shape:
        return None
    return f"returned shape {list(shape)} for {len(values)} rows; it returns one weight per row, or None"


def no_backbone(changed: Any, backbone: Backbone) -> str | None:
    """What is wrong with an answer to ``adapt_backbone``."""
    from ltcore.contract.backbone import Backbone

    if isinstance(changed, Backbone):
        return None
    return f"returned {type(changed).__name__}, which is no ltcore.Backbone"


def unequal_rows(changed: Features, features: Features) -> str | None:
    """What is wrong with an answer to ``augment_features``: every row has its features, target, source and mark."""
    counts = [len(x) for x in (changed.features, changed.targets, changed.source_index, changed.synthetic)]
    if (changed.expert is None) != (features.expert is None) or changed.expert_rows != features.expert_rows:
        return "dropped 'expert', which says of which expert of the network a row is, or made it up"
    if changed.expert is not None and len(changed.expert) != counts[0]:
        return f"returned {counts[0]} rows of features and {len(changed.expert)} in 'expert', which says whose each is"
    if len(set(counts)) == 1:
        return None
    return (
        f"returned {counts[0]} rows of features, {counts[1]} targets, {counts[2]} source indices and {counts[3]} marks "
        "in 'synthetic'"
    )

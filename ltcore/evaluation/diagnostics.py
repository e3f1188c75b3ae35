"""What a long tail does to a network, class by class: accuracy, classifier norms and feature deviation.

Source: CDT (Ye et al. 2020), section 3.3 and figure 3. These look at test data, so the trainer computes them for the
reader of a run; no method sees them.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from ltcore.contract.experts import ExpertClassifiers
from ltcore.contract.result import Diagnostics, PerClass

#: R of the paper: how often training features are sub-sampled.
ROUNDS = 1000

# Sub-samples are drawn for this many values at a time, so that a class of any size fits.
_CHUNK_VALUES = 2**25


def class_accuracy(predictions: Tensor, targets: Tensor, num_classes: int) -> PerClass:
    """Accuracy on each class's images; None where it has none. Predictions and targets are [N] int64."""
    total = torch.bincount(targets, minlength=num_classes).tolist()
    right = torch.bincount(targets[predictions == targets], minlength=num_classes).tolist()
    return [r / n if n else None for r, n in zip(right, total, strict=True)]


def feature_deviation(
    train: Tensor,
    train_targets: Tensor,
    test: Tensor,
    test_targets: Tensor,
    num_classes: int,
    generator: torch.Generator,
    rounds: int = ROUNDS,
) -> PerClass:
    """How far each class's training features lie from its test features (CDT, section 3.3: dis(c)).

    Features are scaled to unit length. For each class, K of its training features are drawn without replacement. K is
    the size of the smallest class, so that small classes do not lie far off by chance alone. The distance of their mean
    from the mean of the class's test features is averaged over `rounds` draws.

    Args:
        train: [N, D].
        train_targets: [N] int64.
        test: [M, D].
        test_targets: [M] int64.
        num_classes: number of classes C.
        generator: a CPU generator.
        rounds: R.

    Returns:
        C distances; None for a class without test images.
    """
    train, test = normalize(train.double().cpu()), normalize(test.double().cpu())
    smallest = int(torch.bincount(train_targets, minlength=num_classes).min())
    deviations: PerClass = []
    for label in range(num_classes):
        own, unseen = train[train_targets == label], test[test_targets == label]
        if not len(unseen):
            deviations.append(None)
            continue
        center, distances = unseen.mean(0), []
        chunk = max(1, _CHUNK_VALUES // max(len(own), smallest * train.shape[1]))
        for start in range(0, rounds, chunk):
            keys = torch.rand(min(chunk, rounds - start), len(own), generator=generator)
            drawn = keys.topk(smallest, dim=1, largest=False, sorted=False).indices
            distances.append((own[drawn].mean(1) - center).norm(dim=1))
        deviations.append(float(torch.cat(distances).mean()))
    return deviations


def diagnose(
    classifier: nn.Module,
    train: tuple[Tensor, Tensor, Tensor],
    test: tuple[Tensor, Tensor, Tensor],
    num_classes: int,
    generator: torch.Generator,
) -> Diagnostics:
    """The diagnostics of a model, class by class, JSON-able.

    Args:
        classifier: its weight [C, D] gives the norms; of experts' classifiers it is the mean of their norms.
        train: pooled features [N, D], logits [N, C] and targets [N] of the training images, as they are. Features of
            experts are [N, E, D], and count as one vector.
        test: the same of the test images.
        num_classes: number of classes C.
        generator: a CPU generator, for the sub-samples.
    """
    return {
        "train_accuracy": class_accuracy(train[1].argmax(1).cpu(), train[2], num_classes),
        "test_accuracy": class_accuracy(test[1].argmax(1).cpu(), test[2], num_classes),
        "classifier_norm": _norms(classifier).tolist(),
        "feature_deviation": feature_deviation(
            train[0].flatten(1), train[2], test[0].flatten(1), test[2], num_classes, generator
        ),
        "rounds": ROUNDS,
    }


def _norms(classifier: nn.Module) -> Tensor:
    if isinstance(classifier, ExpertClassifiers):
        return torch.stack([_norms(expert) for expert in classifier.experts]).mean(0)
    weight = torch.as_tensor(classifier.weight).detach().double().cpu()
    norms: Tensor = weight.norm(dim=1)
    return norms

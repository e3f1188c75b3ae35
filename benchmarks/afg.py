r"""Memory and time of GLAG's feature generator (AFG), and how both grow with the number of classes.

    python benchmarks/afg.py

For 100, 1,000 and 8,142 classes with long-tailed counts of 1,000 to 2 images (437,513 in all for 8,142 classes, as many
as iNaturalist 2018 has) and made-up non-negative features of 2,048 dimensions in half precision. Held in memory as in a
run: the training features, the stage's cache (a second copy), and the generator's bank. Each size is a process of its
own, so that its peak of resident memory is its own.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import time
from types import SimpleNamespace

import torch
from ltcore_decoupling import ScaledClassifier
from ltcore_glag import AFG
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from ltcore import Features, PlainSampler, class_balanced_distribution

DIMENSIONS, BATCH, LARGEST, SMALLEST = 2048, 512, 1000, 2
MEAN_COUNT = 437513 / 8142


def long_tailed_counts(classes: int) -> Tensor:
    """Counts [C] from 1,000 down to 2, with the mean of iNaturalist 2018, rounded so that the total is right."""
    share, total = torch.linspace(1, 0, classes, dtype=torch.float64), round(MEAN_COUNT * classes)

    def of(power: float) -> Tensor:
        return (SMALLEST + (LARGEST - SMALLEST) * share**power).round().long()

    low, high = 1.0, 100.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if int(of(middle).sum()) > total else (low, middle)
    counts = of(high)
    counts[1] += total - int(counts.sum())
    return counts


def made_up_features(targets: Tensor, classes: int) -> Tensor:
    """Half-precision features [N, D], non-negative, a direction a class."""
    generator = torch.Generator().manual_seed(0)
    means = torch.rand(classes, DIMENSIONS, generator=generator)
    features = torch.empty(len(targets), DIMENSIONS, dtype=torch.float16)
    for rows in torch.arange(len(targets)).split(4096):
        noise = torch.randn(len(rows), DIMENSIONS, generator=generator)
        features[rows] = (means[targets[rows]] + 0.3 * noise).clamp(min=0).half()
    return features


def measure(classes: int, steps: int) -> None:
    """One size: print a row of the table."""
    counts = long_tailed_counts(classes)
    targets = torch.repeat_interleave(torch.arange(classes), counts)
    features = made_up_features(targets, classes)
    cache = features.clone()
    context = SimpleNamespace(
        class_counts=counts,
        num_classes=classes,
        stage_index=1,
        generator=torch.Generator().manual_seed(1),
        training_features=lambda: features,
        training_targets=targets,
    )
    method = AFG()
    method.on_run_start(context=context)
    method.beta.copy_(0.6 * method.tail)
    began = time.perf_counter()
    method.class_distribution(context=context)
    prepared = time.perf_counter() - began

    classifier = ScaledClassifier(nn.Linear(DIMENSIONS, classes))
    optimizer = torch.optim.SGD(classifier.parameters(), lr=0.1, momentum=0.9)
    sampler = PlainSampler(targets, classes, BATCH)
    steps = min(steps, sampler.steps_per_epoch())
    drawn = sampler.draw(steps, class_balanced_distribution(counts), torch.Generator().manual_seed(2))
    generating = whole = 0.0
    for step, rows in enumerate(drawn.indices):
        began = time.perf_counter()
        labels = targets[rows]
        marks = torch.zeros(len(rows), dtype=torch.bool)
        record = Features(cache[rows].float(), labels, rows, marks)
        before = time.perf_counter()
        record = method.augment_features(features=record, context=context)
        after = time.perf_counter()
        optimizer.zero_grad()
        cross_entropy(classifier(record.features), labels).backward()
        optimizer.step()
        if step:  # the first warms up
            generating += after - before
            whole += time.perf_counter() - began
    each, all_of_it = generating / (steps - 1), whole / (steps - 1)
    epoch, balanced = len(targets) / BATCH, classes * int(counts.max()) / BATCH
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(
        f"| {classes:,} | {len(targets):,} | {peak:.2f} | {prepared:.1f} | {1000 * each:.0f} | {1000 * all_of_it:.0f} "
        f"| {steps - 1} | {each * epoch:.0f} | {all_of_it * epoch:.0f} | {all_of_it * balanced / 3600:.2f} |",
        flush=True,
    )


def main() -> None:
    """Measure each size in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--classes", nargs="+", type=int, default=[100, 1000, 8142])
    parser.add_argument("--steps", type=int, default=60, help="steps of 512 rows that are timed, the first left out")
    arguments = parser.parse_args()
    if len(arguments.classes) == 1:
        measure(arguments.classes[0], arguments.steps)
        return
    print(
        "| classes | images | peak resident GiB | statistics, s | generating, ms a step | whole step, ms | steps timed "
        "| generating, s an epoch (N rows) | whole epoch, s | whole generation epoch (C * n_max rows), h |\n"
        + "| --- " * 10
        + "|",
        flush=True,
    )
    for classes in arguments.classes:
        command = [sys.executable, __file__, "--classes", str(classes), "--steps", str(arguments.steps)]
        subprocess.run(command, check=True)


if __name__ == "__main__":
    main()

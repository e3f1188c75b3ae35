r"""How well the rows that a method generates are recognised as their own class while a recipe trains.

    python benchmarks/generated_rows.py recipes/digits_lt_safa.yaml --seeds 0 1 2 --out runs/generated

Each run is an ordinary ``ltcore run RECIPE --seed S`` whose forward passes are watched; nothing that is watched changes
it. For each epoch, means over its steps: the share of generated rows whose largest logit is their own label, and the
same of the real rows that they were made from; their losses; and at the tap the standard deviation of the generated
rows over that of their sources, the cosine of pooled features between a generated row and its source, and between two
real rows of different classes. Written to ``generated.json`` in each run's directory; the last epoch's are printed.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity, cross_entropy

from ltcore import Features
from ltcore.discovery.binding import Hooks
from ltcore.progress.console import Reporter
from ltcore.recipe.loading import load_recipe
from ltcore.training import step
from ltcore.training.execute import execute
from ltcore.training.loop import Loop, Observer


class Watch:
    """Measures the steps of one run; `epochs` has a record for each epoch with generated rows."""

    def __init__(self) -> None:
        self.seen: dict[int, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
        self.epoch = 0
        self.sources: slice = slice(0)

    def note(self, **figures: Tensor) -> None:
        """Keep a step's figures, 0-d each."""
        for name, value in figures.items():
            self.seen[self.epoch][name].append(float(value))

    @torch.no_grad()
    def at_tap(self, before: Features, after: Features) -> None:
        """Compare rows that a method appended with the real rows that they come from."""
        self.sources = slice(0)
        made = after.synthetic.clone()
        made[: len(before.targets)] = False
        if not bool(made.any()):
            return
        real, rows = before.features.float(), after.features[made].float()
        # Generated rows are appended in the order of their sources, which lie side by side in the batch.
        index, wanted = before.source_index, after.source_index[made]
        fits = [s for s in range(len(real) - len(rows) + 1) if bool((index[s : s + len(rows)] == wanted).all())]
        self.sources = slice(fits[0], fits[0] + len(rows)) if fits else slice(0)
        if not fits:
            return
        source = real[self.sources]
        pooled, targets = real.flatten(2).mean(2), before.targets
        other = targets[:, None] != targets[None]
        between = cosine_similarity(pooled[:, None], pooled[None], dim=2)[other].mean()
        own = cosine_similarity(rows.flatten(2).mean(2), source.flatten(2).mean(2)).mean()
        self.note(scale=rows.std() / source.std(), cosine_to_source=own, cosine_between_classes=between)

    @torch.no_grad()
    def at_classifier(self, logits: Tensor, record: Features) -> None:
        """Look at which rows are recognised."""
        made, width = record.synthetic, self.sources.stop - self.sources.start if self.sources.stop else 0
        if not bool(made.any()):
            return
        right = (logits.argmax(1) == record.targets).float()
        loss = cross_entropy(logits, record.targets, reduction="none")
        self.note(generated=right[made].mean(), generated_loss=loss[made].mean())
        if width:
            self.note(source=right[self.sources].mean(), source_loss=loss[self.sources].mean())
        self.note(real=right[~made].mean(), chance=torch.tensor(1 / logits.shape[1]))

    @property
    def epochs(self) -> list[dict[str, Any]]:
        """Means over the steps of each epoch, in order."""
        return [
            {"epoch": epoch} | {name: sum(values) / len(values) for name, values in figures.items()}
            for epoch, figures in sorted(self.seen.items())
        ]


@contextmanager
def watching(watch: Watch) -> Iterator[None]:
    """Let `watch` see the forward passes of runs."""
    observe, loss = Hooks.observe, step.classification_loss

    def observed(self: Hooks, around: Any) -> None:
        observe(self, around)
        self.taps = {tap: seen(fold) for tap, fold in self.taps.items()}

    def seen(fold: Callable[[Features], Features]) -> Callable[[Features], Features]:
        def augment(features: Features) -> Features:
            after = fold(features)
            watch.at_tap(features, after)
            return after

        return augment

    def classify(hooks: Hooks, logits: Tensor, record: Features, class_weights: Tensor | None) -> Tensor:
        watch.at_classifier(logits, record)
        return loss(hooks, logits, record, class_weights)

    Hooks.observe, step.classification_loss = observed, classify  # type: ignore[method-assign]
    try:
        yield
    finally:
        Hooks.observe, step.classification_loss = observe, loss  # type: ignore[method-assign]


class Epochs(Observer):
    """Tells a watch which epoch it is."""

    def __init__(self, watch: Watch) -> None:
        self._watch = watch

    def epoch_started(self, loop: Loop) -> None:
        """See `Observer`."""
        self._watch.epoch = loop.state.epoch


def watched(recipe: Path, sets: list[str], seed: int, out: Path) -> tuple[dict[str, Any], Watch]:
    """Run a recipe and watch it."""
    watch = Watch()
    with watching(watch):
        result, directory = execute(load_recipe(recipe, sets, seed), out, False, Reporter(), observers=[Epochs(watch)])
    (directory / "generated.json").write_text(json.dumps(watch.epochs, indent=1) + "\n")
    return result, watch


def main() -> None:
    """Run each recipe with each seed and print what became of the generated rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipes", nargs="+", type=Path)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--set", dest="sets", action="append", default=[])
    parser.add_argument("--out", type=Path, default=Path("runs"))
    arguments = parser.parse_args()
    for recipe in arguments.recipes:
        for seed in arguments.seeds:
            result, watch = watched(recipe, arguments.sets, seed, arguments.out)
            few, top1 = result["after_calibration"]["few"], result["after_calibration"]["top1"]
            print(f"{recipe.stem} seed {seed}: top-1 {100 * top1:.1f}, few {100 * few:.1f}")
            for record in watch.epochs[:1] + watch.epochs[-1:]:
                print("  " + ", ".join(f"{k} {v:.3f}" if k != "epoch" else f"{k} {v}" for k, v in record.items()))


if __name__ == "__main__":
    main()

"""What the trainer costs beside a hand-written loop, and what a hook call costs beside pluggy's: ratios of one run.

    python benchmarks/trainer.py

The loop trains the same network on the same batches with the same optimiser, and nothing else: no hooks, no checks, no
schedule, no seeding. Both run in turn, several times; the median ratio is printed.
"""

from __future__ import annotations

import io
import statistics
import tempfile
import time
from pathlib import Path

import pluggy
import torch
from torch.nn.functional import cross_entropy

from ltcore import Method, hookimpl
from ltcore.contract import hookspecs
from ltcore.contract.hook import PROJECT
from ltcore.discovery.binding import Entry, Hooks, implementations
from ltcore.discovery.offer import Offer
from ltcore.files.run_directory import RunDirectory
from ltcore.plan.plan import make_plan
from ltcore.progress.console import Reporter
from ltcore.recipe.loading import load_recipe
from ltcore.training.assembly import Assembly
from ltcore.training.data import RunData, read_data
from ltcore.training.run import Run

RECIPE = """
data: {{use: synthetic, options: {{class_counts: [400, 240, 160, 80, 40], image_size: {size}, test_per_class: 2}}}}
backbone: {{use: cifar_resnet, options: {{depth: 8}}}}
checkpoint_seconds: 1000
stages: [{{name: joint, epochs: 4, batch_size: 64, optimizer: {{name: sgd, lr: 0.05, momentum: 0.9}}}}]
"""


def prepared(size: int, folder: Path) -> Run:
    """A run that is ready to train."""
    (folder / "bench.yaml").write_text(RECIPE.format(size=size))
    loaded = load_recipe(folder / "bench.yaml")
    plan = make_plan(loaded)
    device = torch.device("cpu")
    data = RunData(plan, read_data(loaded, plan.answers["data"]), device)
    directory = RunDirectory.create(folder, "bench", 0, "")
    return Run(Assembly(plan, data, device), directory, Reporter(io.StringIO()))


def by_hand(run: Run, epochs: int) -> float:
    """Seconds of the hand-written loop."""
    assembly = run.assembly
    model, loader, targets = assembly.model, assembly.data.loaders["train"], assembly.state.training_targets
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    generator = torch.Generator().manual_seed(0)
    model.train()
    began = time.perf_counter()
    for _ in range(epochs):
        for indices in torch.randperm(len(targets), generator=generator).split(64):
            loss = cross_entropy(model(loader.train_batch(indices, generator)), targets[indices])
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
    return time.perf_counter() - began


def hook_calls() -> tuple[float, float]:
    """Microseconds that a call of an empty compute_loss costs through the plan and through pluggy."""

    class Empty(Method):
        @hookimpl
        def compute_loss(self, logits, targets):
            return values

    def per_call(function) -> float:
        began = time.perf_counter()
        for _ in range(50000):
            function()
        return (time.perf_counter() - began) / 50000 * 1e6

    logits, targets, values = torch.randn(2, 2), torch.zeros(2, dtype=torch.int64), torch.zeros(2)
    method = Empty()
    manager = pluggy.PluginManager(PROJECT)
    manager.add_hookspecs(hookspecs)
    manager.register(method)
    bound = Hooks(implementations([Entry("empty", Offer("empty", "", "", ""), method)]), {})
    plain = per_call(lambda: method.compute_loss(logits, targets))
    ours = per_call(lambda: bound.call(hookspecs.compute_loss, logits, targets, None)) - plain
    theirs = (
        per_call(lambda: manager.hook.compute_loss(logits=logits, targets=targets, features=None, context=None)) - plain
    )
    return ours, theirs


def main() -> None:
    """Print the ratios."""
    with tempfile.TemporaryDirectory() as name:
        for size in (8, 32):
            ratios = []
            for attempt in range(5):
                folder = Path(name) / f"{size}-{attempt}"
                folder.mkdir()
                run = prepared(size, folder)
                hand = by_hand(run, 4)
                run.execute()
                ratios.append(run.position.results[0]["seconds"] / hand)
            print(
                f"{size:2} x {size} images: trainer / hand-written loop = {statistics.median(ratios):.2f}", flush=True
            )
    ours, theirs = hook_calls()
    print(f"a hook call: {ours:.2f} us bound in the plan, {theirs:.2f} us through pluggy")


if __name__ == "__main__":
    main()

"""What a process of several does in tests: ``python together_program.py OUT < JOBS``; its rank is in the environment.

A job is a recipe with changes, of which the losses of the first steps are kept; ``units``, the exchange itself; or
``parts``, batches that go through the backbone in parts. Each process writes ``OUT/RANK.json``, the
answers by the jobs' names. One process alone does the same.
"""

import json
import sys
from pathlib import Path

import torch
from torch import nn

from ltcore import Backbone, Batch, ranks
from ltcore.contract.model import Model
from ltcore.discovery.binding import Hooks, implementations
from ltcore.networks.synchronised import synchronise
from ltcore.progress.console import Reporter
from ltcore.recipe.loading import load_recipe
from ltcore.training.accumulation import Accumulation
from ltcore.training.execute import execute
from ltcore.training.loop import Observer
from ltcore.training.step import StepForward
from ltcore.training.together import together


class Seen(Observer):
    """Keeps stage, losses and images of every step."""

    def __init__(self):
        self.steps = []

    def losses_computed(self, loop, losses):
        self.steps.append([loop.stage.name, {name: value.item() for name, value in losses.items()}, 0])

    def step_ended(self, loop):
        self.steps[-1][2] = loop.position.images


def trained(out, recipe, sets, shares=False):
    """Steps of a run, its figures, and what it has written; it may keep features of frozen stages in a file."""
    seen, features = Seen(), out / "features" if shares else None
    loaded, quiet = load_recipe(Path(recipe), sets), Reporter.silent()
    result, path = execute(loaded, out, False, quiet, observers=[seen], features=features)
    figures = {name: value for name, value in result["after_calibration"].items() if isinstance(value, float)}
    files = sorted(str(file.relative_to(path)) for file in path.rglob("*") if file.is_file())
    return {"steps": seen.steps, "figures": figures, "files": files, "environment": result.get("environments")}


def units():
    """Every exchange, against what one process with all rows has."""
    torch.manual_seed(0)
    everything = torch.randn(7, 3, 4, 4, dtype=torch.float64)
    network = nn.Sequential(nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5), nn.ReLU(), nn.Flatten()).double()
    own = [everything[ranks.part(7)].requires_grad_(), everything.clone().requires_grad_()]
    synchronise(network)
    weight = torch.arange(7, dtype=torch.float64)[:, None]
    rows = ranks.joined(network(own[0]), 7)
    (rows * weight).square().sum().backward()
    gradients = [parameter.grad for parameter in network.parameters()]
    ranks.averaged(gradients)
    found = {
        "rows": rows,
        "gradients": [gradient.flatten().tolist() for gradient in gradients],
        "input": ranks.joined(own[0].grad.contiguous(), 7) / ranks.size(),
        "mean": network[1].running_mean,
        "variance": network[1].running_var,
        "experts": ranks.joined(torch.cat([everything[ranks.part(7)], -everything[ranks.part(7)]]), 7, 2),
        "few": ranks.joined(everything[:1], 1),
        "shares": ranks.shares_of(
            [3, 3, 1], [everything[3 * n : 3 * n + 3] for n in range(3)][ranks.rank() :: ranks.size()]
        ),
        "one share": ranks.shares_of([7], [everything][ranks.rank() :: ranks.size()]),
        "summed": ranks.summed(torch.tensor([1.0])),
    }
    mixed = [torch.full((2,), float(ranks.rank())), torch.tensor([ranks.rank()])]
    ranks.as_the_first(mixed)
    found |= {"first": mixed[0], "number": mixed[1], "told": ranks.told({"rank": ranks.rank()})}
    found |= {"any": ranks.any_of(ranks.rank() == ranks.size() - 1), "none": ranks.any_of(False)}
    return {name: value.tolist() if isinstance(value, torch.Tensor) else value for name, value in found.items()}


class Small(Backbone):
    """With batch norm, and a parameter that takes no part."""

    feature_dim = 5

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5)
        self.unused = nn.Parameter(torch.ones(2))

    def forward_maps(self, images):
        return self.norm(self.conv(images)).relu()


def parts(rows=11, number=2, processes=2):
    """Two steps in parts, in each of two processes; alone, what that should be, with one graph."""
    torch.manual_seed(0)
    batch = Batch(torch.randn(rows, 3, 4, 4), torch.arange(rows) % 3, torch.arange(rows))
    model = Model(Small(), nn.Linear(5, 3), {})
    if ranks.size() > 1:
        synchronise(model.backbone)
        forward = StepForward(model, Hooks(implementations([]), {}), "images", True, None, Accumulation(number, rows))
        step = together(model, forward)
    shares = [torch.arange(rows)[ranks._part(rows, rank, processes)] for rank in range(processes)]
    # Together, the processes' first parts go through batch norm, and then their second ones.
    turns = [torch.cat([torch.tensor_split(share, number)[turn] for share in shares]) for turn in range(number)]
    optimizer = torch.optim.SGD(model.parameters(), 0.5)
    losses = []
    for _ in range(2):
        if ranks.size() > 1:
            loss = step(batch, None)["classification"]
        else:
            pooled = torch.cat([model.backbone(batch.images[turn]) for turn in turns])[torch.cat(turns).argsort()]
            loss = nn.functional.cross_entropy(model.classifier(pooled), batch.targets)
        optimizer.zero_grad()
        loss.backward()
        losses.append(loss.item())
        gradients = [None if each.grad is None else each.grad.tolist() for each in model.parameters()]
        optimizer.step()
    return {"losses": losses, "gradients": gradients, "buffers": [each.tolist() for each in model.buffers()]}


def main(out, jobs):
    """All jobs, in one group of processes."""
    with ranks.together("cpu"):
        answers = {
            name: {"units": units, "parts": parts}[job]()
            if isinstance(job, str)
            else trained(out / f"runs-{ranks.size()}" / name, *job)
            for name, job in jobs.items()
        }
        (out / f"{ranks.size()}-{ranks.rank()}.json").write_text(json.dumps(answers))


if __name__ == "__main__":
    main(Path(sys.argv[1]), json.load(sys.stdin))

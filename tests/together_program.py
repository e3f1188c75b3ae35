"""What a process of several does in tests: ``python together_program.py OUT < JOBS``; its rank is in the environment.

A job is a recipe with changes, of which the losses of the first steps are kept, or ``units``: the exchange itself. Each
process writes ``OUT/RANK.json``, the answers by the jobs' names. One process alone does the same.
"""

import io
import json
import sys
from pathlib import Path

import torch
from torch import nn

from ltcore import ranks
from ltcore.networks.synchronised import synchronise
from ltcore.progress.console import Reporter
from ltcore.recipe.loading import load_recipe
from ltcore.training.execute import execute
from ltcore.training.loop import Observer


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
    loaded, quiet = load_recipe(Path(recipe), sets), Reporter(io.StringIO())
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


def main(out, jobs):
    """All jobs, in one group of processes."""
    with ranks.together("cpu"):
        answers = {
            name: units() if job == "units" else trained(out / f"runs-{ranks.size()}" / name, *job)
            for name, job in jobs.items()
        }
        (out / f"{ranks.size()}-{ranks.rank()}.json").write_text(json.dumps(answers))


if __name__ == "__main__":
    main(Path(sys.argv[1]), json.load(sys.stdin))

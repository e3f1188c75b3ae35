"""Whether augmented views of the training images help a classifier on frozen features.

    python benchmarks/views.py RECIPE --views 2,4

RECIPE has a frozen network, such as `ltcore init` writes. Features of the training and the test images are taken once,
and those of augmented views of the training images as a stage with `cache: views:V` takes them. The classifier is
`linear_probe`'s. Its penalty is selected on the plain features of one training image in five, and it is then fitted to
all rows. With V views it sees the plain image and V views as rows of their own, the views alone, or their mean.
"""

import argparse
import time
from pathlib import Path

import torch
from ltcore_probe import fit, fit_selected, held_apart

from ltcore.data.streaming import build_loader
from ltcore.evaluation.metrics import evaluate_logits
from ltcore.evaluation.outputs import pooled_features
from ltcore.plan.plan import make_plan
from ltcore.recipe.loading import load_recipe
from ltcore.seeding import generator_for
from ltcore.training.assembly import Assembly
from ltcore.training.data import RunData, read_data

CPU = torch.device("cpu")


def features(recipe, number):
    """Features of training and test images with their labels, and of so many views of the training images."""
    plan = make_plan(load_recipe(recipe))
    data = read_data(plan.loaded, plan.answers["data"], weights=plan.skeleton.pretraining)
    assembly = Assembly(plan, RunData(plan, data, CPU), CPU)
    assembly.start()
    model, batch = assembly.model.eval(), plan.loaded.recipe.eval_batch_size

    def loader(split, training):
        return build_loader(split, data.transform, data.mean, data.std, 0, CPU, training)

    plain = [pooled_features(model, loader(split, False), batch) for split in (data.train, data.test)]
    images, views = loader(data.train, True), []
    for view in range(number):
        batches = torch.split(torch.arange(len(images)), batch)
        generator = generator_for(images.generator_device, 0, "train", "view", view)
        with torch.no_grad():
            found = [
                model.backbone.pool(model.backbone.forward_maps(x))
                for x in images.train_batches(batches, [generator] * len(batches))
            ]
        views.append(torch.cat(found))
    return plain, (data.train.targets, data.test.targets), views


def main():
    """One line for each way of using the views."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--views", default="2,4")
    asked = parser.parse_args()
    numbers = [int(number) for number in asked.views.split(",")]
    (train, test), (targets, wanted), views = features(asked.recipe, max(numbers))
    counts, apart = torch.bincount(targets), held_apart(targets)
    ways = {"the plain image": [train]}
    for number in numbers:
        some = views[:number]
        ways[f"the plain image and {number} views"] = [train, *some]
        ways[f"{number} views"] = some
        ways[f"the mean of the plain image and {number} views"] = [torch.stack([train, *some]).mean(0)]
    for name, blocks in ways.items():
        began = time.process_time()
        rows, labels = torch.cat([each[~apart] for each in blocks]), targets[~apart].repeat(len(blocks))
        held = train[apart], targets[apart]
        chosen = fit_selected(rows, labels, len(counts), "logit_adjusted", held).l2
        found = fit(torch.cat(blocks), targets.repeat(len(blocks)), len(counts), "logit_adjusted", chosen)
        figures = evaluate_logits(test @ found.weight.T + found.bias, wanted, counts)
        shown = ", ".join(
            f"{key} {100 * figures[key]:.1f}"
            for key in ("balanced_accuracy", "top1", "few")
            if figures[key] is not None
        )
        print(f"{name}: {shown}; penalty {chosen:.3g}, {time.process_time() - began:.0f} s of CPU", flush=True)


if __name__ == "__main__":
    main()

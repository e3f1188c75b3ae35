"""How many planted labels `ltcore suspects` finds, beside chance.

    python benchmarks/suspects.py FEATURES.npz --seeds 0,1

FEATURES.npz has `features` [N, D] and `targets` [N], as of a run:

    run = ltcore.load(RUN)
    np.savez("FEATURES.npz", features=run.features("train"), targets=run.read_data().train.targets)

Of each class 5 percent of the labels become another class's, as likely one as any. So a rare class gets more wrong
labels than it has images to lose, which is what long-tailed data is like. With `--share 0` nothing is planted, and what
is suspect then comes from the data itself.
"""

import argparse
import time

import numpy as np

from ltcore.evaluation.suspects import find_suspects, folds_of, held_out_probabilities

GROUPS = (("few", 1, 19), ("medium", 20, 100), ("many", 101, 10**9))


def planted(targets, share, seed):
    """The labels with some of them changed, [N]; each class keeps one of its own."""
    random, found = np.random.default_rng(seed), targets.copy()
    classes = targets.max() + 1
    for label in range(classes):
        own = np.flatnonzero(targets == label)
        for place in random.choice(own, random.binomial(len(own), share), replace=False):
            if (found == label).sum() > 1:
                found[place] = random.choice(np.delete(np.arange(classes), label))
    return found


def main():
    """One line for each seed and shot group, which go by the labels as they are given."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("features")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--share", type=float, default=0.05)
    asked = parser.parse_args()
    stored = np.load(asked.features)
    features, truth = stored["features"], stored["targets"]
    print("seed  images       labels  wrong  suspects  wrong among them  among the first  seconds of CPU")
    for seed in map(int, asked.seeds.split(",")):
        targets = planted(truth, asked.share, seed)
        began = time.process_time()
        folds = folds_of(targets, 5, 0)
        found = find_suspects(held_out_probabilities(features, targets, truth.max() + 1, folds), targets)
        seconds = time.process_time() - began
        wrong, judged = targets != truth, folds >= 0
        counts = np.bincount(targets)[targets]
        for name, fewest, most in (("all", 1, 10**9), *GROUPS):
            within = judged & (counts >= fewest) & (counts <= most)
            listed = found.places[within[found.places]]
            first = wrong[listed[: (wrong & within).sum()]].sum()
            print(
                f"{seed:4}  {name:11}  {within.sum():6}  {(wrong & within).sum():5}  {len(listed):8}  "
                f"{wrong[listed].sum():16}  {first:15}  {seconds:14.1f}"
            )


if __name__ == "__main__":
    main()

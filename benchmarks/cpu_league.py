r"""The table of all re-balancing methods under one small protocol: results/cpu_league.md.

    python benchmarks/arms.py fashion --data DIR --seeds 0 1 2 3 4
    python benchmarks/cpu_league.py

Reads results/runs/arms_fashion.json and trains nothing; settings of the runs stand in `arms.py`.
"""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

from claims import spread
from scipy.stats import spearmanr

ROOT = Path(__file__).parent.parent
COLUMNS = {"top-1": "top1", "many": "many", "medium": "medium", "few": "few", "ECE": "ece"}
#: Rows in order; arms that only claims.md needs are left out.
ROWS = (
    "ce resampling reweighting focal cb cb_focal ldam ldam_drw ldam_drs ldam_drw_safa ldam_drs_safa la "
    "balanced_softmax gra_loss cdt_0.2 cdt_0.3 cdt_selected mixup remix_drw crt lws ncm "
    "ofa ce_tau_norm ce_count_norm cdt_count_norm mixup_crt mislas stg_use_0.2 stg_use_0.4 stg_drop_0.4 glag_lws "
    "glag_afg_kd"
).split()
DEVIATION = ("ce", "cdt_0.3")
LONGER = """Change, in points and paired, where a second stage has four times its steps (mean and range over the runs).
The loss of a classifier that can fit its images has no minimum and falls for ever. Top-1 moves by half a point or less
in the mean, while confidence, and with it ECE, grows on the mixup network. No contrast of claims.md turns round; cRT
loses half a point against STG.
"""
#: Fewer training images than this make a class one of the few.
FEW = 20
ABOUT = """# cpu_league

Every re-balancing method under one small protocol. **The protocol is ours, no paper's**; its figures compare with
each other and with nothing else. Fashion-MNIST at 14 x 14 pixels with 250 images of the first class down to 5 of the
last (694 in all) and all 10,000 test images, neither cropped nor flipped; ResNet-8; 40 epochs in batches of 32
(mixup's first stage: 80); learning rate 0.1 with two epochs of warm-up, divided by 10 after 80 and 90 percent; what
is deferred begins at the first drop. So first stages learn their training images, of rare classes too (last column),
as those of the published protocols do. Second stages have 3,000 steps on exact features (OFA 2,000, GLAG 1,560: 40
generation epochs), and accuracy has settled by then (below). tau and gamma are `select`ed on three
held-out images a class, where a row says so, and the network is then trained on all images. `mixup_crt` is STG's
recipe with nothing generated, `glag_lws` GLAG's with weight scaling alone. GLAG holds two images a class out, so its
rarest class trains on three images. Three classes have more than 100 images (many), three 20 to 100 (medium), four
fewer than 20 (few).
"""
FOUND = """`cdt_0.3` is CDT on fitted networks (`cdt_fitted` of the table that stood here before), and `ce` its
baseline: every row is fitted now, where in that older table, on CIFAR-10, hardly a training image of the
rarest classes was learned. Rows that contradict a paper, or seem to:

- `ce_tau_norm` is level with cross-entropy, for four selections of five choose 0 on their thirty held-out images.
  `cdt_selected` gains less than gamma 0.2 or 0.3 as they are. `ce_count_norm` and `cdt_count_norm` vary most of all
  rows, and with the tau that was chosen: thirty images are too few to select on.
- `crt` and `lws` gain a point or less. Likely because a network that has learned all of its training images leaves a
  second stage on the same images nothing to correct: cRT's loss is 0.002 in the end. NCM, which fits nothing, gains
  more.
- `resampling` is below cross-entropy.
- Plain logit adjustment and CDT with gamma 0.3 are above every row of two stages but STG's with four head classes,
  which they equal.
- OFA, SAFA, STG and GLAG beside their own baselines, part by part and paired: [claims.md](claims.md).
"""


def row(name: str, runs: list[dict[str, Any]], few: list[int]) -> str:
    """A method's means ± standard deviations."""
    cells = [spread([run["test"][key] for run in runs]) for key in COLUMNS.values()]
    learned = [statistics.mean(run["train_accuracy"][c] for c in few) for run in runs if "train_accuracy" in run]
    chosen = ", ".join(str(next(iter(run["selected"].values()))) for run in runs if "selected" in run)
    return f"| {name} | {len(runs)} | {' | '.join(cells)} | {chosen} | {spread(learned)} |"


def longer(runs: dict[str, list[dict[str, Any]]]) -> list[str]:
    """By how much the arms whose names end in ``_x4`` differ from the same at their usual length."""
    lines = ["| method | runs | " + " | ".join(COLUMNS) + " |", "|" + " --- |" * (2 + len(COLUMNS))]
    for name in (each for each in runs if each.endswith("_x4")):
        usual = {run["seed"]: run["test"] for run in runs[name.removesuffix("_x4")]}
        cells = []
        for key in COLUMNS.values():
            moved = [100 * (run["test"][key] - usual[run["seed"]][key]) for run in runs[name]]
            cells.append(f"{statistics.mean(moved):+.1f} ({min(moved):+.1f} to {max(moved):+.1f})")
        lines.append(f"| {name.removesuffix('_x4')} | {len(runs[name])} | {' | '.join(cells)} |")
    return lines


def deviate_more(runs: list[dict[str, Any]], counts: list[int]) -> str:
    """Whether rare classes' features deviate more, in figures."""
    means = [statistics.mean(run["feature_deviation"][label] for run in runs) for label in range(len(counts))]
    half = len(counts) // 2
    large, rare = statistics.mean(means[:half]), statistics.mean(means[half:])
    return (
        f"dis(c) (CDT, figure 3 d), mean over the runs. With cross-entropy it is {large:.2f} for the {half} largest "
        f"classes and {rare:.2f} for the others; Spearman's correlation with the counts is "
        f"{spearmanr(counts, means).statistic:.2f}."
    )


def page(content: dict[str, Any]) -> str:
    """The page: a row a method, then CDT's feature deviation."""
    runs: dict[str, list[dict[str, Any]]] = {}
    for run in content["runs"]:
        runs.setdefault(run["arm"], []).append(run)
    counts = content["class_counts"]
    few = [label for label, count in enumerate(counts) if count < FEW]
    head = ["method", "runs", *COLUMNS, "chosen", "few, training images"]
    lines = [ABOUT, "Mean ± standard deviation over the runs, percent, last epoch, after calibration.", ""]
    lines += ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
    lines += [row(name, runs[name], few) for name in ROWS if name in runs]
    lines += ["", FOUND, "## Second stages four times as long", "", LONGER, *longer(runs), ""]
    lines += ["## Feature deviation", ""]
    lines += [deviate_more(runs["ce"], counts), ""]
    lines += [f"| images | {' | '.join(DEVIATION)} |", "| --- |" + " --- |" * len(DEVIATION)]
    for label, count in enumerate(counts):
        means = (statistics.mean(run["feature_deviation"][label] for run in runs[name]) for name in DEVIATION)
        lines.append(f"| {count} | {' | '.join(f'{mean:.3f}' for mean in means)} |")
    versions = content["versions"]
    lines += [
        "",
        f"One thread a run on {content['device']}, python {versions['python']}, torch {versions['torch']}, with",
        "",
    ]
    lines += [f"    {line.strip()}" for line in (__doc__ or "").splitlines() if line.startswith("    python")]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Write the page."""
    target = ROOT / "results" / "cpu_league.md"
    target.write_text(page(json.loads((ROOT / "results" / "runs" / "arms_fashion.json").read_text())))
    print(target.read_text())


if __name__ == "__main__":
    main()

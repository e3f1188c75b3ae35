"""What came home from a GPU machine: committed files, and tables beside the published figures."""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Sequence
from typing import Any

from gpu.packing import ROOT
from gpu.records import read_lines, unpack

FIGURES = ("top1", "top5", "many", "medium", "few", "balanced_accuracy")


def published(name: str) -> dict[str, tuple[float, str]]:
    """Figures that papers print for a recipe as it stands, in percent, with their source, by name."""
    from ltcore.recipe.identity import flat
    from ltcore.recipe.loading import load_recipe

    recipe = load_recipe(ROOT / "recipes" / f"{name}.yaml").recipe
    settings = dict(flat(recipe.model_dump(mode="json")))
    holding = [f for f in recipe.published if all(settings.get(key) == value for key, value in f.when.items())]
    return {name: (value, figure.source) for figure in holding for name, value in figure.figures().items()}


def table(lines: Sequence[dict[str, Any]]) -> str:
    """Markdown: for each recipe the mean over its seeds, with the published figure behind it where there is one."""
    rows = ["| recipe | seeds | " + " | ".join(FIGURES) + " | published in |", "| --- |" * (len(FIGURES) + 3)]
    rows[1] = "|" + " --- |" * (len(FIGURES) + 3)
    for name in dict.fromkeys(line["name"] for line in lines):
        runs, told = [line for line in lines if line["name"] == name], published(name)
        cells = []
        for figure in FIGURES:
            values = [100 * line["figures"][figure] for line in runs if figure in line["figures"]]
            cell = f"{statistics.mean(values):.2f}" if values else "-"
            cells.append(f"{cell} (published {told[figure][0]:.2f})" if figure in told else cell)
        sources = "; ".join(dict.fromkeys(source for _, source in told.values()))
        seeds = ", ".join(str(line["seed"]) for line in runs)
        rows.append(f"| `{name}` | {seeds} | {' | '.join(cells)} | {sources or '-'} |")
    return "\n".join(rows)


def timing_table(lines: Sequence[dict[str, Any]]) -> str:
    """Markdown: the timed stages."""
    columns = ("epoch_s", "step_ms", "device_ms", "host_cpu_ms", "device_share", "steps_an_epoch", "steps_profiled")
    rows = [f"| stage | {' | '.join(columns)} |", "|" + " --- |" * (len(columns) + 1)]
    return "\n".join(rows + [f"| {line['stage']} | {' | '.join(str(line[c]) for c in columns)} |" for line in lines])


def bring(arguments: argparse.Namespace) -> None:
    """Write a committed file for each finished run, keep what can be gone on with, and print the tables."""
    if not arguments.folder.is_dir():
        sys.exit(f"on_a_gpu.py: {arguments.folder} is no folder; name the one that $OUT has become")
    arguments.results.mkdir(parents=True, exist_ok=True)
    for line in read_lines(arguments.folder / "results.jsonl"):
        if "figures" not in line:
            print(f"failed: {line['name']} seed {line['seed']}: {line['log'][-300:]}")
            continue
        path = arguments.results / f"{line['name']}-seed{line['seed']}-{line['digest'][:8]}.json"
        path.write_text(json.dumps(line, indent=1) + "\n")
    for tar in sorted(arguments.folder.glob("runs-*.tar")):
        unpack(tar, arguments.keep)
    print(f"kept in {arguments.keep}: {len(list(arguments.keep.glob('*/*/*/recipe.yaml')))} runs\n")
    print(timing_table(read_lines(arguments.folder / "timing.jsonl")) + "\n")
    print(table([json.loads(path.read_text()) for path in sorted(arguments.results.glob("*.json"))]))

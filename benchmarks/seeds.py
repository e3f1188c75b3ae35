r"""Run recipes over several seeds and write a table of mean and standard deviation, with what it was measured on.

    python benchmarks/seeds.py recipes/digits_lt_*.yaml --seeds 0 1 2 3 4 --table results/digits_lt.md

Each run is an ordinary ``ltcore run RECIPE --seed S``; a run that has already ended under --out is read, not repeated.
"""

from __future__ import annotations

import argparse
import statistics
from datetime import date
from pathlib import Path

from ltcore.errors import RecipeError
from ltcore.progress.console import Reporter
from ltcore.recipe.loading import load_recipe
from ltcore.training.execute import execute

COLUMNS = {"top-1": "top1", "many": "many", "medium": "medium", "few": "few", "ECE": "ece"}


def spread(values: list[float]) -> str:
    """Mean and sample standard deviation in percent."""
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{100 * statistics.mean(values):.1f} ± {100 * deviation:.1f}"


def main() -> None:
    """Run what is missing, then write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipes", nargs="+", type=Path)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2, 3, 4])
    parser.add_argument("--set", dest="sets", action="append", default=[])
    parser.add_argument("--out", type=Path, default=Path("runs"))
    parser.add_argument("--table", type=Path, required=True)
    arguments = parser.parse_args()

    lines = ["| recipe | " + " | ".join(COLUMNS) + " |", "| --- |" + " --- |" * len(COLUMNS)]
    for path in sorted(arguments.recipes):
        results = []
        for seed in arguments.seeds:
            loaded = load_recipe(path, arguments.sets, seed)
            try:
                result, _ = execute(loaded, arguments.out, True, Reporter())
            except RecipeError:  # no run of it yet
                result, _ = execute(loaded, arguments.out, False, Reporter())
            results.append(result)
        cells = [spread([r["after_calibration"][key] for r in results]) for key in COLUMNS.values()]
        lines.append(f"| `{path.stem}` | " + " | ".join(cells) + " |")
    versions = results[-1]["versions"]
    shown = " ".join(str(path) for path in sorted(arguments.recipes))
    extra = "".join(f" --set {change}" for change in arguments.sets)
    arguments.table.write_text(
        f"# {arguments.table.stem}\n\n"
        f"Mean ± standard deviation over seeds {', '.join(map(str, arguments.seeds))}, in percent, last epoch, after "
        "calibration.\n\n"
        + "\n".join(lines)
        + f"\n\nMeasured {date.today()} on {results[-1]['device']}, {results[-1]['threads']} threads, "
        f"python {versions['python']}, "
        f"torch {versions['torch']}, ltcore {versions['ltcore']}, with\n\n"
        f"    python benchmarks/seeds.py {shown} --seeds {' '.join(map(str, arguments.seeds))}{extra} "
        f"--table {arguments.table}\n"
    )
    print(arguments.table.read_text())


if __name__ == "__main__":
    main()

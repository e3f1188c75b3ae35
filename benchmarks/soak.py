"""Many short runs in one process: memory, open files and threads must not grow.

    python benchmarks/soak.py --runs 1000

Recipes take turns: cross-entropy, OFA with focal loss, SAFA, STG, GLAG, count norm with its selection, all shortened to
a few steps. Every tenth run is also opened again: its model is rebuilt and predicts, its page is written, and it is
compared with itself. After every twenty-fifth run the process's memory, files and threads are counted. What they are
after the first tenth is what the rest is held against, since caches and the allocator fill at first.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
_SHORT = ("stages.representation.epochs=1", "stages.representation.schedule.warmup_epochs=0", "diagnostics=off")
RECIPES = {
    "digits_lt_ce": _SHORT,
    "digits_lt_ofa_focal": (*_SHORT, "stages.finetune.iterations=3"),
    "digits_lt_safa": (*_SHORT, "methods.drw.options.start_epoch=0", "methods.safa.options.start_epoch=0"),
    "digits_lt_stg": (*_SHORT, "stages.generator.iterations=3", "stages.classifier.iterations=3"),
    "digits_lt_glag": (*_SHORT, "stages.classifier.epochs=1"),
    "digits_lt_count_norm": (*_SHORT, "select.options={methods.count_norm.options.tau: [0.0, 0.3]}"),
}
_COUNT_EVERY, _OPEN_EVERY = 25, 10
#: Memory may grow by so much after the first tenth: what an allocator leaves between what it gave away.
MEGABYTES = 32


@dataclass(frozen=True)
class Count:
    """What the process holds after some runs: megabytes of memory that are its own, open files, threads, objects."""

    runs: int
    megabytes: float
    files: int
    threads: int
    objects: int


def count(runs: int) -> Count:
    """What this process holds now."""
    gc.collect()
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    megabytes = int(status["RssAnon"].split()[0]) / 1024
    files = len(os.listdir("/proc/self/fd"))
    return Count(runs, round(megabytes, 1), files, len(os.listdir("/proc/self/task")), len(gc.get_objects()))


def soak(runs: int, folder: Path, say: Callable[[str], None]) -> list[Count]:
    """Run, and count now and then."""
    import ltcore
    from ltcore.compare.found import find_runs
    from ltcore.report import write_report

    counts, names = [], list(RECIPES)
    began = time.perf_counter()
    for number in range(1, runs + 1):
        name = names[number % len(names)]
        out = folder / str(number)
        saved = ltcore.run(ROOT / "recipes" / f"{name}.yaml", RECIPES[name], seed=number, out=out, quiet=True)
        if number % _OPEN_EVERY == 0:
            opened = ltcore.load(saved.path)
            opened.predict(opened.calibrated.images.numpy().transpose(0, 2, 3, 1))
            write_report([saved.path], folder / "page.html", features=False, images=True)
            find_runs([saved.path])
        shutil.rmtree(out)
        if number % _COUNT_EVERY == 0 or number == 1:
            counts.append(count(number))
            say(f"{counts[-1]}, {time.perf_counter() - began:.0f} s")
    return counts


def grown(counts: list[Count]) -> list[str]:
    """What has grown between the first tenth and the end, in words; none where nothing has."""
    last = counts[-1]
    first = next(each for each in counts if each.runs >= last.runs / 10)
    wrong = []
    # The median of the last counts, since one is taken right after a larger recipe than another.
    tail = sorted(each.megabytes for each in counts[-5:])
    if tail[len(tail) // 2] > first.megabytes + MEGABYTES:
        wrong.append(f"memory, from {first.megabytes} MB after {first.runs} runs to {last.megabytes} MB")
    if last.files > first.files:
        wrong.append(f"open files, from {first.files} to {last.files}")
    if last.threads > first.threads:
        wrong.append(f"threads, from {first.threads} to {last.threads}")
    return wrong


def table(counts: list[Count]) -> str:
    """About ten of the counts as a Markdown table."""
    step = max(1, len(counts) // 10)
    shown = counts[::step] + ([counts[-1]] if (len(counts) - 1) % step else [])
    lines = ["| runs | memory, MB | open files | threads | objects |", "| --- " * 5 + "|"]
    lines += [f"| {c.runs} | {c.megabytes} | {c.files} | {c.threads} | {c.objects} |" for c in shown]
    return "\n".join(lines)


def main() -> None:
    """Soak, and print the table; the exit code is 1 where something has grown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=1000)
    parser.add_argument("--json", type=Path, help="write the counts to this file")
    arguments = parser.parse_args()
    import torch

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        counts = soak(arguments.runs, Path(folder), lambda text: print(text, file=sys.stderr, flush=True))
    wrong = grown(counts)
    if arguments.json:
        told = {"counts": [asdict(each) for each in counts], "grown": wrong}
        arguments.json.write_text(json.dumps(told, indent=2) + "\n")
    print(table(counts))
    print("\n" + ("; ".join(f"grown: {each}" for each in wrong) or "Nothing has grown."))
    sys.exit(bool(wrong))


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()

"""What came home from a GPU machine: committed records, and the tables that they fill."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gpu.packing import ROOT
from gpu.records import read_lines, unpack


def timing_table(lines: Sequence[dict[str, Any]]) -> str:
    """Markdown: the timed stages, and several seeds at once."""
    columns = ("epoch_s", "train_s_200", "step_ms", "images_s", "device_ms", "host_cpu_ms", "device_share", "chosen")
    columns += ("over_one", "mps", "failed")
    rows = [f"| stage | {' | '.join(columns)} |", "|" + " --- |" * (len(columns) + 1)]
    return "\n".join(
        rows + [f"| {line['stage']} | {' | '.join(str(line.get(c, '')) for c in columns)} |" for line in lines]
    )


def keep(lines: Sequence[dict[str, Any]], tables: Path, records: Path) -> None:
    """Write records with the cells of papers' tables that they stand for, and print these cells."""
    from ltcore.tables.records import Records, write_record
    from ltcore.tables.state import States
    from ltcore.tables.table import find_tables
    from ltcore.tables.text import FORMATS

    digests = {line["digest"] for line in lines}
    filled = []
    cells: dict[str, list[str]] = {}
    for table in find_tables(tables):
        places = {place: table.digest(cell) for place, cell in table.cells.items() if not cell.waits}
        wanted = {place for place, digest in places.items() if digest in digests}
        for place in wanted:
            cells.setdefault(places[place], []).append(f"{table.name}/{table.cells[place].name}")
        if wanted:
            filled.append((table, wanted))
    for line in lines:
        print(write_record(records, line | {"cells": cells.get(line["digest"], [])}))
    states = States(Records([records]))
    for table, wanted in filled:
        print("\n" + FORMATS["table"](table, {p: one for p, one in states.of(table).items() if p in wanted}))


def bring(arguments: argparse.Namespace) -> None:
    """Write a record of each run that has ended, keep what can be gone on with, and print tables."""
    if not arguments.folder.is_dir():
        sys.exit(f"on_a_gpu.py: {arguments.folder} is no folder; name the one that $OUT has become")
    for tar in sorted(arguments.folder.glob("runs-*.tar")):
        unpack(tar, arguments.keep / "jobs")
    print(f"kept in {arguments.keep}: {len(list(arguments.keep.glob('jobs/*/job.json')))} jobs\n")
    print(timing_table(read_lines(arguments.folder / "timing.jsonl")) + "\n")
    machine = json.loads((arguments.folder / "environment.json").read_text())
    lines = [line | {"machine": machine} for line in read_lines(arguments.folder / "results.jsonl")]
    keep(lines, ROOT / "tables", arguments.results)

"""Figures of an analysis of a run that has ended, for tables; nothing is trained, and no choice depends on them."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from ltcore.contract.reported import ReportTable
from ltcore.report import analysis
from ltcore.report.chosen import spread
from ltcore.report.data import read_run
from ltcore.runs.saved import load

if TYPE_CHECKING:
    from ltcore.runs.reopening import StageEnd

#: The nearest class mean, where the means are those of test features: it looks at test labels (CDT, table 1).
TEST_MEANS = "test_means"


def measured(run: Path, names: Collection[str]) -> dict[str, dict[str, float]]:
    """Make analyses of a run, with the same numbers as ``ltcore report RUN --analysis``.

    Args:
        run: its directory; files of Python that it keeps are run, as when it was trained.
        names: what is wanted: `TEST_MEANS`, or ``METHOD/TITLE/ROW/COLUMN`` for a number of a table that a method of
            this name in the recipe shows (`ltcore.Method.reported`), by the table's title, the text that begins the row
            and the title of the column.

    Returns:
        By name, of the means the fractions ``top1`` and ``balanced_accuracy``, of a number ``other``, as it is. What
        the run does not have, or is not finite, is left out.

    Raises:
        LtcoreError: the run, its data or its model cannot be read, or a method fails.
    """
    saved, found = load(run, run_code=True), dict[str, dict[str, float]]()
    data = saved.read_data()
    if TEST_MEANS in names:
        means = analysis.test_means(saved.model, data, saved.recipe)
        found[TEST_MEANS] = {"top1": means.top1, "balanced_accuracy": means.balanced}
    methods = {name.partition("/")[0] for name in names if name != TEST_MEANS}
    if methods:
        classes = spread(read_run(run, run_code=True))

        def visit(end: StageEnd) -> None:
            for entry in end.ending():
                for content in end.reported(entry, classes) if entry.key in methods else ():
                    if isinstance(content, ReportTable):
                        found.update({name: {"other": value} for name, value in _numbers(entry.key, content)})

        saved.for_each_stage(data, visit)
    return {name: found[name] for name in names if name in found}


def _numbers(method: str, table: ReportTable) -> Iterator[tuple[str, float]]:
    for row in table.rows:
        for column, value in zip(table.columns[1:], row[1:], strict=True):
            if not isinstance(value, str) and math.isfinite(value):
                yield f"{method}/{table.title}/{row[0]}/{column}", float(value)

"""A comparison as a table for the terminal, Markdown or LaTeX, and as CSV or JSON."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ltcore.compare.markup import latex, markdown
from ltcore.contract.figures import FIGURES, FigureName
from ltcore.untrusted import cell, printable


@dataclass(frozen=True)
class _Cell:
    """A cell's text, and whether it is its column's best."""

    text: str
    best: bool = False


def render(content: dict[str, Any], kind: str) -> str:
    """A comparison (`ltcore.compare.compare`) in one of `FORMATS`, ending in a line break."""
    return FORMATS[kind](content)


def _spread(figure: dict[str, Any]) -> str:
    """Mean and standard deviation in percent: ``92.2 ± 1.5``; the mean alone of a single run, ``-`` of none."""
    if figure["mean"] is None:
        return "-"
    return f"{100 * figure['mean']:.1f}" + ("" if figure["sd"] is None else f" ± {100 * figure['sd']:.1f}")


def _p(test: dict[str, Any] | None) -> str:
    if test is None or test["p_holm"] is None:
        return "-"
    return "< 0.001" if test["p_holm"] < 0.001 else f"{test['p_holm']:.3f}"


def _best(content: dict[str, Any], metric: FigureName) -> str | None:
    """The best mean of a column as it is shown; None where there is nothing to choose between."""
    means = [group["figures"][metric]["mean"] for group in content["groups"]]
    known = [mean for mean in means if mean is not None]
    if len(known) < 2:
        return None
    return f"{100 * (max(known) if FIGURES[metric].higher_is_better else min(known)):.1f}"


def _rows(content: dict[str, Any]) -> list[list[_Cell]]:
    """The table's cells, the heads first; the first column is a name."""
    metrics, tested = content["metrics"], content["baseline"] is not None
    figures = [figure for group in content["groups"] for figure in group["published"]]
    published = [metric for metric in metrics if any(figure["metric"] == metric for figure in figures)]
    heads = ["recipe", "n", *(FIGURES[metric].short for metric in metrics)]
    heads += [f"{FIGURES[metric].short}, published" for metric in published]
    heads += [f"difference in {FIGURES[metrics[0]].short}", "p"] if tested else []
    rows = [[_Cell(head) for head in heads]]
    best = {metric: _best(content, metric) for metric in metrics}
    for group in content["groups"]:
        row = [_Cell(group["label"]), _Cell(str(len(group["seeds"])))]
        for metric in metrics:
            text = _spread(group["figures"][metric])
            row.append(_Cell(text, text.split(" ")[0] == best[metric]))
        row += [_Cell(_published(group, metric)) for metric in published]
        test = group["test"]
        if tested:
            known = test is not None and test["difference"] is not None
            row += [_Cell(f"{100 * test['difference']:+.1f}" if known else "-"), _Cell(_p(test))]
        rows.append(row)
        for stage in group["stages"]:
            shown = [_Cell(f"- {stage['name']}"), _Cell("")]
            shown += [_Cell(_spread(stage["figures"][metric])) for metric in metrics]
            rows.append(shown + [_Cell("")] * (len(heads) - len(shown)))
    return rows


def _class_rows(content: dict[str, Any]) -> list[list[_Cell]]:
    """The cells of the table of classes, the heads first; none where it was not asked for."""
    groups = [group for group in content["groups"] if group["classes"]]
    if not groups:
        return []
    heads = ["class", "training", "test", "recipe", "recall", "95 % interval", "precision", "F1"]
    rows = [[_Cell(head) for head in heads]]
    for place in range(max(len(group["classes"]) for group in groups)):
        for group in groups:
            if place < len(group["classes"]):
                found = group["classes"][place]
                ends, tested = found["recall_interval"], found["test_images"]
                shown = [found["class"], f"{found['training_images']:,}", "-" if tested is None else f"{tested:,}"]
                shown += [group["label"], _spread(found["figures"]["recall"])]
                shown.append("-" if ends is None else f"{100 * ends[0]:.1f}-{100 * ends[1]:.1f}")
                shown += [_spread(found["figures"][name]) for name in ("precision", "f1")]
                rows.append([_Cell(text) for text in shown])
    return rows


def _published(group: dict[str, Any], metric: str) -> str:
    """``80.48 (SAFA, table 1)``, as many as there are."""
    shown = []
    for figure in group["published"]:
        if figure["metric"] == metric:
            sd = "" if figure["sd"] is None else f" ± {figure['sd']}"
            shown.append(f"{figure['value']}{sd} ({figure['source']})")
    return "; ".join(shown) or "-"


def _notes(content: dict[str, Any]) -> list[str]:
    """What stands below a table."""
    notes = ["Mean ± sample standard deviation over n seeds, in percent, last epoch, after calibration."]
    if content["baseline"] is not None:
        metric = FIGURES[content["metrics"][0]].short
        test = f"two-sided paired t-test of {metric} over common seeds, with Holm's correction"
        notes.append(f"Baseline: {content['baseline']}. p: {test}.")
    for group in content["groups"]:
        if "test data" in group["differs"] and group["label"].endswith("#1"):
            notes.append(f"Runs of {group['recipe']} were tested on different images; those are not averaged together.")
        if group["differs"]:
            settings = ", ".join(f"{path}={json.dumps(value)}" for path, value in group["differs"].items())
            notes.append(f"{group['label']}: {settings}")
        if group["unpackaged"]:
            notes.append(f"{group['label']}: with code that is no distribution: {', '.join(group['unpackaged'])}")
        if group["test"] and group["test"]["why"]:
            notes.append(f"{group['label']}: no p-value: {group['test']['why']}")
        if group["test"] and 0 < len(group["test"]["seeds"]) < len(group["seeds"]):
            seeds = ", ".join(map(str, group["test"]["seeds"]))
            notes.append(f"{group['label']}: the difference is over seeds {seeds}, which the baseline has too")
        noted = [f"{group['label']}: {f['source']}: {f['note']}" for f in group["published"] if f["note"]]
        notes += dict.fromkeys(noted)  # a note is about all the figures of its entry
    return notes


def left_out(content: dict[str, Any]) -> list[str]:
    """A line for each run that is not averaged."""
    return [f"not averaged: {run['path']}: {run['why']}" for run in content["left_out"]]


def _table(content: dict[str, Any]) -> str:
    classes = _class_rows(content)
    lines = [*_aligned(_rows(content)), *([""] * bool(classes)), *_aligned(classes)]
    below = map(printable, (*_notes(content), *left_out(content)))
    return "\n".join([*lines, "", *below]) + "\n"


def _aligned(cells: list[list[_Cell]]) -> list[str]:
    """A table as lines, its first column to the left and the others to the right."""
    from rich.cells import cell_len  # names may hold characters that are two columns wide

    if not cells:
        return []
    rows = [[printable(entry.text) for entry in row] for row in cells]
    widths = [max(cell_len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = []
    for row in rows:
        padding = [" " * (width - cell_len(text)) for text, width in zip(row, widths, strict=True)]
        lines.append(
            "  ".join([row[0] + padding[0], *(p + text for p, text in zip(padding[1:], row[1:], strict=True))])
        )
    return [line.rstrip() for line in lines]


def _markdown(content: dict[str, Any]) -> str:
    def shown(entry: _Cell) -> str:
        text = markdown(entry.text)
        return f"**{text}**" if entry.best else text

    def tabled(cells: list[list[_Cell]]) -> list[str]:
        heads, *body = [[shown(entry) for entry in row] for row in cells]
        lines = [heads, ["---", *["---:"] * (len(heads) - 1)], *body]
        return ["| " + " | ".join(line) + " |" for line in lines]

    classes = _class_rows(content)
    table = [*tabled(_rows(content)), *(["", *tabled(classes)] if classes else [])]
    notes = [f"- {markdown(line)}" for line in (*_notes(content), *left_out(content))]
    return "\n".join([*table, "", *notes]) + "\n"


def _latex(content: dict[str, Any]) -> str:
    def shown(entry: _Cell) -> str:
        text = "--" if entry.text == "-" else latex(entry.text)
        return rf"\textbf{{{text}}}" if entry.best else text

    def tabled(cells: list[list[_Cell]]) -> list[str]:
        heads, *body = [" & ".join(shown(entry) for entry in row) + r" \\" for row in cells]
        begin = rf"\begin{{tabular}}{{l{'r' * (len(cells[0]) - 1)}}}"
        return [begin, r"\toprule", heads, r"\midrule", *body, r"\bottomrule", r"\end{tabular}"]

    classes = _class_rows(content)
    notes = ("needs \\usepackage{booktabs}", *_notes(content), *left_out(content))
    comments = [f"% {printable(line)}" for line in notes]
    table = [*tabled(_rows(content)), *(["", *tabled(classes)] if classes else [])]
    return "\n".join([*comments, *table]) + "\n"


def _csv(content: dict[str, Any]) -> str:
    metrics = content["metrics"]
    spreads = [f"{metric}_{part}" for metric in metrics for part in ("mean", "sd", "n")]
    if any(group["classes"] for group in content["groups"]):
        return _class_csv(content)
    columns = ["label", "recipe", "stage", "seeds", *spreads, "published", "difference", "p", "p_holm", "no_p_because"]
    stream = io.StringIO()
    writer = csv.DictWriter(stream, columns, lineterminator="\n")
    writer.writeheader()

    def write(group: dict[str, Any], stage: str, figures: dict[str, Any], more: dict[str, Any]) -> None:
        numbers = {f"{metric}_{part}": value for metric in metrics for part, value in figures[metric].items()}
        seeds = " ".join(map(str, group["seeds"]))
        row = {"label": group["label"], "recipe": group["recipe"], "stage": stage, "seeds": seeds}
        texts = {key: cell(value) for key, value in {**row, **more}.items() if isinstance(value, str)}
        writer.writerow(row | numbers | more | texts)

    for group in content["groups"]:
        test = group["test"] or {}
        published = [f"{f['metric']} {f['value']} ({f['source']})" for f in group["published"]]
        more = {key: test.get(key) for key in ("difference", "p", "p_holm")}
        write(
            group,
            "",
            group["figures"],
            {**more, "published": "; ".join(published), "no_p_because": test.get("why", "")},
        )
        for stage in group["stages"]:
            write(group, stage["name"], stage["figures"], {})
    return stream.getvalue()


def _class_csv(content: dict[str, Any]) -> str:
    """A row for each class of each group, which is what a program wants of the classes."""
    names = ("recall", "precision", "f1")
    spreads = [f"{name}_{part}" for name in names for part in ("mean", "sd", "n")]
    stream = io.StringIO()
    columns = ["label", "recipe", "class", "training_images", "test_images", *spreads, "recall_low", "recall_high"]
    writer = csv.DictWriter(stream, columns, lineterminator="\n")
    writer.writeheader()
    for group in content["groups"]:
        for found in group["classes"]:
            low, high = found["recall_interval"] or (None, None)
            row = {"label": cell(group["label"]), "recipe": cell(group["recipe"]), "class": cell(found["class"])}
            row |= {key: found[key] for key in ("training_images", "test_images")}
            row |= {f"{name}_{part}": value for name in names for part, value in found["figures"][name].items()}
            writer.writerow(row | {"recall_low": low, "recall_high": high})
    return stream.getvalue()


def _json(content: dict[str, Any]) -> str:
    return json.dumps(content, indent=2) + "\n"


#: Name -> how a comparison is written.
FORMATS: dict[str, Callable[[dict[str, Any]], str]] = {
    "table": _table,
    "markdown": _markdown,
    "latex": _latex,
    "csv": _csv,
    "json": _json,
}

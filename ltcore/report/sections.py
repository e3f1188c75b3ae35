"""The sections on whole runs: overview, configuration, class counts and stages."""

from __future__ import annotations

from ltcore.contract.figures import SHOT_GROUPS, ShotName, shot_group
from ltcore.contract.result import Figures, SelectionRecord
from ltcore.report.blocks import Cell, Code, Drawn, Folded, Panels, Part, Section, Table, Text
from ltcore.report.chart import Axis, Chart, Series
from ltcore.report.data import ReportedRun
from ltcore.report.labels import shortened
from ltcore.report.layout import (
    FIGURE_HEADS,
    MISSING,
    Runs,
    accuracy_axis,
    cell,
    each_run,
    ended,
    figure_cells,
    folded,
    number,
    numeric,
    run_name,
)

#: The number of each shot group's colour and marker.
GROUP_STYLES: dict[ShotName, int] = {"many": 0, "medium": 2, "few": 1}

#: The number of the colour that stands for no run and no group.
NEUTRAL = 4

#: Letters that fit below a chart.
_TICK_LETTERS = 52


def overview(runs: Runs) -> Section:
    """One line of figures for every run."""
    rows: list[list[str | Cell]] = []
    for index, run in enumerate(runs):
        name = Cell(run_name(runs, index), key=index if len(runs) > 1 else None)
        figures = (
            figure_cells(run.result["after_calibration"], f"{index}/after_calibration")
            if run.result
            else [numeric(MISSING) for _ in FIGURE_HEADS]
        )
        rows.append([name, *figures, Cell(_state(run), "state"), Cell(str(run.path), "path")])
    head = ["run", *FIGURE_HEADS, "state", "directory"]
    many, medium, few = (group.words for group in SHOT_GROUPS)
    text = (
        "Figures on the test images at the end of each run, calibration included, in percent. Many, medium and few are "
        f"the mean accuracies of the classes with {many}, {medium} and {few} training images; balanced is the mean "
        "over all classes, ECE the expected calibration error."
    )
    return Section("overview", "Overview", text, [Table(head, rows, "Figures of each run, in percent")])


def _state(run: ReportedRun) -> str:
    if run.result:
        return "ended"
    epochs = f"{len(run.epochs)} epoch{'' if len(run.epochs) == 1 else 's'}"
    return f"not ended: {epochs} and {len(run.stages)} stage{'' if len(run.stages) == 1 else 's'} done"


def configuration(runs: Runs) -> Section:
    """Recipe, plan and surroundings."""

    def draw(index: int, run: ReportedRun) -> list[Part]:
        about = run.environment
        facts = [(name, str(about[name])) for name in ("device", "device_name", "python", "platform") if name in about]
        facts += [(name, str(version)) for name, version in about.get("versions", {}).items()]
        parts: list[Part] = [
            Folded("Plan", [Code(run.plan_text, "plan")], unfolded=len(runs) == 1),
            Folded("Recipe", [Code(run.recipe_text, "recipe")]),
        ]
        if facts:
            parts.append(folded("Device and versions", ["what", "value"], facts, "Device and versions"))
        if run.result and "selection" in run.result:
            parts.append(_selection(index, run.result["selection"]))
        if run.result and "reused" in run.result:
            taken = ", ".join(f"{name}: {value}" for name, value in run.result["reused"].items())
            parts.append(Text(f"Stages were taken over from another run ({taken})."))
        return parts

    text = "What was asked for: the plan says which method does what in which stage; the recipe can be run again."
    return Section("configuration", "Configuration and plan", text, each_run(runs, draw))


def _selection(index: int, selection: SelectionRecord) -> Folded:
    rows: list[list[str | Cell]] = []
    for place, candidate in enumerate(selection["candidates"]):
        options = ", ".join(f"{path} = {value}" for path, value in candidate["options"].items())
        chosen = "chosen" if candidate["options"] == selection["chosen"] else ""
        rows.append([options, cell(candidate["score"], f"{index}/selection/candidates/{place}/score"), chosen])
    caption = f"Values chosen on {selection['images']} held-out images by {selection['score']}"
    return folded("Selection", ["options", "score, percent", ""], rows, caption)


def frequency(runs: Runs) -> Section | None:
    """Training images of each class, the most frequent first."""
    found = ended(runs)
    if not found:
        return None
    tails: dict[tuple[int, ...], list[int]] = {}
    for index, run in found:
        tails.setdefault(tuple(run.counts), []).append(index)
    counts = [count for run in runs for count in run.counts]
    x = Axis("classes, the most frequent first", 0, max(len(run.counts) for run in runs) + 1, whole=True)
    y = Axis("training images", min(counts) / 1.25, max(counts) * 1.25, log=True)
    series = []
    for members in tails.values():
        run = runs[members[0]]
        whose = ", ".join(run_name(runs, index) for index in members) if len(tails) > 1 else "all classes"
        ranked = [(rank, run.counts[label]) for rank, label in enumerate(run.order, 1)]
        several = len(tails) > 1
        style = members[0] if several else NEUTRAL
        series.append(Series(whose, ranked, style, line=True, marks=several, dash=members[0] if several else 0))
        series += [] if several else _grouped(run)
    rows: list[list[str | Cell]] = []
    for members in tails.values():
        run = runs[members[0]]
        for group in SHOT_GROUPS:
            own = [count for count in run.counts if shot_group(count) == group.name]
            named = [", ".join(run_name(runs, index) for index in members)] if len(tails) > 1 else []
            rows.append([*named, f"{group.name} ({group.rule})", numeric(str(len(own))), numeric(f"{sum(own):,}")])
    run = found[0][1]
    said = f"From {max(counts):,} training images of the most frequent class down to {min(counts):,}."
    picture = Drawn(Chart("Training images of each class", said, x, y, series))
    imbalance = max(run.counts) / min(run.counts)
    same = f" {len(run.counts)} classes; the largest has {imbalance:.4g} times as many images as the smallest."
    text = "How long the tail is." + (same if len(tails) == 1 else "")
    head = [*(["runs"] if len(tails) > 1 else []), "group", "classes", "training images"]
    groups = Table(head, rows, "Classes and training images of each group")
    return Section("frequency", "Class frequency", text, [Panels([picture, groups])])


def _grouped(run: ReportedRun) -> list[Series]:
    made = []
    for group, style in GROUP_STYLES.items():
        ranked = [(rank, label) for rank, label in enumerate(run.order, 1) if shot_group(run.counts[label]) == group]
        points = [(rank, run.counts[label]) for rank, label in ranked]
        titles = [f"{run.names[label]}: {run.counts[label]} training images" for _, label in ranked]
        if points:
            made.append(Series(group, points, style, titles))
    return made


def stages(runs: Runs) -> Section | None:
    """The shot groups after each stage and calibration."""
    if not any(run.figures for run in runs):
        return None

    several = len(runs) > 1
    rows: list[list[str | Cell]] = []
    for index, run in enumerate(runs):
        whose = [run_name(runs, index)] if several else []
        rows += [[*whose, name, *figure_cells(figures, f"{index}/{path}")] for name, path, figures in run.figures]
    head = [*(["run"] if several else []), "after", *FIGURE_HEADS]
    shown = Table(head, rows, "Figures after each stage, in percent")

    def draw(index: int, run: ReportedRun) -> list[Part]:
        return [_groups_by_stage(run) if tested(run) else Text("No stage has ended yet.")]

    text = (
        "What each stage, and calibration, does to frequent and rare classes: the first point of each line is the "
        "first stage's end, the last the result. In percent."
    )
    return Section("stages", "Many, medium and few, stage by stage", text, [*each_run(runs, draw), shown])


def tested(run: ReportedRun) -> list[tuple[str, str, Figures]]:
    """The run's evaluations on test images in order, that before calibration left out: it is the last stage's."""
    return [row for row in run.figures if not row[1].endswith("validation") and row[1] != "before_calibration"]


def _groups_by_stage(run: ReportedRun) -> Drawn:
    rows = tested(run)
    room = _TICK_LETTERS // len(rows)
    short = shortened([name for name, _, _ in rows], room)
    names = tuple((float(place), name) for place, name in enumerate(short))
    x = Axis("after", -0.5, len(rows) - 0.5, named=names)
    series = []
    for place, (group, style) in enumerate(GROUP_STYLES.items()):
        known = [
            (at, value, name) for at, (name, _, figures) in enumerate(rows) if (value := figures[group]) is not None
        ]
        points = [(float(at), value) for at, value, _ in known]
        titles = [f"{group}, {name}: {100 * value:.1f} percent" for _, value, name in known]
        if points:
            series.append(Series(group, points, style, titles, line=True, dash=place))
    said = "; ".join(
        f"{name}: " + ", ".join(f"{g} {number(100 * value)}" for g in GROUP_STYLES if (value := f[g]) is not None)
        for name, _, f in rows
    )
    return Drawn(Chart("Mean accuracy of each group's classes", said, x, accuracy_axis(), series))

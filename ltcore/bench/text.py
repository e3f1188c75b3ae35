"""What ``ltcore bench`` has found, as a table."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ltcore.rehearsal.text import duration, size

_WIDTHS = (46, 16, 16, 8)
_PARTS_OF_MEMORY = {
    "imports": "interpreter and imports",
    "images": "images",
    "model_and_optimizer": "model, gradients, optimiser",
    "activations": "what a step keeps for its backward pass",
    "caches": "caches",
    "rest": "temporary, later code, freed in pieces",
}


def render(found: dict[str, Any]) -> str:
    """What `ltcore.bench.bench.bench` returned, as text.

    Args:
        found: what it returned.
    """
    load = "" if found["load"] is None else f", load {found['load']:.1f} before it began"
    lines = [
        f"{found['recipe']} on {found['device']}, {found['threads']} of {found['cores']} cores{load}; "
        f"python {found['python']}, torch {found['torch']}",
        "",
    ]
    compared = found["compared_with"] is not None
    lines.append(_row("", "here", "reference" if compared else "", "ratio"))
    for name, part in found["parts"].items():
        lines += _ROWS[name](part)
    return "\n".join([*lines, "", *_notes(found)])


def _notes(found: dict[str, Any]) -> list[str]:
    notes = ["Medians of turns; ratios are the medians of each turn's ratio. What is not measured whole is projected."]
    if found["compared_with"] is not None:
        notes.append(f"The reference is {found['compared_with']}; a ratio says how many times as long it takes.")
    return notes


def _input(part: dict[str, Any]) -> list[str]:
    beside = part.get("reference")
    theirs = f"{beside['images_per_second']:,.0f}/s" if beside else ""
    return [_row("input: images of training", f"{part['images_per_second']:,.0f}/s", theirs, _times(part.get("ratio")))]


def _step(part: dict[str, Any]) -> list[str]:
    beside, hand = part.get("reference"), part.get("by_hand")
    theirs, title = _milliseconds(beside["step_seconds"]) if beside else "", f"step: {part['name']}"
    rows = [
        _row(
            f"{title}, batch {part['batch_size']}",
            _milliseconds(part["step_seconds"]),
            theirs,
            _times(part.get("step_ratio")),
        ),
        _row("  images per second", f"{part['images_per_second']:,.0f}/s"),
    ]
    if quick := part.get("acceleration"):
        title = f"  {quick['chosen']}, beside eager steps" if quick["chosen"] != "off" else "  eager after all"
        rows.append(_row(title, f"{quick['gain']:.2f} times"))
    if hand:
        what = "the trainer beside a loop by hand" if not part["methods"] else "with methods, beside a plain loop"
        rows.append(_row(f"  {what}", f"{hand['tax']:.3f} times"))
    return rows


def _hooks(part: dict[str, Any]) -> list[str]:
    return [_row("hooks: a bound call", f"{part['microseconds']:.2f} us")]


def _stages(part: list[dict[str, Any]]) -> list[str]:
    rows: list[str] = []
    for stage in part:
        beside, cache = stage.get("reference"), stage.get("cache")
        epochs = f"{stage['epochs']:.4g} epochs"
        rows.append(
            _row(
                f"stages: {stage['name']}, an epoch",
                duration(stage["epoch_seconds"]),
                duration(beside["epoch_seconds"]) if beside else "",
            )
        )
        rows.append(
            _row(
                f"  {epochs}, with evaluation",
                duration(stage["stage_seconds"]),
                duration(beside["stage_seconds"]) if beside else "",
                _times(stage.get("ratio")),
            )
        )
        if cache:
            without = cache["without"]
            rows.append(_row(f"  cache {cache['kind']}, filled", duration(cache["fill_seconds"])))
            rows.append(_row("  the stage without it", duration(without["stage_seconds"])))
            rows.append(_row("  what the cache saves", f"{cache['gain']:.2f} times"))
    return rows


def _starting(part: dict[str, Any]) -> list[str]:
    names = {"python": "python", "help": "ltcore --help", "import_torch": "import torch", "plan": "ltcore plan"}
    return [
        _row(f"start-up: {title}", f"{part[name]['seconds']:.2f} s", f"{part[name]['cpu_seconds']:.2f} s of CPU")
        for name, title in names.items()
    ]


def _memory(part: dict[str, Any]) -> list[str]:
    rows = [_row("memory: the peak of a run", size(part["peak"]))]
    rows += [_row(f"  {title}", size(part[name])) for name, title in _PARTS_OF_MEMORY.items()]
    rows.append(_row("  the peak while images were read", size(part["peak_while_reading"])))
    if "device_allocated" in part:
        rows.append(_row("  on the device", size(part["device_allocated"])))
    return rows


_ROWS: dict[str, Callable[[Any], list[str]]] = {
    "input": _input,
    "step": _step,
    "hooks": _hooks,
    "stages": _stages,
    "start-up": _starting,
    "memory": _memory,
}


def _row(title: str, here: str, beside: str = "", ratio: str = "") -> str:
    first, *others = _WIDTHS
    cells = "".join(text.rjust(width) for text, width in zip((here, beside, ratio), others, strict=True))
    return f"{title[: first - 1]:<{first}}{cells}".rstrip()


def _milliseconds(seconds: float) -> str:
    return f"{1000 * seconds:,.4g} ms"


def _times(ratio: float | None) -> str:
    return "" if ratio is None else f"{ratio:.3g}"

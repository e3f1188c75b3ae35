"""A rehearsal as a table."""

from __future__ import annotations

from typing import Any

_WIDTH = 20


def render(found: dict[str, Any]) -> str:
    """What `ltcore.rehearsal.rehearsal.rehearse` found, as text.

    Args:
        found: what it returned.
    """
    data, memory = found["data"], found["memory"]
    lines = [
        f"{found['recipe']}: a rehearsal; nothing was trained to an end and nothing is kept",
        f"  data      {data['use']}: {data['classes']} classes of {data['largest']} to {data['smallest']} images, "
        f"{data['train']:,} to train on, {data['validation']:,} to validate, {data['test']:,} to test on, "
        f"{data['image_size']} pixels",
        f"  backbone  {found['backbone']}, {found['parameters'] / 1e6:.2f} million parameters in all, on "
        f"{found['device']}",
        *(f"  note      {note}" for note in found["notes"]),
        "",
        "stage".ljust(_WIDTH)
        + "".join(f"{title:>12}" for title in ("steps", "s/step", "images/s", "s/step late", "time")),
    ]
    for stage in found["stages"]:
        early, late = stage["early"], stage["late"]
        cells = (
            f"{stage['steps']:,}",
            f"{early['seconds_per_step']:.3g}",
            _rate(early["images_per_second"]),
            f"{late['seconds_per_step']:.3g}",
            duration(stage["seconds"]),
        )
        lines.append(f"{stage['name'][: _WIDTH - 1]:<{_WIDTH}}" + "".join(f"{cell:>12}" for cell in cells))
        lines.append(f"  {_explained(stage)}")
    end = f"{'calibrate, evaluate':<{_WIDTH}}" + 48 * " " + f"{duration(found['end_seconds']):>12}"
    times = "" if found["networks"] == 1 else f" ({found['networks']} networks)"
    lines += [end, "", f"projected time    {duration(found['seconds'])}{times}"]
    if "device_allocated" in memory:
        lines.append(
            f"memory, device    {size(memory['device_allocated'])} allocated, "
            f"{size(memory['device_reserved'])} reserved"
        )
    lines += [
        f"memory, process   {size(memory['process'])} at its peak, {size(memory['workers'])} more in "
        f"{found['workers']} decoding processes",
        f"checkpoint        {size(found['checkpoint_bytes'])}",
        "",
        f"An estimate, for this machine under its present load: from {found['measured_steps']} steps of the first and "
        "of the last epoch of each stage, and from a few batches of each pass over a split.",
    ]
    return "\n".join(lines)


def _rate(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _explained(stage: dict[str, Any]) -> str:
    parts = []
    if stage["late"]["epoch"] != stage["early"]["epoch"]:
        why = "where a method starts" if stage["change_stated"] else "no method says where it starts, so half of them"
        parts.append(
            f"of {stage['epochs']:.4g} epochs {stage['early_epochs']:.4g} as the first, the rest as epoch "
            f"{stage['late']['epoch'] + 1} ({why})"
        )
    if stage["early"]["bound_by_decoding"]:
        parts.append("bound by decoding")
    parts.append(f"passes rehearsed: {stage['passes']}, {duration(stage['passes_seconds'])} once each")
    if stage["checkpoints"]:
        parts.append(f"{stage['checkpoints']:,} checkpoints of {stage['checkpoint_seconds']:.2g} s")
    return "; ".join(parts)


def duration(seconds: float) -> str:
    """Seconds as ``12.3 s``, ``4.5 min``, ``6.7 h`` or ``8.9 days``."""
    for unit, length in (("days", 86_400.0), ("h", 3_600.0), ("min", 60.0)):
        if seconds >= 2 * length:
            return f"{seconds / length:,.1f} {unit}"
    return f"{seconds:.3g} s"


def size(count: int) -> str:
    """Bytes as ``12.3 MB`` or ``4.5 GB``."""
    return f"{count / 1e9:.2f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"

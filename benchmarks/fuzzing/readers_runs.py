"""The readers of a run's own files: checkpoints, the calibrated model, results, metrics, environment, predictions."""

from __future__ import annotations

import io
import shutil
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch
from PIL import Image

import ltcore
from fuzzing.forked import Files, Reader
from fuzzing.mutation import mutated_bytes, mutated_json, mutated_safetensors, mutated_text
from ltcore.compare.found import find_runs
from ltcore.errors import LtcoreError
from ltcore.files import checkpoint
from ltcore.report import data as report_data
from ltcore.runs.saved import load
from ltcore.training.position import Restored

RECIPE = """
name: r
data: {use: synthetic, options: {class_counts: [24, 16, 8], image_size: 8, test_per_class: 4}}
backbone: {use: cifar_resnet, options: {depth: 8, width: 4}}
checkpoint_seconds: 0
methods: {focal: {}, tau_norm: {}}
stages:
  - {name: joint, epochs: 2, batch_size: 8, methods: [focal], optimizer: {name: sgd, lr: 0.05, momentum: 0.9}}
  - name: finetune
    iterations: 8
    batch_size: 8
    trainable: [classifier]
    cache: eval
    optimizer: {name: sgd, lr: 0.05}
calibrate: [tau_norm]
"""


class _Stop(LtcoreError):
    """Ends a run in the middle."""


def _run(folder: Path, killed: bool = False) -> None:
    """A finished run as ``run``; or one that stands in the middle of its second stage, as ``runs/r/RUN``."""
    from ltcore.training.observers import Checkpointer

    (folder / "r.yaml").write_text(RECIPE)
    if killed:
        usual, seen = Checkpointer.save, [0]

        def save(self: Checkpointer, loop: Any) -> None:
            usual(self, loop)
            seen[0] += loop.stage.name == "finetune"
            if seen[0] == 4:
                raise _Stop("enough")

        Checkpointer.save = save  # type: ignore[method-assign]
        try:
            ltcore.run(folder / "r.yaml", out=folder / "runs", quiet=True)
        except _Stop:
            return
        raise RuntimeError("the run has not been stopped")
    saved = ltcore.run(folder / "r.yaml", out=folder / "runs", quiet=True)
    saved.path.rename(folder / "run")
    shutil.rmtree(folder / "runs")
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(folder / "image.png")


def _directory(folder: Path) -> Path:
    """Of the run that stands in the middle."""
    (found,) = (folder / "runs" / "r").iterdir()
    return found


# ---------------------------------------------------------------- checkpoints


def _spoilt_checkpoint(rng: Random, folder: Path) -> Files:
    place = _directory(folder) / "checkpoints"
    name = rng.choice(("last.safetensors", "last.safetensors", "stage-0-joint.safetensors"))
    path = place / name
    return {str(path.relative_to(folder)): mutated_safetensors(rng, path.read_bytes())}


def _opened_checkpoint(folder: Path) -> Callable[[], str]:
    """Refuses, or reads what was written: a checkpoint that is read as another one is a wrong figure later."""
    place = _directory(folder) / "checkpoints"
    valid = {path: checkpoint.load(path) for path in place.iterdir()}

    def read() -> str:
        for path, (tensors, state) in valid.items():
            found = checkpoint.load(path)
            if "position" in state:
                Restored.read(path, "cpu")
            if not _same(found[0], tensors) or found[1] != state:
                return f"a changed {path.name.split('-')[0]}"
        return ""

    return read


def _same(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> bool:
    return found.keys() == wanted.keys() and all(
        found[name].dtype == wanted[name].dtype
        and found[name].shape == wanted[name].shape
        and found[name].numpy().tobytes() == wanted[name].numpy().tobytes()
        for name in wanted
    )


# ---------------------------------------------------------------- a finished run


def _spoilt_run(rng: Random, folder: Path, file: str) -> Files:
    path = folder / "run" / file
    return {f"run/{file}": mutated_json(rng, path.read_text())}


def _spoilt_lines(rng: Random, folder: Path) -> Files:
    lines = (folder / "run" / "metrics.jsonl").read_text().splitlines()
    if rng.random() < 0.3:
        text = mutated_text(rng, "\n".join(lines) + "\n")
        return {"run/metrics.jsonl": text.encode("utf-8", "surrogatepass")}
    chosen = rng.randrange(len(lines))
    content = [line.encode() for line in lines]
    content[chosen] = mutated_json(rng, lines[chosen])
    return {"run/metrics.jsonl": b"\n".join(content) + rng.choice((b"\n", b"\n", b""))}


def _spoilt_calibrated(rng: Random, folder: Path) -> Files:
    name = "run/checkpoints/calibrated.safetensors"
    return {name: mutated_safetensors(rng, (folder / name).read_bytes())}


def _spoilt_predictions(rng: Random, folder: Path) -> Files:
    content = (folder / "run" / "predictions.npz").read_bytes()
    if rng.random() < 0.5:
        return {"run/predictions.npz": mutated_bytes(rng, content)}
    with np.load(io.BytesIO(content)) as stored:
        arrays: dict[str, Any] = dict(stored)
    for _ in range(rng.randint(1, 2)):
        key = rng.choice(list(arrays))
        array = arrays[key]
        match rng.randrange(5):
            case 0:
                del arrays[key]
            case 1:
                arrays[key] = array[: rng.randrange(len(array) + 1)]
            case 2:
                arrays[key] = array.reshape(-1)[None]
            case 3:
                arrays[key] = np.array([rng.choice((None, "a", {"a": 1}))] * 3, dtype=object)
            case _ if array.dtype != object:
                with np.errstate(all="ignore"):
                    odd = array * rng.choice((-1, 1000, 10**9, float("nan"), float("inf")))
                    arrays[key] = odd.astype(array.dtype)
        if not arrays:
            break
    out = io.BytesIO()
    np.savez(out, **arrays)
    return {"run/predictions.npz": out.getvalue()}


def _opened_run(folder: Path) -> Callable[[], None]:
    """Read as `compare`, `report` and `ltcore.load` do; the plan, which no file of these changes, is made once."""
    path = folder / "run"
    planned = report_data._planned(path, False)
    report_data._planned = lambda *_: planned  # type: ignore[assignment]

    def read() -> None:
        refusals = []
        for reads in (_loaded, partial(_compared, folder), report_data.read_run):
            try:
                reads(path)
            except LtcoreError as error:
                refusals.append(error)
        if refusals:
            raise refusals[0]

    return read


def _loaded(path: Path) -> None:
    saved = load(path)
    repr(saved)
    saved.metrics, saved.targets, saved.logits, saved.calibrated_logits  # noqa: B018 -- they are read when asked for


def _compared(folder: Path, path: Path) -> None:
    found, left_out = find_runs([path])
    assert len(found) + len(left_out) == 1
    for each in left_out:
        str(each.why)


def _opened_calibrated(folder: Path) -> Callable[[], str]:
    path = folder / "run"
    wanted = checkpoint.load(path / "checkpoints" / "calibrated.safetensors")

    def read() -> str:
        found = load(path).calibrated
        probe = {"probe/images": found.images, "probe/logits": found.logits}
        return "" if _same({**found.tensors, **probe}, wanted[0]) else "a changed calibrated model"

    return read


def _reports(folder: Path) -> list[str]:
    return ["report", str(folder / "run"), "-o", str(folder / "page.html"), "--no-features", "--no-images"]


READERS: Sequence[Reader] = (
    Reader(
        "checkpoint",
        partial(_run, killed=True),
        _spoilt_checkpoint,
        _opened_checkpoint,
    ),
    Reader(
        "calibrated",
        _run,
        _spoilt_calibrated,
        _opened_calibrated,
        lambda folder: ["predict", str(folder / "run"), str(folder / "image.png"), "--workers", "1"],
    ),
    Reader("results", _run, partial(_spoilt_run, file="result.json"), _opened_run, _reports),
    Reader("metrics", _run, _spoilt_lines, _opened_run, _reports),
    Reader("environment", _run, partial(_spoilt_run, file="environment.json"), _opened_run, _reports),
    Reader("predictions", _run, _spoilt_predictions, _opened_run, _reports),
)

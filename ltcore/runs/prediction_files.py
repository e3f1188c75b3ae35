"""``ltcore predict``: predictions as lines of text, as CSV or as JSON, written while they are made."""

from __future__ import annotations

import csv
import io
import json
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

import torch

from ltcore.data.streaming import worker_count
from ltcore.errors import RunError
from ltcore.evaluation.images import YES_OR_NO
from ltcore.files.output import is_stream, output, refuse_output
from ltcore.runs.predicting import listed_files, predict_files
from ltcore.untrusted import cell, printable

if TYPE_CHECKING:
    from ltcore.runs.saved import SavedRun

#: An image's likeliest classes with their probabilities.
Classes = Sequence[tuple[str, float]]


def predict_into(
    saved: SavedRun,
    images: Sequence[str | Path],
    top: int,
    out: Path | None,
    as_json: bool,
    batch_size: int,
    workers: int | None,
) -> None:
    """Predict images, and print or write what they are taken for.

    Args:
        saved: the run.
        images: files and folders.
        top: how many classes an image gets.
        out: the file or pipe to write instead of standard output: CSV, or JSON with `as_json`.
        as_json: write JSON.
        batch_size: images at a time.
        workers: processes that decode; None for one a core, at most 8.

    Raises:
        DataError: a path is not there.
        RecipeError: `out` is no file.
        RunError: `out` cannot be written, or some files could not be decoded; the others are written.
    """
    if out is not None:
        refuse_output(out)
    files = list(listed_files(images))
    top = min(top, len(saved.class_names))
    model = saved.model.to("cuda" if torch.cuda.is_available() else "cpu")
    count = worker_count("auto") if workers is None else workers
    marked = saved.description.unsure is not None
    done, unread, began = 0, 0, time.perf_counter()
    with _destination(out) as stream:
        writer = _Json(stream) if as_json else _Lines(stream) if out is None else _Table(stream, top, marked)
        for predictions, broken in predict_files(model, saved.description, files, batch_size, count):
            unsure = predictions.unsure
            marks = [None] * len(predictions) if unsure is None else unsure.tolist()
            for name, classes, mark in zip(predictions.names, predictions.top(top), marks, strict=True):
                writer.add(name, classes, mark)
            for found in broken:
                print(f"{printable(found.said)}: cannot be decoded, left out", file=sys.stderr)
                writer.refuse(found.name, found.reason)
            unread += len(broken)
            done += len(predictions) + len(broken)
            if out is not None and sys.stderr.isatty():
                print(f"{done:,} of {len(files):,} files", end="\r" if done < len(files) else "\n", file=sys.stderr)
        writer.end()
    if out is not None:
        seconds = time.perf_counter() - began
        said = f"{len(files) - unread} images in {seconds:.1f} s: {printable(out)}"
        print(said, file=sys.stderr if is_stream(out) else sys.stdout)
    if unread:
        raise RunError(f"{unread} of {len(files)} files could not be decoded")


@contextmanager
def _destination(out: Path | None) -> Iterator[TextIO]:
    if out is None:
        yield sys.stdout
        return
    with output(out) as file:
        # A name that is no text becomes an escape, which JSON reads as the same name.
        stream = io.TextIOWrapper(file, "utf-8", "backslashreplace", newline="")
        yield stream
        stream.flush()
        stream.detach()


class _Lines:
    """``photos/a.jpg: cat 93.1 %, dog 4.0 %``, a line an image."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream

    def add(self, name: str, classes: Classes, unsure: bool | None) -> None:
        """An image, its likeliest classes, and whether the first of them is unsure, where there are thresholds."""
        said = ", ".join(f"{printable(label)} {100 * share:.1f} %" for label, share in classes)
        print(f"{printable(name)}: {'unsure: ' if unsure else ''}{said}", file=self.stream)

    def refuse(self, name: str, reason: str) -> None:
        """A file that cannot be decoded; standard error has said so."""

    def end(self) -> None:
        """What stands behind the last image."""


class _Table(_Lines):
    """CSV, a row an image."""

    def __init__(self, stream: TextIO, top: int, marked: bool) -> None:
        self.table = csv.writer(stream)
        numbers = ["", *(f"_{rank}" for rank in range(2, top + 1))]
        columns = [what + number for number in numbers for what in ("class", "probability")]
        self.table.writerow(["image", *columns, *(["unsure"] if marked else [])])

    def add(self, name: str, classes: Classes, unsure: bool | None) -> None:
        last = [] if unsure is None else [YES_OR_NO[unsure]]
        shares = (c for label, share in classes for c in (cell(label), f"{share:.6f}"))
        self.table.writerow([cell(name), *shares, *last])


class _Json(_Lines):
    """A list of objects: ``image``, and ``top`` (with ``unsure``, where there are thresholds) or ``error``."""

    before = "[\n  "

    def add(self, name: str, classes: Classes, unsure: bool | None) -> None:
        top = [{"class": label, "probability": round(share, 6)} for label, share in classes]
        self._write({"image": name, "top": top, **({} if unsure is None else {"unsure": unsure})})

    def refuse(self, name: str, reason: str) -> None:
        self._write({"image": name, "error": reason})

    def end(self) -> None:
        self.stream.write("\n]\n")

    def _write(self, entry: dict[str, object]) -> None:
        text = json.dumps(entry, ensure_ascii=False)
        self.stream.write(self.before + (text if printable(text) == text else json.dumps(entry)))
        self.before = ",\n  "

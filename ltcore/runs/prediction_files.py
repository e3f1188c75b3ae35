"""``ltcore predict``: predictions as lines of text, as CSV or as JSON, written while they are made."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, TextIO

import torch

from ltcore.data.streaming import worker_count
from ltcore.errors import RecipeError, RunError
from ltcore.evaluation.images import YES_OR_NO
from ltcore.files import checkpoint
from ltcore.files.output import is_stream, output, refuse_output
from ltcore.files.partial import PartialFile
from ltcore.files.writing import telling
from ltcore.runs.predicting import listed_files, predict_files
from ltcore.untrusted import cell, printable

if TYPE_CHECKING:
    from ltcore.runs.saved import SavedRun

#: How often it is noted how much is done, from where a killed process goes on.
SECONDS_BETWEEN_NOTES = 5.0

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
    resume: bool = False,
) -> None:
    """Predict images, and print or write what they are taken for.

    A file is called ``OUT.unfinished`` until all is there. What a killed process has left under that name is gone on
    with where it stopped, and comes to the same file, to the byte. It goes on at the beginning of a batch, so that each
    image stands in a batch with the same others.

    Args:
        saved: the run.
        images: files and folders.
        top: how many classes an image gets.
        out: the file or pipe to write instead of standard output: CSV, or JSON with `as_json`.
        as_json: write JSON.
        batch_size: images at a time.
        workers: processes that decode; None for one per core, at most 8.
        resume: go on with what a killed process has left of `out`, if anything is.

    Raises:
        DataError: a path is not there.
        RecipeError: `out` is no file; or `resume` is asked for where nothing can be gone on with.
        RunError: `out` cannot be written, or some files could not be decoded; the others are written.
    """
    if out is not None:
        refuse_output(out)
    if resume and (out is None or is_stream(out)):
        raise RecipeError("--resume goes on with a file; name it with --out")
    files = list(listed_files(images))
    top = min(top, len(saved.class_names))
    model = saved.model.to("cuda" if torch.cuda.is_available() else "cpu")
    count = worker_count("auto") if workers is None else workers
    marked = saved.description.unsure is not None
    began = time.perf_counter()
    about = {
        "run": checkpoint.digest_of(saved.calibrated.path),
        "list of images": hashlib.sha256("\0".join(files).encode("utf-8", "surrogateescape")).hexdigest(),
        "number of classes (--top)": top,
        "format": "json" if as_json else "csv",
        "batch size": batch_size,
        "device": next(model.parameters()).device.type,
    }
    with _destination(out, about, resume) as (stream, part):
        done, unread = (part.noted.get(key, 0) for key in ("done", "unread")) if part else (0, 0)
        if done:
            print(f"going on behind {done:,} of {len(files):,} files", file=sys.stderr)
        before, noted = done, time.perf_counter()
        writer = (
            _Json(stream, done > 0)
            if as_json
            else _Lines(stream)
            if out is None
            else _Table(stream, top, marked, done > 0)
        )
        for predictions, broken in predict_files(model, saved.description, files[done:], batch_size, count):
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
            if part and time.perf_counter() - noted >= SECONDS_BETWEEN_NOTES:
                stream.flush()
                part.note(done=done, unread=unread)
                noted = time.perf_counter()
        writer.end()
        stream.flush()
        if part:
            part.finish()
    if out is not None:
        seconds = time.perf_counter() - began
        earlier = f", {before:,} files before" if before else ""
        said = f"{len(files) - unread} images in {seconds:.1f} s{earlier}: {printable(out)}"
        print(said, file=sys.stderr if is_stream(out) else sys.stdout)
    if unread:
        raise RunError(f"{unread} of {len(files)} files could not be decoded")


@contextmanager
def _destination(
    out: Path | None, about: Mapping[str, Any], resume: bool
) -> Iterator[tuple[TextIO, PartialFile | None]]:
    """Where to write, and, where that is a file, the file in the making."""
    if out is None:
        yield sys.stdout, None
    elif is_stream(out):
        with output(out) as file, _as_text(file) as stream:
            yield stream, None
    else:
        otherwise = "or choose another place with --out"
        with telling(out, otherwise), PartialFile(out, about, resume) as part, _as_text(part.file) as stream:
            yield stream, part


@contextmanager
def _as_text(file: BinaryIO) -> Iterator[TextIO]:
    # A name that is no text becomes an escape, which JSON reads as the same name.
    stream = io.TextIOWrapper(file, "utf-8", "backslashreplace", newline="")
    try:
        yield stream
        stream.flush()
    finally:
        with suppress(OSError, ValueError):  # of a full disk, which has been told of
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

    def __init__(self, stream: TextIO, top: int, marked: bool, begun: bool) -> None:
        self.table = csv.writer(stream)
        if begun:
            return
        numbers = ["", *(f"_{rank}" for rank in range(2, top + 1))]
        columns = [what + number for number in numbers for what in ("class", "probability")]
        self.table.writerow(["image", *columns, *(["unsure"] if marked else [])])

    def add(self, name: str, classes: Classes, unsure: bool | None) -> None:
        last = [] if unsure is None else [YES_OR_NO[unsure]]
        shares = (c for label, share in classes for c in (cell(label), f"{share:.6f}"))
        self.table.writerow([cell(name), *shares, *last])


class _Json(_Lines):
    """A list of objects: ``image``, and ``top`` (with ``unsure``, where there are thresholds) or ``error``."""

    def __init__(self, stream: TextIO, begun: bool) -> None:
        super().__init__(stream)
        self.before = ",\n  " if begun else "[\n  "

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

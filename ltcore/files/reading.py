"""The files of a run, read: what is damaged is one message, and what is read has the fields that it should."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import TypeAdapter, ValidationError

from ltcore.contract.result import EnvironmentRecord, EpochLine, Result, StageResult
from ltcore.errors import RunError, fault
from ltcore.untrusted import parse_json

_AGAIN = "copy it again from where the run was trained, or train the run again"


class Damaged(RunError):
    """A file of a run cannot be read, or does not hold what it should."""

    def __init__(self, path: Path, why: object, advice: str = _AGAIN) -> None:
        super().__init__(f"{path} is damaged ({why}); {advice}")


class Outputs(NamedTuple):
    """The content of ``predictions.npz``: labels [N] int64 and logits [N, C] float32, before and after calibration.

    And what the images are called, [N], where they are files.
    """

    targets: NDArray[np.int64]
    logits: NDArray[np.float32]
    calibrated_logits: NDArray[np.float32]
    names: NDArray[np.str_] | None = None


def read_text(path: Path) -> str:
    """A text file's content.

    Raises:
        RunError: it cannot be read, or is no text.
    """
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise RunError(f"{path} cannot be read: {fault(error)}") from error
    except UnicodeDecodeError as error:
        raise Damaged(path, f"byte {error.start} is no text in UTF-8") from error


def read_json(path: Path) -> Any:
    """A JSON file's content.

    Raises:
        RunError: it cannot be read, or is not JSON.
    """
    text = read_text(path)
    try:
        return parse_json(text)
    except ValueError as error:
        raise Damaged(path, error) from error


def read_result(path: Path) -> Result:
    """The content of ``result.json``, checked field by field; `ltcore.contract.result` says what a file may lack.

    Raises:
        RunError: it cannot be read, or a field is missing or of another type or length.
    """
    result: Result = _checked(path, Result, read_json(path))
    classes = result["num_classes"]
    figures = [result["before_calibration"], result["after_calibration"]]
    figures += [stage[part] for stage in result["stages"] for part in ("test", "validation") if part in stage]
    lengths = {"class_counts": len(result["class_counts"]), "class_names": len(result["class_names"])}
    lengths |= {f"per_class_accuracy {number}": len(each["per_class_accuracy"]) for number, each in enumerate(figures)}
    lengths |= {f"classes/{name}": len(values) for name, values in result.get("classes", {}).items()}  # type: ignore[arg-type]
    if (unsure := result.get("unsure")) is not None:
        lengths["unsure/thresholds"] = len(unsure["thresholds"])
        for part in (unsure["held_out"], unsure["test"]):
            lengths |= {"unsure/sure": len(part["sure"]), "unsure/right": len(part["right"])}
    for number, stage in enumerate(result["stages"]):
        found = stage.get("diagnostics", {}).items()
        lengths |= {f"diagnostics/{name} {number}": len(each) for name, each in found if isinstance(each, list)}
    for name, length in lengths.items():
        if length != classes:
            raise Damaged(path, f"{name.split(' ')[0]} has {length} entries for {classes} classes")
    ends: list[Any] = [*result.get("intervals", {}).values()]
    if "classes" in result:
        ends += [*result["classes"]["recall_interval"], *result["classes"]["precision_interval"]]
    if any(each is not None and len(each) != 2 for each in ends):
        raise Damaged(path, "an interval has not two ends")
    if not all(0 <= count < 2**62 for count in result["class_counts"]):
        raise Damaged(path, "class_counts has what is no number of images")
    if not classes or not result["stages"]:
        raise Damaged(path, f"it has {classes} classes and {len(result['stages'])} stages")
    return result


def read_environments(path: Path) -> list[EnvironmentRecord]:
    """The entries of ``environment.json``, checked; none where an earlier version of ltcore wrote the file.

    Raises:
        RunError: it cannot be read, or an entry is not what it should be.
    """
    content = read_json(path)
    if not isinstance(content, list):
        return []
    entries: list[EnvironmentRecord] = _checked(path, list[EnvironmentRecord], content)
    return entries


def stage_results(path: Path, content: Any) -> list[StageResult]:
    """The records of stages that a checkpoint keeps, checked.

    Raises:
        RunError: they are not what they should be.
    """
    found: list[StageResult] = _checked(path, list[StageResult], content)
    return found


def read_lines(path: Path) -> list[EpochLine]:
    """The whole lines of ``metrics.jsonl``, to which a run may be adding one right now; none where there is no file.

    Raises:
        RunError: it cannot be read, or a line is not what it should be.
    """
    if not path.exists():
        return []
    lines = []
    for number, line in enumerate(read_text(path).splitlines(keepends=True), start=1):
        if line.endswith("\n"):
            try:
                lines.append(parse_json(line))
            except ValueError as error:
                raise Damaged(path, f"line {number}: {error}") from error
    checked: list[EpochLine] = _checked(path, list[EpochLine], lines)
    return checked


def read_predictions(path: Path, classes: int) -> Outputs:
    """The content of ``predictions.npz``, checked.

    Args:
        path: the file.
        classes: C.

    Raises:
        RunError: it cannot be read, or an array is missing or of another type or shape, or not finite.
    """
    try:
        with np.load(path, allow_pickle=False) as stored:
            fields = Outputs._fields if "names" in stored else Outputs._fields[:-1]
            found = Outputs(*(np.asanyarray(stored[name]) for name in fields))  # bytes, if its head is none
    except FileNotFoundError as error:
        raise RunError(f"{path} is not there; {_AGAIN}") from error
    except Exception as error:  # a damaged archive makes zipfile, zlib and NumPy raise almost anything
        raise Damaged(path, error or type(error).__name__) from error
    targets = found.targets
    whole = targets.ndim == 1 and len(targets) and targets.dtype == np.int64
    if not whole or targets.min() < 0 or targets.max() >= classes:
        raise Damaged(path, f"its targets are no labels of {classes} classes")
    for array in (found.logits, found.calibrated_logits):
        if array.shape != (len(targets), classes) or array.dtype.kind != "f" or not np.isfinite(array).all():
            raise Damaged(path, f"its logits are not finite numbers of shape {(len(targets), classes)}")
    if found.names is not None and (found.names.shape != targets.shape or found.names.dtype.kind != "U"):
        raise Damaged(path, f"its names are not those of {len(targets)} images")
    return found


def _checked(path: Path, kind: Any, content: Any) -> Any:
    """The content, once it has the fields and types of `kind`."""
    try:
        _adapter(kind).validate_python(content, strict=True)
    except ValidationError as error:
        first, *others = error.errors(include_url=False, include_input=False)
        where = "/".join(map(str, first["loc"]))
        more = f", and {len(others)} more" if others else ""
        raise Damaged(path, f"{where}{': ' if where else ''}{first['msg'].lower()}{more}") from error
    return content  # with what a later version has added


@cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)

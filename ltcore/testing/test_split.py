"""Whether a hook opens a test split, of whatever data set."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ltcore.contract.splits import DataSplits
from ltcore.data.prepare import PreparedData

if TYPE_CHECKING:
    from ltcore.testing.faults import FaultNotes


class TestSplit:
    """While a hook is at work, reading the attribute ``test`` of a data set is noted."""

    __test__ = False  # for pytest, whose classes have such names

    def __init__(self, notes: FaultNotes, hook: str) -> None:
        self._notes, self._hook = notes, hook

    def __enter__(self) -> None:
        if self._hook == "build_data":
            return
        for kind in (DataSplits, PreparedData):
            setattr(kind, "test", property(self._read, _write))  # noqa: B010

    def __exit__(self, *error: Any) -> None:
        for kind in (DataSplits, PreparedData):
            if "test" in vars(kind):
                delattr(kind, "test")

    def _read(self, splits: Any) -> Any:
        self._notes.fault(
            "test_data",
            f"{self._hook} reads the test split of a data set",
            "choose and fit on `context.training_features()` or, with `requires = {'validation'}`, on "
            "`context.validation_features()`",
        )
        return vars(splits)["test"]


def _write(splits: Any, value: Any) -> None:
    vars(splits)["test"] = value

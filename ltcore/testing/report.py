"""What came of the checks of a method."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

Outcome = Literal["passed", "failed", "not applicable"]

#: The checks in their order, and what each asks. `docs/check.md` explains them.
CHECKS = {
    "options": "options have defaults, survive a round trip, are described, frozen, and refuse what they do not know",
    "hooks": "hooks are marked, spelled as core spells them, and take arguments that they have",
    "interface": "the class says which version of the hooks it was written for, and this core has it",
    "steps": "every hook of the method is called in a training that goes through",
    "gradients": "what trains gets a finite gradient, and nothing else takes part",
    "gradient_flow": "the gradient of real rows comes through to the backbone",
    "idle_modules": "the gradient of each of the method's own modules is not always zero",
    "given_gradients": "gradients are given for what trains, and for nothing else",
    "answers": "what a hook returns is of the type, the shape and the place that it came in",
    "device": "what a step's hooks make is made where the model is",
    "synthetic": "rows that a method makes are marked",
    "sources": "a row's label is that of the image in its `source_index`",
    "relabelling": "images keep their labels, or the class says that they do not",
    "extra_rows": "the method's extra rows do not reach the classifier",
    "others_rows": "rows, labels and values of other methods stay as they were",
    "row_order": "with the rows of every batch in another order the training is the same, or the class says so",
    "classifier": "a classifier's weight and bias are what it applies",
    "inputs": "a hook leaves its arguments, the context and the model as they were",
    "frozen_models": "the models of earlier stages stay as they were",
    "randomness": "no random state of Python, NumPy or torch that others share is drawn from or set",
    "auxiliary": "the auxiliary terms that are returned are the ones declared",
    "synchronisation": "no step waits for the device",
    "growth": "nothing grows with every step",
    "passes": "no step has all images go through the network",
    "test_data": "nothing is read from test data, and nothing depends on it",
    "validation": "nothing that is trained depends on validation images, or the class requires them",
    "seed": "the same seed gives the same bits",
    "resume": "stopping in mid-stage and going on from the checkpoint gives the same bits",
    "reopening": "the run's model opened again and exported is the same",
    "batch_sizes": "a batch of one image and one of an odd number train, or are refused before any data is read",
    "processes": "another process gives the same bits",
    "together": "two processes that train together get what one gets",
    "pairs": "beside every other installed method it trains, or is refused by name",
}


@dataclass(frozen=True)
class Check:
    """One check of a method.

    Attributes:
        name: one of `CHECKS`.
        tried: what was tried, such as ``3 recipes``.
        outcome: how it ended.
        message: what happened, where it failed or was not tried.
        change: what to change, where it failed.
    """

    name: str
    tried: str
    outcome: Outcome
    message: str = ""
    change: str = ""

    def __str__(self) -> str:
        mark = {"passed": "passed", "failed": "FAILED", "not applicable": "-"}[self.outcome]
        lines = [f"{mark:6}  {self.name:15}  {self.tried if self.outcome != 'not applicable' else self.message}"]
        if self.outcome == "failed":
            lines += [f"{'':8}{line}" for line in self.message.splitlines()]
            lines.append(f"{'':8}change: {self.change}")
        return "\n".join(lines)


@dataclass(frozen=True)
class Report:
    """What came of all checks of a method.

    Attributes:
        method: the method's name in recipes.
        whose: its distribution and version, or the class where it is not installed.
        checks: in the order in which they were made.
    """

    method: str
    whose: str
    checks: tuple[Check, ...]

    @property
    def passed(self) -> bool:
        """Whether nothing failed."""
        return not self.failures

    @property
    def failures(self) -> tuple[Check, ...]:
        """The checks that failed."""
        return tuple(check for check in self.checks if check.outcome == "failed")

    def __getitem__(self, name: str) -> Check:
        """The check of a name."""
        return next(check for check in self.checks if check.name == name)

    def __str__(self) -> str:
        return "\n".join([f"{self.method} ({self.whose})", *(f"  {line}" for line in self._lines())])

    def _lines(self) -> list[str]:
        return [line for check in self.checks for line in str(check).splitlines()]

    def plain(self) -> dict[str, Any]:
        """What ``ltcore check --json`` prints of it."""
        return {"method": self.method, "whose": self.whose, "passed": self.passed} | {
            "checks": [asdict(check) for check in self.checks]
        }


class ConformanceError(AssertionError):
    """A method failed checks; the message lists them, with what to change.

    Attributes:
        report: all checks.
    """

    def __init__(self, report: Report) -> None:
        self.report = report
        failures: Sequence[Check] = report.failures
        text = "\n".join(str(check) for check in failures)
        super().__init__(
            f"{report.method} ({report.whose}) failed {len(failures)} of {len(report.checks)} checks\n{text}"
        )

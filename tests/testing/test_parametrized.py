"""One test for each check: which there are, how each ends, and that the checks are made once."""

import pytest
from pydantic import Field

from ltcore import Method, Options
from ltcore.testing import ConformanceError, checking, parametrize_with_checks
from ltcore.testing.report import CHECKS, Check, Report

QUICK = [name for name in CHECKS if name not in checking.WITHOUT_TRAINING]


class NoDescription(Method):
    """Its option is not described, which the check of options finds."""

    class Options(Options):
        scale: float = 1.0


class Described(Method):
    """The same, described."""

    class Options(Options):
        scale: float = Field(1.0, description="a factor")


@parametrize_with_checks(NoDescription, without=QUICK, expected_failures={"options": "no description"})
def test_for_real(check):
    check()
    pytest.fail("the check of options fails, and the others are then not applicable, which is skipped")


def made(monkeypatch, **outcomes):
    """The tests that there are, by name, of a report with these outcomes; and how often the checks are made."""
    calls = []

    def conformance(*arguments):
        calls.append(arguments)
        checks = [Check(name, "", outcomes.get(name, "passed"), "what happened", "this") for name in CHECKS]
        return Report("m", "x 1", tuple(checks))

    monkeypatch.setattr(checking, "conformance", conformance)
    mark = parametrize_with_checks(Described, {"scale": 2}, without=["pairs"], expected_failures={"seed": "why"}).mark
    assert mark.args[0] == "check"
    return {parameter.id: parameter for parameter in mark.args[1]}, calls


def test_each_check_ends_by_itself(monkeypatch):
    tests, calls = made(monkeypatch, gradients="failed", seed="failed", classifier="not applicable")
    assert list(tests) == [name for name in CHECKS if name != "pairs"] and not calls
    assert tests["options"].values[0]().name == "options"
    with pytest.raises(ConformanceError, match=r"gradients.*\n.*what happened\n.*change: this") as failed:
        tests["gradients"].values[0]()
    assert "seed" not in str(failed.value)
    with pytest.raises(pytest.skip.Exception, match="what happened"):
        tests["classifier"].values[0]()
    assert calls == [(Described, {"scale": 2}, None, ["pairs"])], "made once"


def test_an_expected_failure_has_its_reason(monkeypatch):
    tests, _ = made(monkeypatch)
    (mark,) = tests["seed"].marks
    assert mark.name == "xfail" and mark.kwargs == {"reason": "why", "raises": ConformanceError, "strict": True}
    assert not tests["options"].marks


def test_names_that_are_no_checks_are_refused():
    with pytest.raises(ValueError, match="no check 'gradient'; did you mean 'gradients'"):
        parametrize_with_checks(Described, expected_failures={"gradient": "why"})
    with pytest.raises(ValueError, match="'pairs' is left out, and cannot be expected to fail"):
        parametrize_with_checks(Described, without=["pairs"], expected_failures={"pairs": "why"})

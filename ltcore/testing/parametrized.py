"""Each check of a method as a test of its own."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from functools import cache
from typing import TYPE_CHECKING, Any

import pytest

from ltcore.errors import listed, nearest
from ltcore.testing.report import CHECKS, Check, ConformanceError, Report

if TYPE_CHECKING:
    from ltcore.contract.method import Method


def parametrize_with_checks(
    kind: type[Method],
    options: Mapping[str, Any] | None = None,
    recipe: Mapping[str, Any] | None = None,
    without: Collection[str] = (),
    expected_failures: Mapping[str, str] | None = None,
) -> pytest.MarkDecorator:
    """Marks a test with the argument `check`, which it calls; pytest then has one test for each check, by its name.

    The checks are made once, when the first of the tests runs; in each process, with pytest-xdist. A check that is not
    applicable is skipped.

    Args:
        kind: see `check_method`, as are `options`, `recipe` and `without`.
        options: over the class's `checked_with`.
        recipe: parts of the recipes.
        without: names of checks to leave out.
        expected_failures: check -> the reason why it fails. One that passes after all is a failure.

    Raises:
        ValueError: `without` or `expected_failures` names no check, or both name one.
    """
    expected = dict(expected_failures or {})
    for name in (*without, *expected):
        if name not in CHECKS:
            raise ValueError(f"there is no check '{name}'{nearest(name, CHECKS) or ';'} there is {listed(CHECKS)}")
        if name in without and name in expected:
            raise ValueError(f"the check '{name}' is left out, and cannot be expected to fail")

    @cache
    def report() -> Report:
        from ltcore.testing.checking import conformance

        return conformance(kind, options, recipe, without)

    return pytest.mark.parametrize(
        "check",
        [
            pytest.param(
                _CheckOf(name, report),
                id=name,
                marks=[pytest.mark.xfail(reason=expected[name], raises=ConformanceError, strict=True)]
                if name in expected
                else [],
            )
            for name in CHECKS
            if name not in without
        ],
    )


class _CheckOf:
    """Calling it says how one check ended."""

    def __init__(self, name: str, report: Any) -> None:
        self._name, self._report = name, report

    def __call__(self) -> Check:
        """The check, where it passed.

        Raises:
            ConformanceError: it failed; the message says what to change.
        """
        report: Report = self._report()
        check = report[self._name]
        if check.outcome == "failed":
            raise ConformanceError(replace(report, checks=(check,)))
        if check.outcome == "not applicable":
            pytest.skip(check.message or "not applicable")
        return check

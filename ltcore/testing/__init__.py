"""Whether a method keeps to what ltcore asks of it: what ``ltcore check`` does, for a plugin's own tests.

``check_method(MyMethod)`` in a test trains the method on a few dozen made-up images, in recipes that suit it. It raises
`ConformanceError` with every check that failed and what to change. Installing ltcore also gives pytest the fixtures
``ltcore_check``, ``ltcore_context`` and ``ltcore_batch`` (`ltcore.testing.plugin`).
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ltcore.testing.checking import check_method as check_method
    from ltcore.testing.checking import conformance as conformance
    from ltcore.testing.parametrized import parametrize_with_checks as parametrize_with_checks
    from ltcore.testing.report import Check as Check
    from ltcore.testing.report import ConformanceError as ConformanceError
    from ltcore.testing.report import Report as Report

_HOMES = {
    "Check": "report",
    "ConformanceError": "report",
    "Report": "report",
    "check_method": "checking",
    "conformance": "checking",
    "parametrize_with_checks": "parametrized",
}
__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    """Import a public name when it is first asked for (PEP 562): pytest starts without torch."""
    if name not in _HOMES:
        raise AttributeError(f"module 'ltcore.testing' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"ltcore.testing.{_HOMES[name]}"), name)

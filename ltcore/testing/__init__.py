"""Whether a method keeps to what ltcore asks of it: what ``ltcore check`` does, for a plugin's own tests.

``check_method(MyMethod)`` in a test trains the method on a few dozen made-up images, in recipes that suit it. It raises
`ConformanceError` with every check that failed and what to change. To call a method's hooks one by one there are
`make_batch`, `make_context` and `move_context`. `step_losses` computes a step, and `write_short_recipe` writes what
`ltcore.run` trains. Installing ltcore also gives pytest the fixtures ``ltcore_check``, ``ltcore_context`` and
``ltcore_batch`` (`ltcore.testing.plugin`).
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ltcore.testing.checking import check_method as check_method
    from ltcore.testing.checking import conformance as conformance
    from ltcore.testing.fixtures import make_batch as make_batch
    from ltcore.testing.fixtures import make_context as make_context
    from ltcore.testing.fixtures import move_context as move_context
    from ltcore.testing.fixtures import step_losses as step_losses
    from ltcore.testing.fixtures import write_short_recipe as write_short_recipe
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
    "make_batch": "fixtures",
    "make_context": "fixtures",
    "move_context": "fixtures",
    "parametrize_with_checks": "parametrized",
    "step_losses": "fixtures",
    "write_short_recipe": "fixtures",
}
__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    """Import a public name when it is first asked for (PEP 562): pytest starts without torch."""
    if name not in _HOMES:
        raise AttributeError(f"module 'ltcore.testing' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"ltcore.testing.{_HOMES[name]}"), name)

"""What pytest loads where ltcore is installed: fixtures, and nothing that acts by itself.

It imports torch only when a test asks for a fixture, collects nothing and changes no test.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from ltcore.contract.context import Context
    from ltcore.contract.records import Batch


@pytest.fixture
def ltcore_check() -> Callable[..., None]:
    """`ltcore.testing.check_method`: ``ltcore_check(MyMethod, {"scale": 0.5})`` fails with what to change."""
    from ltcore.testing import check_method

    return check_method


@pytest.fixture
def ltcore_batch() -> Callable[..., Batch]:
    """Makes a training batch: ``ltcore_batch(rows=8, classes=4, size=8, seed=0)``, images of 3 channels."""
    from ltcore.testing.fixtures import make_batch

    return make_batch


@pytest.fixture
def ltcore_context() -> Callable[..., Context]:
    """Makes a method's context: ``ltcore_context(counts=(26, 18, 10, 6), epoch=0, epochs=2, step=0, seed=0)``.

    It stands in the first stage of a run on the checks' network and images. A method's hooks can be called with it
    one by one.
    """
    from ltcore.testing.fixtures import make_context

    return make_context

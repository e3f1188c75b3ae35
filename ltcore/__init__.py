"""ltcore: a small core plus plugins for long-tailed image classification in PyTorch.

What a notebook and a plugin author need is here; it is imported on first use, so that ``import ltcore`` (and with it
the command line) stays free of torch.
"""

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from ltcore.backbones import Backbone as Backbone
    from ltcore.context import Context as Context
    from ltcore.data.splits import ArraySplit as ArraySplit
    from ltcore.data.splits import DataSplits as DataSplits
    from ltcore.errors import DataError as DataError
    from ltcore.errors import LtcoreError as LtcoreError
    from ltcore.errors import RecipeError as RecipeError
    from ltcore.hookspecs import hookimpl as hookimpl
    from ltcore.method import Method as Method
    from ltcore.method import Options as Options
    from ltcore.records import Batch as Batch
    from ltcore.records import Features as Features
    from ltcore.samplers import EpochBatches as EpochBatches
    from ltcore.saved import SavedRun as SavedRun
    from ltcore.saved import load as load
    from ltcore.saved import run as run

_HOMES = {
    "ArraySplit": "data.splits",
    "Backbone": "backbones",
    "Batch": "records",
    "Context": "context",
    "DataError": "errors",
    "DataSplits": "data.splits",
    "EpochBatches": "samplers",
    "Features": "records",
    "LtcoreError": "errors",
    "Method": "method",
    "Options": "method",
    "RecipeError": "errors",
    "SavedRun": "saved",
    "hookimpl": "hookspecs",
    "load": "saved",
    "run": "saved",
}
__all__ = sorted([*_HOMES, "__version__"])


def __getattr__(name: str) -> Any:
    """Import a public name when it is first asked for (PEP 562)."""
    if name not in _HOMES:
        raise AttributeError(f"module 'ltcore' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"ltcore.{_HOMES[name]}"), name)

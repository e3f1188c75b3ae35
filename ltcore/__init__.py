"""ltcore: a small core plus plugins for long-tailed image classification in PyTorch.

What a notebook and a plugin author need is here; it is imported on first use, so that ``import ltcore`` (and with it
the command line) stays free of torch.
"""

from typing import TYPE_CHECKING, Any

from ltcore.contract.interface import __version__ as __version__

if TYPE_CHECKING:
    from ltcore.contract.backbone import Backbone as Backbone
    from ltcore.contract.context import Context as Context
    from ltcore.contract.hook import hookimpl as hookimpl
    from ltcore.contract.method import Method as Method
    from ltcore.contract.method import Options as Options
    from ltcore.contract.records import Batch as Batch
    from ltcore.contract.records import Features as Features
    from ltcore.contract.samplers import EpochBatches as EpochBatches
    from ltcore.contract.splits import ArraySplit as ArraySplit
    from ltcore.contract.splits import DataSplits as DataSplits
    from ltcore.errors import DataError as DataError
    from ltcore.errors import LtcoreError as LtcoreError
    from ltcore.errors import RecipeError as RecipeError
    from ltcore.runs.saved import SavedRun as SavedRun
    from ltcore.runs.saved import load as load
    from ltcore.runs.saved import run as run

_HOMES = {
    "ArraySplit": "contract.splits",
    "Backbone": "contract.backbone",
    "Batch": "contract.records",
    "Context": "contract.context",
    "DataError": "errors",
    "DataSplits": "contract.splits",
    "EpochBatches": "contract.samplers",
    "Features": "contract.records",
    "LtcoreError": "errors",
    "Method": "contract.method",
    "Options": "contract.method",
    "RecipeError": "errors",
    "SavedRun": "runs.saved",
    "hookimpl": "contract.hook",
    "load": "runs.saved",
    "run": "runs.saved",
}
__all__ = sorted([*_HOMES, "__version__"])


def __getattr__(name: str) -> Any:
    """Import a public name when it is first asked for (PEP 562)."""
    if name not in _HOMES:
        raise AttributeError(f"module 'ltcore' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"ltcore.{_HOMES[name]}"), name)

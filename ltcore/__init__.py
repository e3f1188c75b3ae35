"""ltcore: a small core plus plugins for long-tailed image classification in PyTorch.

All that a notebook and a plugin need is here, and `ltcore.testing` has what a plugin's tests need. Both are listed in
``docs/plugin_api.md``; any module below is core's own and may move. A name is imported on first use, so that
``import ltcore`` (and with it the command line) stays free of torch.
"""

from typing import TYPE_CHECKING, Any

from ltcore.contract.interface import __version__ as __version__

if TYPE_CHECKING:  # for type checkers and `ltcore.discovery.static`; a test holds it to the table below
    from ltcore.contract.backbone import Backbone as Backbone
    from ltcore.contract.backbone import Mergeable as Mergeable
    from ltcore.contract.backbone import Pretraining as Pretraining
    from ltcore.contract.classifier import CalibratedClassifier as CalibratedClassifier
    from ltcore.contract.classifier import scale_weights as scale_weights
    from ltcore.contract.context import Context as Context
    from ltcore.contract.experts import ExpertClassifiers as ExpertClassifiers
    from ltcore.contract.experts import row_logits as row_logits
    from ltcore.contract.facts import DataFacts as DataFacts
    from ltcore.contract.hook import hookimpl as hookimpl
    from ltcore.contract.images import ForExtraRows as ForExtraRows
    from ltcore.contract.imbalance import Imbalance as Imbalance
    from ltcore.contract.method import Method as Method
    from ltcore.contract.method import Options as Options
    from ltcore.contract.model import Model as Model
    from ltcore.contract.model import evaluating as evaluating
    from ltcore.contract.objective import Objective as Objective
    from ltcore.contract.recipe import Stage as Stage
    from ltcore.contract.records import Batch as Batch
    from ltcore.contract.records import Features as Features
    from ltcore.contract.reported import ReportScatter as ReportScatter
    from ltcore.contract.reported import ReportTable as ReportTable
    from ltcore.contract.samplers import BatchSampler as BatchSampler
    from ltcore.contract.samplers import ClassPools as ClassPools
    from ltcore.contract.samplers import EpochBatches as EpochBatches
    from ltcore.contract.samplers import PlainSampler as PlainSampler
    from ltcore.contract.samplers import Sampler as Sampler
    from ltcore.contract.samplers import class_balanced_distribution as class_balanced_distribution
    from ltcore.contract.samplers import draw_classes as draw_classes
    from ltcore.contract.samplers import square_root_distribution as square_root_distribution
    from ltcore.contract.splits import ArraySplit as ArraySplit
    from ltcore.contract.splits import DataSplits as DataSplits
    from ltcore.contract.splits import FileSplit as FileSplit
    from ltcore.contract.splits import StreamedSplit as StreamedSplit
    from ltcore.contract.statistics import largest_classes as largest_classes
    from ltcore.contract.statistics import nearest_classes as nearest_classes
    from ltcore.contract.suited import Suited as Suited
    from ltcore.errors import DataError as DataError
    from ltcore.errors import LtcoreError as LtcoreError
    from ltcore.errors import PluginError as PluginError
    from ltcore.errors import RecipeError as RecipeError
    from ltcore.errors import RunError as RunError
    from ltcore.runs.saved import SavedRun as SavedRun
    from ltcore.runs.saved import load as load
    from ltcore.runs.saved import run as run

#: Public name -> the module that defines it.
_HOMES = {
    "ArraySplit": "contract.splits",
    "Backbone": "contract.backbone",
    "Batch": "contract.records",
    "BatchSampler": "contract.samplers",
    "CalibratedClassifier": "contract.classifier",
    "ClassPools": "contract.samplers",
    "Context": "contract.context",
    "DataError": "errors",
    "DataFacts": "contract.facts",
    "DataSplits": "contract.splits",
    "EpochBatches": "contract.samplers",
    "ExpertClassifiers": "contract.experts",
    "Features": "contract.records",
    "FileSplit": "contract.splits",
    "ForExtraRows": "contract.images",
    "Imbalance": "contract.imbalance",
    "LtcoreError": "errors",
    "Mergeable": "contract.backbone",
    "Method": "contract.method",
    "Model": "contract.model",
    "Objective": "contract.objective",
    "Options": "contract.method",
    "PlainSampler": "contract.samplers",
    "PluginError": "errors",
    "Pretraining": "contract.backbone",
    "RecipeError": "errors",
    "ReportScatter": "contract.reported",
    "ReportTable": "contract.reported",
    "RunError": "errors",
    "Sampler": "contract.samplers",
    "SavedRun": "runs.saved",
    "Stage": "contract.recipe",
    "StreamedSplit": "contract.splits",
    "Suited": "contract.suited",
    "class_balanced_distribution": "contract.samplers",
    "draw_classes": "contract.samplers",
    "evaluating": "contract.model",
    "hookimpl": "contract.hook",
    "largest_classes": "contract.statistics",
    "load": "runs.saved",
    "nearest_classes": "contract.statistics",
    "row_logits": "contract.experts",
    "run": "runs.saved",
    "scale_weights": "contract.classifier",
    "square_root_distribution": "contract.samplers",
}
__all__ = sorted([*_HOMES, "__version__"])


def __getattr__(name: str) -> Any:
    """Import a public name when it is first asked for (PEP 562)."""
    if name not in _HOMES:
        raise AttributeError(f"module 'ltcore' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"ltcore.{_HOMES[name]}"), name)

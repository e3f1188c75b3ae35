"""The hooks: every named point where a method takes part, and how several answers compose.

The kind stands beside each hook:

* ``one``: exactly one method answers; where none does, core's default applies; two are an error that names both.
* ``fold``: a record is passed through the methods in the recipe's order.
* ``product``: the answers are multiplied, those that are None left out.
* ``sum``: the answers are named terms, namespaced with the method's name, weighted and added.
* ``all``: every method is called in the recipe's order; nothing is returned.

The functions are specifications, never called. An implementation is a method of a `ltcore.Method`, marked with
`hookimpl`, that takes any of the hook's arguments by name.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import pluggy

if TYPE_CHECKING:
    from torch import Tensor, nn

    from ltcore.backbones import Backbone
    from ltcore.context import Context
    from ltcore.data.splits import DataSplits
    from ltcore.records import Batch, Features
    from ltcore.samplers import Sampler

Kind = Literal["one", "fold", "product", "sum", "all"]
F = TypeVar("F", bound=Callable[..., Any])

PROJECT = "ltcore"
hookimpl = pluggy.HookimplMarker(PROJECT)
_hookspec = pluggy.HookspecMarker(PROJECT)

#: Hook name -> kind, in the order in which a run meets the hooks.
KINDS: dict[str, Kind] = {}

#: The hooks that are called within a step, where a method's randomness is seeded a step and shared by its hooks.
STEP_HOOKS = frozenset({"mix_inputs", "augment_features", "adjust_logits", "compute_loss", "auxiliary_losses"})


def hook(kind: Kind) -> Callable[[F], F]:
    """Declare a hook and, beside it, its kind."""

    def declare(function: F) -> F:
        KINDS[function.__name__] = kind
        return _hookspec(function)

    return declare


@hook("one")
def build_data() -> DataSplits:
    """Training, validation and test images of a data set; core cuts the long tail and the held-out images itself."""


@hook("one")
def build_backbone(in_channels: int, image_size: int) -> Backbone:
    """The network up to and including the global pool, for images of `in_channels` x `image_size` x `image_size`."""


@hook("all")
def on_run_start(context: Context) -> None:
    """Create modules and buffers whose shapes depend on the data; called once, before anything is restored."""


@hook("one")
def build_classifier(feature_dim: int, num_classes: int, previous: nn.Module | None, context: Context) -> nn.Module:
    """The last layer, [N, feature_dim] to [N, num_classes]; `previous` is the classifier of the stage before."""


@hook("all")
def on_stage_start(context: Context) -> None:
    """A stage begins; what is learned here is kept in buffers, because a resumed stage does not begin again."""


@hook("one")
def build_sampler(batch_size: int, context: Context) -> Sampler:
    """How a batch is laid out, given how often each class is drawn; called once a stage, again in a resumed one."""


@hook("all")
def on_epoch_start(context: Context) -> None:
    """An epoch begins, before its images are drawn; what is learned here is kept in buffers, as in a stage."""


@hook("product")
def class_weights(context: Context) -> Tensor | None:
    """A weight for each class's loss values, [C]; core takes the weighted mean over the batch; None: no weights."""


@hook("one")
def class_distribution(context: Context) -> Tensor | None:
    """How often each class is drawn in this epoch, [C], summing to 1; None: every image once (instance-balanced)."""


@hook("fold")
def mix_inputs(batch: Batch, context: Context) -> Batch:
    """Change a training batch before the backbone sees it (mixup and its kin)."""


@hook("fold")
def augment_features(features: Features, context: Context) -> Features:
    """Change, replace or append feature rows at the method's tap."""


@hook("fold")
def adjust_logits(logits: Tensor, targets: Tensor, context: Context) -> Tensor:
    """Change the training logits [N, C] before the loss, knowing the targets [N]; evaluation never calls it."""


@hook("one")
def compute_loss(logits: Tensor, targets: Tensor, context: Context) -> Tensor:
    """One loss value a sample, [N], from logits [N, C] in float32 and targets [N]; core weighs and reduces."""


@hook("sum")
def auxiliary_losses(features: Features, logits: Tensor, context: Context) -> dict[str, Tensor]:
    """Scalar loss terms by name, as declared in the method's `auxiliary`; the recipe weighs ``method/term``."""


@hook("all")
def on_epoch_end(context: Context) -> None:
    """An epoch has ended; what is learned here is kept in buffers."""


@hook("fold")
def post_calibrate(classifier: nn.Module, context: Context) -> nn.Module:
    """Change a copy of the trained classifier, without gradient steps; called once after the last stage."""

"""What a plugin offers: a `Method` with frozen `Options`."""

from __future__ import annotations

from collections.abc import Set as AbstractSet
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import BaseModel, ConfigDict
from torch import nn

if TYPE_CHECKING:
    from ltcore.recipe.schema import Stage


class Options(BaseModel):
    """Base of a method's options: frozen, and nothing unknown is accepted."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)


class Method(nn.Module):
    """Base of everything a plugin offers: losses, samplers, augmentations, calibrations, backbones, data sets.

    One instance is made for a recipe entry and a run, and implements hooks (`ltcore.hookspecs`) with methods marked
    ``@ltcore.hookimpl``. Its own modules and buffers are saved, moved and restored with the model. They are created
    in ``__init__``, or in the hook ``on_run_start`` where their shape depends on the data.

    Class attributes, each of which may also be a property that reads the options:

    * ``Options``: the options class.
    * ``requires``: what must be provided for the method to work, from the words of `ltcore.plan.NEEDS` or of other
      plugins.
    * ``provides``: words that other methods of the same stage may require.
    * ``breaks``: words that no longer hold in a stage with this method (mixup breaks ``hard_labels``).
    * ``auxiliary``: names of the terms that `auxiliary_losses` returns.
    * ``tap``: where `augment_features` acts: ``maps`` (before the global pool), ``pooled`` (after it) or one of the
      backbone's other taps.
    """

    Options: ClassVar[type[Options]] = Options
    requires: AbstractSet[str] = frozenset()
    provides: AbstractSet[str] = frozenset()
    breaks: AbstractSet[str] = frozenset()
    auxiliary: tuple[str, ...] = ()
    tap: str = "pooled"

    def __init__(self, options: Any = None) -> None:
        """Keep the options; a subclass with its own ``__init__`` calls this first.

        Args:
            options: an instance of the class's ``Options``; None for its defaults.
        """
        super().__init__()
        self.options: Any = self.Options() if options is None else options

    def check_stage(self, stage: Stage) -> None:
        """Refuse settings of a stage that the method cannot work with; called before any data is read.

        Raises:
            RecipeError: with a message that says what to change; where and whose is added to it.
        """

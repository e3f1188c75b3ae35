"""What a plugin offers: a `Method` with frozen `Options`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import TYPE_CHECKING, Any, ClassVar, Generic, cast, get_args, get_origin

from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn
from typing_extensions import TypeVar, get_original_bases

if TYPE_CHECKING:
    from ltcore.contract.context import Context
    from ltcore.contract.facts import DataFacts
    from ltcore.contract.recipe import Stage
    from ltcore.contract.reported import ReportScatter, ReportTable


class Options(BaseModel):
    """Base of a method's options: frozen, and nothing unknown is accepted."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)


#: A method's options class. Covariant, so that every method is a `Method`: core never writes into its options.
OptionsT = TypeVar("OptionsT", bound=Options, default=Options, covariant=True)


class Method(nn.Module, Generic[OptionsT]):
    """Base of everything a plugin offers: losses, samplers, augmentations, calibrations, backbones, data sets.

    One instance is made for a recipe entry and a run, and implements hooks with methods marked ``@ltcore.hookimpl``.
    Its own modules and buffers are saved, moved and restored with the model. They are created in ``__init__``, or in
    the hook ``on_run_start`` where their shape depends on the data.

    A subclass names its options class in brackets: ``class Focal(Method[FocalOptions])``. Then ``self.options`` is a
    `FocalOptions`, for type checkers too, and ``Focal.Options`` is that class. ``Method`` alone has no options. The
    subclass sets `interface` to the version of the hooks that it was written for. It may set any of `requires`,
    `provides`, `breaks`, `auxiliary`, `frozen`, `tap`, `balances` and `acts_from`, as class attributes or as
    properties that read the options.

    Attributes:
        Options: the options' class. Set by core from the brackets; a class may set it itself, which comes first.
        options: the options of this instance.
        checked_with: options for ``ltcore check``, where the defaults do not suit its short stage. The stage has two
            epochs, on some dozens of images of 8 x 8 pixels in 4 classes.
        order_matters: whether what a row becomes depends on its place in the batch, beside what is drawn for it.
    """

    Options: ClassVar[type[Options]] = Options

    #: Options that ``ltcore check`` takes where the defaults do not suit a stage of two epochs on some dozens of images
    #: of 8 x 8 pixels in 4 classes.
    checked_with: ClassVar[Mapping[str, Any]] = {}

    #: ``MAJOR.MINOR``, see `ltcore.contract.interface`. A class that does not say was written for the first version.
    interface: ClassVar[str] = "1.0"

    #: Whether what a row becomes depends on its place in the batch, beside what is drawn for it. ``ltcore check`` sees
    #: that it does not, unless the method says so here, or brings a sampler or rows of its own.
    order_matters: ClassVar[bool] = False

    @property
    def requires(self) -> AbstractSet[str]:
        """What must be provided for the method to work: words of `ltcore.plan.checks.NEEDS`, or of other plugins."""
        return frozenset()

    @property
    def provides(self) -> AbstractSet[str]:
        """Words that other methods of the same stage may require."""
        return frozenset()

    @property
    def breaks(self) -> AbstractSet[str]:
        """Words that no longer hold in a stage with this method (mixup breaks ``hard_labels``)."""
        return frozenset()

    @property
    def auxiliary(self) -> tuple[str, ...]:
        """Names of the terms that `auxiliary_losses` returns."""
        return ()

    @property
    def frozen(self) -> tuple[str, ...]:
        """Names of its own parameters, or globs over them, that no stage trains: an encoder that follows another.

        ``trainable`` of a stage that names the method leaves them out.
        """
        return ()

    @property
    def tap(self) -> str:
        """Where `augment_features` acts: ``maps`` (before the global pool), ``pooled`` or an inner tap."""
        return "pooled"

    @property
    def balances(self) -> bool | None:
        """Whether the classifier that it makes gives outputs for classes which are all as frequent.

        ``ltcore evaluate --prior`` goes by it. None leaves it to what core sees: yes for a calibration, and for a
        method with a hook that changes how often or how much classes count.
        """
        return None

    @property
    def acts_from(self) -> int:
        """The epoch of a stage, counted from 0, from which on the method acts; a stage that ends before is refused.

        It is the option ``start_epoch`` where the method has one, else 0.
        """
        start = getattr(self.options, "start_epoch", 0)
        return start if isinstance(start, int) else 0

    def __init_subclass__(cls, **keywords: Any) -> None:
        """Read ``Options`` from the brackets of a base, where the class does not set it.

        Raises:
            TypeError: the brackets hold anything but a class of options, or a type variable for one.
        """
        super().__init_subclass__(**keywords)
        if cls.Options is not getattr(super(cls, cls), "Options", None):  # it sets them itself
            return
        for base in get_original_bases(cls):
            if not (isinstance(origin := get_origin(base), type) and issubclass(origin, Method)):
                continue
            for given in get_args(base):
                if isinstance(given, type) and issubclass(given, Options):
                    cls.Options = given
                elif origin is Method and not isinstance(given, TypeVar):  # with one, a subclass says which options
                    raise TypeError(
                        f"{cls.__name__}: Method[...] takes a class that derives from ltcore.Options and is defined "
                        f"above it, not {given!r}"
                    )

    def __init__(self, options: OptionsT | None = None) -> None:
        """Keep the options; a subclass with its own ``__init__`` calls this first.

        Args:
            options: an instance of the class's ``Options``; None for its defaults.
        """
        super().__init__()
        self.options: OptionsT = cast(OptionsT, self.Options()) if options is None else options

    def facts(self) -> DataFacts | None:
        """What a data set is known to hold without its files, for ``ltcore rehearse``; None where nothing is.

        Only methods that build data answer it.
        """
        return None

    def logged(self) -> Mapping[str, Tensor]:
        """What a reader of the run should see of each epoch; core writes it into ``metrics.jsonl``, under ``methods``.

        Core asks once per epoch, after its last step and before ``on_epoch_end``, each method that the stage names. So
        the values are those that held during the epoch. Nothing is trained on them.

        Returns:
            Names and values: a number [] or a value per class [C]. What is not finite is written as null.
        """
        return {}

    def reported(self, classes: Sequence[int], context: Context) -> Sequence[ReportScatter | ReportTable]:
        """What ``ltcore report --analysis`` should draw of the method, beside what it draws of every run.

        Core asks each method once, when the last stage that names it has been opened again as it ended. The method's
        modules and buffers and `Context.model` are as that stage left them, in eval mode and without gradients. The
        context answers questions about training images. What is not in modules or buffers is as after ``__init__`` and
        ``on_run_start``. Nothing is trained, and no test data is there.

        Args:
            classes: the labels that the reader has chosen, or some that core has, the most frequent first.
            context: as in a hook; `Context.generator` draws the same numbers in every report.

        Returns:
            What to draw; nothing, by default.
        """
        return ()

    def check_stage(self, stage: Stage) -> None:
        """Refuse settings of a stage that the method cannot work with; called before any data is read.

        Raises:
            RecipeError: with a message that says what to change; where and whose is added to it.
        """

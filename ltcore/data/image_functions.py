"""Image functions of methods (hook ``image_transform``), in whatever process they run.

The functions of an epoch are pickled once, in the training process, and opened where images are prepared. This is in
worker processes, or in the training process itself, so that a method's function cannot tell the two apart. Each image
has a seed, and each method's function a generator seeded by that and the method's name. What one method draws changes
nothing for another.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ltcore.contract.context import Context
from ltcore.contract.images import ForExtraRows, ImageFunction
from ltcore.contract.method import Method
from ltcore.errors import LtcoreError, PluginError, RunError
from ltcore.seeding import derive_seed

_WRITE = (
    "return a function at module level, a functools.partial of one, or an instance of a small class at module level"
)


@dataclass(frozen=True)
class ImageFunctions:
    """The functions of an epoch, K of them, packed for a journey.

    Attributes:
        pickled: what `OpenedFunctions` is made from.
        keys: by their methods' names in the recipe, in its order.
        for_extra_rows: which act on their method's extra rows alone.
    """

    pickled: bytes
    keys: tuple[str, ...]
    for_extra_rows: tuple[bool, ...]

    @classmethod
    def pack(cls, answers: Mapping[str, Any], whose: Mapping[str, str]) -> ImageFunctions | None:
        """Pack what methods have answered, by their names in the recipe, in its order; None where nobody has.

        Args:
            answers: functions, or `ForExtraRows`.
            whose: how messages begin that are about a method's function; nothing for those that are not named.

        Raises:
            PluginError: an answer is no function, or cannot be sent to another process; the message begins with whose.
        """
        parts = [
            _Function(key, begin, _packed(answer.function if isinstance(answer, ForExtraRows) else answer, begin))
            for key, answer in answers.items()
            for begin in [whose.get(key, "")]
        ]
        if not parts:
            return None
        return cls(pickle.dumps(parts), tuple(answers), tuple(isinstance(a, ForExtraRows) for a in answers.values()))

    def rows(self, ordinary: int, extra: Mapping[str, int] | None = None) -> Tensor | None:
        """Which functions act on which rows of a batch, [B, K] bool; None where all act on all.

        Args:
            ordinary: number of rows that stand first and are trained on.
            extra: behind them, block by block, the number of extra rows of methods, by their names in the recipe.
        """
        if not any(self.for_extra_rows):
            return None
        # A function that is not for extra rows alone acts on those of every method, too: they are training images.
        own = torch.tensor(self.for_extra_rows)
        blocks = [(~own).expand(ordinary, -1)]
        for key, size in (extra or {}).items():
            mine = torch.tensor([each == key for each in self.keys])
            blocks.append((~own | mine).expand(size, -1))
        return torch.cat(blocks)


class ImageChanges(NamedTuple):
    """What is done to the images of some batches.

    Attributes:
        functions: those of the epoch.
        rows: for each batch, which of them act on which row [B, K] bool; None where all act on all.
    """

    functions: ImageFunctions
    rows: Iterable[Tensor | None]


class OpenedFunctions:
    """The functions of an epoch, opened in the process that calls them.

    Args:
        pickled: see `ImageFunctions.pickled`.
    """

    def __init__(self, pickled: bytes) -> None:
        parts: list[_Function] = pickle.loads(pickled)  # made by `ImageFunctions.pack`, in this very run
        self._functions: list[tuple[str, str, ImageFunction]] = [
            (part.key, part.begin, pickle.loads(part.pickled)) for part in parts
        ]
        self._generator = torch.Generator()

    def __call__(self, image: Tensor, target: int, seed: int, chosen: Sequence[bool] | None = None) -> Tensor:
        """The image after all functions, or after those that act on its row.

        Args:
            image: [C, H, W] uint8, on the CPU; it is not changed.
            target: its label.
            seed: of the image, in this visit.
            chosen: [K], which of the functions act; None for all of them.

        Returns:
            [C, H, W] uint8; `image` itself where none acts.

        Raises:
            PluginError: a function gave something that is no such image.
            RunError: a function failed.
        """
        whole = image
        for place, (key, begin, function) in enumerate(self._functions):
            if chosen is not None and not chosen[place]:
                continue
            if image is whole:
                image = whole.clone()  # a function may write into what it is given
            self._generator.manual_seed(derive_seed(seed, key))
            with _named(begin):
                changed = function(image, target, self._generator)
            if (
                not isinstance(changed, Tensor)
                or changed.shape != whole.shape
                or changed.dtype != torch.uint8
                or changed.device.type != "cpu"
            ):
                raise PluginError(
                    f"{begin}its function of image_transform gave {_described(changed)} for an image "
                    f"{list(whole.shape)} of torch.uint8; it must keep shape and type; tell its author"
                )
            image = changed
        return image


class _Function(NamedTuple):
    key: str
    begin: str
    pickled: bytes


@contextmanager
def _named(begin: str) -> Iterator[None]:
    try:
        yield
    except LtcoreError as error:
        error.within(begin)
        raise
    except Exception as error:
        raise RunError(
            f"{begin}its function of image_transform failed: {type(error).__name__}: {error}. Run with --debug and "
            "--set data.workers=0 for the traceback"
        ) from error


def _described(value: Any) -> str:
    if not isinstance(value, Tensor):
        return f"a {type(value).__name__}"
    where = "" if value.device.type == "cpu" else f" on {value.device.type}"
    return f"a tensor {list(value.shape)} of {value.dtype}{where}"


class _Pickler(pickle.Pickler):
    """Refuses what must not travel: the method itself, the run's state, and tensors that are not on the CPU."""

    def reducer_override(self, value: Any) -> Any:
        if isinstance(value, Method | Context):
            what = "the method itself (self)" if isinstance(value, Method) else "the context"
            raise PluginError(f"it holds {what}, and should hold plain values, such as `self.levels.tolist()`")
        if isinstance(value, Tensor) and value.device.type != "cpu":
            raise PluginError(f"it holds a tensor on {value.device.type}; take its `.tolist()` or `.cpu()`")
        return NotImplemented


def _packed(function: Any, begin: str) -> bytes:
    if not callable(function):
        raise PluginError(
            f"{begin}image_transform returned a {type(function).__name__}, which is no function; {_WRITE}"
        )
    stream = io.BytesIO()
    try:
        _Pickler(stream).dump(function)
        pickle.loads(stream.getvalue())
    except Exception as error:  # pickling calls code of whatever is in the function
        reason = str(error) if isinstance(error, PluginError) else f"{type(error).__name__}: {error}"
        raise PluginError(
            f"{begin}image_transform returned what cannot be sent to the processes that decode images: {reason}. "
            f"{_WRITE[0].upper()}{_WRITE[1:]}; tell its author"
        ) from error
    return stream.getvalue()

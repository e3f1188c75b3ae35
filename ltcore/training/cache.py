"""A stage's cache: what its frozen part gives for the training images, computed once.

It lies in memory, or where that is scarce in a file that is mapped into it. Both hold the same bits, so where it lies
may depend on the machine. A file is written batch by batch, and is never whole in memory.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ltcore import ranks
from ltcore.contract.experts import by_image, of_images
from ltcore.contract.model import Model, evaluating
from ltcore.data.partial import PartialLoader, augmented_pass, completed, free_memory
from ltcore.errors import RunError, fault
from ltcore.evaluation.memory import give_back
from ltcore.files import mapped
from ltcore.seeding import generator_for

if TYPE_CHECKING:
    from ltcore.contract.backbone import Backbone
    from ltcore.data.image_functions import ImageChanges
    from ltcore.data.loader import Loader
    from ltcore.training.cache_files import CacheFiles

#: Features take at most this share of the memory that is free on the device; else they lie in a file.
SHARE = 0.25
_NARROW = {"fp16": torch.float16, "bf16": torch.bfloat16}
_LAST = torch.channels_last


class FeatureCache:
    """Training features of a frozen backbone, at ``maps`` or ``pooled``.

    With ``eval``, the images as they are; with ``views:V``, V augmented views of each, of which one is drawn at every
    visit. A resumed stage computes them again, to the same bits, or finds them in a file.

    Args:
        model: the model; its backbone is frozen.
        loader: the training images.
        tap: ``maps`` or ``pooled``.
        views: V; None for ``eval``.
        batch_size: images at a time.
        seed: parts of the seed that the views are drawn with.
        precision: what features are kept in: ``fp32`` (as the backbone gives them), ``fp16`` or ``bf16``.
        files: where they lie that are too many for memory, or that others want too; None for memory.
        key: says what the features depend on; asked only where there are `files` and one is needed.

    Raises:
        RunError: there is no room for them, a file cannot be written or read, or a feature is beyond fp16.
    """

    def __init__(
        self,
        model: Model,
        loader: Loader,
        tap: str,
        views: int | None,
        batch_size: int,
        seed: tuple[int | str, ...],
        precision: str = "fp32",
        files: CacheFiles | None = None,
        key: Callable[[], str] = str,
    ) -> None:
        self.tap, self.device, self.generator_device = tap, loader.device, loader.device
        #: What the user is told of where the features lie.
        self.notes: list[str] = []
        self._model, self._loader, self._batch_size, self._seed = model, loader, batch_size, seed
        self._views, self._images, self._dtype = views or 1, len(loader), _NARROW.get(precision)
        self._drawn = views is not None
        #: Whether maps lie as [H, W, D], as the backbone has given them.
        self._last = False
        #: [V * N, ...], on the device or mapped; where the rehearsal of a file has fewer, it begins again.
        self._rows = self._filled(files, key)
        del self._model, self._loader  # what only they hold may go
        #: Where views are drawn, while rows are mapped into the host's memory; None where they are on the device.
        self._stream: torch.cuda.Stream | None = None
        if self._rows.device.type != self.device.type:
            self._stream = torch.cuda.Stream(self.device)  # type: ignore[no-untyped-call]

    # -- where they come from --------------------------------------------------------------------------------------

    def _passes(self) -> Iterator[Tensor]:
        """View by view and batch by batch [B, ...], [B, E, ...] of experts; the same in all processes."""
        give_back()
        with evaluating(self._model):
            if not self._drawn:
                yield from self._plain()
                return
            for view in range(self._views):
                generator = generator_for(self._loader.generator_device, *self._seed, "view", view)
                batches = torch.split(torch.arange(self._images), self._batch_size)
                images = augmented_pass(self._loader, batches, itertools.repeat(generator))
                backbone = self._model.backbone
                found = (by_image(self._maps_or_pooled(backbone, x), backbone.experts) for x in images)
                yield from self._whole(ranks.joined(part, len(b)) for part, b in zip(found, batches, strict=False))

    def _plain(self) -> Iterator[Tensor]:
        """Of several processes each computes one of as many batches, and then all of them have these."""
        starts = range(0, self._images, self._batch_size)
        sizes = [min(self._batch_size, self._images - start) for start in starts]
        backbone, batches = self._model.backbone, self._loader.eval_batches(self._batch_size)
        if isinstance(self._loader, PartialLoader):
            yield from self._whole(self._at_tap(backbone, images) for images in batches)
            return
        for first in range(0, len(sizes), ranks.size()):
            turn = sizes[first : first + ranks.size()]
            own = [self._at_tap(backbone, next(batches))] if ranks.rank() < len(turn) else []
            yield own[0] if ranks.size() == 1 else ranks.shares_of(turn, own)

    def _at_tap(self, backbone: Backbone, images: Tensor) -> Tensor:
        return of_images(self._maps_or_pooled(backbone, images), len(images), backbone)

    def _maps_or_pooled(self, backbone: Backbone, images: Tensor) -> Tensor:
        maps = backbone.forward_maps(images)
        return maps if self.tap == "maps" else backbone.pool(maps)

    def _whole(self, parts: Iterator[Tensor]) -> Iterator[Tensor]:
        """One view. In a rehearsal, its few batches as one part: as many rows as there would be, where they fit."""
        if not isinstance(self._loader, PartialLoader):
            yield from parts
            return
        few = torch.cat(list(parts))
        yield completed(few, self._loader) if self._bytes(few) <= self._room() else few

    def _laid(self) -> Iterator[Tensor]:
        """The same as they are to lie.

        Raises:
            RunError: a feature is beyond the numbers of fp16.
        """
        for number, part in enumerate(self._passes()):
            if not number:
                self._last = part.dim() == 4 and part.is_contiguous(memory_format=_LAST) and not part.is_contiguous()
            found = part.permute(0, 2, 3, 1) if self._last else part
            narrow = found if self._dtype is None else found.to(self._dtype)
            if self._dtype is torch.float16 and bool(narrow.isinf().any()):
                raise RunError(
                    f"cache_precision fp16 holds numbers up to 65504, and a feature is {float(part.abs().max()):.3g}; "
                    "use bf16 or fp32"
                )
            yield narrow

    # -- where they lie --------------------------------------------------------------------------------------------

    def _in_memory(self, batches: Iterator[Tensor]) -> Tensor:
        first = next(batches)
        a_view = len(first) if isinstance(self._loader, PartialLoader) else self._images
        rows, start = first.new_empty((self._views * a_view, *first.shape[1:])), 0
        for part in itertools.chain((first,), batches):
            rows[start : start + len(part)] = part
            start += len(part)
        return rows

    def _filled(self, files: CacheFiles | None, key: Callable[[], str]) -> Tensor:
        """The rows: out of a file that is there, or computed into one, or into memory."""
        if files is None or isinstance(self._loader, PartialLoader):
            return self._in_memory(self._laid())
        if files.wanted:
            with files.locked(name := key()) as path:
                if (found := self._found(path, name)) is not None:
                    return found
                if files.shared:
                    return self._written(path, name, self._laid())
        batches = self._laid()
        first = next(batches)
        batches = itertools.chain((first,), batches)
        if ranks.told(self._bytes(first) <= self._room()):
            return self._in_memory(batches)
        with files.locked(name := key()) as path:
            return self._written(path, name, batches)

    def _found(self, path: Path, name: str) -> Tensor | None:
        """What lies in a file already, if it is sound."""
        there = True
        if ranks.leading():
            try:
                self._open(path, name)
            except FileNotFoundError:
                there = False
            except mapped.Damaged as error:
                there = False
                self.notes.append(f"{path} is damaged ({error}); it is computed again")
        if not ranks.told(there):
            return None
        self.notes.append(f"the features of the frozen part were found in {path}")
        return self._seen(path, name)

    def _written(self, path: Path, name: str, batches: Iterator[Tensor]) -> Tensor:
        first = next(batches)
        batches, size = itertools.chain((first,), batches), self._bytes(first)
        if ranks.leading():
            mapped.refuse_too_large(path, size)
            with mapped.written(path, first.dtype) as file:
                for part in batches:
                    file.add(part)
                file.end(name, {"channels_last": self._last})
        else:
            for _ in batches:
                pass
        ranks.told(None)
        self.notes.append(f"the features of the frozen part lie in {path}, {size / 1e6:.1f} MB")
        return self._seen(path, name)

    def _open(self, path: Path, name: str, whole: bool = False) -> Tensor:
        try:
            rows, notes = mapped.opened(path, name, self._views * self._images, whole)
        except FileNotFoundError:
            raise
        except OSError as error:
            raise RunError(f"{path} cannot be read: {fault(error)}") from error
        self._last = notes["channels_last"]
        return rows

    def _seen(self, path: Path, name: str) -> Tensor:
        """A file that the first process has found sound, or has written, by all of them."""
        rows = None
        try:
            rows = self._open(path, name, whole=True)
        except (FileNotFoundError, mapped.Damaged):
            pass
        if ranks.any_of(rows is None) or rows is None:
            raise RunError(
                f"{path}, with the features of the frozen part, was removed or is not seen by every process; the run's "
                "directory must stay, and lie on a drive that all machines share"
            )
        fits = rows.numel() * rows.element_size() <= self._room()
        return rows.to(self.device) if self.device.type == "cuda" and fits else rows

    def _room(self) -> float:
        free = torch.cuda.mem_get_info(self.device)[0] if self.device.type == "cuda" else free_memory()
        return free * SHARE

    def _bytes(self, part: Tensor) -> int:
        """What all rows take, of which these are some."""
        number = part.element_size() if self._dtype is None else self._dtype.itemsize
        return self._views * self._images * prod(part.shape[1:]) * number

    # -- what is asked of them -------------------------------------------------------------------------------------

    def train_batch(self, indices: Tensor, generator: torch.Generator) -> Tensor:
        """Features of the images at `indices` [B], each in a view drawn at random, [B, ...]; [B, E, ...] of experts."""
        places = self._places(indices, generator)
        rows = self._rows.index_select(0, places) if self._stream is None else self._gathered(places)
        rows = rows if self._dtype is None else rows.float()
        return rows.permute(0, 3, 1, 2) if self._last else rows

    def _places(self, indices: Tensor, generator: torch.Generator) -> Tensor:
        """Which rows; on the CPU where they are mapped into a GPU's host. Only a stream of its own is waited for."""
        if self._stream is None:
            indices = indices.to(self.device, non_blocking=True)
            views = torch.randint(self._views, indices.shape, generator=generator, device=self.device)
            places = views * self._images + indices
        else:
            with torch.cuda.stream(self._stream):
                views = torch.randint(self._views, indices.shape, generator=generator, device=self.device)
                here = torch.empty(views.shape, dtype=views.dtype, pin_memory=True).copy_(views, non_blocking=True)
                done = self._stream.record_event()
            done.synchronize()
            places = here * self._images + indices
        return places if len(self._rows) == self._views * self._images else places % len(self._rows)

    def _gathered(self, places: Tensor) -> Tensor:
        """Rows out of the mapped file, through page-locked memory, while the device works on."""
        shape = (len(places), *self._rows.shape[1:])
        here = torch.empty(shape, dtype=self._rows.dtype, pin_memory=True)
        torch.index_select(self._rows, 0, places, out=here)
        return here.to(self.device, non_blocking=True)

    def train_batches(
        self,
        indices: Iterable[Tensor],
        generators: Iterable[torch.Generator],
        changes: ImageChanges | None = None,
    ) -> Iterator[Tensor]:
        """Features batch by batch, see `train_batch`; each is made when it is asked for. The plan refuses `changes`."""
        return map(self.train_batch, indices, generators)

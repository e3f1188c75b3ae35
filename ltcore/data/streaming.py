"""Batches of images that are decoded when they are needed, by worker processes that run ahead of the training.

A worker returns uint8; the device normalises. For each image the training process draws a seed, in the order of the
batches, and sends it along with the image's index. What a worker draws depends on nothing else. So the batches are the
same with any number of workers, and after a resume. What methods do to the images (`ltcore.data.image_functions`)
travels with each request, too: workers live as long as the run, and know nothing of its epochs.
"""

from __future__ import annotations

import math
import os
import signal
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice, repeat
from multiprocessing import parent_process
from multiprocessing.util import get_temp_dir
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, get_worker_info

from ltcore import ranks
from ltcore.contract.splits import ArraySplit, StreamedSplit
from ltcore.data.image_functions import ImageChanges, ImageFunctions, OpenedFunctions
from ltcore.data.loader import InMemoryLoader, Loader, Normalizer
from ltcore.data.pixels import check_range
from ltcore.data.transforms import ImageTransform
from ltcore.errors import DataError, LtcoreError, RunError

#: More workers than this rarely help, and each holds a Python process.
_MOST_WORKERS = 8
_SCANNED_AT_ONCE = 64
_PICKED_AT_ONCE = 32
_LONGEST_TEMPORARY = 85  # a socket's path has 104 bytes at the least, of which its own name takes 18


class Request(NamedTuple):
    """One batch to decode.

    Attributes:
        indices: of the images, [B].
        seeds: of the images, [B]; None where nothing is drawn, which is for evaluation.
        functions: what methods do to the images, packed; None for nothing.
        chosen: [B, K] bool, which of the functions act on which image; None where all act on all.
        evaluated: whether images with a seed are prepared as evaluation does; the seeds are then the functions'.
        crops: whether each image's test crops are wanted, without a seed.
    """

    indices: NDArray[np.int64]
    seeds: NDArray[np.int64] | None
    functions: bytes | None = None
    chosen: NDArray[np.bool_] | None = None
    evaluated: bool = False
    crops: bool = False


@dataclass(frozen=True)
class Broken:
    """An image that cannot be decoded: where it stands in its split, its name, and why."""

    index: int
    name: str
    reason: str

    @property
    def said(self) -> str:
        """Name and reason, as messages say them."""
        return f"{self.name} ({self.reason})"


@dataclass(frozen=True)
class Failed:
    """What a method's function has raised, for the training process to raise."""

    kind: type[LtcoreError]
    lines: tuple[str, ...]

    def raised(self) -> LtcoreError:
        """The error; a plugin's own class, which may need other arguments, becomes core's."""
        kind = self.kind if self.kind.__module__ == LtcoreError.__module__ else RunError
        return kind(*self.lines)


class Decoder(Dataset[Any]):
    """What runs in a worker: from a request to uint8 pixels.

    Args:
        split: the images.
        transform: how they are prepared.
    """

    def __init__(self, split: StreamedSplit, transform: ImageTransform) -> None:
        self.split, self.transform = split, transform
        #: The functions of the last request that had any, packed and opened.
        self._functions: tuple[bytes, OpenedFunctions] | None = None

    def __getitems__(self, request: Request) -> Tensor | Broken | Failed:
        """Images [B, H, W, C] uint8; instead, where there is one, the first that cannot be decoded or transformed.

        Of V crops [V * B, H, W, C], the first crop of all images first.
        """
        images, count = self._room(request), len(request.indices)
        pixels = images.numpy()
        functions = None if request.functions is None else self._opened(request.functions)
        state = torch.get_rng_state()
        try:
            for row, index in enumerate(request.indices.tolist()):
                seed = None if request.seeds is None else int(request.seeds[row])
                if broken := self._decode(index, seed, pixels[row::count], request.evaluated, request.crops):
                    return broken
                if functions is not None:
                    # Behind core's own draws for this image, which are what they would be without functions.
                    drawn = int(torch.randint(2**62, ()))
                    chosen = None if request.chosen is None else request.chosen[row].tolist()
                    image = images[row].permute(2, 0, 1)
                    image.copy_(functions(image, int(self.split.targets[index]), drawn, chosen))
        except LtcoreError as error:
            if get_worker_info() is None:
                raise
            return Failed(type(error), tuple(error.lines))
        finally:
            torch.set_rng_state(state)  # without workers, this is the training process
        return images

    def _opened(self, packed: bytes) -> OpenedFunctions:
        if self._functions is None or self._functions[0] != packed:
            self._functions = packed, OpenedFunctions(packed)
        return self._functions[1]

    def _room(self, request: Request) -> Tensor:
        size, channels = self.transform.image_size, len(self.transform.mode)
        return _empty((len(request.indices) * (self.transform.crops if request.crops else 1), size, size, channels))

    def _decode(
        self, index: int, seed: int | None, pixels: NDArray[np.uint8], evaluated: bool = False, crops: bool = False
    ) -> Broken | None:
        """Write an image, or its crops, into `pixels` [V, H, W, C]."""
        try:
            with self.split.open(index) as image:
                if seed is not None:
                    torch.default_generator.manual_seed(seed)  # not torch.manual_seed, which seeds GPUs, too
                if crops:
                    found = self.transform.evaluate_crops(image)
                else:
                    prepared = self.transform.evaluate if seed is None or evaluated else self.transform.train
                    found = [prepared(image)]
            for view, place in zip(found, pixels, strict=True):
                place[:] = np.asarray(view).reshape(place.shape)
        except Exception as error:  # a damaged file makes Pillow raise almost anything
            return Broken(index, self.split.name(index), _reason(error))
        return None


class _Picker(Decoder):
    """Leaves out what cannot be decoded."""

    def __getitems__(self, request: Request) -> Any:
        """Images [B', H, W, C] uint8 as evaluation sees them (of crops [V * B', H, W, C]), and the request's others."""
        images, read, broken = self._room(request), 0, []
        pixels, count = images.numpy(), len(request.indices)
        for index in request.indices.tolist():
            if found := self._decode(index, None, pixels[read::count], crops=request.crops):
                broken.append(found)
            else:
                read += 1
        rows = images.view(-1, count, *images.shape[1:])
        return (rows[:, :read].flatten(0, 1) if read < count else images), broken


def _empty(shape: tuple[int, ...]) -> Tensor:
    """Uninitialised uint8; in a worker, in the memory that it shares, as torch's own collate does to save a copy."""
    if get_worker_info() is None:
        return torch.empty(shape, dtype=torch.uint8)
    shared = torch.UntypedStorage._new_shared(math.prod(shape))  # type: ignore[no-untyped-call]
    return torch.empty(0, dtype=torch.uint8).set_(shared).view(shape)


class StreamingLoader:
    """Images of a split that are decoded when they are needed.

    Args:
        split: the images.
        transform: how they are prepared.
        mean: per channel, on the scale 0..1.
        std: per channel, on the scale 0..1.
        workers: processes that decode; 0 for none but this one.
        device: where batches are normalised.
        training: whether training images will be asked for; if not, what only they need is not imported.
    """

    #: Seeds are drawn where workers are fed from.
    generator_device = torch.device("cpu")

    def __init__(
        self,
        split: StreamedSplit,
        transform: ImageTransform,
        mean: Sequence[float],
        std: Sequence[float],
        workers: int = 0,
        device: torch.device | str = "cpu",
        training: bool = True,
    ) -> None:
        self.device, self.workers = torch.device(device), workers
        transform.load(training)
        self._decoder = Decoder(split, transform)
        self._normalise = Normalizer(mean, std, transform.image_size, self.device, one_thread=True)
        self._feed = _Feed()
        self._training: DataLoader[Any] | None = None
        self._picking: DataLoader[Any] | None = None
        self._picked = _Feed()

    def __len__(self) -> int:
        """Number of images."""
        return len(self._decoder.split)

    def train_batches(
        self,
        indices: Iterable[Tensor],
        generators: Iterable[torch.Generator],
        changes: ImageChanges | None = None,
    ) -> Iterator[Tensor]:
        """Training images, augmented, batch by batch.

        Args:
            indices: for each batch [B] int64, on the CPU.
            generators: for each batch one on the CPU; all the randomness there is. Both are read some batches ahead.
            changes: what methods do to the images, once they are augmented; None for nothing.

        Yields:
            [B, C, H, W] float32, normalised, channels-last; of several processes, this one's part.

        Raises:
            DataError: an image cannot be decoded.
            PluginError: a method's function gave no image.
            RunError: a worker died, or a method's function failed.
        """
        functions, rows = (None, repeat(None)) if changes is None else (changes.functions.pickled, changes.rows)
        self._feed.requests = (
            Request(
                index[own].numpy(),
                torch.randint(2**62, index.shape, generator=generator)[own].numpy(),
                functions,
                None if chosen is None else chosen[own].numpy(),
            )
            for index, generator, chosen in zip(indices, generators, rows, strict=False)
            for own in [ranks.part(len(index))]
        )
        if self.workers and self._training is None:
            self._training = self._loader(persistent=True)  # its workers stay for the epochs to come
        with naming_dead_workers():
            yield from self._decoded(self._feed.requests, self._training)

    def eval_batches(self, batch_size: int, crops: bool = False) -> Iterator[Tensor]:
        """All images in order, as evaluation sees them: [B, C, H, W] float32, normalised, channels-last.

        With `crops` [V * B, C, H, W], see `Loader.eval_batches`.

        Raises:
            DataError: an image cannot be decoded.
            RunError: a worker died.
        """
        own = islice(_chunks(len(self), batch_size), ranks.rank(), None, ranks.size())
        requests = (Request(index, None, crops=crops) for index in own)
        loader = None
        if self.workers and len(self) > batch_size:
            # Of its own, and for this once: a method may ask for features in the middle of an epoch.
            loader = self._loader(persistent=False, requests=requests)
        with naming_dead_workers():
            yield from self._decoded(requests, loader)

    def readable_batches(self, batch_size: int) -> Iterator[tuple[Tensor, list[Broken]]]:
        """As `eval_batches`, without the images that cannot be decoded, which come along by name.

        Yields:
            [B', C, H, W] float32, normalised, channels-last ([V * B', C, H, W] where the transform has several crops);
            and what of the batch is broken. B' may be 0.

        Raises:
            RunError: a worker died.
        """
        picker, several = _Picker(self._decoder.split, self._decoder.transform), self._decoder.transform.crops > 1
        requests = (Request(index, None, crops=several) for index in _chunks(len(self), batch_size))
        if self.workers and len(self) > batch_size:
            loader = _worker_loader(picker, _Feed(requests), self.workers, persistent=False, device=self.device.type)
            found: Iterator[Any] = iter(loader)
        else:
            found = map(picker.__getitems__, requests)
        with naming_dead_workers():
            for images, broken in found:
                yield self._on_device(images), broken

    def eval_batch(self, start: int, stop: int, crops: bool = False) -> Tensor:
        """The images from `start` up to `stop` alone, decoded in this process; as `eval_batches`."""
        request = Request(np.arange(start, min(stop, len(self))), None, crops=crops)
        return next(self._decoded(iter([request]), None))

    def pick(
        self,
        indices: Tensor,
        generator: torch.Generator | None = None,
        functions: ImageFunctions | None = None,
        augmented: bool = False,
    ) -> Tensor:
        """See `Loader.pick`; a few images are decoded in this process, more by workers that stay for the next time."""
        drawn = generator if augmented or functions is not None else None
        seeds = None if drawn is None else torch.randint(2**62, indices.shape, generator=drawn)
        packed = None if functions is None else functions.pickled
        requests = [
            Request(
                part.numpy(),
                None if seeds is None else seeds[_PICKED_AT_ONCE * number :][: len(part)].numpy(),
                packed,
                evaluated=not augmented,
            )
            for number, part in enumerate(torch.split(indices, _PICKED_AT_ONCE))
        ]
        if not self.workers or len(requests) < 3:
            return torch.cat(list(self._decoded(iter(requests), None)))
        if self._picking is None:  # not those of the training, in the middle of whose epoch a method may ask
            self._picking = _worker_loader(self._decoder, self._picked, self.workers, True, self.device.type)
        self._picked.requests = iter(requests)
        with naming_dead_workers():
            return torch.cat(list(self._decoded(self._picked.requests, self._picking)))

    def end_workers(self) -> None:
        """See `Loader.end_workers`.

        Otherwise they would end when the garbage collector finds this loader in some cycle. By then their pipes may be
        closed, so that none of them hears of its end, and PyTorch waits five seconds for each.
        """
        self._training = self._picking = None

    def _loader(self, persistent: bool, requests: Iterator[Request] | None = None) -> DataLoader[Any]:
        return _worker_loader(
            self._decoder, self._feed if persistent else _Feed(requests), self.workers, persistent, self.device.type
        )

    def _decoded(self, requests: Iterator[Request], loader: DataLoader[Any] | None) -> Iterator[Tensor]:
        found = map(self._decoder.__getitems__, requests) if loader is None else iter(loader)
        for images in found:
            if isinstance(images, Failed):
                raise images.raised()
            if isinstance(images, Broken):
                raise DataError(
                    f"{images.name} cannot be decoded ({images.reason}); replace it, or take it out of the data set, "
                    "or say 'broken: skip' under data to leave such images out"
                )
            yield self._on_device(images)

    def _on_device(self, images: Tensor) -> Tensor:
        return self._normalise(images.to(self.device, non_blocking=True).permute(0, 3, 1, 2))


@dataclass(frozen=True)
class ArrayImages:
    """Images in memory as a `StreamedSplit`, for transforms that work on one image at a time."""

    split: ArraySplit

    @property
    def targets(self) -> Tensor:
        """[N] int64 labels."""
        return self.split.targets

    def __len__(self) -> int:
        """Number of images."""
        return len(self.split)

    def subset(self, index: Tensor) -> ArrayImages:
        """The images at `index` [M] int64."""
        return ArrayImages(self.split.subset(index))

    def open(self, index: int) -> Any:
        """The image at `index`, of one or three channels."""
        from PIL import Image

        pixels = self.split.images[index]
        return Image.fromarray(pixels[0].numpy() if len(pixels) == 1 else pixels.permute(1, 2, 0).contiguous().numpy())

    def name(self, index: int) -> str:
        """The image's place in its split."""
        return f"image {index}"


def build_loader(
    split: ArraySplit | StreamedSplit,
    transform: ImageTransform,
    mean: Sequence[float],
    std: Sequence[float],
    workers: int,
    device: torch.device,
    training: bool = True,
) -> Loader:
    """The loader that suits a split: images in memory whose transform works on whole batches are never streamed.

    The arguments are `StreamingLoader`'s.
    """
    if isinstance(split, ArraySplit):
        if transform.whole_batches and split.images.shape[-1] == transform.image_size:
            cropped = None
            if transform.crops > 1:
                cropped = StreamingLoader(ArrayImages(split), transform, mean, std, workers, device, training=False)
            return InMemoryLoader(split, mean, std, transform.crop_padding, transform.flip, device, cropped)
        split = ArrayImages(split)
    return StreamingLoader(split, transform, mean, std, workers, device, training)


def find_broken(split: StreamedSplit, workers: int, window: Sequence[float] | None = None) -> list[Broken]:
    """Decode every image once and say which cannot be, in the split's order.

    JPEGs are decoded at an eighth of their size, which reads the whole file. The cost is that of reading and decoding
    the split once: about half an epoch's.

    Args:
        split: the images.
        workers: processes that decode.
        window: see `ltcore.data.pixels.converted`.

    Raises:
        RunError: a worker died.
    """
    scanner = _Scanner(split, window)
    chunks = _chunks(len(split), _SCANNED_AT_ONCE)
    with naming_dead_workers():
        if workers:
            found: Iterator[Any] = iter(_worker_loader(scanner, _Feed(chunks), workers, persistent=False))
        else:
            found = map(scanner.__getitems__, chunks)
        return [broken for some in found for broken in some]


def worker_count(asked: int | str) -> int:
    """The number of workers that ``data.workers`` asks for; ``auto`` is one per core of this process, at most 8.

    Processes that train together on one machine share its cores.
    """
    if isinstance(asked, int):
        return asked
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(max(cores // ranks.started().local_size, 1), _MOST_WORKERS)


class _Scanner(Dataset[Any]):
    def __init__(self, split: StreamedSplit, window: Sequence[float] | None) -> None:
        self.split, self.window = split, window

    def __getitems__(self, indices: NDArray[np.int64]) -> list[Broken]:
        found = []
        for index in indices.tolist():
            try:
                with self.split.open(index) as image:
                    image.draft(None, (1, 1))
                    image.load()
                    check_range(image, self.window)
            except Exception as error:  # a damaged file makes Pillow raise almost anything
                found.append(Broken(index, self.split.name(index), _reason(error)))
        return found


class _Feed:
    """A DataLoader's ``batch_sampler``, whose batches are set anew for each epoch while its workers live on."""

    def __init__(self, requests: Iterator[Any] | None = None) -> None:
        self.requests: Iterator[Any] = requests or iter(())

    def __iter__(self) -> Iterator[Any]:
        return self.requests


def _worker_loader(
    dataset: Dataset[Any], feed: _Feed, workers: int, persistent: bool, device: str = "cpu"
) -> DataLoader[Any]:
    # Workers hand images over through a socket there; where it cannot be made, they would be waited for for ever.
    if workers and len(get_temp_dir()) > _LONGEST_TEMPORARY:
        raise RunError(
            f"the directory for temporary files, {get_temp_dir()}, is too long a path for worker processes; set TMPDIR "
            f"to one of at most {_LONGEST_TEMPORARY - 14} characters, or say 'workers: 0' under data"
        )
    return DataLoader(
        dataset,
        batch_sampler=feed,
        num_workers=workers,
        persistent_workers=persistent,
        collate_fn=_as_it_is,
        pin_memory=device == "cuda",
        generator=torch.Generator(),  # else it draws from torch's global one, which is the trainer's
        worker_init_fn=_leave_signals_to_the_trainer,
    )


def _leave_signals_to_the_trainer(worker: int) -> None:
    """A signal to all processes of a job, as Slurm and terminals send it, must not take images from the last step.

    The trainer itself ends a worker with SIGTERM, which therefore goes by its sender.
    """
    for number in (signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    threading.Thread(target=_end_when_the_trainer_says_so, daemon=True).start()


def _end_when_the_trainer_says_so() -> None:
    trainer = parent_process()
    assert trainer is not None
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != trainer.pid:
        pass
    os._exit(0)


def _as_it_is(found: Any) -> Any:
    return found


@contextmanager
def naming_dead_workers() -> Iterator[None]:
    """One message of a worker's death, which PyTorch raises wherever this process happens to be.

    In a generator that others read, it stands in the outermost one: a signal is often looked at when that goes on.

    Raises:
        RunError: a worker died.
    """
    try:
        yield
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise RunError(
            f"a process that decodes images died ({str(error).splitlines()[0]}); usually memory has run out, or the "
            "shared memory of a container (/dev/shm) is too small for the batches: give it more, lower data.workers, "
            "batch_size or eval_batch_size, or say 'workers: 0' under data. With --resume the run goes on"
        ) from error


def _chunks(length: int, size: int) -> Iterator[NDArray[np.int64]]:
    return (np.arange(start, min(start + size, length)) for start in range(0, length, size))


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"

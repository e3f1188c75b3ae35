"""Several processes that train one model, as ``torchrun`` starts them: which one this is, and what they exchange.

Each process holds the whole model. The rows of a batch are shared out over the backbone, which is where time goes. At a
tap, and behind the network, every process has the rows of all of them (`joined`). So a method sees the batch that one
process would see. It draws the same numbers and keeps the same state in all of them, and needs to know nothing of this.
Gradients are averaged by PyTorch's DistributedDataParallel.

A process that was started alone is rank 0 of 1, and none of this costs it anything.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ltcore.errors import LtcoreError, RecipeError, RunError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

_NAMES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
#: Seconds in which the first process of a run that fails is waited for, before another one speaks for itself.
_PATIENCE = 5.0


@dataclass(frozen=True)
class Started:
    """How this process was started.

    Attributes:
        rank: its number, from 0.
        size: how many there are.
        local_rank: its number on this machine.
        local_size: how many there are on this machine.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1


@dataclass(frozen=True)
class _Groups:
    """What this process has joined.

    Attributes:
        rows: for rows at taps, apart from that of the gradients: both go on at the same time.
        plain: for what lies on the CPU.
    """

    rows: Any
    plain: Any


_groups: _Groups | None = None


def started(environment: Mapping[str, str] | None = None) -> Started:
    """How this process was started; alone, where nothing says otherwise.

    Raises:
        RecipeError: the environment is of no use.
    """
    told = os.environ if environment is None else environment
    if told.get("WORLD_SIZE", "1") == "1" or any(name not in told for name in _NAMES):
        return Started()
    try:
        numbers = [int(told[name]) for name in _NAMES[:4]]
    except ValueError:
        numbers = [-1] * 4
    if not 0 <= numbers[0] < numbers[1] or not 0 <= numbers[2] < numbers[3]:
        said = ", ".join(f"{name}={told[name]}" for name in _NAMES[:4])
        raise RecipeError(
            f"the environment says how many processes train, and cannot be right: {said}; start ltcore "
            "with torchrun, or unset these variables"
        )
    return Started(*numbers)


def restarted(environment: Mapping[str, str] | None = None) -> bool:
    """Whether torchrun has started this process again, after one had ended too early."""
    told = os.environ if environment is None else environment
    return started(told).size > 1 and told.get("TORCHELASTIC_RESTART_COUNT", "0") not in ("", "0")


def rank() -> int:
    """This process's number; 0 as long as none has been joined."""
    return started().rank if _groups else 0


def size() -> int:
    """How many processes train together."""
    return started().size if _groups else 1


def leading() -> bool:
    """Whether this process is the one that writes and speaks."""
    return rank() == 0


@contextmanager
def together(device: str, store: Any = None) -> Iterator[None]:
    """Train together with the other processes that were started; a process that was started alone stays alone.

    Args:
        device: ``cpu`` or ``cuda``.
        store: where they find each other (``torch.distributed.Store``); by default where torchrun has told them.

    Raises:
        RunError: the others cannot be reached, or one of them has ended.
    """
    global _groups
    if started().size == 1 or _groups:
        yield
        return
    import torch.distributed as dist

    backend = "nccl" if device == "cuda" else "gloo"
    with _one_message():
        here = started()
        dist.init_process_group(backend, store=store or _store(), rank=here.rank, world_size=here.size)
        _groups = _Groups(dist.new_group(), dist.new_group(backend="gloo"))
    try:
        with _one_message():
            yield
        dist.destroy_process_group()  # not where one has failed, whom the others would wait for
    finally:
        _groups = None


def _store(seconds: float = 300.0) -> Any:
    """Where the processes of this attempt find each other.

    PyTorch's own (``env://``) gives processes that torchrun has started again the addresses of those that have ended.
    """
    from datetime import timedelta

    import torch.distributed as dist

    agents = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"  # torchrun's own process serves it
    store = dist.TCPStore(  # type: ignore[attr-defined]
        os.environ["MASTER_ADDR"],
        int(os.environ["MASTER_PORT"]),
        is_master=not agents and started().rank == 0,
        timeout=timedelta(seconds=seconds),
        wait_for_workers=False,
    )
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    return dist.PrefixStore(f"ltcore/{attempt}", store)  # type: ignore[attr-defined]


@contextmanager
def _one_message() -> Iterator[None]:
    """What PyTorch says of processes that cannot talk to each other, as one message.

    Raises:
        RunError: they cannot.
    """
    import torch.distributed as dist

    try:
        yield
    except dist.DistError as error:
        raise _lost(error) from error
    except RuntimeError as error:
        words = str(error)
        if isinstance(error, LtcoreError) or not any(word in words for word in ("gloo", "NCCL", "Connection", "peer")):
            raise
        raise _lost(error) from error


def _lost(error: Exception) -> RunError:
    first = (str(error).strip().splitlines() or [type(error).__name__])[0]
    if "EADDRINUSE" in str(error) or "in use" in str(error):
        return RunError(
            f"port {os.environ['MASTER_PORT']} of {os.environ['MASTER_ADDR']} is in use, so the processes cannot meet; "
            "give torchrun another --master-port, or --standalone on one machine"
        )
    return RunError(
        f"process {started().rank + 1} of {started().size} has lost the others: one has ended, or cannot be reached; "
        f"what it said stands above or in its log ({first}). Start again with --resume"
    )


def part(rows: int) -> slice:
    """Which of so many rows this process computes; all of them where there are fewer than processes."""
    processes = size()
    if rows < processes:
        return slice(0, rows)
    return _part(rows, rank(), processes)


def _part(rows: int, number: int, processes: int) -> slice:
    each, more = divmod(rows, processes)
    start = number * each + min(number, more)
    return slice(start, start + each + (number < more))


def joined(own: Tensor, rows: int, blocks: int = 1) -> Tensor:
    """The rows of all processes out of each one's `part`; gradients find their way back.

    Args:
        own: [blocks * R, ...]; of each block, the R rows that are this process's part.
        rows: N, how many there are in a block.
        blocks: how many blocks stand behind each other, such as one for each expert of a network.

    Returns:
        [blocks * N, ...], the same in every process.
    """
    if size() == 1 or rows < size():
        return own
    if blocks > 1:
        side_by_side = own.reshape(blocks, -1, *own.shape[1:]).transpose(0, 1)
        return joined(side_by_side, rows).transpose(0, 1).flatten(0, 1)
    import torch

    found: Tensor = _functions()[0].apply(own, rows)
    if own.dim() == 4 and own.is_contiguous(memory_format=torch.channels_last):
        found = found.contiguous(memory_format=torch.channels_last)
    return found


def summed(own: Tensor) -> Tensor:
    """The sum over all processes; gradients of all of them find their way back."""
    if size() == 1:
        return own
    found: Tensor = _functions()[1].apply(own)
    return found


def _functions() -> tuple[Any, Any]:
    """Made late, since this module is imported without torch."""
    global _made
    if _made is None:
        _made = _make_functions()
    return _made


_made: tuple[Any, Any] | None = None


def _make_functions() -> tuple[Any, Any]:
    import torch
    import torch.distributed as dist
    from torch.autograd.function import once_differentiable

    def group() -> Any:
        assert _groups is not None
        return _groups.rows

    class Joined(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, own: Tensor, rows: int) -> Tensor:
            ctx.rows = rows
            most = -(-rows // size())
            padded = own.new_zeros((most, *own.shape[1:]))
            padded[: len(own)] = own
            parts = [torch.empty_like(padded) for _ in range(size())]
            dist.all_gather(parts, padded, group=group())
            lengths = [_part(rows, number, size()) for number in range(size())]
            return torch.cat([p[: s.stop - s.start] for p, s in zip(parts, lengths, strict=True)])

        @staticmethod
        @once_differentiable
        def backward(ctx: Any, gradient: Tensor) -> Any:
            gradient = gradient.contiguous().clone()
            dist.all_reduce(gradient, group=group())
            return gradient[part(ctx.rows)], None

    class Summed(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, own: Tensor) -> Tensor:
            own = own.contiguous().clone()
            dist.all_reduce(own, group=group())
            return own

        @staticmethod
        @once_differentiable
        def backward(ctx: Any, gradient: Tensor) -> Any:
            gradient = gradient.contiguous().clone()
            dist.all_reduce(gradient, group=group())
            return gradient

    return Joined, Summed


def averaged(tensors: Sequence[Tensor]) -> None:
    """Replace tensors by their mean over the processes."""
    if size() == 1 or not tensors:
        return
    import torch.distributed as dist

    for group, flat in _flattened(tensors):
        dist.all_reduce(flat)
        _fill(group, flat / size())


def as_the_first(tensors: Sequence[Tensor]) -> None:
    """Replace tensors by those of the first process."""
    if size() == 1 or not tensors:
        return
    import torch.distributed as dist

    for group, flat in _flattened(tensors):
        dist.broadcast(flat, 0)
        _fill(group, flat)


def _flattened(tensors: Sequence[Tensor]) -> Iterator[tuple[list[Tensor], Tensor]]:
    import torch

    kinds: dict[torch.dtype, list[Tensor]] = {}
    for tensor in tensors:
        kinds.setdefault(tensor.dtype, []).append(tensor)
    for group in kinds.values():
        yield group, torch.cat([tensor.detach().reshape(-1) for tensor in group])


def _fill(tensors: Sequence[Tensor], flat: Tensor) -> None:
    import torch

    with torch.no_grad():
        for tensor, values in zip(tensors, torch.split(flat, [tensor.numel() for tensor in tensors]), strict=True):
            tensor.copy_(values.view(tensor.shape))


def any_of(own: bool) -> bool:
    """Whether it is true in any process."""
    if _groups is None:
        return own
    import torch
    import torch.distributed as dist

    flag = torch.tensor([int(own)])
    dist.all_reduce(flag, dist.ReduceOp.MAX, group=_groups.plain)
    return bool(flag)


def told(value: Any) -> Any:
    """What the first process has, plain data, in all of them."""
    if _groups is None:
        return value
    import torch.distributed as dist

    found = [value]
    dist.broadcast_object_list(found, 0, group=_groups.plain)
    return found[0]


def refuse_differences(own: Mapping[str, Any]) -> None:
    """Refuse to train together what is not the same in every process, such as on machines with other files.

    Args:
        own: what must be the same, plain data, by names for the message.

    Raises:
        RunError: it is not; the same message in all of them.
    """
    if _groups is None:
        return
    import torch.distributed as dist

    found: list[Any] = [None] * size()
    dist.all_gather_object(found, dict(own), group=_groups.plain)
    for number, other in enumerate(found):
        if names := [name for name, value in found[0].items() if other[name] != value]:
            raise RunError(
                f"process {number + 1} of {size()} has another {' and another '.join(names)} than the first one; the "
                "machines must have the same files and versions"
            )


@contextmanager
def first() -> Iterator[None]:
    """The first process goes through the block before the others do."""
    if not leading():
        told(None)
    yield
    if _groups and leading():
        told(None)


def shares_of(batches: Sequence[int], own: Sequence[Tensor]) -> Tensor:
    """What the processes have computed of batches that they took in turns, in order, in all of them.

    Args:
        batches: rows of each batch; the K-th is that of process K modulo their number.
        own: of this process's batches, [B, ...] each; the first process has at least one.

    Returns:
        [sum of batches, ...].
    """
    import torch

    if size() == 1:
        return torch.cat(list(own))
    import torch.distributed as dist

    assert _groups is not None
    shape, dtype, device = told((tuple(own[0].shape[1:]), own[0].dtype, own[0].device.type) if own else None)
    rows = [sum(batches[number :: size()]) for number in range(size())]
    padded = torch.zeros((max(rows), *shape), dtype=dtype, device=own[0].device if own else device)
    if own:
        padded[: rows[rank()]] = torch.cat(list(own))
    parts = [torch.empty_like(padded) for _ in rows]
    dist.all_gather(parts, padded, group=_groups.rows)
    turns = [
        iter(torch.split(part, [*batches[number :: size()], len(part) - rows[number]]))
        for number, part in enumerate(parts)
    ]
    return torch.cat([next(turns[number % size()]) for number in range(len(batches))])


def speaks(message: str) -> bool:
    """Whether this process is to print why it ends: the first one always, another one where it has its own reason."""
    here = started()
    if here.size == 1:
        return True
    with suppress(Exception):  # whatever keeps them from talking, the message is printed
        store = _store(_PATIENCE)
        if here.rank == 0:
            store.set("failed", message)
            return True
        return bool(store.get("failed").decode() != message)
    return True

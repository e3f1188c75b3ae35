"""A recorder of steps without a GPU: what a CUDA graph does and refuses, of operations on the CPU.

It sees every operation below autograd. While it records, what is written into memory from outside is put back, since a
graph's recording computes nothing. A replay runs the same operations on the same memory, and no Python of the step. An
operation that needs a value on the host is refused, as CUDA refuses it.
"""

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

#: What a GPU cannot do without the host, which waits for it.
WAITING = {"_local_scalar_dense", "nonzero", "masked_select", "_unique2", "unique_dim", "unique_consecutive", "equal"}


def storages(values):
    return {each.untyped_storage()._cdata for each in values if isinstance(each, Tensor)}


class Watch(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.calls, self.made, self.before = [], set(), []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name = function._schema.name.removeprefix("aten::")
        given = tree_flatten((args, kwargs))[0]
        masked = name in ("index", "index_put_") and any(
            each is not None and each.dtype == torch.bool for each in args[1]
        )
        if name in WAITING or masked:
            raise RuntimeError(f"operation not permitted when stream is capturing: {name}")
        written = [
            each
            for argument, value in zip(function._schema.arguments, args, strict=False)
            if argument.alias_info is not None and argument.alias_info.is_write
            for each in tree_flatten(value)[0]
        ]
        for argument in function._schema.arguments:
            if argument.name in kwargs and argument.alias_info is not None and argument.alias_info.is_write:
                written += tree_flatten(kwargs[argument.name])[0]
        self.before += [(each, each.clone()) for each in written if not storages([each]) & self.made]
        out = function(*args, **kwargs)
        results = [each for each in tree_flatten(out)[0] if isinstance(each, Tensor)]
        new = not storages(results) & storages(given)
        if new:
            self.made |= storages(results)
        if new or written:
            self.calls.append((function, args, kwargs, results if new else []))
        else:  # a view: of the same memory in a replay, too
            self.calls.append((None, args, kwargs, results))
        return out


class CpuRecorder:
    """See `ltcore.training.whole_step.Recorder`."""

    def __init__(self, generators):
        self.generators = [torch.default_generator, *generators]

    def record(self, function):
        states = [each.get_state() for each in self.generators]
        with Watch() as watch:
            out = function()
        with torch.no_grad():
            for tensor, value in reversed(watch.before):
                tensor.copy_(value)
        for generator, state in zip(self.generators, states, strict=True):
            generator.set_state(state)
        # Nothing has been computed: what comes out has no value before a replay.
        for _, _, _, results in watch.calls:
            for each in results:
                if each.is_floating_point() and storages([each]) & watch.made:
                    each.detach().fill_(torch.nan)
        self.calls = watch.calls
        return out

    @torch.no_grad()
    def replay(self):
        for function, args, kwargs, results in self.calls:
            if function is None:
                continue
            out = function(*args, **kwargs)
            found = [each for each in tree_flatten(out)[0] if isinstance(each, Tensor)]
            for old, new in zip(results, found, strict=False):
                old.detach().copy_(new)

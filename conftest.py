"""What holds for every test, core's and plugins'."""

import os
import shutil

# Tiny networks gain nothing from a second thread, and lose much where the machine is shared.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
from hypothesis import settings

# The same examples in every run, so that a failure is the change's; `--hypothesis-profile=default` looks for new ones.
settings.register_profile("ltcore", deadline=None, derandomize=True)
settings.load_profile("ltcore")


@pytest.fixture
def look_on(monkeypatch):
    """``look_on(step_ended=function, ...)``: the functions are told of these events of every run that follows.

    Each is given the run, the stage's loop, and what else `ltcore.training.loop.Observer` gives. A call replaces what
    an earlier one has asked for.
    """
    from ltcore.training.loop import Observer
    from ltcore.training.run import Run

    usual = Run._observers

    def ask(**events):
        def observers(run, trace):
            told = {
                name: lambda _, loop, *more, function=function: function(run, loop, *more)
                for name, function in events.items()
            }
            return [*usual(run, trace), type("LooksOn", (Observer,), told)()]

        monkeypatch.setattr(Run, "_observers", observers)

    return ask


@pytest.fixture
def copy_at_checkpoint(look_on):
    """``copy_at_checkpoint(number, to, stage=None)``: runs leave in `to` what a kill after a checkpoint would leave.

    The checkpoint is the one of that number, from 1, among those of the stage, or among all. `to` is then the folder
    of the recipe's runs. A call without arguments ends it.
    """

    def ask(number=0, to=None, stage=None):
        written = []

        def copy(run, loop):
            if stage in (None, loop.stage.name):
                written.append(loop)
                if len(written) == number:
                    shutil.copytree(run.directory.path.parent, to)

        look_on(checkpoint_written=copy)

    return ask


@pytest.fixture
def no_sync():
    """Refuses what would make the host wait for a device, on the CPU too.

    ``with no_sync():`` fails at reads of values, and at shapes that depend on values.
    """
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode

    class NoSync(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            name = func.overloadpacket.__name__
            assert name not in {"_local_scalar_dense", "nonzero", "masked_select", "equal", "unique"}, name
            if name in {"index", "index_put", "index_put_"}:
                assert not any(index is not None and index.dtype == torch.bool for index in args[1]), name
            return func(*args, **(kwargs or {}))

    return NoSync

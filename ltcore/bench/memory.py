"""Where the memory of a run goes: a short run in a process of its own, which weighs what it holds."""

from __future__ import annotations

import gc
import json
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from ltcore.errors import RunError
from ltcore.untrusted import parse_json

if TYPE_CHECKING:
    from ltcore.bench.subject import Subject

_CHILD = "from ltcore.bench.memory import child; child()"
STEPS = 6  # of every stage: freed memory is in pieces by then


def measure(subject: Subject) -> dict[str, Any]:
    """Bytes: the peak of the process, and what of it is what.

    ``rest`` is what the parts do not name: temporary tensors, code that is loaded later, freed memory in pieces.

    Args:
        subject: what is measured.

    Raises:
        RunError: the process has ended without figures.
    """
    sets = [f"--set={text}" for text in subject.sets]
    ended = subprocess.run(
        [sys.executable, "-c", _CHILD, str(subject.path), *sets], capture_output=True, text=True, encoding="utf-8"
    )
    last = (ended.stdout.splitlines() or [""])[-1]
    try:
        found = parse_json(last)
        if not isinstance(found, dict):
            raise ValueError("no figures")
    except ValueError:
        said = (ended.stderr.strip().splitlines() or ["it said nothing"])[-1]
        raise RunError(
            f"the process whose memory was measured ended with exit code {ended.returncode}: {said}; lower the stage's "
            "batch_size or eval_batch_size if memory has run out"
        ) from None
    return found


def child() -> None:
    """Run in the process that is measured: a few steps of each stage, a few batches of each pass over a split."""
    interpreter = resident()
    import torch

    with_torch = resident()
    from ltcore.training.threads import computing_with, prepare_openmp

    prepare_openmp()
    from ltcore.bench.subject import Subject
    from ltcore.plan.plan import make_plan
    from ltcore.recipe.loading import load_recipe
    from ltcore.rehearsal.memory import memory_used
    from ltcore.training.data import choose_device, inspected, read_data, read_splits

    path, sets = Path(sys.argv[1]), [word.removeprefix("--set=") for word in sys.argv[2:]]
    loaded, _ = load_recipe(path, sets).without_weights()
    plan = make_plan(loaded)
    subject = Subject(path, sets, loaded, plan, choose_device(loaded))
    imports = resident()
    with computing_with(loaded.recipe.threads):
        splits = read_splits(loaded, plan.answers["data"])
        subject.data = inspected(loaded, read_data(loaded, plan.answers["data"], splits=splits))
        read = memory_used(subject.device)["process"]
        del splits
        held = _trained(subject)
        used = memory_used(subject.device)
    parts = {"imports": imports, **held}
    print(
        json.dumps(
            {
                "peak": used["process"],
                **parts,
                "rest": used["process"] - sum(parts.values()),
                "interpreter": interpreter,
                "interpreter_and_torch": with_torch,
                "peak_while_reading": read,
                **{name: size for name, size in used.items() if name.startswith("device")},
                "steps": STEPS,
                "torch_cuda": torch.version.cuda,
            }
        )
    )


def _trained(subject: Subject) -> dict[str, int]:
    """Train, evaluate, and weigh what was held: the most of all stages."""
    import torch
    from torch import Tensor

    from ltcore.files.run_directory import RunDirectory
    from ltcore.progress.console import Reporter
    from ltcore.rehearsal.run import PartialLoaders
    from ltcore.training.assembly import Assembly
    from ltcore.training.cache import FeatureCache
    from ltcore.training.data import RunData
    from ltcore.training.loop import Loop, Losses, Observer
    from ltcore.training.run import Run

    class Scales(Observer):
        """Weighs; and says how much is trained."""

        held: dict[str, int]

        def __init__(self) -> None:
            self.held = dict.fromkeys(("images", "model_and_optimizer", "activations", "caches"), 0)

        def epochs(self, loop: Loop) -> Iterator[int]:
            """The first."""
            yield 0

        def steps(self, indices: list[Tensor]) -> list[Tensor]:
            """A few."""
            return [indices[number % len(indices)] for number in range(STEPS)]

        def epoch_started(self, loop: Loop) -> None:
            """Of the first step it is seen what the backward pass needs."""
            source = loop.source
            if isinstance(source, FeatureCache):
                self._note("caches", _bytes(each for each in vars(source).values() if isinstance(each, Tensor)))
            self._own = {each.untyped_storage().data_ptr() for each in loop.model.parameters()}
            self._saved: dict[int, int] = {}
            self._hooks = torch.autograd.graph.saved_tensors_hooks(self._keep, lambda kept: kept)
            self._hooks.__enter__()
            self._first = True

        def losses_computed(self, loop: Loop, losses: Losses) -> None:
            """The forward pass is done."""
            if self._first:
                self._first = False
                self._hooks.__exit__()
                self._note("activations", sum(self._saved.values()))

        def step_ended(self, loop: Loop) -> None:
            """Gradients and the optimiser's state are there."""
            whole = [*loop.model.parameters(), *loop.model.buffers()]
            whole += [each.grad for each in loop.model.parameters() if each.grad is not None]
            whole += [v for state in loop.optimizer.state.values() for v in state.values() if isinstance(v, Tensor)]
            self._note("model_and_optimizer", _bytes(whole))
            if loop.position.step == STEPS:
                self._note("images", _bytes(_images()))

        def _keep(self, tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in self._own:
                self._saved[storage.data_ptr()] = storage.nbytes()
            return tensor

        def _note(self, name: str, size: int) -> None:
            self.held[name] = max(self.held[name], size)

    plan, device, whole = subject.plan, subject.device, subject.data
    loaders, scales = PartialLoaders(plan, device, time.perf_counter), Scales()
    with TemporaryDirectory(prefix="ltcore-bench-") as folder:
        (Path(folder) / "checkpoints").mkdir()
        data = RunData(plan, whole, device, subject.cut, lambda split: loaders.make(whole, split))
        assembly = Assembly(plan, data, device)
        directory, quiet = RunDirectory(Path(folder)), Reporter.silent()
        Run(assembly, directory, quiet, observers=[scales], extent=scales, traced_steps=0).train()
    if device.type == "cuda":  # what lies there is among the device's figures
        return {"images": 0, "model_and_optimizer": 0, "activations": 0, "caches": 0}
    return scales.held


def _images() -> list[Any]:
    """All that hold images: the splits, and what loaders have made of them."""
    import torch

    return [each for each in gc.get_objects() if isinstance(each, torch.Tensor) and each.dtype == torch.uint8]


def _bytes(tensors: Iterable[Any]) -> int:
    """Bytes of tensors, memory that several share counted once."""
    storages = {each.untyped_storage().data_ptr(): each.untyped_storage().nbytes() for each in tensors}
    return sum(storages.values())


def resident() -> int:
    """Bytes of this process that are in memory now; where the system does not say, 0."""
    status = Path("/proc/self/status")
    if not status.is_file():
        return 0
    lines = status.read_text(encoding="utf-8").splitlines()
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmRSS:")), 0)

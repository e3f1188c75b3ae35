"""Files of cached features: where a run keeps them, and by what they are known again."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from ltcore import ranks
from ltcore.data.fingerprint import print_of
from ltcore.files.environment import compared
from ltcore.files.mapped import SUFFIX
from ltcore.files.writing import own, telling
from ltcore.training.unchanged import environment_of

if TYPE_CHECKING:
    from torch import nn

    from ltcore.training.assembly import Assembly


@dataclass(frozen=True)
class CacheFiles:
    """Where the features of a run's frozen stages lie that do not lie in memory.

    Attributes:
        own: a folder in the run's directory; what lies there goes when its stage has ended.
        shared: a folder of several runs, for features of any size, which whoever made it removes; None for none.
    """

    own: Path
    shared: Path | None = None

    @property
    def wanted(self) -> bool:
        """Whether a file is looked for before anything is computed: always of several runs, else where one was left."""
        return bool(ranks.told(self.shared is not None or any(self.own.glob(f"*{SUFFIX}"))))

    @contextmanager
    def locked(self, name: str) -> Iterator[Path]:
        """The file of that name; who else wants it waits for the block to end, and then finds it.

        Raises:
            RunError: the folder cannot be made.
        """
        folder = self.shared or self.own
        path = folder / f"{name}{SUFFIX}"
        if not ranks.leading():
            yield path
            return
        with telling(folder):
            folder.mkdir(parents=True, exist_ok=True)
        if self.shared is None:
            for other in folder.glob(f"*{SUFFIX}"):  # of an earlier stage, or of what has changed since
                if other != path:
                    other.unlink(missing_ok=True)
            yield path
            return
        with telling(folder):
            descriptor = own(folder / f"{name}.lock", os.O_RDWR | os.O_CREAT)
        try:
            with suppress(OSError):  # some network drives lock nothing; then both compute, and one file wins
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield path
        finally:
            os.close(descriptor)

    def clear(self) -> None:
        """Remove what a stage that has ended has left in the run's directory."""
        if ranks.leading():
            shutil.rmtree(self.own, ignore_errors=True)


def key_of(assembly: Assembly, index: int, tap: str) -> str:
    """What a stage's cached features depend on, as 32 hexadecimal digits: two runs with the same get the same bits.

    These are the frozen backbone with its adapters and buffers, and how it and the images were made. Then the images
    themselves, how they are prepared and in what batches, and views and what they are drawn with. Last, precision and
    the environment.

    Args:
        assembly: the run's parts, as they are when the stage begins.
        index: the stage's place in the recipe.
        tap: ``maps`` or ``pooled``.
    """
    plan, recipe, data = assembly.plan, assembly.recipe, assembly.data.current
    stage, loaded = plan.stages[index].stage, plan.loaded
    surroundings = environment_of(plan, assembly.device)
    matters = compared(surroundings)[0]
    adapters = [plan.entries[name] for name in recipe.backbone.adapt]
    whose = {entry.offer.distribution for entry in (plan.data, plan.backbone, *adapters)} | {"ltcore"}
    told = {
        "backbone": [recipe.backbone.model_dump(mode="json"), loaded.told(recipe.backbone.use)],
        "adapters": [[entry.key, recipe.methods[entry.key].model_dump(mode="json")] for entry in adapters],
        "weights": _digest(assembly.model.backbone),
        "data": [recipe.data.model_dump(mode="json", exclude={"workers"}), loaded.told(recipe.data.use)],
        "images": print_of(data.train).digest,
        "preparation": [repr(data.transform), data.mean, data.std],
        "batches": recipe.eval_batch_size,
        "cache": [stage.cache, stage.cache_precision, tap],
        "views": [assembly.state.seed, stage.name] if stage.cache != "eval" else None,
        "environment": [[name, value] for name, value in matters.items() if not name.startswith("code of ")],
        "code": sorted((name, value) for name, value in surroundings["code"].items() if name in whose),
        "tf32": [torch.backends.cudnn.allow_tf32, torch.get_float32_matmul_precision()],
    }
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:32]


def _digest(module: nn.Module) -> str:
    """Of a module's parameters and buffers, those too that no checkpoint has."""
    digest = hashlib.sha256()
    tensors = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    for name, tensor in sorted(tensors.items()):
        lying = tensor.detach().cpu().contiguous().reshape(-1)
        digest.update(f"{name}\0{list(tensor.shape)}\0{tensor.dtype}\0".encode())
        digest.update(lying.view(torch.uint8).numpy().data)
    return digest.hexdigest()

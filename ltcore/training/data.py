"""A run's images: the recipe's data, other cuts of it for the stages that ask for one, and a loader for each split."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch

from ltcore.contract.hookspecs import build_data
from ltcore.contract.imbalance import Imbalance
from ltcore.data.fingerprint import Fingerprint, fingerprint
from ltcore.data.prepare import PreparedData, prepare
from ltcore.data.streaming import build_loader, worker_count
from ltcore.discovery.binding import Answers, Hooks
from ltcore.errors import DataError, RecipeError
from ltcore.ranks import started

if TYPE_CHECKING:
    from ltcore.contract.backbone import Pretraining
    from ltcore.contract.splits import ArraySplit, DataSplits, StreamedSplit
    from ltcore.data.loader import Loader
    from ltcore.plan.plan import Plan
    from ltcore.recipe.loading import LoadedRecipe

#: Gives the recipe's data with another imbalance than the recipe's.
Cut = Callable[[Imbalance | None], PreparedData]
#: Makes the loader of a split of the recipe's data.
MakeLoader = Callable[["ArraySplit | StreamedSplit"], "Loader"]


def choose_device(loaded: LoadedRecipe) -> torch.device:
    """The device that the recipe asks for; ``auto`` is CUDA where there is one.

    Raises:
        RecipeError: it asks for CUDA and there is none, or for one of several processes.
    """
    name, here, available = loaded.recipe.device, started(), torch.cuda.is_available()
    if name.startswith("cuda") and not available:
        raise loaded.fail(("device",), f"device '{name}': this machine has no CUDA device; use device: auto")
    found = torch.device(("cuda" if available else "cpu") if name == "auto" else name)
    if here.size == 1 or found.type == "cpu":
        return found
    if ":" in name:
        raise loaded.fail(
            ("device",), f"device '{name}': each of {here.size} processes takes its own; use device: cuda"
        )
    if here.local_size > torch.cuda.device_count():
        raise loaded.fail(
            ("device",),
            f"{here.local_size} processes were started on this machine, which has {torch.cuda.device_count()} CUDA "
            "devices; start one for each (torchrun --nproc-per-node), or use device: cpu",
        )
    torch.cuda.set_device(here.local_rank)
    return torch.device("cuda", here.local_rank)


def read_splits(loaded: LoadedRecipe, answers: Answers) -> DataSplits:
    """Build the recipe's data, as the set has it.

    Args:
        loaded: the recipe.
        answers: what its data method implements.

    Raises:
        DataError: the data is missing or damaged.
    """
    with _placed(loaded):
        found: DataSplits = Hooks(answers, {}).call(build_data)
        return found


def read_data(
    loaded: LoadedRecipe,
    answers: Answers,
    imbalance: Imbalance | None = None,
    splits: DataSplits | None = None,
    weights: Pretraining | None = None,
) -> PreparedData:
    """Build the recipe's data and cut its long tail.

    Args:
        loaded: the recipe.
        answers: what its data method implements.
        imbalance: in place of the recipe's.
        splits: the data as the set has it, where it has been read already.
        weights: what the backbone's pre-trained weights were trained on (`Plan.skeleton` knows), if it has any.

    Raises:
        DataError: the data is missing, damaged or does not suit the recipe.
    """
    asked = loaded.recipe.data
    if imbalance is not None:
        asked = asked.model_copy(update={"imbalance": imbalance})
    splits = splits or read_splits(loaded, answers)
    with _placed(loaded):
        return prepare(splits, asked, weights)


def known(loaded: LoadedRecipe, splits: DataSplits) -> Fingerprint:
    """The fingerprint of data that `read_data` has found to be sound.

    Raises:
        DataError: a file is missing.
    """
    with _placed(loaded):
        return fingerprint(splits)


@contextmanager
def _placed(loaded: LoadedRecipe) -> Iterator[None]:
    """What is wrong with the data is told with the place where the recipe names it."""
    try:
        yield
    except (DataError, RecipeError) as error:
        error.within(f"{loaded.where('data')}: ")
        raise


def inspected(loaded: LoadedRecipe, data: PreparedData, verify: bool = False) -> PreparedData:
    """The data once it was looked for broken images and duplicates (`ltcore.data.inspection.inspect`).

    Raises:
        DataError: images are broken.
    """
    from ltcore.data.inspection import inspect

    try:
        return inspect(data, loaded.recipe.data, verify)
    except DataError as error:
        error.within(f"{loaded.where('data')}: ")
        raise


class RunData:
    """The images of a run, and those of the stage in which it stands.

    Args:
        plan: the plan.
        whole: the recipe's data.
        device: where batches are wanted.
        cut: gives the data with a stage's own imbalance; by default it is read again.
        make_loader: makes a split's loader; by default the one that suits it.

    Attributes:
        whole: the recipe's data.
        current: that of the stage in which the run stands.
        loaders: ``train``, and ``val`` and ``test`` where there are any.
    """

    def __init__(
        self,
        plan: Plan,
        whole: PreparedData,
        device: torch.device,
        cut: Cut | None = None,
        make_loader: MakeLoader | None = None,
    ) -> None:
        self.whole = self.current = whole
        cut = cut or (lambda imbalance: read_data(plan.loaded, plan.answers["data"], imbalance))
        recipe = plan.loaded.recipe
        self._cuts = {index: cut(stage.data.imbalance) for index, stage in enumerate(recipe.stages) if stage.data}
        workers = worker_count(recipe.data.workers)
        self._make_loader = make_loader or (
            lambda split: build_loader(split, whole.transform, whole.mean, whole.std, workers, device)
        )
        splits = {"train": whole.train, "val": whole.val, "test": whole.test}
        self.loaders = {name: self._make_loader(split) for name, split in splits.items() if split is not None}

    def enter(self, index: int) -> bool:
        """Stand in a stage, or behind the last; returns whether the training images are others than before."""
        data = self._cuts.get(index, self.whole)
        if data is self.current:
            return False
        self.current = data
        self.loaders["train"].end_workers()
        self.loaders["train"] = self._make_loader(data.train)
        return True

    def end_workers(self) -> None:
        """End the processes that decode images; where images are asked for again, they are started again."""
        for loader in self.loaders.values():
            loader.end_workers()

    def split(self, name: str) -> ArraySplit | StreamedSplit:
        """``train`` as it is now, ``val`` or ``test``."""
        found = {"train": self.current.train, "val": self.whole.val, "test": self.whole.test}[name]
        assert found is not None
        return found

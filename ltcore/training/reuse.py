"""Stages that another run has trained already, taken over where both recipes say the same (``ltcore run --from RUN``).

Training is a function of the recipe, so a stage that is described alike ends alike. What is taken over is, bit for bit,
what would have been trained.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ltcore.errors import DataError, RecipeError
from ltcore.files import checkpoint
from ltcore.files.reading import read_lines
from ltcore.files.run_directory import RunDirectory
from ltcore.recipe.loading import load_recipe
from ltcore.training.position import Position
from ltcore.training.selection import as_selected
from ltcore.training.unchanged import Allowed, data_changes, environment_changes

if TYPE_CHECKING:
    from ltcore.contract.model import Model
    from ltcore.contract.recipe import Recipe
    from ltcore.contract.result import EnvironmentRecord, ReuseRecord
    from ltcore.data.fingerprint import Fingerprint
    from ltcore.recipe.loading import LoadedRecipe


_WITHOUT = "Train without --from, or take over another run"


@dataclass(frozen=True)
class Reuse:
    """A finished run, and how many of its first stages another recipe has too.

    Attributes:
        source: the finished run's directory.
        stages: how many of its stages are taken over, at least 1.
    """

    source: RunDirectory
    stages: int

    def record(
        self, data: Fingerprint, now: EnvironmentRecord, allowed: Allowed, tell: Callable[[str], None]
    ) -> ReuseRecord:
        """For ``result.json``, once the data is known to be the same.

        Args:
            data: the fingerprint of the data that was read.
            now: the environment of this process.
            allowed: what may differ.
            tell: is told what differs.

        Raises:
            DataError: the data is not that of the finished run.
        """
        found: ReuseRecord = {"run": str(self.source.path), "stages": self.stages}
        if changes := data_changes(self.source, data):
            if not allowed.data:
                raise DataError(
                    f"--from {self.source.path}: it was trained on other data: {'; '.join(changes)}. Train without "
                    "--from; with --data-changed its stages are taken over all the same, and the result says so"
                )
            found["data_changed"] = changes
        for text in [*changes, *environment_changes(self.source, now)]:
            tell(f"warning: {self.source.path}, whose stages are taken over, was trained otherwise: {text}")
        return found

    def into(self, model: Model, recipe: Recipe, directory: RunDirectory) -> None:
        """Write the files of the stages into a run's directory, as if it had trained them and then been killed.

        Args:
            model: the run's model, with what its methods have made.
            recipe: the run's recipe.
            directory: the run's directory.
        """
        own = checkpoint.model_tensors(model)
        acting: set[str] = set()
        for index, stage in enumerate(recipe.stages[: self.stages]):
            acting |= set(stage.methods)
            file = self.source.stage_file(index, stage.name)
            trained = checkpoint.load(file, advice=_WITHOUT)[0]
            kept = {name: tensor for name, tensor in own.items() if _owner(name) not in (None, *acting)}
            taken = {name: tensor for name, tensor in trained.items() if _owner(name) in (None, *acting)}
            checkpoint.save(directory.stage_file(index, stage.name), kept | taken, {})
        names = {stage.name for stage in recipe.stages[: self.stages]}
        position = Position(stage=self.stages, results=self.source.read_result()["stages"][: self.stages])
        for line in read_lines(self.source.path / "metrics.jsonl"):
            if line["stage"] in names:
                position.metrics_size = directory.append_metrics(dict(line))
        position.write_boundary(directory)


def find(path: Path, loaded: LoadedRecipe) -> Reuse:
    """What `loaded` can take over from the run at `path`.

    Raises:
        RecipeError: it is no run that has ended, or it differs from its first stage on; the message says in what.
    """
    source = RunDirectory(path)
    if not source.finished:
        raise RecipeError(f"--from {path}: no run that has ended is there (it would have a result.json)")
    selection = source.read_result().get("selection")
    if selection and not selection["retrained"]:
        raise RecipeError(f"--from {path}: its network was chosen and trained without the held-out images")
    other_loaded = as_selected(load_recipe(path / "recipe.yaml", runs_code=False), selection)
    ours, theirs = loaded.recipe, other_loaded.recipe
    for key in ("seed", "data", "backbone"):
        if _told(loaded, key) != _told(other_loaded, key):
            raise RecipeError(f"--from {path}: its {key} is another; only runs on the same {key} share stages")
    for name in ours.backbone.adapt:
        if _method(loaded, name) != _method(other_loaded, name):
            raise RecipeError(
                f"--from {path}: its method '{name}', which adapts the backbone, has other options; only runs on the "
                "same backbone share stages"
            )
    stages = 0
    for mine, other in zip(ours.stages, theirs.stages, strict=False):
        if mine != other or any(_method(loaded, name) != _method(other_loaded, name) for name in mine.methods):
            break
        stages += 1
    if not stages:
        raise RecipeError(
            f"--from {path}: its first stage '{theirs.stages[0].name}' is not the recipe's '{ours.stages[0].name}' in "
            "every setting, so there is nothing to take over; compare its recipe.yaml"
        )
    return Reuse(source, stages)


def _told(loaded: LoadedRecipe, key: str) -> Any:
    value = getattr(loaded.recipe, key)
    if key == "seed":
        return value
    # How many processes decode changes no result; the same file may be called otherwise, or hold something else.
    same = {"workers": "auto"} if key == "data" else {}
    return value.model_copy(update={"use": loaded.told(value.use), **same})


def _method(loaded: LoadedRecipe, name: str) -> tuple[str, dict[str, Any]]:
    entry = loaded.recipe.methods[name]
    return loaded.told(entry.use or name), entry.options


def _owner(name: str) -> str | None:
    """The method that a tensor of a checkpoint belongs to; None for backbone and classifier."""
    parts = name.split(".")
    return parts[1] if parts[0] == "model/methods" else None

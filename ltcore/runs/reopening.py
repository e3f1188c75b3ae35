"""The stages of a run that has ended, opened again one after the other as they ended: nothing is trained.

It is how a resumed run reads the stages that had ended (`ltcore.training.run`), with the run's data and on the CPU. So
what methods keep in modules and buffers, and the frozen models that later stages ask for, are as in the run.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ltcore.contract.model import evaluating
from ltcore.contract.reported import ReportScatter, ReportTable
from ltcore.errors import LtcoreError, PluginError, RunError
from ltcore.files import checkpoint
from ltcore.plan.plan import make_plan
from ltcore.training.assembly import Assembly
from ltcore.training.data import RunData
from ltcore.training.evaluation import Evaluation
from ltcore.training.loop import Loop, Whole
from ltcore.training.position import Position
from ltcore.training.stage import set_up
from ltcore.training.step import StepForward

if TYPE_CHECKING:
    from ltcore.data.prepare import PreparedData
    from ltcore.discovery.binding import Entry, Hooks
    from ltcore.files.run_directory import RunDirectory
    from ltcore.recipe.loading import LoadedRecipe


@dataclass(frozen=True)
class Made:
    """Rows that methods of a stage have made, as they reach the classifier.

    Attributes:
        features: [M, D]; of a network with experts, those of the first.
        targets: [M] int64, the labels that they carry.
        methods: whose they are, by their names in the recipe.
    """

    features: Tensor
    targets: Tensor
    methods: tuple[str, ...]


class StageEnd:
    """A stage as it ended.

    Attributes:
        index: its place in the recipe.
        name: its name.
        assembly: the run's parts, standing there.
    """

    def __init__(self, assembly: Assembly, index: int, hooks: Hooks, directory: RunDirectory) -> None:
        self.assembly, self.index, self._hooks = assembly, index, hooks
        self.name = assembly.plan.stages[index].stage.name
        self._path, self._result = directory.stage_file(index, self.name), directory.read_result()
        self._tensors, _ = checkpoint.load(self._path, assembly.device, "The run has lost it")
        self._loop: Loop | None = None
        self.restore()

    def restore(self) -> None:
        """Bring the model back to how the stage left it."""
        checkpoint.restore_model(self.assembly.model, self._tensors, self._path)

    def backbone(self) -> str:
        """A digest of the backbone's tensors, to be compared with that of another stage."""
        digest = hashlib.sha256()
        for name in sorted(name for name in self._tensors if name.startswith("model/backbone.")):
            digest.update(f"\0{name}\0".encode())
            digest.update(self._tensors[name].cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
        return digest.hexdigest()

    def logits(self, split: str) -> Tensor:
        """Logits [N, C] of all images of a split, in its order, without augmentation."""
        return Evaluation(self.assembly).outputs(split)[1]

    def makes_rows(self) -> tuple[str, ...]:
        """The methods of the stage that act on features, and so may make rows; by their names in the recipe."""
        answers = self.assembly.plan.stages[self.index].answers["augment_features"]
        return tuple(answer.entry.key for answer in answers)

    def made_rows(self, most_images: int, most_rows: int, classes: Sequence[int] | None = None) -> Made | None:
        """Rows that methods make of the batches of the stage's last epoch, drawn once more with the same randomness.

        The model is in eval mode, as it is for real images. So made rows and real ones differ only by what the methods
        do. The batches are of images, also where the stage had cached features.

        Args:
            most_images: how many images go through the network, at most; one batch does in any case.
            most_rows: how many rows are enough.
            classes: the labels that are wanted; None for all.

        Returns:
            None where no row was made.

        Raises:
            LtcoreError: a method fails.
        """
        if not (methods := self.makes_rows()):
            return None
        loop = self._set_up()
        forward = StepForward(self.assembly.model, self._hooks, "images", loop.stage.classification, None)
        wanted = None if classes is None else torch.tensor(list(classes))
        features, targets, images, rows = [], [], 0, 0
        with evaluating(self.assembly.model):
            for batch in loop.replayed(self._last_epoch(loop)):
                record = forward.record(batch)
                chosen = record.synthetic & (record.expert == 0 if record.expert is not None else True)
                if wanted is not None:
                    chosen &= torch.isin(record.targets, wanted)
                features.append(record.features[chosen].float())
                targets.append(record.targets[chosen])
                images, rows = images + len(batch.rows), rows + int(chosen.sum())
                if images >= most_images or rows >= most_rows:
                    break
        self.restore()  # hooks of a step may write into buffers
        return Made(torch.cat(features), torch.cat(targets), methods) if rows else None

    def ending(self) -> list[Entry]:
        """The methods of this stage that no later stage names."""
        stages = self.assembly.plan.stages
        later = {entry.key for stage in stages[self.index + 1 :] for entry in stage.entries}
        return [entry for entry in stages[self.index].entries if entry.key not in later]

    def reported(self, entry: Entry, classes: Sequence[int]) -> list[ReportScatter | ReportTable]:
        """What a method of the stage shows in a report, see `ltcore.Method.reported`.

        Raises:
            LtcoreError: the method fails, or what it returns is nothing of that kind.
        """
        context, loop = self.assembly.contexts[entry.key], self._set_up()
        # Where the stage's last hook stands; what was asked about features before the stage was trained is out of date.
        loop.state.epoch, loop.state.step = self._last_epoch(loop), loop.steps_per_epoch
        try:
            with evaluating(self.assembly.model):
                context.begin("reported")
                found = list(entry.method.reported(classes, context))
        except LtcoreError as error:
            raise error.within(f"{entry.whose}: ") from None
        except Exception as error:
            raise RunError(f"{entry.whose} failed in reported: {type(error).__name__}: {error}") from error
        for each in found:
            if wrong := _problem(each, self.assembly.state.num_classes):
                raise PluginError(f"{entry.whose}: reported {wrong}; tell its author")
        return found

    def _last_epoch(self, loop: Loop) -> int:
        """The last epoch that was trained, of those that the recipe has."""
        ended = self._result["stages"][self.index].get("validations")
        return ended["epochs"] - 1 if ended and ended["stopped"] else loop.epochs - 1

    def _set_up(self) -> Loop:
        """The stage's loop; what trains in it requires a gradient, by which a method may tell what it is there for."""
        if self._loop is None:
            position = Position(stage=self.index, begun=True)
            self._loop = set_up(
                self.assembly, self.index, self._hooks, position, None, (), Whole(), caches=False, eager=True
            )
        return self._loop


def for_each_stage(
    loaded: LoadedRecipe, data: PreparedData, directory: RunDirectory, visit: Callable[[StageEnd], None]
) -> None:
    """Open a run's stages in their order.

    Args:
        loaded: the recipe as it was trained. Files of weights that its backbone started from are not needed.
        data: the run's data.
        directory: the run's directory, with the files of its stages.
        visit: is called once for each stage, while the assembly stands at its end.

    Raises:
        LtcoreError: a plugin is missing, refuses or fails, or a stage's file is missing or does not fit.
    """
    with torch.random.fork_rng(devices=[]):
        plan, cpu = make_plan(loaded.without_weights()[0], to_run=False), torch.device("cpu")
        assembly = Assembly(plan, RunData(plan, data, cpu), cpu)
        assembly.start()
        for index, stage in enumerate(plan.stages):
            hooks = assembly.hooks(index)
            assembly.enter(stage.stage.name, index)
            assembly.prepare(index, hooks)
            visit(StageEnd(assembly, index, hooks, directory))
            assembly.provider.freeze(stage.stage.name)


def _problem(found: object, num_classes: int) -> str | None:
    """What is wrong with something that a method shows; None where nothing is."""
    if isinstance(found, ReportTable):
        if not found.columns or any(len(row) != len(found.columns) for row in found.rows):
            return f"gave a table '{found.title}' whose rows are not as long as its head"
        return None
    if not isinstance(found, ReportScatter):
        return f"gave {type(found).__name__}, which is neither a ReportScatter nor a ReportTable"
    for name, (vectors, targets) in found.panels.items():
        if vectors.dim() != 2 or targets.shape != vectors.shape[:1] or targets.dtype != torch.int64:
            return f"gave no vectors [N, D] with labels [N] int64 in '{name}' of '{found.title}'"
        if not bool(torch.isfinite(vectors).all()):
            return f"gave vectors that are not finite in '{name}' of '{found.title}'"
        if len(targets) and not 0 <= int(targets.min()) <= int(targets.max()) < num_classes:
            return f"gave labels that are no classes in '{name}' of '{found.title}'"
    if len({vectors.shape[1] for vectors, _ in found.panels.values()}) > 1:
        return f"gave vectors of different widths in '{found.title}'"
    return None

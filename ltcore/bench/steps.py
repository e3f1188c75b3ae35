"""The trainer's steps, stage by stage, in turns with a loop written by hand, an uncached stage, another pipeline."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from itertools import repeat
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from ltcore.bench.beside import Beside
from ltcore.bench.subject import Subject
from ltcore.bench.turns import LEAST, middle, ratio, wait_for
from ltcore.contract.model import Model
from ltcore.data.streaming import StreamingLoader
from ltcore.files.run_directory import RunDirectory
from ltcore.networks.optimizers import build_optimizer
from ltcore.progress.console import Reporter
from ltcore.rehearsal.run import PartialLoaders
from ltcore.training.assembly import Assembly
from ltcore.training.cache import FeatureCache
from ltcore.training.data import RunData
from ltcore.training.loop import Loop, Observer, Whole
from ltcore.training.run import Run
from ltcore.training.stage import set_up

_GUESSED = 3  # steps before it is known how long one takes; the first warms up
_MANY, _MOST = 7, 500  # rounds where steps are quick; steps of a turn
_ROWS = 256  # images of a turn's first batch that stand for decoded ones


class Enough(Exception):
    """All that was asked for is measured."""


class Turns(Observer):
    """Measures stages while they are trained: after some steps of the loop the other ways have their turns.

    It is also the extent of the run: a few steps to see how long one takes, then those of all rounds.

    Args:
        subject: what is measured.
        loaders: the run's loaders, which make passes over a split partial.
        seconds: for all rounds of a stage.
        beside: takes turns.
        first: stop behind the first stage.
    """

    def __init__(
        self, subject: Subject, loaders: PartialLoaders, seconds: float, beside: Beside | None, first: bool
    ) -> None:
        self._subject, self._loaders, self._seconds, self._beside, self._first = (
            subject,
            loaders,
            seconds,
            beside,
            first,
        )
        self.assembly: Assembly
        self.stages: list[dict[str, Any]] = []

    # -- how much is trained ---------------------------------------------------------------------------------------

    def epochs(self, loop: Loop) -> Iterator[int]:
        """Twice a whole epoch: the first few steps, then the rounds."""
        self._rounds = 0
        yield 0
        each = max(self._guess, 1e-6) * (1 + len(self._ways))
        self._rounds = _MANY if each * _MANY < self._seconds else LEAST
        self._steps = max(1, min(_MOST, int(self._seconds / (each * self._rounds))))
        yield 1 if loop.epochs > 2 else 0

    def steps(self, indices: list[Tensor]) -> list[Tensor]:
        """As many as are needed, in a small stage some of them several times."""
        wanted = 1 + self._rounds * self._steps if self._rounds else _GUESSED
        return [indices[number % len(indices)] for number in range(wanted)]

    # -- what is measured ------------------------------------------------------------------------------------------

    def stage_entered(self, index: int) -> None:
        """Begin a stage."""
        self._index, self._passes = index, self._loaders.projected

    def stage_started(self, loop: Loop) -> None:
        """What takes turns with it."""
        self._fill, self._passes = self._loaders.projected - self._passes, self._loaders.projected
        self.figures: dict[str, list[float]] = {"ours": []}
        self._ways: dict[str, Callable[[int], float]] = {}
        self._answers: list[dict[str, float]] = []
        self._source, device = loop.source, self._subject.device
        loader = self.assembly.data.loaders["train"]
        streamed = isinstance(getattr(loader, "loader", loader), StreamingLoader)
        source = _Held(loader, self.assembly.data.loaders["train"].generator_device) if streamed else loader
        cached = isinstance(loop.source, FeatureCache)
        if streamed and not cached:
            loop.source = source  # type: ignore[assignment]
        if loop.stage.classification and not cached and self._index == 0:
            self._ways["by_hand"] = ByHand(loop, self.assembly, source, device)
        self._acceleration = loop.position.acceleration  # which is filled in later, and is no longer there then
        if self._acceleration is not None and self._acceleration["chosen"] != "off":
            self._ways["eager"] = _Twin(self, loop, source, eager=True)
        if cached:
            self._ways["without_cache"] = _Twin(self, loop, source, caches=False)
        if self._beside is not None:
            trains = any(name.startswith("backbone.") for name in loop.trained)
            part, program = "run" if trains else "classifier", self._beside
            program.ask(part)  # chooses its algorithms

            def ask(_: int) -> float:
                self._answers.append(program.ask(part))
                return self._answers[-1]["epoch_seconds"]

            self._ways["reference"] = ask
        self.figures |= {name: [] for name in self._ways}

    def epoch_started(self, loop: Loop) -> None:
        """The steps come next."""
        self._done, self._rows = 0, len(loop.batches[0])

    def step_ended(self, loop: Loop) -> None:
        """Look at the clock, and let the others have their turns."""
        self._done += 1
        if self._done == 1:
            self._began = self._now()
        elif not self._rounds:
            self._guess = (self._now() - self._began) / (self._done - 1)
        elif (self._done - 1) % self._steps == 0:
            self.figures["ours"].append((self._now() - self._began) / self._steps)
            for name, way in self._ways.items():
                self.figures[name].append(way(self._steps))
            self._began = self._now()

    def epoch_ended(self, loop: Loop) -> None:
        """Stop where nothing more was asked for."""
        if self._rounds and self._first and self._beside is None:
            self._describe(loop, 0.0)
            raise Enough

    def stage_ended(self, loop: Loop) -> None:
        """The stage is evaluated next."""
        self._loop, self._passes = loop, self._loaders.projected

    def stage_left(self, index: int) -> None:
        """Put the stage's figures together."""
        self._describe(self._loop, self._loaders.projected - self._passes)
        if self._first:
            raise Enough

    def _describe(self, loop: Loop, evaluation: float) -> None:
        """Seconds of an epoch and of the stage, by way; ratios are the medians of the rounds' ratios."""
        per_epoch, epochs = loop.steps_per_epoch, loop.total / loop.steps_per_epoch
        decoding = self._loaders.seconds_to_decode(self._source, self._rows)
        ours, fill = self.figures["ours"], self._fill if isinstance(self._source, FeatureCache) else 0.0

        def stage(steps: list[float], before: float) -> list[float]:
            return [before + loop.total * max(step, decoding) + evaluation for step in steps]

        whole = stage(ours, fill)
        step = middle(ours)
        found: dict[str, Any] = {
            "name": loop.stage.name,
            "methods": [entry.key for entry in loop.plan.entries],
            "epochs": epochs,
            "steps_per_epoch": per_epoch,
            "batch_size": self._rows,
            "step_seconds": step,
            "images_per_second": self._rows / step,
            "epoch_seconds": per_epoch * max(step, decoding),
            "bound_by_decoding": decoding > step,
            "evaluation_seconds": evaluation,
            "stage_seconds": middle(whole),
            "turns": len(ours),
            "steps_a_turn": self._steps,
        }
        if hand := self.figures.get("by_hand"):
            found["by_hand"] = {"step_seconds": middle(hand), "tax": ratio(ours, hand)}
        if eager := self.figures.get("eager"):
            found["acceleration"] = {
                **(self._acceleration or {}),
                "eager_step_seconds": middle(eager),
                "gain": ratio(eager, ours),
            }
        if plain := self.figures.get("without_cache"):
            uncached = stage(plain, 0.0)
            found["cache"] = {
                "kind": loop.stage.cache,
                "fill_seconds": fill,
                "without": {
                    "step_seconds": middle(plain),
                    "epoch_seconds": per_epoch * max(middle(plain), decoding),
                    "stage_seconds": middle(uncached),
                },
                "gain": ratio(uncached, whole),
            }
        if beside := self.figures.get("reference"):
            theirs, their_steps = [epochs * epoch for epoch in beside], [a["step_seconds"] for a in self._answers]
            found["reference"] = {
                "step_seconds": middle(their_steps),
                "epoch_seconds": middle(beside),
                "stage_seconds": middle(theirs),
            }
            found |= {"step_ratio": ratio(their_steps, ours), "ratio": ratio(theirs, whole)}
        self.stages.append(found)

    def _now(self) -> float:
        wait_for(self._subject.device)
        return time.perf_counter()


class _Held:
    """Images that were decoded once, in place of others: what a step takes without decoding."""

    def __init__(self, loader: Any, device: torch.device) -> None:
        self.device, self.generator_device = loader.device, device
        some = torch.arange(min(_ROWS, len(loader)))
        self._images = loader.pick(some, torch.Generator(device).manual_seed(0), None, True)

    def __len__(self) -> int:
        return len(self._images)

    def train_batches(self, indices: Iterable[Tensor], generators: Any, changes: Any = None) -> Iterator[Tensor]:
        """As many images as are asked for."""
        return (self._images[torch.arange(len(index)) % len(self)] for index in indices)


class ByHand:
    """A loop that somebody writes for the same network, batches and optimiser, plain cross-entropy, and nothing else.

    No hooks, no checks, no schedule, no seeding.
    """

    def __init__(self, loop: Loop, assembly: Assembly, source: Any, device: torch.device) -> None:
        model, asked = assembly.model, loop.stage.optimizer
        self._model = Model(copy.deepcopy(model.backbone), copy.deepcopy(model.classifier), {})
        self._model.training = model.training
        parameters = [each for each in self._model.parameters() if each.requires_grad]
        options = asked.model_extra or {}
        self._optimizer = build_optimizer(asked.name, parameters, asked.lr, options, device.type)
        self._loop, self._assembly, self._source, self._device = loop, assembly, source, device
        self._dtype = getattr(loop.forward, "autocast", None)

    def __call__(self, steps: int) -> float:
        """Seconds of a step."""
        loop, targets = self._loop, self._assembly.state.training_targets
        indices = [loop.batches[number % len(loop.batches)] for number in range(steps)]
        generator = torch.Generator(self._source.generator_device).manual_seed(0)
        batches = self._source.train_batches(indices, repeat(generator))
        wait_for(self._device)
        began = time.perf_counter()
        for index, images in zip(indices, batches, strict=True):
            labels = targets[index].to(self._device, non_blocking=True)
            with torch.autocast(self._device.type, self._dtype, enabled=self._dtype is not None):
                loss = cross_entropy(self._model(images), labels)
            self._optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            self._optimizer.step()
        wait_for(self._device)
        return (time.perf_counter() - began) / steps


class _Twin:
    """The same stage set up otherwise: the frozen part run again for every batch, or the backbone left eager."""

    def __init__(self, turns: Turns, loop: Loop, source: Any, caches: bool = True, eager: bool = False) -> None:
        self._turns, self._loop, self._source = turns, loop, source
        self._caches, self._eager = caches, eager
        self._twin: Loop | None = None
        self._batches: Iterator[Any] = iter(())

    def __call__(self, steps: int) -> float:
        """Seconds of a step."""
        twin = self._twin = self._twin or self._made()
        before = self._turns._now()
        for _ in range(steps):
            batch = next(self._batches, None)
            if batch is None:
                self._batches = twin.replayed(0)
                batch = next(self._batches)
            twin.update(twin.forward(batch, self._loop.weights), self._loop.state.learning_rate)
        return (self._turns._now() - before) / steps

    def _made(self) -> Loop:
        assembly, index, loop = self._turns.assembly, self._turns._index, self._loop
        position = replace(loop.position, epoch=0, step=0)
        twin = set_up(assembly, index, loop.hooks, position, None, [], Whole(), caches=self._caches, eager=self._eager)
        if isinstance(self._source, _Held):
            twin.source = self._source  # type: ignore[assignment]
        return twin


def measure(subject: Subject, seconds: float, beside: Beside | None, first: bool) -> list[dict[str, Any]]:
    """Train a few steps of each stage, in turns with the others.

    Args:
        subject: what is measured.
        seconds: for all stages.
        beside: takes turns.
        first: measure the first stage alone.

    Returns:
        For each stage what ``--json`` prints of it.
    """
    plan, device = subject.plan, subject.device
    share = seconds / (1 if first else len(plan.stages))
    loaders = PartialLoaders(plan, device, time.perf_counter)
    whole = subject.data
    turns = Turns(subject, loaders, share, beside, first)
    with TemporaryDirectory(prefix="ltcore-bench-") as folder:
        (Path(folder) / "checkpoints").mkdir()
        data = RunData(plan, whole, device, subject.cut, lambda split: loaders.make(whole, split))
        turns.assembly = Assembly(plan, data, device)
        run = Run(
            turns.assembly,
            RunDirectory(Path(folder)),
            Reporter.silent(),
            observers=[turns],
            extent=turns,
            traced_steps=0,
        )
        try:
            run.train()
        except Enough:
            pass
    return turns.stages

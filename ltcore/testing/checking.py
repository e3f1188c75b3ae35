"""All checks of a method, one after the other."""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch

from ltcore.contract.hookspecs import HOOKS
from ltcore.contract.method import Method
from ltcore.discovery import catalogue
from ltcore.discovery.offer import Offer
from ltcore.errors import LtcoreError, RecipeError, listed, nearest
from ltcore.new.names import spelled
from ltcore.plan.checks import NEEDS
from ltcore.recipe.loading import recipe_from
from ltcore.testing import order, pairs, reopening, synchronisation, together
from ltcore.testing.options import check_options
from ltcore.testing.parts import PARTS
from ltcore.testing.processes import elsewhere, in_two, start
from ltcore.testing.recipes import (
    WHERE,
    beside,
    changed,
    compose,
    part_of,
    plainly,
    plan_of,
    slowly,
    with_companions,
)
from ltcore.testing.records import Records
from ltcore.testing.reopening import BUILDING, reopened
from ltcore.testing.report import CHECKS, Check, ConformanceError, Report
from ltcore.testing.spelling import check_hooks, check_interface
from ltcore.testing.trial import Saved, Trained, train
from ltcore.testing.watch import Watch

#: Checks that a watched training answers, and what it tries for each.
_WATCHED = {
    "gradients": "every parameter that trains, and every leaf of the loss's graph, in every step",
    "gradient_flow": "from what every hook of a step returns to what it was given, and at the backbone",
    "idle_modules": "the gradients of the method's modules, in every step",
    "given_gradients": "their names, in every step",
    "answers": "the type, shape and device of every answer",
    "device": "what hooks of a step make without saying where, and compute with or return",
    "synthetic": "the images and marks of the rows that come in and go out",
    "sources": "every row's label, beside that of its image",
    "relabelling": "every row's label, as it came in",
    "extra_rows": "whether they are found among the batch's rows",
    "classifier": "its logits on random features beside weight and bias, with other parameters too",
    "frozen_models": "tensors and modes of earlier stages' models, before and behind every hook",
    "growth": "live tensors, and what the method holds, after every step of a last epoch",
    "passes": "what each hook of a step asks the context for",
    "inputs": "arguments, context and model before and behind every hook",
    "randomness": "the states of random, numpy.random and torch before and behind every hook",
    "auxiliary": "declared against returned terms, in every step",
    "synchronisation": "the operators of every step" + "; and what CUDA reports" * torch.cuda.is_available(),
}
WITHOUT_TRAINING = frozenset({"options", "hooks", "interface"})
_NEEDS_STEADY = frozenset({"resume", "test_data", "validation", "processes", "together", "row_order"})
#: Of checks that say something of some hooks only, those hooks.
_RECORDS = frozenset({"mix_inputs", "augment_features"})
_OF_STEPS = frozenset(name for name, hook in HOOKS.items() if hook.called == "step")
_ABOUT = {
    "device": _OF_STEPS,
    "given_gradients": frozenset({"compute_gradients"}),
    "answers": frozenset(name for name, hook in HOOKS.items() if hook.problem is not None),
    "synthetic": _RECORDS,
    "sources": _RECORDS,
    "relabelling": _RECORDS,
    "extra_rows": frozenset({"extra_rows"}),
    "others_rows": _RECORDS,
    "row_order": _OF_STEPS,
    "classifier": frozenset({"build_classifier"}),
    "reopening": BUILDING,
}
#: What would be wrong for the same reason, and is not tried where a check has failed.
_FOLLOWS = {
    "resume": frozenset({"frozen_models"}),
    "others_rows": frozenset({"relabelling"}),
    "together": frozenset({"processes"}),
}
_SMALL, _ODD = 1, 7
_FEW = 4


def check_method(
    kind: type[Method],
    options: Mapping[str, Any] | None = None,
    recipe: Mapping[str, Any] | None = None,
    without: Collection[str] = (),
) -> None:
    """See that a method keeps to what ltcore asks of it; `docs/check.md` lists the checks.

    Args:
        kind: the method's class, installed or not.
        options: options to check it with, over its class's `checked_with`.
        recipe: parts of the recipes, such as ``stages``, for a method that no composed recipe suits.
        without: names of checks to leave out, such as ``pairs``, which takes longest.

    Raises:
        ConformanceError: checks failed; the message lists them with what to change.
    """
    report = conformance(kind, options, recipe, without)
    if not report.passed:
        raise ConformanceError(report)


def conformance(
    kind: type[Method],
    options: Mapping[str, Any] | None = None,
    recipe: Mapping[str, Any] | None = None,
    without: Collection[str] = (),
) -> Report:
    """All checks of a method; arguments as for `check_method`.

    Raises:
        ValueError: `without` names no check.
    """
    for name in without:
        if name not in CHECKS:
            raise ValueError(f"there is no check '{name}'{nearest(name, CHECKS) or ';'} there is {listed(CHECKS)}")
    known = next((offer.name for offer in catalogue.offers() if _is(offer, kind)), None)
    own = {} if known else {_name_of(kind): kind}
    with catalogue.lent({**PARTS, **own}), one_thread():
        offer = catalogue.find(known or next(iter(own)))
        checks = list(_Conformance(offer, kind, options or {}, recipe or {}, without).checks())
    made = {check.name: check for check in checks}
    made |= {name: Check(name, "", "not applicable", "left out") for name in without}
    return Report(offer.name, f"{offer.distribution} {offer.version}", tuple(made[name] for name in CHECKS))


def _is(offer: Offer, kind: type[Method]) -> bool:
    if offer.value.partition(":")[0].partition(".")[0] != kind.__module__.partition(".")[0]:
        return False
    try:
        return catalogue.load(offer) is kind
    except LtcoreError:
        return False


def _name_of(kind: type[Method]) -> str:
    name = spelled(kind.__name__)
    return f"{name}_checked" if any(offer.name == name for offer in catalogue.offers()) else name


@contextmanager
def one_thread() -> Iterator[None]:
    """Networks as small as these are slower on two threads; and sums do not depend on the machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


class _Conformance:
    """The checks of one method."""

    def __init__(
        self,
        offer: Offer,
        kind: type[Method],
        options: Mapping[str, Any],
        recipe: Mapping[str, Any],
        without: Collection[str],
    ) -> None:
        self.offer, self.kind, self.asked, self.without = offer, kind, recipe, without
        self.options = {**kind.checked_with, **options}

    def checks(self) -> Iterator[Check]:
        """Each check that there is, in an order in which what one needs comes before it."""
        made: list[Check] = []

        def note(*checks: Check) -> Iterator[Check]:
            made.extend(checks)
            yield from checks

        yield from note(check_options(self.kind, self.options))
        if made[-1].outcome == "passed":
            method = self.kind(self.kind.Options(**self.options))
            yield from note(check_hooks(self.offer, method))
            if made[-1].outcome == "passed":
                yield from note(check_interface(self.offer, method))
            if made[-1].outcome == "passed" and set(CHECKS) - WITHOUT_TRAINING - set(self.without):
                yield from note(*self._trainings())
        done = {check.name for check in made}
        failed = ", ".join(check.name for check in made if check.outcome == "failed")
        for name in CHECKS:
            if name not in done:
                yield Check(name, "", "not applicable", f"not tried, because of what failed: {failed}")

    def _trainings(self) -> Iterator[Check]:
        start()  # the other process imports what it needs meanwhile
        try:
            self.part = pairs.fitted(part_of(self.offer, self.options))
            self.recipe = self._recipe()
        except LtcoreError as error:
            yield Check("steps", "a plain stage, and one with the method", "failed", plainly(error), _HELP)
            return
        with _folder() as folder:
            watch = Watch(frozenset({self.offer.name}), looking=True)
            recipe = changed(self.recipe, checkpoint_seconds=0)
            wrong: list[str | None] = []
            opened = partial(reopened, recipe_from(recipe, WHERE))
            builds = bool(self.part.hooks & BUILDING)
            try:
                self.trained = train(
                    recipe, watch, folder=folder, reopening=lambda *run: wrong.append(opened(*run) if builds else None)
                )
            except LtcoreError as error:
                if not watch.faults:
                    yield Check("steps", _stages(self.recipe), "failed", plainly(error), _HELP)
                yield from self._seen(watch, ended=True)
                return
            yield self._steps(watch)
            self._wait_on_gpu(watch)
            yield from self._seen(watch, ended=False)
            yield self._reopening(wrong[0])
            yield from self._compared(folder, watch)

    def _compared(self, folder: Path, watch: Watch) -> Iterator[Check]:
        """The checks that train again; where the same seed gives another result, equal results are not asked for."""
        found = {fault.check for fault in watch.faults}
        failed: set[str] = set()
        comparisons: dict[str, Callable[[], Check]] = {
            "seed": self._same_seed,
            "resume": lambda: self._resume(folder),
            "test_data": self._test_data,
            "validation": lambda: self._validation(watch),
            "others_rows": self._others_rows,
            "row_order": self._row_order,
            "processes": self._processes,
            "together": self._together,
            "batch_sizes": self._batch_sizes,
            "pairs": self._pairs,
        }
        steady = "seed" not in found
        for name, compare in comparisons.items():
            follows = _FOLLOWS.get(name, frozenset()) & (found | failed)
            if name in found or name in self.without or follows or (name in _NEEDS_STEADY and not steady):
                continue
            made = compare()
            steady = steady and (name != "seed" or made.outcome == "passed")
            failed |= {name} if made.outcome == "failed" else set()
            yield made

    def _recipe(self) -> dict[str, Any]:
        """A recipe that suits the method, with a stage in which its networks are frozen where it has some."""
        parts = with_companions(self.part)
        if self.part.networks and not self.asked:
            with_frozen = compose(parts, frozen_stage=True)
            try:
                train(with_frozen, Watch())
                return with_frozen
            except RecipeError:
                pass
            except LtcoreError:
                return with_frozen  # the watched training says what is wrong
        return changed(compose(parts), **self.asked)

    # -- what the watch has seen -----------------------------------------------------------------------------------

    def _steps(self, watch: Watch) -> Check:
        tried = f"{_stages(self.recipe)}; calls: {', '.join(f'{hook} {n}' for hook, n in sorted(watch.calls.items()))}"
        never = sorted(self.part.hooks - set(watch.calls))
        if never:
            message = f"{never[0]} was never called in a recipe that lists the method"
            return Check("steps", tried, "failed", message, _HELP)
        return Check("steps", tried, "passed")

    def _wait_on_gpu(self, watch: Watch) -> None:
        """Where there is a GPU, let CUDA itself say what waits for it."""
        if not torch.cuda.is_available() or any(fault.check == "synchronisation" for fault in watch.faults):
            return
        try:
            train(changed(self.recipe, device="cuda"), Watch(watch.names, waiting=True))
        except LtcoreError as error:
            what = "waits for the GPU" if "synchronizing CUDA operation" in str(error) else "does not train on a GPU"
            watch.fault("synchronisation", f"it {what}: {plainly(error)}", synchronisation.CHANGE)

    def _seen(self, watch: Watch, ended: bool) -> Iterator[Check]:
        """The checks that one watched training answers; what it did not get to is not applicable."""
        for name in watch.trained - watch.with_gradient if not ended else ():
            watch.fault(
                "gradients",
                f"the parameter '{name.removeprefix('methods.')}' trains and never got a gradient",
                "use it in what a hook returns, without detach() or no_grad(); keep what is not trained in a buffer",
            )
        for name, tried in (_WATCHED | {"test_data": _TEST, "seed": _SEED}).items():
            faults = [fault for fault in watch.faults if fault.check == name]
            if faults:
                messages = "\n".join(dict.fromkeys(fault.message for fault in faults))
                changes = "; ".join(dict.fromkeys(fault.change for fault in faults))
                yield Check(name, tried, "failed", messages, changes)
            elif ended or name not in _WATCHED:
                continue  # not seen, or seen in part only
            elif why := self._not_about(name):
                yield Check(name, tried, "not applicable", why)
            else:
                yield Check(name, tried, "passed")

    def _not_about(self, name: str) -> str | None:
        """Why a check says nothing of the method; None where it does."""
        if name == "auxiliary" and not self.part.method.auxiliary:
            return "it has no auxiliary losses"
        if name == "idle_modules" and not self.part.networks:
            return "it has no modules of its own"
        hooks = _ABOUT.get(name)
        if hooks is None or hooks & self.part.hooks:
            return None
        return f"it has no {' or '.join(sorted(hooks))}" if len(hooks) < _FEW else "it has no such hook"

    def _reopening(self, wrong: str | None) -> Check:
        tried = "built anew from the recipe and the run's tensors, without data; and traced, for other images"
        if why := self._not_about("reopening"):
            return Check("reopening", tried, "not applicable", why)
        if wrong:
            return Check("reopening", tried, "failed", wrong, reopening.CHANGE)
        return Check("reopening", tried, "passed")

    # -- what is the same ------------------------------------------------------------------------------------------

    def _same_seed(self) -> Check:
        difference = self.trained.difference(train(self.recipe, self._quiet()))
        if difference:
            return Check("seed", _SEED, "failed", f"two trainings differ in {difference}", _RANDOM)
        return Check("seed", _SEED, "passed")

    def _quiet(self) -> Watch:
        return Watch(frozenset({self.offer.name}))

    def _test_data(self) -> Check:
        if self.recipe["data"]["use"] != "check_data":
            return Check("test_data", _TEST, "not applicable", "the recipe has data of its own")
        difference = self.trained.difference(self._with_other(test_seed=1))
        if difference:
            message = f"with other test images and labels, the training differs in {difference}"
            return Check("test_data", _TEST, "failed", message, "choose and fit on training or validation images only")
        return Check("test_data", _TEST, "passed")

    def _with_other(self, **data: Any) -> Trained:
        return train(changed(self.recipe, data=data), self._quiet())

    def _validation(self, watch: Watch) -> Check:
        if self.recipe["data"]["use"] != "check_data":
            return Check("validation", _HELD_OUT, "not applicable", "the recipe has data of its own")
        if "validation" in self.part.method.requires:
            return Check("validation", _HELD_OUT, "not applicable", "it says that it requires validation images")
        difference = self.trained.difference(self._with_other(held_out_seed=1))
        if not difference:
            return Check("validation", _HELD_OUT, "passed")
        asking = f" ({' and '.join(sorted(watch.asked.validation))} asks for them)" if watch.asked.validation else ""
        message = f"with other validation images and labels, the training differs in {difference}{asking}"
        return Check("validation", _HELD_OUT, "failed", message, _REQUIRE)

    def _others_rows(self) -> Check:
        if why := self._not_about("others_rows"):
            return Check("others_rows", "", "not applicable", why)
        tap = self.part.method.tap if "augment_features" in self.part.hooks else "pooled"
        rows = {"check_rows": {"tap": tap}}
        refused = ""
        for others, tried in (({"check_mix": {}, **rows}, "mixed, with"), (rows, "with")):
            watch = Watch(frozenset({self.offer.name}))
            watch.inspectors = [Records(watch, only_others=True)]
            tried = f"a training on batches {tried} three rows that another method made"
            recipe, message, change = beside(self.recipe, others), "", _BESIDE
            try:
                plan_of(recipe)
            except RecipeError as error:
                refused = plainly(error)
                continue
            try:
                train(recipe, watch)
            except LtcoreError as error:
                message = f"beside such rows it ends: {plainly(error)}"
            if faults := [fault for fault in watch.faults if fault.check == "others_rows"]:
                message, change = "\n".join(fault.message for fault in faults), faults[0].change
            return Check("others_rows", tried, "failed" if message else "passed", message, change if message else "")
        return Check("others_rows", "", "not applicable", f"the plan refuses other methods' rows: {refused}")

    def _row_order(self) -> Check:
        tried = "the same training with the rows of every batch in another order, and what is drawn for them too"
        why = self._not_about("row_order") or self._in_order()
        if why:
            return Check("row_order", tried, "not applicable", why)
        watch, follow = self._quiet(), order.Follow()
        watch.around = follow
        try:
            difference = order.difference(self.trained, train(beside(self.recipe, {"check_order": {}}), watch))
        except LtcoreError as error:
            difference = f"an error: {plainly(error)}"
        if difference and follow.beyond:
            drawn = ", ".join(sorted(follow.beyond))
            return Check("row_order", tried, "not applicable", f"it draws what belongs to no row ({drawn})")
        if difference:
            message = f"with the rows of every batch in another order, the training differs in {difference}"
            return Check("row_order", tried, "failed", message, _IN_ORDER)
        return Check("row_order", tried, "passed")

    def _in_order(self) -> str | None:
        """Why the order of rows may matter; None where it must not."""
        if self.part.method.order_matters:
            return "it says that the order of rows matters to it"
        laying_out = {"build_sampler", "extra_rows"}
        parts = with_companions(self.part)
        bringing = next((part.name for part in parts if part.hooks & laying_out), None)
        return f"'{bringing}' says how batches are laid out" if bringing else None

    def _resume(self, folder: Path) -> Check:
        stops = list(_stops(self.trained.saved))
        tried = f"stopped {len(stops)} times in mid-epoch, each time gone on in a new run from the checkpoint"
        recipe = changed(self.recipe, checkpoint_seconds=0)
        for saved in stops:
            stage, epoch, step = saved.at
            watch = self._quiet()
            try:
                again = train(recipe, watch, saved, folder)
                difference = self.trained.difference(again)
            except LtcoreError as error:
                difference = f"an error: {plainly(error)}"
            if difference:
                lost = sorted(path for path, text in saved.plain.items() if watch.held.get(path) != text)
                held = f"; not in state_dict, and other values after the restart: {', '.join(lost)}" if lost else ""
                return Check(
                    "resume",
                    tried,
                    "failed",
                    f"stopped after step {step} of stage '{stage}', epoch {epoch + 1}, and gone on, the training "
                    f"differs in {difference}{held}",
                    "keep what hooks learn in buffers (`register_buffer` in __init__ or on_run_start, then `copy_`); "
                    "recompute the rest in build_sampler or class_weights, which a resumed stage calls again",
                )
        return Check("resume", tried, "passed")

    def _batch_sizes(self) -> Check:
        found = []
        for size in (_SMALL, _ODD):
            recipe = changed(self.recipe, batch_size=size)
            if self.part.role == "backbone" and size == 1:  # maps of more than one place, for its batch norms
                recipe["data"]["options"]["image_size"] = 64
                recipe["stages"] = recipe["stages"][:1]
            try:
                plan_of(recipe)
            except RecipeError as error:
                found.append(f"{size}: refused ({plainly(error).rpartition('refuses the stage: ')[2]})")
                continue
            try:
                train(recipe, self._quiet())
            except LtcoreError as error:
                return Check(
                    "batch_sizes",
                    f"batches of {_SMALL} and of {_ODD}",
                    "failed",
                    f"with batches of {size}: {plainly(error)}",
                    f"let it work for {size} image{'s' * (size > 1)} (a deviation over one row is NaN, and batch norm "
                    "fails); or refuse the batch size in check_stage, with a RecipeError that names the smallest one",
                )
            found.append(f"{size}: trained")
        return Check("batch_sizes", "; ".join(found), "passed")

    def _processes(self) -> Check:
        tried = "the same training in a fresh process with other hash seeds"
        if "<locals>" in self.kind.__qualname__:
            return Check(
                "processes", tried, "not applicable", "another process cannot import a class made in a function"
            )
        answer = elsewhere(self.offer, self.kind, self.recipe)
        if isinstance(answer, str):
            return Check("processes", tried, "failed", answer, "put the class into a module that can be imported")
        difference = self.trained.difference(answer)
        if difference:
            return Check(
                "processes",
                tried,
                "failed",
                f"another process gets another training: it differs in {difference}",
                "let nothing depend on hash(), the order of a set, id(), the time or the process",
            )
        return Check("processes", tried, "passed")

    def _together(self) -> Check:
        tried = "the same training in two processes together, as torchrun starts them, beside that in one"
        if "<locals>" in self.kind.__qualname__:
            why = "other processes cannot import a class made in a function"
            return Check("together", tried, "not applicable", why)
        if sys.platform != "linux":
            return Check("together", tried, "not applicable", "processes are forked for it, which only Linux bears")
        parts = with_companions(self.part)
        for part in parts:
            if said := sorted(together.SAYING & set(part.method.requires)):
                who = "it" if part is self.part else f"'{part.name}'"
                why = f"{who} says that it needs {said[0]} ({NEEDS[said[0]]})"
                return Check("together", tried, "not applicable", why)
        message: str | None = None
        for recipe in (self.recipe, slowly(self.recipe)):
            one = self.trained if recipe is self.recipe else train(recipe, self._quiet())
            answer = in_two(self.offer, self.kind, changed(recipe, sync_batch_norm=True))
            if isinstance(answer, str):
                return Check("together", tried, "failed", answer, together.CHANGE)
            if all(each.refused for each in answer):
                return Check("together", tried, "not applicable", f"the plan refuses it: {answer[0].error}")
            message = together.difference(one, answer)
            if message is None or any(each.error for each in answer):
                break  # else it may be what was rounded otherwise, and has grown
        return Check(
            "together", tried, "failed" if message else "passed", message or "", together.CHANGE * bool(message)
        )

    def _pairs(self) -> Check:
        if self.asked or self.part.role == "data":
            why = "the recipe has parts of its own" if self.asked else "a data set stands beside no method"
            return Check("pairs", "", "not applicable", why)
        counted = {"trained": 0, "refused": 0}
        for other in pairs.others(self.part):
            for first, second in pairs.orders(self.part, other):
                outcome, problem = pairs.tried(first, second)
                counted[outcome] += 1
                if problem:
                    return Check(
                        "pairs",
                        f"beside '{other.name}'",
                        "failed",
                        f"'{first.name}' and then '{second.name}': {problem}",
                        "state what the method needs and breaks (`requires`, `provides`, `breaks`), or refuse the "
                        "stage in check_stage; leave rows alone that `synthetic` marks",
                    )
        tried = f"beside every installed method: {counted['trained']} recipes trained, {counted['refused']} refused"
        return Check("pairs", tried, "passed")


_SEED = "two trainings with the same seed"
_TEST = "test splits that hooks open; and a training with other test images and labels"
_HELD_OUT = "a training with other validation images and labels"
_REQUIRE = (
    "choose and fit on training images; or say `requires = frozenset({'validation'})`: then a recipe must hold images "
    "out, and no figure on them is one of images that the training has not seen"
)
_BESIDE = "leave rows alone that `synthetic` marks, and hand on the rest with `dataclasses.replace(features, ...)`"
_IN_ORDER = (
    "go by labels, sources and marks, and not by places in the batch; or bring the layout (`build_sampler`), or say "
    "`order_matters = True`"
)
_RANDOM = "draw from context.generator, and sum in a fixed order"
_HELP = (
    "if the recipe does not suit the method: set its class's `checked_with`, or give check_method `options` or `recipe`"
)


def _stages(recipe: Mapping[str, Any]) -> str:
    names = [stage["name"] for stage in recipe["stages"]]
    return f"a recipe of {len(names)} stages"


def _stops(saved: list[Saved]) -> Iterator[Saved]:
    """In the middle of the first and of the second epoch of each stage but the first."""
    stages = dict.fromkeys(each.at[0] for each in saved)
    for stage in list(stages)[1:] or stages:
        for epoch, step in ((0, 2), (1, 1)):
            yield from (each for each in saved if each.at == (stage, epoch, step))


@contextmanager
def _folder() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="ltcore-check-"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)

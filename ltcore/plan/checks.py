"""What must hold of a stage before anything is read or trained. Each check refuses with names and a way out."""

from __future__ import annotations

import itertools
import re
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ltcore import ranks
from ltcore.contract.hookspecs import HOOKS
from ltcore.errors import RecipeError, listed, nearest
from ltcore.plan.acceleration import obstacle, refused
from ltcore.plan.adapting import named

if TYPE_CHECKING:
    from ltcore.contract.backbone import Backbone
    from ltcore.contract.model import PublicName
    from ltcore.contract.recipe import Stage
    from ltcore.discovery.binding import Answers, Entry, Implementation
    from ltcore.recipe.loading import LoadedRecipe

#: The words that core understands in a method's ``requires``, and what each means.
NEEDS = {
    "class_weights": "weights of the classes that the classifier learns",
    "earlier_stage": "a stage before this one",
    "experts": "a backbone with experts",
    "feature_maps": "a tap with feature maps [N, D, H, W]",
    "fixed_backbone": "a backbone that stays as it is",
    "hard_labels": "one label per image",
    "one_network": "a backbone without experts, or a tap before it splits",
    "one_process": "a run in one process",
    "own_parameters_train": "that the stage trains the method's own parameters",
    "second_order": "gradients of gradients",
    "single_images": "one image per row",
    "spatial_features": "a tap with feature maps whose plain mean the classifier reads",
    "validation": "held-out images: set data.holdout",
}

#: Those that ask for a batch in one piece.
_WHOLE = ("one_process", "second_order")
#: Those that ask for maps at the method's tap.
SPATIAL = ("feature_maps", "spatial_features")


def linear_names(skeleton: Backbone) -> tuple[str, ...]:
    """Parameters of core's own classifier as a recipe writes them; with experts, one for each."""
    if skeleton.experts == 1:
        return ("classifier.weight", "classifier.bias")
    each = (f"classifier.experts.{number}" for number in range(skeleton.experts))
    return tuple(f"{name}.{kind}" for name in each for kind in ("weight", "bias"))


def backbone_names(skeleton: Backbone) -> list[PublicName]:
    """Parameter names of the backbone as a recipe writes them, ``backbone.`` included."""
    from ltcore.contract.model import public_name

    return [public_name(f"backbone.{name}", skeleton) for name, _ in skeleton.named_parameters()]


def wrong_group(stage: Stage, names: Iterable[str], later: Collection[str] = ()) -> tuple[str, str] | None:
    """The first pattern of ``optimizer.groups`` that makes no group, and why; None where each makes one.

    Args:
        stage: the stage.
        names: public names of parameters, as far as they are known.
        later: the parts of the model (``classifier``, methods) that may get parameters which are not known yet.
    """
    from ltcore.contract.model import matches
    from ltcore.networks.optimizers import group_parameters

    groups, trainable = stage.optimizer.groups, stage.trainable
    names = list(names)
    trained = [name for name in names if any(matches(name, pattern) for pattern in trainable)]
    growing = [root for root in later if any(_may_reach(pattern, root) for pattern in trainable)]
    found = group_parameters(trained, groups)
    for pattern in groups:
        if found.held[pattern] or any(_may_reach(pattern, root) for root in growing):
            continue
        if found.elsewhere[pattern]:
            return pattern, (
                f"optimizer group '{pattern}' is empty: all that it matches is in the group of "
                f"{listed(found.elsewhere[pattern])}, which stands before it; put '{pattern}' first"
            )
        if any(matches(name, pattern) for name in names):
            return pattern, (
                f"optimizer group '{pattern}' matches nothing that trains; the stage trains {listed(trainable)}"
            )
        # What a recipe could have meant: each name, and the modules above it.
        known = dict.fromkeys(".".join(name.split(".")[: depth + 1]) for name in trained for depth in range(6))
        near = nearest(pattern, known)
        return pattern, f"optimizer group '{pattern}' matches nothing{near or ';'} the stage trains {listed(trainable)}"
    return None


def _may_reach(pattern: str, root: str) -> bool:
    """Whether a pattern could match a parameter below a part of the model, whatever that is called."""
    literal = re.split(r"[*?\[]", pattern)[0]
    if literal == pattern:
        return pattern.split(".")[0] == root
    return f"{root}.".startswith(literal) or literal.startswith(f"{root}.")


def late_start(entry: Entry, epochs: int) -> str:
    """What to say of a method that would begin behind the end of a stage, behind its name; empty where it does not."""
    if entry.method.acts_from < epochs:
        return ""
    return (
        f"would never act: start_epoch {entry.method.acts_from} never comes in {epochs} epochs, counted from 0; set it "
        "to an epoch of the stage, such as that of the first drop of the learning rate"
    )


@dataclass(frozen=True)
class StageChecks:
    """The checks of one stage; `run` goes through them all.

    Attributes:
        loaded: the recipe.
        index: the stage's place in it.
        stage: the stage.
        data: the method that builds the data.
        backbone: the method that builds the backbone.
        active: the stage's methods.
        answers: what they implement.
        skeleton: the backbone on the meta device.
        values: whether the values of the optimiser's options are checked, too.
        built: whether a method builds the classifier, here or in an earlier stage that this one takes it from.
        before: methods of earlier stages, where what they provide holds here, too.
    """

    loaded: LoadedRecipe
    index: int
    stage: Stage
    data: Entry
    backbone: Entry
    active: tuple[Entry, ...]
    answers: Answers
    skeleton: Backbone
    values: bool
    built: bool
    before: tuple[Entry, ...] = ()

    def run(self) -> None:
        """Go through all checks.

        Raises:
            RecipeError: the first that fails.
        """
        self.every_method_acts()
        self.one_answer_a_hook()
        self.no_logits_are_lost()
        self.something_trains()
        self.what_is_new_trains()
        self.taps_exist()
        self.needs_are_met()
        self.validates_on_something()
        self.every_start_comes()
        self.cache_is_possible()
        self.parts_save_something()
        self.acceleration_is_possible()
        self.trainable_matches()
        self.auxiliary_terms_exist()
        self.optimizer_exists()
        self.groups_match()
        self.methods_agree()

    def refuse(self, message: str, *path: str | int) -> RecipeError:
        """The error at a place of this stage."""
        return self.loaded.fail(("stages", self.index, *path), f"stage '{self.stage.name}': {message}")

    def _at(self, error: RecipeError, *path: str | int) -> None:
        """Put a place of this stage before an error's message."""
        where = self.loaded.where("stages", self.index, *path)
        error.within(f"{where}: stage '{self.stage.name}': ")

    def refuse_method(self, entry: Entry, message: str) -> RecipeError:
        """The error at a method's place in the stage's list."""
        return self.refuse(f"{entry.whose} {message}", "methods", self.active.index(entry))

    def every_method_acts(self) -> None:
        """A method that answers no hook of a stage is a mistake."""
        called = [name for name, hook in HOOKS.items() if hook.is_called_in(self.stage.classification)]
        acting = {answer.entry.key for name in called for answer in self.answers[name]}
        for entry in self.active:
            if entry.key not in acting:
                without = "" if self.stage.classification else " without classification"
                where = "if it calibrates, name it in 'calibrate'; if it adapts the network, in 'backbone.adapt'"
                raise self.refuse_method(entry, f"does nothing in a stage{without}; {where}")

    def one_answer_a_hook(self) -> None:
        """Hooks of kind ``one`` have at most one answer."""
        for hook, found in self.answers.items():
            if HOOKS[hook].kind == "one" and len(found) > 1:
                names = " and ".join(f"'{answer.entry.key}'" for answer in found)
                both = "both" if len(found) == 2 else "all"
                raise self.refuse(f"{names} {both} {HOOKS[hook].acts} (hook {hook}); keep one", "methods")
        for answer in self.answers["class_distribution"]:
            if self.stage.sampler:
                raise self.refuse(
                    f"sampler '{self.stage.sampler}' and '{answer.entry.key}' both {HOOKS[answer.hook].acts} "
                    f"(hook {answer.hook}); keep one",
                    "sampler",
                )

    def no_logits_are_lost(self) -> None:
        """A method that adjusts logits without a look at them gives others in their place, so it comes first."""
        for before, answer in self.replacing("adjust_logits", "logits"):
            raise self.refuse_method(
                answer.entry,
                f"gives logits of its own in adjust_logits, so what {before.entry.whose} has made of the "
                f"classifier's would be lost; name '{answer.entry.key}' first, or leave one out",
            )

    def replacing(self, hook: str, argument: str) -> Iterator[tuple[Implementation, Implementation]]:
        """Answers that do not take what the one before them has made, each behind that one."""
        return (
            (before, answer)
            for before, answer in itertools.pairwise(self.answers[hook])
            if argument not in answer.arguments
        )

    def something_trains(self) -> None:
        """A stage without classification lives from auxiliary losses."""
        if not self.stage.classification and not any(entry.method.auxiliary for entry in self.active):
            raise self.refuse(
                "without classification it needs a method with auxiliary losses, and has none", "classification"
            )

    def what_is_new_trains(self) -> None:
        """A backbone that is built anew is trained."""
        if self.stage.backbone == "rebuild" and not self._matching(backbone_names(self.skeleton)):
            raise self.refuse(
                "backbone: rebuild makes a backbone that has learned nothing, and trainable does not name it; add "
                "backbone, or keep the one of the stage before",
                "backbone",
            )

    def taps_exist(self) -> None:
        """Features are changed where the backbone has a tap."""
        for answer in self.answers["augment_features"]:
            tap, taps = answer.entry.method.tap, self.skeleton.taps
            if tap not in taps:
                raise self.refuse_method(
                    answer.entry,
                    f"acts at tap '{tap}', which {named(self.loaded)} does not have"
                    f"{nearest(tap, taps) or ';'} it has {listed(taps)}",
                )

    def validates_on_something(self) -> None:
        """A stage that is validated has held-out images for it."""
        provided = {*self.data.method.provides, *self.backbone.method.provides}
        held = self.loaded.recipe.data.holdout or "validation" in provided
        if self.stage.validate_every is not None and not held:
            raise self.refuse(
                "validate_every looks at held-out images, and there are none; set data.holdout, or use data with a "
                "validation split",
                "validate_every",
            )

    def needs_are_met(self) -> None:
        """What methods require, the recipe or another method provides, and no method of the stage breaks."""
        provided = {"hard_labels", "single_images", *self.data.method.provides, *self.backbone.method.provides}
        if self.index:
            provided.add("earlier_stage")
        if self.loaded.recipe.data.holdout:
            provided.add("validation")
        provided.add("experts" if self.skeleton.experts > 1 else "one_network")
        provided |= {need for need in _WHOLE if not self._taken_apart(need)}
        provided = provided.union(*(entry.method.provides for entry in (*self.active, *self.before)))
        moving = self._moves_the_backbone()
        provided |= set() if moving else {"fixed_backbone"}
        on_top = next((a.entry.whose for a in self.answers["build_classifier"] if "previous" in a.arguments), "")
        provided |= set() if on_top else {"class_weights"}
        for entry in self.active:
            for need in sorted(self._needs_of(entry)):
                meaning = f"{need} ({NEEDS[need]})" if need in NEEDS else need
                breaking = next((other for other in self.active if need in other.method.breaks), None)
                if breaking:
                    raise self.refuse_method(
                        entry, f"needs {meaning}, which {breaking.whose} breaks; keep one, or use two stages"
                    )
                maps = need in SPATIAL and self.skeleton.has_maps(entry.method.tap)
                if maps and (need == "feature_maps" or self.skeleton.spatial):
                    continue
                if need == "one_network" and entry.method.tap in self.skeleton.inner_taps:
                    continue
                if need == "own_parameters_train":
                    self.own_parameters_train(entry, meaning)
                    continue
                if need == "fixed_backbone" and moving:
                    raise self.refuse_method(entry, f"needs {meaning}, and {moving}")
                if need == "class_weights" and on_top:
                    raise self.refuse_method(
                        entry, f"needs {meaning}, and {on_top} puts a classifier on the earlier one; keep one of them"
                    )
                if need not in provided:
                    why = (
                        self._without_maps(entry.method.tap, maps)
                        if need in SPATIAL
                        else self._taken_apart(need) or self._experts(need, entry.method.tap)
                    )
                    raise self.refuse_method(entry, f"needs {meaning}, and {why}")

    def _needs_of(self, entry: Entry) -> set[str]:
        """What a method requires; one that has rows of its own, also rows of the batch that stand beside them."""
        beside = any(answer.entry is entry for answer in self.answers["extra_rows"])
        pairing = "single_images" in entry.method.breaks
        return {*entry.method.requires, *(("single_images",) if beside and not pairing else ())}

    def _experts(self, need: str, tap: str) -> str:
        """Why something is not provided that is no tap."""
        backbone = named(self.loaded)
        if need == "one_network":
            return f"{backbone} has {self.skeleton.experts}, whose rows are not told apart at '{tap}'"
        return f"{backbone} has none" if need == "experts" else "nothing provides it"

    def _taken_apart(self, need: str) -> str:
        """What takes a batch apart that a method needs in one piece, and what to do; empty where nothing does."""
        processes = ranks.started().size
        if need in _WHOLE and processes > 1:
            return f"{processes} processes share the batch out; train with one"
        if need == "second_order" and self.stage.accumulate > 1:
            return f"accumulate: {self.stage.accumulate} computes the backbone's in parts; use accumulate: 1"
        return ""

    def _moves_the_backbone(self) -> str:
        """What of the stage changes the backbone, and what to write instead; empty where nothing does."""
        for pattern in self._matching(backbone_names(self.skeleton)):
            return f"trainable '{pattern}' trains it; name what else should train, such as trainable: [classifier]"
        if self.stage.batch_norm == "adapt":
            return "batch_norm: adapt moves its statistics; use batch_norm: frozen"
        return ""

    def own_parameters_train(self, entry: Entry, meaning: str) -> None:
        """A method that requires it is named in ``trainable``."""
        if not any(_may_reach(pattern, entry.key) for pattern in self.stage.trainable):
            asked = ", ".join((*self.stage.trainable, entry.key))
            raise self.refuse_method(
                entry, f"needs {meaning}, and trainable does not name it; write trainable: [{asked}]"
            )

    def every_start_comes(self) -> None:
        """A method that acts from some epoch on acts in the stage; of one counted in iterations the run knows."""
        epochs = self.stage.epochs
        for entry in self.active:
            if epochs is not None and (late := late_start(entry, epochs)):
                raise self.refuse_method(entry, late)

    def _without_maps(self, tap: str, maps: bool) -> str:
        """Why a tap of the backbone is none with maps, or none whose mean the classifier reads."""
        asked = self.loaded.recipe.backbone
        model = asked.options.get("model")
        shown = f"backbone '{asked.use}'" + (f" ({model})" if model else "")
        if not maps:
            return f"{shown} has none at '{tap}'; choose another tap, or a convolutional network such as a ResNet"
        between = self.skeleton.after_pool
        what = f"has {listed(between)} between" if between else "does more than that mean between maps and"
        pool = "the global pool and " if between else ""
        return f"{shown} {what} {pool}the classifier; choose a network without, such as a ResNet"

    def cache_is_possible(self) -> None:
        """A cache holds what a frozen backbone gives for images that no method changes."""
        if self.stage.cache == "off":
            return
        if self.stage.batch_norm == "adapt":
            raise self.refuse(
                f"cache '{self.stage.cache}' needs a backbone that stays as it is, and batch_norm: adapt changes it; "
                "use cache: off",
                "batch_norm",
            )
        trained = self._matching(backbone_names(self.skeleton))
        if trained:
            raise self.refuse(
                f"cache '{self.stage.cache}' needs a frozen backbone; {listed(trained)} trains it", "cache"
            )
        for answer in self.answers["augment_features"]:
            if answer.entry.method.tap in self.skeleton.inner_taps:
                raise self.refuse(
                    f"{answer.entry.whose} acts at '{answer.entry.method.tap}', inside the backbone, and cache "
                    f"'{self.stage.cache}' holds what comes out of it; use cache: off",
                    "cache",
                )
        for answer in (*self.answers["image_transform"], *self.answers["mix_inputs"]):
            raise self.refuse(
                f"{answer.entry.whose} changes the images, which cache '{self.stage.cache}' skips; use cache: off",
                "cache",
            )

    def parts_save_something(self) -> None:
        """A batch goes through the backbone in parts where its activations are held."""
        parts = self.stage.accumulate
        if parts == 1:
            return
        if self.stage.cache != "off":
            raise self.refuse(
                f"accumulate: {parts} takes a batch through the backbone in parts, and with cache "
                f"'{self.stage.cache}' none goes through it; use accumulate: 1",
                "accumulate",
            )
        if not self._matching(backbone_names(self.skeleton)):
            raise self.refuse(
                f"accumulate: {parts} saves activations of the backbone, and none are held where nothing of it trains: "
                f"trainable is {listed(self.stage.trainable)}; use accumulate: 1",
                "accumulate",
            )

    def acceleration_is_possible(self) -> None:
        """What a stage asks for by name can be tried; what is left to the device is told by the plan."""
        why = obstacle(self.stage, self.answers, self.skeleton)
        if wrong := refused(self.stage, self.loaded.recipe.device, why):
            raise self.refuse(wrong, "accelerate")

    def trainable_matches(self) -> None:
        """Every entry of ``trainable`` names something.

        A method may make its modules, or the classifier, when the data is known. So an entry that begins with it is
        checked later, by the trainer.
        """
        names = [*backbone_names(self.skeleton), *linear_names(self.skeleton)]
        methods = [entry.key for entry in self.active]
        blocks = list(dict.fromkeys(".".join(name.split(".")[:2]) for name in backbone_names(self.skeleton)))
        known = ["backbone", "classifier", *dict.fromkeys([*methods, *self.skeleton.added_by.values()]), *blocks]
        later = {*methods, "classifier"} if self.built else set(methods)
        matched = self._matching(names)
        for position, pattern in enumerate(self.stage.trainable):
            if pattern not in matched and pattern.split(".")[0] not in later:
                raise self.refuse(
                    f"trainable '{pattern}' matches nothing{nearest(pattern, known) or ';'} there is {listed(known)}",
                    "trainable",
                    position,
                )

    def _matching(self, names: Iterable[str]) -> list[str]:
        from ltcore.contract.model import matches

        names = list(names)
        return [pattern for pattern in self.stage.trainable if any(matches(name, pattern) for name in names)]

    def auxiliary_terms_exist(self) -> None:
        """Weights are given to terms that a method of the stage declares."""
        known = [f"{entry.key}/{term}" for entry in self.active for term in entry.method.auxiliary]
        for name in self.stage.auxiliary_weights:
            if name not in known:
                raise self.refuse(
                    f"there is no auxiliary loss '{name}'{nearest(name, known) or ';'} there is {listed(known)}",
                    "auxiliary_weights",
                    name,
                )

    def optimizer_exists(self) -> None:
        """The optimiser is one of torch's or timm's, and has the options given, in its groups too."""
        from ltcore.networks.optimizers import check_optimizer

        optimizer = self.stage.optimizer
        options = optimizer.model_extra or {}
        try:
            check_optimizer(optimizer.name, options, self.values)
        except RecipeError as error:
            self._at(error, "optimizer")
            raise
        for pattern, group in optimizer.groups.items():
            try:
                check_optimizer(optimizer.name, options, self.values, group.model_extra or {})
            except RecipeError as error:
                self._at(error.within(f"group '{pattern}': "), "optimizer", "groups", pattern)
                raise

    def groups_match(self) -> None:
        """Every group of the optimiser has parameters; those that methods make later are looked at by the run."""
        names = [*backbone_names(self.skeleton), *(() if self.built else linear_names(self.skeleton))]
        later = {entry.key for entry in self.active} | ({"classifier"} if self.built else set())
        wrong = wrong_group(self.stage, names, later)
        if wrong:
            raise self.refuse(wrong[1], "optimizer", "groups", wrong[0])

    def methods_agree(self) -> None:
        """Each method may refuse the stage's settings (`ltcore.Method.check_stage`)."""
        for entry in self.active:
            try:
                entry.method.check_stage(self.stage)
            except RecipeError as error:
                self._at(error.within(f"{entry.whose} refuses the stage: "), "methods", self.active.index(entry))
                raise


class CalibrationChecks(StageChecks):
    """What must hold of the methods under ``calibrate``: as of those of a stage in which nothing trains."""

    def run(self) -> None:
        """See that what they require is there, and that none throws away what those before it have made."""
        self.needs_are_met()
        self.none_begins_anew()

    def none_begins_anew(self) -> None:
        """A method that does not take the classifier makes one of its own, so it comes first."""
        for before, answer in self.replacing("post_calibrate", "classifier"):
            raise self.refuse_method(
                answer.entry,
                f"makes a classifier of its own in post_calibrate, so what {before.entry.whose} has made of the "
                f"trained one would be lost; put '{answer.entry.key}' first, or leave one out",
            )

    def refuse(self, message: str, *path: str | int) -> RecipeError:
        """The error at a place of ``calibrate``, which a stage would call ``methods``."""
        return self.loaded.fail(("calibrate", *path[1:]), f"calibrate: {message}")

    def own_parameters_train(self, entry: Entry, meaning: str) -> None:
        """A method that a stage lists was looked at there."""
        if not any(entry.key in stage.methods for stage in self.loaded.recipe.stages):
            raise self.refuse_method(
                entry,
                f"needs {meaning}, and nothing trains while a classifier is calibrated; name it in the methods "
                "and the trainable of a stage, too",
            )

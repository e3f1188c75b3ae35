"""From a method's marked functions to what a stage calls: pluggy checks them, then they are bound once.

pluggy validates names and arguments. Its own call loop is not used in training: `Hooks` holds, for each hook, plain
functions in the recipe's order, with the context already in them, and one typed method for each hook that applies the
hook's rule of composition.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pluggy

from ltcore.contract import hookspecs, interface
from ltcore.discovery.catalogue import Offer
from ltcore.errors import LtcoreError, PluginError, RunError, nearest

if TYPE_CHECKING:
    from torch import Tensor, nn

    from ltcore.contract.backbone import Backbone
    from ltcore.contract.context import Context
    from ltcore.contract.method import Method
    from ltcore.contract.records import Batch, Features
    from ltcore.contract.samplers import Sampler
    from ltcore.contract.splits import DataSplits

#: Hook name -> names of its arguments, in order.
ARGUMENTS = {name: tuple(inspect.signature(getattr(hookspecs, name)).parameters) for name in hookspecs.KINDS}

#: The hooks in which None is an answer, and not a forgotten return.
_MAY_RETURN_NONE = frozenset({"class_weights", "class_distribution"})


@dataclass(frozen=True)
class Entry:
    """A method that is active in a run: its name in the recipe, where it comes from, and the instance."""

    key: str
    offer: Offer
    method: Method

    @property
    def whose(self) -> str:
        """``'safa' (ltcore-safa 0.2.1)``."""
        return f"'{self.key}' ({self.offer.distribution} {self.offer.version})"


@dataclass(frozen=True)
class Implementation:
    """One method's answer to one hook."""

    entry: Entry
    hook: str
    function: Callable[..., Any]
    arguments: tuple[str, ...]

    def bind(self, context: Context | None) -> Callable[..., Any]:
        """A function of the hook's arguments by position, without the context, which is filled in.

        What the method raises comes out as one message that names it.
        """
        given = [name for name in ARGUMENTS[self.hook] if name != "context"]
        wanted = [(given.index(name), name) for name in self.arguments if name != "context"]
        fixed = {"context": context} if "context" in self.arguments else {}
        function, hook = self.function, self.hook
        outside = context if hook not in hookspecs.STEP_HOOKS else None
        may_return_none = hookspecs.KINDS[hook] == "all" or hook in _MAY_RETURN_NONE

        def call(*values: Any) -> Any:
            try:
                if outside is not None:
                    outside.begin(hook)
                returned = function(**{name: values[position] for position, name in wanted}, **fixed)
            except LtcoreError as error:
                raise type(error)(f"{self.entry.whose}: {error}") from error
            except Exception as error:
                raise RunError(
                    f"{self.entry.whose} failed in {self.hook}: {type(error).__name__}: {error}. "
                    "Run with --debug for the traceback"
                ) from error
            if returned is None and not may_return_none:
                raise PluginError(f"{self.entry.whose}: {hook} returned nothing; tell its author")
            return returned

        return call


#: Hook name -> the implementations that act, in the recipe's order.
Answers = dict[str, list[Implementation]]
Around = Callable[[Implementation, Callable[..., Any]], Callable[..., Any]]
"""What stands around the calls: see `Hooks.observe`."""


def implementations(entries: Iterable[Entry]) -> Answers:
    """For each hook, what the entries implement, in their order.

    Raises:
        PluginError: a marked function is no hook, takes an argument that the hook does not have, asks for an order of
            its own, or uses what a later interface than the method's has changed.
    """
    found: Answers = {name: [] for name in hookspecs.KINDS}
    for entry in entries:
        manager = pluggy.PluginManager(hookspecs.PROJECT)
        manager.add_hookspecs(hookspecs)
        try:
            manager.register(entry.method, name=entry.key)
            manager.check_pending()
        except pluggy.PluginValidationError as error:
            raise PluginError(_explain(entry, manager, error)) from error
        for caller in manager.get_hookcallers(entry.method) or []:
            for answer in caller.get_hookimpls() if caller.name in found else []:  # the rest are marked as optional
                if answer.tryfirst or answer.trylast or answer.hookwrapper or answer.wrapper:
                    raise PluginError(
                        f"{entry.whose}: hook {caller.name} must not ask for tryfirst, trylast or a wrapper: "
                        "methods act in the recipe's order; tell its author"
                    )
                arguments = tuple(name for name in answer.argnames if name in ARGUMENTS[caller.name])
                for name in (caller.name, *(f"{caller.name}.{argument}" for argument in arguments)):
                    if changed := interface.broken(name, entry.method.interface, entry.offer.distribution):
                        raise PluginError(f"{entry.whose} {changed}")
                found[caller.name].append(Implementation(entry, caller.name, answer.function, arguments))
    return found


def _explain(entry: Entry, manager: pluggy.PluginManager, error: pluggy.PluginValidationError) -> str:
    for attribute in dir(type(entry.method)):
        options = manager.parse_hookimpl_opts(entry.method, attribute)
        if options is None or options["optionalhook"]:
            continue
        name = options["specname"] or attribute
        if changed := interface.broken(name, entry.method.interface, entry.offer.distribution):
            return f"{entry.whose} {changed}"
        if name not in hookspecs.KINDS:
            return f"{entry.whose}: there is no hook '{name}'{nearest(name, hookspecs.KINDS) or ';'} tell its author"
        taken = set(inspect.signature(getattr(entry.method, attribute)).parameters)
        for argument in sorted(taken - set(ARGUMENTS[name])):
            if changed := interface.broken(f"{name}.{argument}", entry.method.interface, entry.offer.distribution):
                return f"{entry.whose} {changed}"
            return (
                f"{entry.whose}: hook {name} has no argument '{argument}'; it has {', '.join(ARGUMENTS[name])}; "
                "tell its author"
            )
    return f"{entry.whose}: {error}"


class Hooks:
    """What one stage calls. For ``one`` hooks, None means that core's default applies.

    Args:
        answers: the stage's implementations, hook by hook.
        contexts: a context for each method, by its name in the recipe.
        auxiliary_weights: ``method/term`` -> weight of an auxiliary loss; 1 where it is not named.
    """

    def __init__(
        self,
        answers: Answers,
        contexts: Mapping[str, Context],
        auxiliary_weights: Mapping[str, float] | None = None,
    ) -> None:
        self.answers = answers
        self._bound = {
            name: [answer.bind(contexts.get(answer.entry.key)) for answer in found] for name, found in answers.items()
        }
        self._weights = dict(auxiliary_weights or {})
        self._losses = [answer.entry for answer in answers["compute_loss"]]
        self.observe(None)

    def observe(self, around: Around | None) -> None:
        """Have every call go through what `around` makes of it, in place of an observer before; None: through nothing.

        Args:
            around: gives, for an implementation and its bound function, a function of the same arguments and answer.
        """
        self._calls = {
            name: [call if around is None else around(answer, call) for answer, call in zip(found, calls, strict=True)]
            for (name, found), calls in zip(self.answers.items(), self._bound.values(), strict=True)
        }
        self._auxiliary = [
            (answer.entry, call)
            for answer, call in zip(self.answers["auxiliary_losses"], self._calls["auxiliary_losses"], strict=True)
        ]
        #: Tap -> the functions of augment_features that act there, in the recipe's order.
        self.taps: dict[str, list[Callable[[Features], Features]]] = {}
        for answer, call in zip(self.answers["augment_features"], self._calls["augment_features"], strict=True):
            self.taps.setdefault(answer.entry.method.tap, []).append(_with_equal_rows(answer.entry, call))

    def has(self, hook: str) -> bool:
        """Whether any method of the stage answers a hook."""
        return bool(self._calls[hook])

    def _one(self, hook: str, *values: Any) -> Any:
        calls = self._calls[hook]
        return calls[0](*values) if calls else None

    def build_data(self) -> DataSplits:
        """See `ltcore.contract.hookspecs.build_data`."""
        splits: DataSplits = self._one("build_data")
        return splits

    def build_backbone(self, in_channels: int, image_size: int) -> Backbone:
        """See `ltcore.contract.hookspecs.build_backbone`."""
        backbone: Backbone = self._one("build_backbone", in_channels, image_size)
        return backbone

    def build_classifier(self, feature_dim: int, num_classes: int, previous: nn.Module | None) -> nn.Module | None:
        """See `ltcore.contract.hookspecs.build_classifier`."""
        classifier: nn.Module | None = self._one("build_classifier", feature_dim, num_classes, previous)
        return classifier

    def class_distribution(self) -> Tensor | None:
        """See `ltcore.contract.hookspecs.class_distribution`."""
        distribution: Tensor | None = self._one("class_distribution")
        return distribution

    def build_sampler(self, batch_size: int) -> Sampler | None:
        """See `ltcore.contract.hookspecs.build_sampler`."""
        sampler: Sampler | None = self._one("build_sampler", batch_size)
        return sampler

    def mix_inputs(self, batch: Batch) -> Batch:
        """Fold: see `ltcore.contract.hookspecs.mix_inputs`."""
        for call in self._calls["mix_inputs"]:
            batch = call(batch)
        return batch

    def augment_features(self, tap: str, features: Features) -> Features:
        """Fold over the methods of one tap: see `ltcore.contract.hookspecs.augment_features`."""
        for call in self.taps[tap]:
            features = call(features)
        return features

    def adjust_logits(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Fold: see `ltcore.contract.hookspecs.adjust_logits`."""
        for call in self._calls["adjust_logits"]:
            logits = call(logits, targets)
        return logits

    def compute_loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """One, cross-entropy by default: see `ltcore.contract.hookspecs.compute_loss`.

        Raises:
            PluginError: a method returns anything but one value a sample.
        """
        loss: Tensor | None = self._one("compute_loss", logits, targets)
        if loss is None:
            from torch.nn.functional import cross_entropy

            return cross_entropy(logits, targets, reduction="none")
        shape = getattr(loss, "shape", ())
        if shape != targets.shape:
            raise PluginError(
                f"{self._losses[0].whose}: compute_loss returned shape {list(shape)} for {len(targets)} samples; "
                "it returns one value a sample; tell its author"
            )
        return loss

    def class_weights(self) -> Tensor | None:
        """Product, None where no method gives weights: see `ltcore.contract.hookspecs.class_weights`."""
        product: Tensor | None = None
        for call in self._calls["class_weights"]:
            weights: Tensor | None = call()
            if weights is not None:
                product = weights if product is None else product * weights
        return product

    def auxiliary_losses(self, features: Features, logits: Tensor) -> dict[str, Tensor]:
        """Weighted terms by namespaced name: see `ltcore.contract.hookspecs.auxiliary_losses`.

        Raises:
            PluginError: a method returns a term that it does not declare, leaves one out, or returns no scalar.
        """
        terms: dict[str, Tensor] = {}
        for entry, call in self._auxiliary:
            returned = call(features, logits)
            if set(returned) != set(entry.method.auxiliary):
                raise PluginError(
                    f"{entry.whose} declares the auxiliary losses {sorted(entry.method.auxiliary)} "
                    f"and returned {sorted(returned)}; tell its author"
                )
            for name, value in returned.items():
                full = f"{entry.key}/{name}"
                if getattr(value, "ndim", None) != 0:
                    raise PluginError(
                        f"{entry.whose}: the auxiliary loss '{name}' is not a 0-d tensor: core weighs and adds what "
                        "the method has reduced; tell its author"
                    )
                terms[full] = value * self._weights.get(full, 1.0)
        return terms

    def post_calibrate(self, classifier: nn.Module) -> nn.Module:
        """Fold: see `ltcore.contract.hookspecs.post_calibrate`."""
        for call in self._calls["post_calibrate"]:
            classifier = call(classifier)
        return classifier

    def event(self, name: str) -> None:
        """Call every method's answer to a hook of kind ``all``, such as ``on_epoch_start``."""
        for call in self._calls[name]:
            call()


def _with_equal_rows(entry: Entry, call: Callable[[Features], Features]) -> Callable[[Features], Features]:
    """An augment_features that may not lose count: every row has its features, target, source and mark."""

    def checked(features: Features) -> Features:
        changed = call(features)
        counts = [len(x) for x in (changed.features, changed.targets, changed.source_index, changed.synthetic)]
        if len(set(counts)) > 1:
            raise PluginError(
                f"{entry.whose}: augment_features returned {counts[0]} rows of features, {counts[1]} targets, "
                f"{counts[2]} source indices and {counts[3]} marks in 'synthetic'; tell its author"
            )
        return changed

    return checked

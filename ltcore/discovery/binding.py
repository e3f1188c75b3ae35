"""From a method's marked functions to what a stage calls: pluggy checks them, then they are bound once.

pluggy validates names and arguments. Its own call loop is not used in training. `Hooks` holds, for each hook, plain
functions with the context already in them, composed by the rule of the hook's kind (`ltcore.discovery.kinds`).
"""

from __future__ import annotations

import inspect
import re
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeVar

import pluggy

from ltcore.contract import hookspecs, interface
from ltcore.contract.hook import PROJECT, Hook
from ltcore.contract.hookspecs import HOOKS
from ltcore.discovery import kinds
from ltcore.discovery.offer import Offer
from ltcore.errors import LtcoreError, PluginError, RunError, nearest

if TYPE_CHECKING:
    from ltcore.contract.context import Context
    from ltcore.contract.method import Method
    from ltcore.contract.records import Features

R = TypeVar("R")


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

    @cached_property
    def marked(self) -> tuple[tuple[str, pluggy.HookImpl], ...]:
        """The method's marked functions, by the names of their hooks, as pluggy sees them; looked for once.

        Raises:
            PluginError: a marked function is no hook, or takes an argument that the hook does not have.
        """
        manager = _parsed.manager
        try:
            manager.register(self.method, name=self.key)
            manager.check_pending()
            callers = manager.get_hookcallers(self.method) or []
            return tuple((caller.name, answer) for caller in callers for answer in caller.get_hookimpls())
        except pluggy.PluginValidationError as error:
            raise PluginError(_explain(self, manager, error)) from error
        finally:
            manager.unregister(name=self.key)


@dataclass(frozen=True)
class Implementation:
    """One method's answer to one hook."""

    entry: Entry
    hook: str
    function: Callable[..., Any]
    arguments: tuple[str, ...]

    def bind(self, context: Context | None) -> Callable[..., Any]:
        """A function of the hook's arguments by position, without the context, which is filled in.

        What the method raises comes out as one message that names it, and so does an answer that cannot be right.
        """
        hook = HOOKS[self.hook]
        values = [name for name in hook.arguments if name != "context"]
        whole = _CALL.format(
            values=", ".join(values),
            taken=", ".join(self.arguments),
            begin="" if context is None or hook.called == "step" else "context.begin(_hook.name)",
            refused=hook.kind != "all" and not hook.may_be_none,
            problem=f"_problem({', '.join(['_answer', *values])})" if hook.problem is not None else "None",
        )
        names: dict[str, Any] = {
            **{error.__name__: error for error in (LtcoreError, PluginError, RunError)},
            "context": context,
            "_function": self.function,
            "_hook": hook,
            "_whose": self.entry.whose,
            "_problem": hook.problem,
        }
        exec(whole, names)
        call: Callable[..., Any] = names["call"]
        return call


#: What `Implementation.bind` makes a function of. Written out for each, it takes half as long as with ``*values``.
_CALL = """
def call({values}):
    try:
        {begin}
        _answer = _function({taken})
    except LtcoreError as error:
        error.within(f"{{_whose}}: ")
        raise
    except Exception as error:
        what = f"{{type(error).__name__}}: {{error}}"
        raise RunError(f"{{_whose}} failed in {{_hook.name}}: {{what}}. Run with --debug for the traceback") from error
    if _answer is None and {refused}:
        raise PluginError(f"{{_whose}}: {{_hook.name}} returned nothing; tell its author")
    if _wrong := {problem}:
        raise PluginError(f"{{_whose}}: {{_hook.name}} {{_wrong}}; tell its author")
    return _answer
"""


def _placed(
    hook: Hook, arguments: Sequence[str], context: Context | None
) -> tuple[list[tuple[int, str]], dict[str, Context | None]]:
    """Where a hook's values go that takes some of its arguments by name: places and names, and the context apart."""
    given = [name for name in hook.arguments if name != "context"]
    wanted = [(given.index(name), name) for name in arguments if name != "context"]
    return wanted, {"context": context} if "context" in arguments else {}


#: Hook name -> the implementations that act, in the recipe's order.
Answers = dict[str, list[Implementation]]
Around = Callable[[Implementation, Callable[..., Any]], Callable[..., Any]]
"""What stands around the calls: see `Hooks.observe`."""


class _Manager(pluggy.PluginManager):
    """Knows the hooks, and looks at what authors may have marked: not at the hundred names of every torch module."""

    def __init__(self) -> None:
        super().__init__(PROJECT)
        self._own: set[str] = set()
        self.add_hookspecs(hookspecs)

    def register(self, plugin: Any, name: str | None = None) -> str | None:
        """See pluggy."""
        by_authors = [kind for kind in type(plugin).__mro__ if not _NOT_BY_AUTHORS.match(kind.__module__)]
        self._own = set(vars(plugin)).union(*map(vars, by_authors))
        return super().register(plugin, name)

    def parse_hookimpl_opts(self, plugin: Any, name: str) -> Any:
        """See pluggy."""
        return super().parse_hookimpl_opts(plugin, name) if name in self._own else None


class _Parsed(threading.local):
    """A manager for each thread: to parse the hooks takes longer than to look at a method."""

    def __init__(self) -> None:
        self.manager = _Manager()


#: Modules of the classes that every method derives from.
_NOT_BY_AUTHORS = re.compile(r"(torch|builtins)\b|ltcore\.contract\.method$")
_parsed = _Parsed()


def implementations(entries: Iterable[Entry]) -> Answers:
    """For each hook, what the entries implement, in their order.

    Raises:
        PluginError: a marked function is no hook, takes an argument that the hook does not have, or asks for an order
            of its own. Or it uses what a later interface than the method's has changed.
    """
    found: Answers = {name: [] for name in HOOKS}
    for entry in entries:
        for name, answer in entry.marked:
            if name not in found:
                continue  # marked as optional
            if answer.tryfirst or answer.trylast or answer.hookwrapper or answer.wrapper:
                raise PluginError(
                    f"{entry.whose}: hook {name} must not ask for tryfirst, trylast or a wrapper: "
                    "methods act in the recipe's order; tell its author"
                )
            arguments = tuple(argument for argument in answer.argnames if argument in HOOKS[name].arguments)
            for part in (name, *(f"{name}.{argument}" for argument in arguments)):
                if changed := interface.broken(part, entry.method.interface, entry.offer.distribution):
                    raise PluginError(f"{entry.whose} {changed}")
            found[name].append(Implementation(entry, name, answer.function, arguments))
    return found


def _explain(entry: Entry, manager: pluggy.PluginManager, error: pluggy.PluginValidationError) -> str:
    for attribute in dir(type(entry.method)):
        options = manager.parse_hookimpl_opts(entry.method, attribute)
        if options is None or options["optionalhook"]:
            continue
        name = options["specname"] or attribute
        if changed := interface.broken(name, entry.method.interface, entry.offer.distribution):
            return f"{entry.whose} {changed}"
        if name not in HOOKS:
            return f"{entry.whose}: there is no hook '{name}'{nearest(name, HOOKS) or ';'} tell its author"
        taken = set(inspect.signature(getattr(entry.method, attribute)).parameters)
        for argument in sorted(taken - set(HOOKS[name].arguments)):
            if changed := interface.broken(f"{name}.{argument}", entry.method.interface, entry.offer.distribution):
                return f"{entry.whose} {changed}"
            return (
                f"{entry.whose}: hook {name} has no argument '{argument}'; it has {', '.join(HOOKS[name].arguments)}; "
                "tell its author"
            )
    return f"{entry.whose}: {error}"


class Hooks:
    """What one stage calls, such as ``hooks.call(hookspecs.adjust_logits, logits, targets)``.

    Args:
        answers: the stage's implementations, hook by hook.
        contexts: a context for each method, by its name in the recipe, and core's own under the empty name.
        auxiliary_weights: ``method/term`` -> weight of an auxiliary loss; 1 where it is not named.
    """

    def __init__(
        self,
        answers: Answers,
        contexts: Mapping[str, Context],
        auxiliary_weights: Mapping[str, float] | None = None,
    ) -> None:
        self.answers, self._weights = answers, dict(auxiliary_weights or {})
        extra = bool(answers.get("extra_rows"))

        def bound(answer: Implementation) -> Callable[..., Any]:
            call = answer.bind(contexts.get(answer.entry.key))
            return _seeing_extra(answer.entry.key, call) if extra and HOOKS[answer.hook].called == "step" else call

        self._bound = {name: [bound(answer) for answer in found] for name, found in answers.items()}
        self._defaults = {name: _bound_default(hook, contexts.get("")) for name, hook in HOOKS.items()}
        self.observe(None)

    def observe(self, around: Around | None) -> None:
        """Have every call go through what `around` makes of it, in place of an observer before; None: through nothing.

        Args:
            around: gives, for an implementation and its bound function, a function of the same arguments and answer.
        """
        self._composed: dict[str, Callable[..., Any]] = {}
        #: Tap -> the fold of augment_features there.
        self.taps: dict[str, Callable[[Features], Features]] = {}
        for name, found in self.answers.items():
            calls = [
                (answer.entry, call if around is None else around(answer, call))
                for answer, call in zip(found, self._bound[name], strict=True)
            ]
            hook = HOOKS[name]
            if hook.declared_in:
                calls += [(entry, lambda *_: {}) for entry in self._made_elsewhere(hook)]
            if hook.by_tap:
                for tap in dict.fromkeys(entry.method.tap for entry, _ in calls):
                    there = [(entry, call) for entry, call in calls if entry.method.tap == tap]
                    self.taps[tap] = kinds.compose(hook, there, self._defaults[name], self._weights)
            else:
                self._composed[name] = kinds.compose(hook, calls, self._defaults[name], self._weights)

    def _made_elsewhere(self, hook: Hook) -> list[Entry]:
        """The methods that declare terms, and return all of them with the features of their tap."""
        answering = {answer.entry.key for answer in self.answers[hook.name]}
        others = {answer.entry.key: answer.entry for answer in self.answers.get("augment_features", [])}
        return [
            entry for key, entry in others.items() if key not in answering and getattr(entry.method, hook.declared_in)
        ]

    def call(self, hook: Callable[..., R], *values: Any) -> R:
        """Call a hook with its arguments by position, without the context; its answers are composed by its kind.

        Args:
            hook: its specification, such as `ltcore.contract.hookspecs.compute_loss`.
            values: its arguments.

        Raises:
            PluginError: an answer that cannot be right, naming method, distribution, version and hook.
            RunError: a method failed.
        """
        composed: R = self._composed[hook.__name__](*values)
        return composed

    def call_own(self, hook: Callable[..., R | None], *values: Any) -> dict[str, R]:
        """Call a hook of kind ``own``, see `call`: each method's answer by its name, those that are None left out.

        Args:
            hook: its specification.
            values: its arguments; a `ltcore.discovery.kinds.ForEach` is another one for each method.
        """
        answers: dict[str, R] = self._composed[hook.__name__](*values)
        return answers


def _seeing_extra(key: str, call: Callable[..., Any]) -> Callable[..., Any]:
    """A method's call whose records show its own extra rows and nobody else's; core keeps those of the others."""

    def seeing(*values: Any) -> Any:
        extras: dict[str, Any] = {}

        def shown(value: Any) -> Any:
            if not hasattr(value, "extras"):
                return value
            extras.update(value.extras)
            return replace(value, extra=value.extras.get(key), extras={})

        answer = call(*map(shown, values))
        if not hasattr(answer, "extras"):
            return answer
        if key in extras:
            extras[key] = answer.extra
        return replace(answer, extra=None, extras={name: rows for name, rows in extras.items() if rows is not None})

    return seeing


def _bound_default(hook: Hook, context: Context | None) -> Callable[..., Any]:
    """Core's default as a function of the hook's values; of one without a default nobody asks."""
    if hook.default is None:
        return lambda *_: None
    function = hook.default.answer
    wanted, fixed = _placed(hook, tuple(inspect.signature(function).parameters), context)
    return lambda *values: function(**{name: values[place] for place, name in wanted}, **fixed)

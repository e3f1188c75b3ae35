"""The methods of a new distribution: each made of parts, or taken from a file that has been tried."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from typing_extensions import override

from ltcore.contract.hookspecs import HOOKS
from ltcore.discovery import catalogue, unpackaged
from ltcore.discovery.binding import Entry, implementations
from ltcore.errors import PluginError, RecipeError
from ltcore.new.names import Names, check_hooks, spelled
from ltcore.new.parts import KINDS, Part, read_part
from ltcore.new.source import (
    exported,
    functional_module,
    init_module,
    method_module,
    method_tests,
    test_modules,
)


@dataclass(frozen=True)
class Member(ABC):
    """A method that a new distribution offers.

    Attributes:
        names: what it is called; `Names.package` is where its modules lie.
    """

    names: Names

    @property
    @abstractmethod
    def summaries(self) -> list[tuple[tuple[str, ...], str]]:
        """Hooks, and what they do, without a full stop."""

    @property
    @abstractmethod
    def requires(self) -> list[str]:
        """Words of its `requires`, sorted."""

    @property
    @abstractmethod
    def option_rows(self) -> list[tuple[str, str, str]]:
        """Name, default and meaning of each option."""

    @property
    @abstractmethod
    def exports(self) -> Mapping[str, Sequence[str]]:
        """What can be imported from its package, by the module that defines it."""

    @abstractmethod
    def modules(self) -> Iterator[tuple[str, str]]:
        """Name and text of each of its modules, ``__init__.py`` last."""

    @abstractmethod
    def tests(self) -> Iterator[tuple[str, str]]:
        """Name and text of each of its test files."""

    @property
    def hooks(self) -> list[str]:
        """Its hooks in the order in which a run meets them."""
        found = {hook for hooks, _ in self.summaries for hook in hooks}
        return [hook for hook in HOOKS if hook in found]

    @property
    def summary(self) -> str:
        """What it does, in a line, without a full stop."""
        first, *others = [said for _, said in self.summaries]
        return "; ".join([first, *(said[0].lower() + said[1:] for said in others)])

    @property
    def recipe_options(self) -> dict[str, str]:
        """Options for its recipe, as YAML."""
        return {name: default for name, default, _ in self.option_rows}

    def package(self) -> str:
        """The text of ``__init__.py``."""
        return init_module(self.summary, self.exports, f"The method `{self.names.name}` for ltcore")


@dataclass(frozen=True)
class Made(Member):
    """A method made of parts, in the order in which a run meets them."""

    parts: tuple[Part, ...]

    @classmethod
    def of(cls, names: Names, hooks: Sequence[str], kind: str | None = None) -> Made:
        """A method of a kind, or with some hooks.

        Raises:
            RecipeError: there is no such kind or hook, or they cannot be of one method.
        """
        if kind is not None:
            return cls(names, (read_part(KINDS[kind]),))
        return cls(names, tuple(read_part(hook) for hook in check_hooks(hooks)))

    @property
    @override
    def summaries(self) -> list[tuple[tuple[str, ...], str]]:
        return [(part.hooks, part.summary) for part in self.parts]

    @property
    @override
    def requires(self) -> list[str]:
        return sorted({word for part in self.parts for word in part.requires})

    @property
    @override
    def option_rows(self) -> list[tuple[str, str, str]]:
        return [row for part in self.parts for row in part.option_rows]

    @property
    @override
    def exports(self) -> Mapping[str, Sequence[str]]:
        functions = [name for part in self.parts for name in part.functional.defined]
        classes = [self.names.class_name] + [f"{self.names.class_name}Options"] * any(p.options for p in self.parts)
        return {f"{self.names.package}.functional": functions, f"{self.names.package}.method": classes}

    @override
    def modules(self) -> Iterator[tuple[str, str]]:
        yield "functional.py", functional_module(self.parts)
        yield "method.py", method_module(self.names, self.parts)
        yield "__init__.py", self.package()

    @override
    def tests(self) -> Iterator[tuple[str, str]]:
        functional, method = test_modules(self.names, self.parts)
        yield f"test_{self.names.name}_functional.py", functional
        yield f"test_{self.names.name}_method.py", method


@dataclass(frozen=True)
class Taken(Member):
    """A method taken from a file, whose text becomes its module.

    Attributes:
        text: the file's.
        card: what `ltcore.Method` and its options say of it.
    """

    text: str
    card: Mapping[str, Any]

    @classmethod
    def of(cls, use: str, name: str | None = None, within: str | None = None) -> Taken:
        """The method of ``FILE.py:CLASS``, which is run.

        Args:
            use: file and class.
            name: what recipes will call it; by default the class's name in small letters.
            within: the package of several methods.

        Raises:
            PluginError: there is no such method, or it cannot be used.
            RecipeError: the name is none, or is taken.
        """
        parts = unpackaged.split(use)
        if parts is None or "." in parts[1]:
            raise RecipeError(f"--from {use}: give a file and a class in it, such as ./mine.py:Mine")
        offer = catalogue.asked(use)
        kind = catalogue.load(offer)
        file = unpackaged.ran(offer.module)
        assert file is not None
        if kind.__module__ != offer.module:
            raise RecipeError(
                f"--from {use}: the file imports {parts[1]} from {kind.__module__}, and does not define it"
            )
        names = Names.of(name or spelled(parts[1]), within, parts[1])
        try:
            method = kind(kind.Options(**kind.checked_with))
        except Exception as error:
            what = f"{type(error).__name__}: {error}".splitlines()[0]
            raise PluginError(f"--from {use}: it cannot be made with its `checked_with` ({what})") from error
        answers = implementations([Entry(names.name, offer, method)])
        hooks = [hook for hook, found in answers.items() if found]
        if not hooks:
            raise PluginError(f"--from {use}: it implements no hook")
        options = [
            (
                key,
                "*required*" if field.is_required() else repr(field.get_default(call_default_factory=True)),
                " ".join((field.description or "").split()).rstrip("."),
            )
            for key, field in kind.Options.model_fields.items()
        ]
        about = {
            "hooks": hooks,
            "summary": (kind.__doc__ or names.class_name).strip().partition("\n")[0].rstrip("."),
            "requires": sorted(method.requires),
            "options": options,
            "recipe": {key: str(value) for key, value in kind.checked_with.items()},
            "trains": any(True for _ in method.parameters()),
            "exports": exported(file.content.decode(), offer.module, kind.__name__, kind.Options.__name__),
        }
        return cls(names, file.content.decode(), about)

    @property
    @override
    def summaries(self) -> list[tuple[tuple[str, ...], str]]:
        return [(tuple(self.card["hooks"]), self.card["summary"])]

    @property
    @override
    def requires(self) -> list[str]:
        return sorted({*self.card["requires"], *(["own_parameters_train"] if self.card["trains"] else [])})

    @property
    @override
    def option_rows(self) -> list[tuple[str, str, str]]:
        return list(self.card["options"])

    @property
    @override
    def recipe_options(self) -> dict[str, str]:
        return dict(self.card["recipe"])

    @property
    @override
    def exports(self) -> Mapping[str, Sequence[str]]:
        return {f"{self.names.package}.method": self.card["exports"]}

    @override
    def modules(self) -> Iterator[tuple[str, str]]:
        yield "method.py", self.text
        yield "__init__.py", self.package()

    @override
    def tests(self) -> Iterator[tuple[str, str]]:
        yield f"test_{self.names.name}_method.py", method_tests(self.names)

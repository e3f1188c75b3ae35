"""What there is for each hook and kind: a file in sections, from which the modules of a plugin are put together."""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass
from importlib.resources import files

_SECTION = re.compile(r"^# == (.+)\n", re.MULTILINE)
_IMPLEMENTED = re.compile(r"@hookimpl\n(?:    @.*\n)?    def (\w+)\(")

#: What ``ltcore new --kind`` takes, and the hook, or the file of several hooks, with which a method of the kind starts.
KINDS = {
    "loss": "compute_loss",
    "margin": "adjust_logits",
    "class-weights": "class_weights",
    "sample-weights": "sample_weights",
    "loss-term": "auxiliary_losses",
    "tap-loss": "kinds/tap_loss",
    "trained-module": "kinds/trained_module",
    "feature-bank": "kinds/feature_bank",
    "augmentation": "augment_features",
    "mixing": "mix_inputs",
    "balancing": "class_distribution",
    "sampler": "build_sampler",
    "extra-rows": "extra_rows",
    "gradients": "compute_gradients",
    "constraint": "after_step",
    "classifier": "build_classifier",
    "calibration": "post_calibrate",
    "adapter": "adapt_backbone",
    "backbone": "build_backbone",
    "data-set": "build_data",
}


@dataclass(frozen=True)
class Code:
    """A piece of a module.

    Attributes:
        imports: the import statements that it needs.
        text: what follows them, without blank lines around it.
    """

    imports: tuple[str, ...]
    text: str

    @classmethod
    def of(cls, section: str) -> Code:
        """The leading import statements and the rest of a section."""
        lines = section.splitlines()
        imports = []
        while lines and (not lines[0].strip() or re.match(r"(import|from) ", lines[0])):
            line = lines.pop(0)
            if line.strip():
                imports.append(line)
        return cls(tuple(imports), "\n".join(lines).rstrip())

    @property
    def defined(self) -> list[str]:
        """The functions and classes that it defines."""
        return [node.name for node in ast.parse(self.text).body if isinstance(node, ast.FunctionDef | ast.ClassDef)]

    def uses(self, name: str) -> bool:
        """Whether a name occurs in it."""
        return re.search(rf"\b{name}\b", self.text) is not None


@dataclass(frozen=True)
class Part:
    """What there is for one hook, or for a kind of method with several.

    Attributes:
        summary: what it does, without a full stop.
        requires: words for the method's `requires`.
        auxiliary: names of its loss terms.
        tap: where it acts; empty for the usual place.
        options: fields of the options class, with docstrings.
        buffer_types: annotations of buffers.
        buffers: statements that make them in ``__init__``.
        functional: the mathematics.
        method: the hook's function.
        test: tests of the mathematics.
    """

    summary: str
    requires: tuple[str, ...]
    auxiliary: tuple[str, ...]
    tap: str
    options: str
    buffer_types: str
    buffers: str
    functional: Code
    method: Code
    test: Code

    @property
    def hooks(self) -> tuple[str, ...]:
        """The hooks that it implements, in its own order."""
        return tuple(_IMPLEMENTED.findall(self.method.text))

    @property
    def option_rows(self) -> list[tuple[str, str, str]]:
        """Name, default and meaning of each option."""
        found = []
        body = ast.parse(f"class _:\n{self.options}").body[0].body if self.options else []  # type: ignore[attr-defined]
        for field, docstring in zip(body[::2], body[1::2], strict=True):
            (default,) = [word.value for word in field.value.keywords if word.arg == "default"]
            meaning = " ".join(docstring.value.value.replace("``", "`").split())
            found.append((field.target.id, ast.unparse(default), meaning.rstrip(".")))
        return found


def read_part(name: str) -> Part:
    """What there is for a hook, or for one of the values of `KINDS`."""
    place = name if "/" in name else f"hooks/{name}"
    text = (files("ltcore.new") / "templates" / f"{place}.txt").read_text(encoding="utf-8")
    pieces = _SECTION.split(text)[1:]
    sections = dict(zip(pieces[::2], pieces[1::2], strict=True))
    return Part(
        summary=sections["summary"].strip(),
        requires=tuple(sections.get("requires", "").split()),
        auxiliary=tuple(sections.get("auxiliary", "").split()),
        tap=sections.get("tap", "").strip(),
        options=sections.get("options", "").rstrip(),
        buffer_types=sections.get("buffer types", "").rstrip(),
        buffers=sections.get("buffers", "").rstrip(),
        functional=Code.of(sections["functional"]),
        method=Code.of(sections["method"]),
        test=Code.of(sections["test"]),
    )

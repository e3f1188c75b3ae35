"""Pages as Jinja writes them from a package's template, style and script; text is escaped wherever it stands."""

from __future__ import annotations

from importlib.resources import files
from typing import Any


def _breakable(text: str) -> Any:
    """A text whose lines may also end behind a low line, so that a long name of a class is not cut within a word."""
    from markupsafe import Markup, escape

    return escape(text).replace("_", Markup("_<wbr>"))


def rendered(package: str, **content: Any) -> str:
    """A page that needs nothing beside it.

    Args:
        package: holds ``template.html``, ``style.css`` and ``script.js``; all styles begin with our ``base.css``.
        content: what the template names.
    """
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup

    def read(package: str | None, name: str) -> str:
        return (files(package or __package__) / name).read_text(encoding="utf-8")

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters["breakable"] = _breakable
    environment.policies["json.dumps_kwargs"] = {
        "separators": (",", ":"),
        "ensure_ascii": False,
        "allow_nan": False,
    }
    style = Markup(read(None, "base.css") + read(package, "style.css"))
    script = Markup(read(package, "script.js"))
    return environment.from_string(read(package, "template.html")).render(style=style, script=script, **content)

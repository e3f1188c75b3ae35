"""Names and sentences as text of Markdown and LaTeX, whatever characters are in them."""

from __future__ import annotations

import re

from ltcore.untrusted import printable

#: What a character of a name is in LaTeX. A bracket or a star at a row's beginning would be an argument of the line
#: break before it, and the last of these are parts of ligatures.
_LATEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': r"\textquotedbl{}",
    "`": r"\textasciigrave{}",
    "'": r"\textquotesingle{}",
    "±": r"$\pm$",
    **{character: f"\\{character}" for character in "&%$#_{}"},
    **{character: f"{{{character}}}" for character in "[]*?!"},
}
#: What in a name would be Markdown: links, code, HTML, a cell's end.
_MARKDOWN, _ESCAPED = re.compile(r"[\\|<`\[\]*]"), r"\\\g<0>"


def latex(text: str) -> str:
    """A text in LaTeX."""
    return "".join(_LATEX.get(character, character) for character in printable(text)).replace("--", "-{}-")


def markdown(text: str) -> str:
    """A text in Markdown, in a cell of a table too."""
    return _MARKDOWN.sub(_ESCAPED, printable(text))

"""Counts what makes our English hard to read, in the pages, the cards of the plugins and the docstrings.

Three things are counted: "a" for "per" ("3 s a step"), sentences of more than 25 words, and first lines that the next
paragraph repeats. Pages that a script writes are left out, because their text stands in docstrings and in that script.

python docs/plain.py                     # counts for each file
python docs/plain.py --show README.md    # the places, here of one file
"""

from __future__ import annotations

import argparse
import ast
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
#: Pages that a script writes.
GENERATED = {"docs/commands.md", "docs/hooks.md", "docs/plugin_api.md", "docs/recipe_index.md", "docs/tables.md"}
LONGEST = 25
KINDS = ("a for per", "long sentence", "repeated first line")

_NUMBER = r"(?:\d[\d,.]*(?: (?:to|or|and) \d[\d,.]*)?|one|two|three|four|five|six|seven|eight|nine|ten|once|twice)"
#: What is counted or measured: a plural, or a unit.
_COUNTED = (
    r"(?:images|bits|photographs|samples|rows|lines|labels|values|figures|points|steps|batches|epochs|times|processes|workers"
    r"|threads|seconds|minutes|hours|cores|files|bytes|pixels|crops|views|features|vectors|models|experts|classes|classifiers"
    r"|weights|seeds|runs|calls|draws|gradients|passes|options|names|logits|attempts|boxes|copies|operations|launches|kernels|milliseconds"
    r"|s|ms|\u00b5s|min|h|[kKMGT]i?B|GFLOPs?|%|percent)"
)
#: For each of what: the noun that follows "a".
_EACH = (
    r"(?:second|minute|hour|day|step|class|image|photograph|run|sample|epoch|batch|stage|row|line|file|process|worker|rank"
    r"|device|GPU|card|chip|core|machine|node|method|seed|setting|option|value|column|page|recipe|expert|entry|cell|table"
    r"|figure|hook|plugin|distribution|folder|call|pass|draw|layer|block|group|trial|pair|test|check|split|data set"
    r"|crop|view|model|parameter|key|name|feature|pixel|change|list|kind|side|dataset|word|commit|cycle|hundred|thousand|million)"
)
#: "a" and what it is for each of; not "a mean of a class", nor "once a stage has ended".
_A = rf"an? {_EACH}\b(?! (?:of|has|is|was|had)\b)"
#: "3 s a step", "60 images a class", "one a class".
_MANY_PER = re.compile(rf"(?<!many )\b(?:{_NUMBER} (?:\w+ )??{_COUNTED}|{_COUNTED}|{_NUMBER}) {_A}")
#: "a folder a class", "a positive factor a row".
_ONE_PER = re.compile(rf"\b(?:an?|one) (?:[a-z]+ )??(?:[a-z]+|CODE) {_A}")
#: Plurals that are verbs as well, where no number stands before them: "it names a method".
_VERB = re.compile(
    r"(?:time|name|value|view|copie|line|figure|step|point|weight|label|call|draw|run|file|passe|feature|model)s an? "
)
#: What makes an article of "a": "one in a million", "each is a recipe", "a method returns a row".
_ARTICLE = re.compile(
    r"\b(?:of|in|is|for|where|when|at|with|that|on|to|from|by|as|into|over|not|than|if|and|or|but|only|before|after|about"
    r"|without|whether|while|whose|which|because|until|since|through|like|under|such|what|be|beside|both|nor|inside|\w*[^\Ws]s)"
    r" an? \w+(?: set)?$"
)
_STOP = set(
    "a an and are as at be before but by each every for from has have if in into is it its no not of on one or other"
    " than that the their them then there these they this those to was what when where which who with without".split()
)


class Place(NamedTuple):
    """Something that was found."""

    file: str
    line: int
    kind: str
    text: str


class Part(NamedTuple):
    """A piece of prose: a paragraph, an entry of a list, or a first line."""

    line: int
    text: str
    kind: str  # "first" line, "text", "entry" of a list of arguments, or "row" of a table or of code


def markdown(text: str) -> Iterator[Part]:
    """The prose of a page, paragraph by paragraph, and its tables and blocks of code, line by line."""
    lines, number, kept, begun = text.splitlines(), 0, list[str](), 0

    def flush() -> Iterator[Part]:
        if kept:
            yield Part(begun, " ".join(kept), "text")
            kept.clear()

    fence = False
    while number < len(lines):
        line = lines[number]
        number += 1
        bare = line.strip()
        if bare.startswith("```"):
            fence = not fence
            yield from flush()
        elif not bare or fence or bare.startswith(("|", "<!--", "[![", "![")) or (line.startswith("    ") and not kept):
            yield from flush()
            yield Part(number, bare, "row")
        elif bare.startswith("#"):
            yield from flush()
            yield Part(number, bare.lstrip("# "), "first")
        else:
            entry = re.match(r"(?:[-*]|\d+\.) +", bare)
            if entry:
                yield from flush()
                bare = bare[entry.end() :]
            if not kept:
                begun = number
            kept.append(bare)
    yield from flush()


def docstrings(text: str) -> Iterator[Part]:
    """The prose of a module's public docstrings."""
    for node in ast.walk(ast.parse(text)):
        if not isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        name = "" if isinstance(node, ast.Module) else node.name
        said = ast.get_docstring(node)
        if not said or (name.startswith("_") and not name.startswith("__")):
            continue
        first = node.body[0].lineno
        begin, kept, inside = first, list[str](), False
        for number, line in enumerate([*said.splitlines(), ""], start=first):
            bare, title = line.strip(), re.fullmatch(r"\w+:", line)
            entry = re.match(r"(?:[-*] |\w+(?: \w+)?: )", bare)
            inside = bool(title) or (inside and (not bare or line[0] == " "))
            code = (line.startswith("    ") and not inside) or re.search(r"\S {3,}\S", bare)
            if kept and (not bare or entry or title or code):
                kind = "first" if begin == first else "entry" if re.match(r"\w+(?: \w+)?: ", kept[0]) else "text"
                yield Part(begin, " ".join(kept), kind)
                kept.clear()
            if bare and not title and not code:
                if not kept:
                    begin = number
                kept.append(bare)


def plain(text: str) -> str:
    """A paragraph without Markdown: a piece of code is one word, a link is its text."""
    text = re.sub(r"(`+).+?\1(?:[./=,]\S*`)*", "CODE", text)
    text = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", text)
    text = re.sub(r"https?://\S+", "address", text)
    return text.replace("**", "").replace("*", "")


def sentences(text: str) -> list[str]:
    """The sentences of a paragraph. A colon or a semicolon ends none."""
    text = re.sub(r"\b(e\.g|i\.e|al|cf|vs|eq|fig|sec|p|pp|App)\. ", r"\1 ", plain(text))
    return [part for part in re.split(r"(?<=[^.][.!?])[)\"']* +", text) if part]


def words(sentence: str) -> int:
    """How many words a sentence has; signs alone are none."""
    return sum(any(sign.isalnum() for sign in word) for word in sentence.split())


def per(text: str) -> list[str]:
    """The places where "a" stands for "per"."""
    said = plain(text)
    many = [match[0] for match in _MANY_PER.finditer(said) if not _VERB.match(match[0])]
    return many + [match[0] for match in _ONE_PER.finditer(said) if not _ARTICLE.search(match[0])]


def repeated(first: str, following: str) -> bool:
    """Whether most words of a first line stand in the next sentence, which then says little that is new."""
    said, next_ = _stems(plain(first)), _stems(sentences(following)[0]) if sentences(following) else set()
    return len(said) >= 4 and 2 * len(said & next_) >= len(said)


def _stems(text: str) -> set[str]:
    return {word[:5] for word in re.findall(r"[a-z]{3,}", text.lower()) if word not in _STOP and word != "code"}


def found(file: str, parts: Iterable[Part]) -> Iterator[Place]:
    """What is found in the parts of one file."""
    before: Part | None = None
    for part in parts:
        yield from (Place(file, part.line, "a for per", text) for text in per(part.text))
        if part.kind == "row":
            continue
        for sentence in sentences(part.text):
            if words(sentence) > LONGEST:
                yield Place(file, part.line, "long sentence", f"{words(sentence)}: {sentence}")
        if before and (before.kind, part.kind) == ("first", "text") and repeated(before.text, part.text):
            yield Place(file, before.line, "repeated first line", f"{before.text} / {sentences(part.text)[0]}")
        before = part


def group(file: str) -> str:
    """Which of the three sums a file belongs to."""
    return "docstrings" if file.endswith(".py") else "cards" if file.startswith("plugins/") else "pages"


def pages() -> list[Path]:
    """The pages that are written by hand."""
    all_ = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md")] + sorted(ROOT.glob("docs/**/*.md"))
    return [path for path in all_ if path.relative_to(ROOT).as_posix() not in GENERATED]


def sources() -> list[Path]:
    """The modules whose docstrings are read: ``ltcore``, and the scripts that write pages."""
    return [*sorted(ROOT.glob("docs/make_*.py")), *sorted(ROOT.glob("ltcore/**/*.py"))]


def places() -> list[Place]:
    """Everything that is found."""
    all_ = []
    for path in [*pages(), *sorted(ROOT.glob("plugins/*/README.md")), *sources()]:
        text, name = path.read_text("utf-8"), path.relative_to(ROOT).as_posix()
        all_ += found(name, markdown(text) if path.suffix == ".md" else docstrings(text))
    return all_


def main() -> None:
    """Prints the counts, or the places."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--show", action="store_true", help="the places, not only how many")
    parser.add_argument("files", nargs="*", help="of these files only: a part of their path")
    options = parser.parse_args()
    all_ = [place for place in places() if not options.files or any(part in place.file for part in options.files)]
    if options.show:
        for place in all_:
            print(f"{place.file}:{place.line}: {place.kind}: {place.text}")
        return
    print("  ".join(f"{kind:>19}" for kind in KINDS), " file")
    for file in dict.fromkeys(place.file for place in all_):
        count(all_, file, lambda place, file=file: place.file == file)
    for title in ("pages", "cards", "docstrings"):
        count(all_, title, lambda place, title=title: group(place.file) == title)


def count(all_: list[Place], title: str, wanted) -> None:
    """Prints one row."""
    counts = [sum(wanted(place) and place.kind == kind for place in all_) for kind in KINDS]
    print("  ".join(f"{number:19}" for number in counts), "", title)


if __name__ == "__main__":
    main()

"""Spoils valid inputs: flipped bytes, cut ends, swapped types, deep nesting, huge numbers, NULs, odd characters."""

from __future__ import annotations

import copy
import json
import struct
from random import Random
from typing import Any

DEEP = "@deep@"

#: What somebody's file may hold where text is expected.
ODD_TEXT = (
    *("", " ", "\0", "a\0b", "\x1b[31mred\x1b[0m", "line\nline", "\r", "\x85", "\u2028", "\u202eabc", "\ufeff", "\x7f"),
    *(
        "ÄÖÜ" * 20,
        "\U0001d518\U0001d52b",
        "e\u0301" * 40,
        "\U0001f469\u200d\U0001f680",
        "\ufffe",
        "x" * 10_000,
        "'",
        '"',
        "`",
        "\\",
    ),
    *("null", "~", ".nan", "nan", "inf", "-inf", "Infinity", "1e400", "-1", "0x10", "1_000", "true", "yes", "²", "١٢"),
    *("9" * 30, "9" * 5_000, "-" + "9" * 5_000, "1" + "0" * 400, "1e-400", "0.1", "-0", "+1", "1 2"),
    *("../../../etc/passwd", "/dev/zero", "/dev/full", "/etc/passwd", ".", "..", "/", "~", "a/b/c.png", "C:\\a\\b"),
    *(
        "${env:HOME}",
        "${env:",
        "${x}",
        "=1+1",
        "@x",
        "%s%n%x",
        "{0}",
        "<script>",
        "$(id)",
        "!!python/name:os.system ''",
    ),
    *(
        "&a [*a]",
        "*a",
        "<<: {a: 1}",
        "- - - -",
        "? x",
        "|",
        ">",
        "[",
        "{",
        "]",
        "}",
        ":",
        "# ",
        "---",
        "...",
        "%YAML 9.9",
    ),
)
#: What plain data may hold in place of a value.
ODD_VALUES = (
    *(None, True, False, 0, 1, -1, 2, 255, 256, 2**31, 2**63, 2**64, -(2**63), 10**30, 10**400),
    *(0.5, -0.0, 1e308, 1e-308, float("nan"), float("inf"), float("-inf")),
    *([], {}, [[]], [None], {"": 0}, {"name": None}, [1, "a", None], [0] * 2_000, {"a": {"b": {"c": []}}}, DEEP),
)
_NESTING = (60, 500, 5_000, 100_000)


def mutated_bytes(rng: Random, content: bytes, most: int = 4) -> bytes:
    """Content with one to `most` changes of a few bytes."""
    changed = bytearray(content)
    for _ in range(rng.randint(1, most)):
        at, size = rng.randrange(len(changed) + 1), rng.choice((1, 1, 2, 4, 8, 64, 1024))
        match rng.randrange(8):
            case 0 if changed:
                at = min(at, len(changed) - 1)
                changed[at] ^= 1 << rng.randrange(8)
            case 1:
                changed[at : at + size] = rng.randbytes(size)
            case 2:
                del changed[at:]
            case 3:
                del changed[at : at + size]
            case 4:
                changed[at:at] = changed[at : at + size] * rng.choice((1, 2, 50))
            case 5:
                changed[at : at + size] = bytes(size)
            case 6:
                changed[at : at + size] = b"\xff" * size
            case _:
                changed[at:at] = rng.choice(ODD_TEXT).encode("utf-8", "surrogatepass")
    return bytes(changed)


def mutated_text(rng: Random, text: str, most: int = 4) -> str:
    """Text with one to `most` changes of tokens and lines."""
    for _ in range(rng.randint(1, most)):
        lines = text.split("\n")
        number = rng.randrange(len(lines))
        words = lines[number].split(" ")
        word = rng.randrange(len(words))
        match rng.randrange(8):
            case 0:
                words[word] = rng.choice(ODD_TEXT)
            case 1:
                words[word] += rng.choice(ODD_TEXT)
            case 2:
                del words[word]
            case 3:
                words.insert(word, rng.choice(ODD_TEXT))
            case 4:
                other = rng.choice(lines).split(" ")
                words[word] = rng.choice(other)
            case 5:
                words = [*words, *rng.choice(lines).split(" ")]
            case 6:
                opening = rng.choice(("[", "{a: ", "- ", '{"a":', "(", "'", "!a ", "&a "))
                words[word] = opening * rng.choice(_NESTING)
            case _:
                words = ["\t" * rng.randint(0, 2) + " " * rng.randint(0, 9), *words]
        lines[number] = " ".join(words)
        if rng.random() < 0.2:
            other = rng.randrange(len(lines))
            lines[number], lines[other] = lines[other], lines[number]
        if rng.random() < 0.1:
            lines.insert(number, rng.choice(lines))
        text = rng.choice(("\n", "\n", "\n", "\n", "\r\n", "\r")).join(lines)
    return text


def mutated_value(rng: Random, value: Any, most: int = 3) -> Any:
    """A copy of plain data with one to `most` of its values replaced, removed, wrapped or exchanged."""
    holder = {"": copy.deepcopy(value)}
    for _ in range(rng.randint(1, most)):
        places = list(_places(holder, holder))
        container, key = rng.choice(places)
        match rng.randrange(8):
            case 0 | 1 | 2:
                container[key] = copy.deepcopy(rng.choice(ODD_VALUES))
            case 3:
                container[key] = rng.choice(ODD_TEXT)
            case 4 if container is not holder:
                del container[key]
            case 5:
                container[key] = [container[key]] if rng.random() < 0.5 else {"x": container[key]}
            case 6 if isinstance(container, dict) and container is not holder:
                container[rng.choice(ODD_TEXT)] = container.pop(key)
            case _:
                other, at = rng.choice(places)
                if key in container if isinstance(container, dict) else key < len(container):
                    container[key] = copy.deepcopy(other.get(at) if isinstance(other, dict) else (other or [0])[-1])
    return holder[""]


def _places(value: Any, root: Any) -> list[tuple[Any, Any]]:
    """Every container with every one of its keys."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    found = []
    for key, child in items:
        found.append((value, key))
        found += _places(child, root)
    return found


def json_text(rng: Random, value: Any) -> str:
    """Plain data as JSON, perhaps indented; `DEEP` becomes lists within lists."""
    text = json.dumps(value, indent=rng.choice((None, 2)), ensure_ascii=rng.random() < 0.5)
    depth = rng.choice(_NESTING)
    return text.replace(f'"{DEEP}"', "[" * depth + "]" * depth)


def mutated_json(rng: Random, text: str) -> bytes:
    """JSON with other values, or with other text or bytes in it."""
    way = rng.random()
    if way < 0.6:
        text = json_text(rng, mutated_value(rng, json.loads(text)))
    elif way < 0.8:
        text = mutated_text(rng, text, 2)
    content = text.encode("utf-8", "surrogatepass")
    return mutated_bytes(rng, content) if way >= 0.8 else content


def mutated_safetensors(rng: Random, content: bytes) -> bytes:
    """A safetensors file with other bytes, or another JSON head; the plain state that ltcore keeps there too."""
    if rng.random() < 0.4:
        return mutated_bytes(rng, content)
    size = struct.unpack("<Q", content[:8])[0]
    head, tail = json.loads(content[8 : 8 + size]), content[8 + size :]
    told = head.get("__metadata__", {})
    if "state" in told and rng.random() < 0.6:
        told["state"] = json_text(rng, mutated_value(rng, json.loads(told["state"])))
        text = json.dumps(head)
    else:
        text = json_text(rng, mutated_value(rng, head))
    made = text.encode("utf-8", "surrogatepass")
    stated = rng.choice((len(made),) * 9 + (0, 2**40, 2**63))
    return struct.pack("<Q", stated) + made + tail

"""Reads many inputs in forked children under limits, and sorts what goes wrong into kinds.

A child reads some hundred inputs. It may take 10 CPU seconds for each and 1 GB more memory than it begins with, and
is noticed when it opens a file for writing, or starts a process, outside of its own folder.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import resource
import signal
import sys
import tempfile
import traceback
import unicodedata
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import ltcore
from ltcore.errors import LtcoreError

CPU_SECONDS = 10
_CORE = str(Path(ltcore.__file__).parent) + os.sep
MEMORY = 2**30
#: Longest line of a message; what is longer has taken over a file's content.
MESSAGE = 4_000
#: Of so many inputs one is read by the command line as well.
COMMAND_EVERY = 25
_CHUNK = 100
#: Beside the CPU seconds, for what waits instead: a pipe, a lock.
_WALL_SECONDS = 180
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_CHANGES = ("os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.symlink", "os.link", "os.truncate", "os.chmod")
_STARTS = ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "socket.connect", "pty.spawn")

Files = Mapping[str, bytes]


@dataclass(frozen=True)
class Reader:
    """A reader of ltcore, and how to spoil what it reads.

    Attributes:
        name: what it reads.
        prepare: writes valid files into a folder, once.
        spoil: a random generator and the folder to the files, by relative path, of one spoilt input.
        opened: called once in every child; returns what reads the folder. It may raise `LtcoreError` and nothing else.
        command: the folder to the words of a command line that reads it; none for no command.
    """

    name: str
    prepare: Callable[[Path], None]
    spoil: Callable[[Random, Path], Files]
    opened: Callable[[Path], Callable[[], Any]]
    command: Callable[[Path], Sequence[str]] | None = None


@dataclass
class Kind:
    """What went wrong alike: how often, and the first input that shows it."""

    what: str
    number: int
    detail: str
    count: int = 1


@dataclass
class Outcome:
    """What came of all inputs of a reader."""

    reader: str
    inputs: int = 0
    refused: int = 0
    commands: int = 0
    kinds: dict[str, Kind] = field(default_factory=dict)

    def add(self, what: str, number: int, detail: str) -> None:
        """Count a fault."""
        if what in self.kinds:
            self.kinds[what].count += 1
        else:
            self.kinds[what] = Kind(what, number, detail)

    def __str__(self) -> str:
        lines = [
            f"{self.reader}: {self.inputs} inputs, {self.refused} refused, {self.inputs - self.refused} read or wrong, "
            f"{self.commands} by the command line, {len(self.kinds)} kinds of faults"
        ]
        for kind in self.kinds.values():
            lines += [f"  {kind.count} x {kind.what}; first input {kind.number}", *_indented(kind.detail)]
        return "\n".join(lines)


def _indented(text: str) -> list[str]:
    return [f"      {line}" for line in text.splitlines()]


def made(reader: Reader, folder: Path, seed: int, number: int) -> Files:
    """Input `number` of a reader; the same in every run."""
    return reader.spoil(Random(f"{reader.name}/{seed}/{number}"), folder)


def fuzz(reader: Reader, folder: Path, inputs: int, seed: int = 0, keep: Path | None = None) -> Outcome:
    """Read `inputs` spoilt inputs.

    Args:
        reader: what to read them with.
        folder: an empty folder for the valid files.
        inputs: how many.
        seed: other inputs for another seed.
        keep: where to keep the first input of each kind of fault.
    """
    outcome = Outcome(reader.name)
    _in_child(lambda: reader.prepare(folder))
    number = 0
    while number < inputs:
        number = _read_chunk(reader, folder, range(number, min(number + _CHUNK, inputs)), seed, outcome)
    if keep is not None:
        keep.mkdir(parents=True, exist_ok=True)
        (keep / f"{reader.name}.txt").write_text(f"{outcome}\n", "utf-8", "backslashreplace")
        for index, kind in enumerate(outcome.kinds.values()):
            place = keep / f"{reader.name}-{index}"
            place.mkdir(parents=True, exist_ok=True)
            (place / "what.txt").write_text(f"{kind.what}\n{kind.detail}\n", "utf-8", "backslashreplace")
            with contextlib.suppress(Exception):
                for name, content in made(reader, folder, seed, kind.number).items():
                    (place / name.replace("/", "_")).write_bytes(content)
    return outcome


def _in_child(work: Callable[[], object]) -> None:
    """Do something in a process of its own, since what computes must not fork later."""
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            work()
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(code)
    if os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]):
        raise RuntimeError("the valid files could not be made")


def _read_chunk(reader: Reader, folder: Path, numbers: range, seed: int, outcome: Outcome) -> int:
    """Read inputs in one child; returns the number to go on with."""
    receiving, sending = os.pipe()
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid == 0:
        os.close(receiving)
        with contextlib.suppress(BaseException):
            _Child(reader, folder, seed, sending).read_all(numbers)
        os._exit(0)
    os.close(sending)
    reading = numbers.start
    at_work = ""
    with open(receiving, encoding="utf-8") as lines:
        for line in lines:
            told = json.loads(line)
            if "broken" in told:
                os.waitpid(pid, 0)
                raise RuntimeError(f"{reader.name}: input {told['number']} cannot be made:\n{told['broken']}")
            reading, at_work = told["number"], told.get("at", "")
            if at_work:
                continue
            outcome.inputs += 1
            outcome.refused += told["refused"]
            outcome.commands += told["command"]
            for what, detail in told["faults"]:
                outcome.add(what, reading, detail)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if code == 0 and not at_work and reading == numbers[-1]:
        return numbers.stop
    if code == 0 and not at_work:
        raise RuntimeError(f"{reader.name}: the child ended before input {reading + 1}")
    names = {-signal.SIGXCPU: f"more than {CPU_SECONDS} CPU seconds", -signal.SIGALRM: f"waits {_WALL_SECONDS} s"}
    outcome.inputs += 1
    said = names.get(code, f"killed by {signal.Signals(-code).name}" if code < 0 else f"left with exit code {code}")
    outcome.add(f"{said} ({at_work})", reading, "the child died")
    return reading + 1


class _Child:
    """The process that reads."""

    def __init__(self, reader: Reader, folder: Path, seed: int, sending: int) -> None:
        self.reader, self.folder, self.seed = reader, folder, seed
        self.sending = os.fdopen(sending, "w", encoding="utf-8")
        self.outside: list[str] = []
        os.environ["HOME"] = str(folder)
        os.chdir(folder)
        tempfile.tempdir = str(folder)
        sys.dont_write_bytecode = True
        warnings.simplefilter("ignore")
        quiet = os.open(os.devnull, os.O_RDWR)
        for descriptor in (0, 1, 2):
            os.dup2(quiet, descriptor)

    def read_all(self, numbers: range) -> None:
        read = self.reader.opened(self.folder)
        held = _data_bytes()
        resource.setrlimit(resource.RLIMIT_DATA, (held + MEMORY, resource.RLIM_INFINITY))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        sys.addaudithook(self._audit)
        for number in numbers:
            self._tell({"number": number, "at": "making the input"})
            try:
                files = made(self.reader, self.folder, self.seed, number)
            except Exception:
                self._tell({"number": number, "broken": traceback.format_exc()})
                raise
            before = {name: (self.folder / name).read_bytes() for name in files if (self.folder / name).is_file()}
            for name, content in files.items():
                (self.folder / name).write_bytes(content)
            faults, refused, command = self._read(number, read)
            self._restore(files, before)
            told = {"number": number, "refused": refused, "command": command, "faults": faults}
            self._tell(told)

    def _restore(self, files: Files, before: Files) -> None:
        for name in files:
            if name in before:
                (self.folder / name).write_bytes(before[name])
            else:
                with contextlib.suppress(OSError):
                    (self.folder / name).unlink()

    def _tell(self, line: dict[str, Any]) -> None:
        self.sending.write(json.dumps(line) + "\n")
        self.sending.flush()

    def _limited(self, number: int, what: str) -> None:
        self._tell({"number": number, "at": what})
        used = resource.getrusage(resource.RUSAGE_SELF)
        seconds = int(used.ru_utime + used.ru_stime) + 1 + CPU_SECONDS
        resource.setrlimit(resource.RLIMIT_CPU, (seconds, resource.RLIM_INFINITY))
        signal.alarm(_WALL_SECONDS)

    def _read(self, number: int, read: Callable[[], Any]) -> tuple[list[tuple[str, str]], bool, bool]:
        """The faults of an input, whether it was refused, and whether the command line has read it too."""
        faults: list[tuple[str, str]] = []
        refused = False
        self.outside.clear()
        self._limited(number, "reading")
        try:
            wrong = read()
            if wrong:
                faults.append((f"accepted: {wrong}", ""))
        except LtcoreError as error:
            refused = True
            faults += _bad_message(error)
        except BaseException as error:
            faults.append(_unexpected(error))
        command = self.reader.command is not None and number % COMMAND_EVERY == 0
        if command:
            self._limited(number, "command line")
            try:
                faults += self._command()
            except BaseException as error:
                faults.append(_unexpected(error))
        signal.alarm(0)
        faults += [(f"outside of its folder: {what}", "") for what in dict.fromkeys(self.outside)]
        return faults, refused, command

    def _command(self) -> list[tuple[str, str]]:
        """What is wrong with how the command line takes the input; it is read again for a traceback."""
        from ltcore.cli import main

        assert self.reader.command is not None
        words = list(self.reader.command(self.folder))
        if any("\0" in word for word in words):
            return []  # no command line can hold it
        code, said = _ran(main, words)
        faults = []
        if code not in (0, 1, 2):
            faults.append((f"command line: exit code {code}", said[-400:]))
        if "Traceback" in said or "ltcore failed" in said:
            try:
                _ran(main, [*words, "--debug"], raising=True)
                faults.append(("command line: a traceback", said[-600:]))
            except BaseException as error:
                what, detail = _unexpected(error)
                faults.append((f"command line: {what}", detail))
        elif max(map(len, said.split("\n"))) > MESSAGE:
            faults.append((f"command line: a message of more than {MESSAGE} characters", said[:300]))
        elif code and not said.strip():
            faults.append(("command line: no message", ""))
        elif bad := _unprintable(said):
            faults.append((f"command line prints {bad}", said[:400]))
        return faults

    def _audit(self, event: str, arguments: tuple[Any, ...]) -> None:
        """Note what changes something outside of the folder, or starts something."""
        if event == "open":
            path, _, flags = arguments
            if isinstance(flags, int) and flags & _WRITES and not isinstance(path, int):
                self._note("writes", path)
        elif event in _CHANGES:
            for path in arguments[:2]:
                if isinstance(path, str | bytes | os.PathLike):
                    self._note(event, path)
        elif event in _STARTS:
            self.outside.append(event)

    def _note(self, event: str, path: str | bytes | os.PathLike[str]) -> None:
        full = os.path.realpath(os.fsdecode(path))
        inside = full == str(self.folder) or full.startswith(f"{self.folder}{os.sep}")
        if not inside and full not in ("/dev/null", os.path.realpath("/dev/null")):
            self.outside.append(f"{event} {full[:200]}")


def _ran(main: Callable[[], None], words: list[str], raising: bool = False) -> tuple[int, str]:
    """The exit code of a command line, and what it prints to standard error and, if it ends well, to output."""
    out, err = io.StringIO(), io.StringIO()
    sys.argv = ["ltcore", *words]
    code: Any = 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main()
        except SystemExit as end:
            code = end.code or 0
            if raising and isinstance(end.__context__, Exception):
                raise end.__context__ from None
    return code if isinstance(code, int) else 1, err.getvalue() + (out.getvalue() if not code else "")


def _bad_message(error: LtcoreError) -> list[tuple[str, str]]:
    message = str(error)
    if not message.strip():
        return [("an empty message", "")]
    if "Traceback" in message:
        return [("a traceback in the message", message[:400])]
    if max(map(len, message.split("\n"))) > MESSAGE:
        return [(f"a message of more than {MESSAGE} characters from {_place(error)}", message[:300])]
    return []


def _unprintable(said: str) -> str:
    """A character that a terminal would obey, by its name; empty for none."""
    for character in said:
        if character not in "\n\t" and unicodedata.category(character) in ("Cc", "Cs"):
            return f"the control character {character!r}"
    return ""


def _unexpected(error: BaseException) -> tuple[str, str]:
    """An exception's kind, by its type and the last line of ltcore on its way, and the last lines of its traceback."""
    frames = traceback.extract_tb(error.__traceback__)
    last = "".join(traceback.format_list(frames[-3:])) + f"{type(error).__name__}: {str(error)[:300]}"
    return f"{type(error).__name__} in {_place(error)}", last


def _place(error: BaseException) -> str:
    """The last function of ltcore that an exception came through: ``data/npz.py:_read``."""
    frames = list(traceback.extract_tb(error.__traceback__))
    # Core by its folder, for a clone may be called ltcore, too; plugins by their packages' names.
    ours = [frame for frame in frames if frame.filename.startswith(_CORE) or f"{os.sep}ltcore_" in frame.filename]
    last = (ours or frames)[-1:]
    return "".join(f"{'/'.join(Path(frame.filename).parts[-2:])}:{frame.name}" for frame in last)


def _data_bytes() -> int:
    """Bytes of this process's private memory, which `RLIMIT_DATA` limits."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmData:"):
            return int(line.split()[1]) * 1024
    return 0

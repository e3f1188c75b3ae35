"""SIGKILLs at random moments in runs, `report`, `export` and `predict`: does anything differ in the end?

    python benchmarks/kills.py --kills 200 --seed 0
    python benchmarks/kills.py --kills 20 --only digits_lt_stg report --whole     # the recipes as they are

A run is killed one to four times and goes on with --resume each time; then its directory is compared with that of a
run that nobody killed: results, metrics, predictions, models, scores of a selection, without what a clock says.
After every kill each file that has its name must be whole. Where a command that writes a file is killed, the file is
the old one, the new one, or not there; then the command runs again. Recipes are shortened, but keep every stage.

One process imports everything and forks a child for each command, since to import takes seconds; it computes nothing.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import select
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from random import Random
from typing import Any

from preloaded import import_all

ROOT = Path(__file__).parents[1]
_STAGE_ONE = ("stages.representation.epochs=4", "stages.representation.schedule.warmup_epochs=1")
_STG = (*_STAGE_ONE, "stages.generator.iterations=40", "stages.classifier.iterations=60")
#: What shortens each recipe.
RUNS: dict[str, tuple[str, ...]] = {
    "digits_lt_ce": _STAGE_ONE,
    "digits_lt_ofa_focal": (*_STAGE_ONE, "stages.finetune.iterations=40"),
    "digits_lt_safa": (*_STAGE_ONE, "methods.drw.options.start_epoch=2", "methods.safa.options.start_epoch=2"),
    "digits_lt_stg": _STG,
    "digits_lt_glag": (*_STAGE_ONE, "stages.classifier.epochs=4"),
    "digits_lt_cdt": (*_STAGE_ONE, "select.options={methods.cdt.options.gamma: [0.0, 0.2]}"),
    "digits_lt_count_norm": _STAGE_ONE,
    "digits_lt_stg_selected": (*_STG, "select.options={methods.stg.options.head_fraction: [0.3, 0.4]}"),
}
COMMANDS = ("report", "export", "export_hub", "predict")
_CLOCKS = ("seconds", "images_per_second", "wall_seconds")
_DEADLINE = 900


@dataclass
class Tally:
    """What came of a case.

    Attributes:
        case: recipe or command.
        seconds: how long it takes when nobody kills it.
        trials: how often it was brought to its end.
        kills: how many kills hit.
        faults: what differed, was half written, or could not go on.
        left: temporary files that were there in the end; they hold nothing that is read.
    """

    case: str
    seconds: float = 0.0
    trials: int = 0
    kills: int = 0
    faults: list[str] = field(default_factory=list)
    left: dict[str, int] = field(default_factory=dict)


# ---------------------------------------------------------------- processes


def command(words: Sequence[str], log: Path, kill_after: float | None = None) -> int:
    """Run a command line in a forked child; returns its exit code, -9 where it was killed.

    Args:
        words: what stands behind ``ltcore``.
        log: where its output goes.
        kill_after: seconds until it is killed; None for never.
    """
    pid = os.fork()
    if pid == 0:
        _run_and_leave(words, log)
    ended = os.pidfd_open(pid)
    try:
        in_time = select.select([ended], [], [], _DEADLINE if kill_after is None else kill_after)[0]
        if not in_time:
            os.kill(pid, signal.SIGKILL)
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    finally:
        os.close(ended)
    try:
        os.killpg(pid, signal.SIGKILL)  # what decodes for it notices the end by itself, but later
    except ProcessLookupError:
        pass
    return code


def _run_and_leave(words: Sequence[str], log: Path) -> None:
    code = 70
    try:
        os.setsid()
        os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 1)
        os.dup2(1, 2)
        import torch

        from ltcore.cli import main

        torch.set_num_threads(1)
        sys.argv = ["ltcore", *words]
        main()
        code = 0
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


# ---------------------------------------------------------------- what is compared


def without_clocks(found: Any) -> Any:
    """Plain data without what a clock says."""
    if isinstance(found, list):
        return [without_clocks(item) for item in found]
    if isinstance(found, dict):
        return {key: without_clocks(value) for key, value in found.items() if key not in _CLOCKS}
    return found


def temporary(path: Path) -> bool:
    """Whether a file is one that has not got its name yet."""
    return any(part.startswith(".") for part in path.parts) or path.suffix in (".tmp", ".copy") or ".tmp" in path.name


def contents(folder: Path) -> dict[str, Any]:
    """What must be equal, by file: all but the clocks, the latest checkpoints and what tells of the machine."""
    found: dict[str, Any] = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        name = path.relative_to(folder)
        if temporary(name) or path.name in ("lock", "environment.json", "log.json", "recipe.yaml"):
            continue
        if path.suffix == ".safetensors" and not path.name.startswith(("stage-", "calibrated")):
            continue
        found[str(name)] = _content(path)
    return found


def _content(path: Path) -> Any:
    import numpy as np

    if path.suffix == ".json":
        return without_clocks(json.loads(path.read_text()))
    if path.suffix == ".jsonl":
        return [without_clocks(json.loads(line)) for line in path.read_text().splitlines()]
    if path.suffix == ".npz":
        with np.load(path) as arrays:
            return {name: (arrays[name].shape, arrays[name].tobytes()) for name in arrays}
    return hashlib.sha256(path.read_bytes()).hexdigest()


def half_written(folder: Path) -> list[str]:
    """Files that have their name and are not whole."""
    wrong = []
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        name = path.relative_to(folder)
        if temporary(name):
            continue
        try:
            _look_at(path)
        except Exception as error:
            wrong.append(f"{name} is not whole: {type(error).__name__}: {str(error)[:100]}")
    return wrong


def _look_at(path: Path) -> None:
    from safetensors import safe_open

    from ltcore.recipe.yaml_source import parse

    if path.suffix == ".safetensors":
        with safe_open(path, framework="pt") as file:
            for name in file.keys():
                file.get_tensor(name)
    elif path.suffix == ".yaml":
        assert parse(path.read_text(), str).value, "it is empty"
    elif path.suffix == ".jsonl":
        for line in path.read_text().splitlines(keepends=True):
            if line.endswith("\n"):  # a resumed run cuts the last one off
                json.loads(line)
    elif path.suffix in (".json", ".npz"):
        _content(path)


def differences(found: dict[str, Any], wanted: dict[str, Any]) -> list[str]:
    """The files that differ."""
    names = sorted(found.keys() | wanted.keys())
    return [
        f"{name} {'differs' if name in found and name in wanted else 'is missing' if name in wanted else 'is too much'}"
        for name in names
        if found.get(name) != wanted.get(name)
    ]


def leftovers(folder: Path) -> list[str]:
    """The temporary files in a folder, by what their names have in common."""
    names = [path.relative_to(folder) for path in folder.rglob("*") if path.is_file() or path.name.startswith(".")]
    found = {name.parts[-1] for name in names if temporary(Path(name.name))}
    return sorted({re.sub(r"[0-9]{6,}[-0-9]*", "N", name)[:40] for name in found})


# ---------------------------------------------------------------- runs


class Run:
    """A recipe that is trained, killed, and gone on with.

    Args:
        name: the recipe's.
        sets: what changes in it.
        folder: for all its runs.
    """

    def __init__(self, name: str, sets: Sequence[str], folder: Path) -> None:
        self.tally, self.folder = Tally(name), folder
        self.words = ["run", str(ROOT / "recipes" / f"{name}.yaml"), *(f"--set={each}" for each in sets)]
        folder.mkdir()
        began = time.perf_counter()
        out, log = folder / "whole", folder / "log"
        code = command([*self.words, "--out", str(out)], log)
        self.tally.seconds = time.perf_counter() - began
        if code:
            raise RuntimeError(f"{name} fails without a kill:\n{log.read_text()[-2000:]}")
        self.path = self._directory(out)
        assert self.path is not None
        self.wanted = contents(self.path)

    @staticmethod
    def _directory(out: Path) -> Path | None:
        found = [path for path in out.glob("*/*") if not path.name.startswith(".")]
        return found[0] if found else None

    def trial(self, rng: Random) -> None:
        """Kill a run one to four times, let it end, and compare."""
        tally, wanted = self.tally, rng.randint(1, 4)
        out, log = self.folder / f"trial-{tally.trials}", self.folder / "log"
        # With another time between checkpoints a kill comes at another place: in each step, or once in an epoch.
        words = [*self.words, "--out", str(out), f"--set=checkpoint_seconds={rng.choice((0, 0, 0.05, 0.5, 3600))}"]
        before, trial = len(tally.faults), f"trial {tally.trials}"
        tally.trials += 1
        for number in range(wanted + 1):
            directory = self._directory(out)
            moment = rng.random() * tally.seconds if number < wanted else None
            code = command([*words, *(["--resume"] if directory else [])], log, moment)
            if code == -signal.SIGKILL and moment is not None:
                tally.kills += 1
                directory = self._directory(out)
                wrong = half_written(directory) if directory else []
                tally.faults += [f"{trial}, killed after {moment:.2f} s: {each}" for each in wrong]
                continue
            if code:
                tally.faults.append(f"{trial}: exit code {code}: {log.read_text()[-300:].strip()}")
            break
        directory = self._directory(out)
        if len(tally.faults) == before:
            assert directory is not None
            tally.faults += [f"{trial}: {each}" for each in differences(contents(directory), self.wanted)]
        for name in leftovers(out):
            tally.left[name] = tally.left.get(name, 0) + 1
        if len(tally.faults) == before:
            shutil.rmtree(out)


# ---------------------------------------------------------------- commands that write a file


class Written:
    """A command that reads a finished run and writes a file or a folder.

    Args:
        name: its name here.
        words: what the command is, without its destination.
        option: the option that names the destination.
        target: the destination's name.
        folder: for its trials.
        again: what is added where something is there already.
    """

    def __init__(
        self, name: str, words: Sequence[str], option: str, target: str, folder: Path, again: Sequence[str] = ()
    ) -> None:
        self.tally, self.words, self.option, self.target = Tally(name), list(words), option, target
        self.folder, self.again = folder, list(again)
        self.log = folder / "log"
        folder.mkdir()
        whole = [self._whole(number) for number in range(2)]
        #: Whether two runs of it write the same bytes; where not, a file is only looked at for being whole.
        self.same = whole[0] == whole[1]
        self.known = whole[0]

    def _whole(self, number: int) -> dict[str, str]:
        place = self.folder / f"whole-{number}"
        place.mkdir()
        began = time.perf_counter()
        code = command([*self.words, self.option, str(place / self.target)], self.log)
        self.tally.seconds = time.perf_counter() - began
        if code:
            raise RuntimeError(f"{self.tally.case} fails without a kill:\n{self.log.read_text()[-2000:]}")
        return self._files(place)

    def _files(self, place: Path) -> dict[str, str]:
        """What stands under the destination's name, by file."""
        target = place / self.target
        files = [target] if target.is_file() else sorted(path for path in target.rglob("*") if path.is_file())
        return {str(path.relative_to(place)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}

    def trial(self, rng: Random) -> None:
        """Kill it once, look at what is there, and run it again."""
        tally = self.tally
        place, trial = self.folder / f"trial-{tally.trials}", f"trial {tally.trials}"
        place.mkdir()
        old = rng.random() < 0.5
        words = [*self.words, self.option, str(place / self.target)]
        if old:
            source = self.folder / "whole-0" / self.target
            (shutil.copytree if source.is_dir() else shutil.copyfile)(source, place / self.target)
        tally.trials += 1
        moment = rng.random() * tally.seconds
        code = command([*words, *(self.again if old else [])], self.log, moment)
        before = len(tally.faults)
        if code == -signal.SIGKILL:
            tally.kills += 1
            there = self._files(place)
            if there != self.known and (self.same or len(there) < len(self.known)) and (there or old):
                what = "half of it" if there else "nothing, where an old one was"
                tally.faults.append(f"{trial}, killed after {moment:.2f} s: {what} is there")
        elif code:
            tally.faults.append(f"{trial}: exit code {code}: {self.log.read_text()[-300:].strip()}")
        again = self.again if (place / self.target).exists() else []
        if (code := command([*words, *again], self.log)) != 0:
            tally.faults.append(f"{trial}, again: exit code {code}: {self.log.read_text()[-300:].strip()}")
        elif self._files(place).keys() != self.known.keys() or (self.same and self._files(place) != self.known):
            tally.faults.append(f"{trial}, again: other content than without a kill")
        for name in leftovers(place):
            tally.left[name] = tally.left.get(name, 0) + 1
        if len(tally.faults) == before:
            shutil.rmtree(place)


def _images(folder: Path) -> None:
    from PIL import Image

    folder.mkdir()
    rng = Random(0)
    for number in range(300):
        Image.frombytes("L", (8, 8), rng.randbytes(64)).save(folder / f"{number}.png")


def written(name: str, run: Path, folder: Path) -> Written:
    """The command of a name on a finished run."""
    words, option, target, again = {
        "report": (["report", str(run)], "-o", "page.html", ()),
        "export": (["export", str(run), "--to", "torch_export"], "--out", "model.pt2", ("--force",)),
        "export_hub": (["export", str(run), "--to", "hub"], "--out", "model", ("--force",)),
        "predict": (["predict", str(run), str(folder.parent / "images"), "--workers", "1"], "--out", "p.csv", ()),
    }[name]
    return Written(name, words, option, target, folder, again)


def kill(
    kills: int, seed: int, only: Sequence[str], whole: bool, folder: Path, say: Callable[[str], None]
) -> list[Tally]:
    """Kill until `kills` have hit, always in the case with the fewest.

    Args:
        kills: how many.
        seed: of the moments.
        only: names of cases; none for all.
        whole: leave the recipes as long as they are.
        folder: an empty one.
        say: is told how it goes.
    """
    import_all()
    chosen = list(only or (*RUNS, *COMMANDS))
    cases: list[Run | Written] = []
    for name in chosen:
        if name in RUNS:
            cases.append(Run(name, () if whole else RUNS[name], folder / name))
            say(f"{name}: {cases[-1].tally.seconds:.1f} s without a kill")
    if set(chosen) & set(COMMANDS):
        done = next((case for case in cases if isinstance(case, Run)), None)
        finished = done or Run("digits_lt_ofa_focal", RUNS["digits_lt_ofa_focal"], folder / "finished")
        _images(folder / "images")
        assert finished.path is not None
        for name in chosen:
            if name in COMMANDS:
                cases.append(made := written(name, finished.path, folder / name))
                say(f"{name}: {made.tally.seconds:.1f} s without a kill, the same bytes again: {made.same}")
    while (hit := sum(case.tally.kills for case in cases)) < kills:
        case = min(cases, key=lambda each: (each.tally.kills, each.tally.trials))
        case.trial(Random(f"{seed}/{case.tally.case}/{case.tally.trials}"))
        say(f"{case.tally.case}: {hit} kills before it; {sum(len(each.tally.faults) for each in cases)} faults")
    return [case.tally for case in cases]


def table(tallies: Sequence[Tally]) -> str:
    """The cases as a Markdown table, with their faults below."""
    lines = ["| killed | seconds | trials | kills | faults | temporary files left |", "| --- " * 6 + "|"]
    for tally in tallies:
        left = ", ".join(f"{count} x `{name}`" for name, count in tally.left.items())
        lines.append(
            f"| `{tally.case}` | {tally.seconds:.1f} | {tally.trials} | {tally.kills} | {len(tally.faults)} | {left} |"
        )
    total = sum(tally.kills for tally in tallies)
    lines.append(f"| all |  | {sum(t.trials for t in tallies)} | {total} | {sum(len(t.faults) for t in tallies)} |  |")
    lines += [f"\n{tally.case}: {fault}" for tally in tallies for fault in tally.faults]
    return "\n".join(lines)


def main() -> None:
    """Kill, and print the table; the exit code is 1 where anything was wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="+", default=[], choices=(*RUNS, *COMMANDS), metavar="CASE")
    parser.add_argument("--whole", action="store_true", help="do not shorten the recipes")
    parser.add_argument("--json", type=Path, help="write the counts to this file")
    parser.add_argument("--keep", type=Path, help="an empty folder for the runs, where those with faults stay")
    arguments = parser.parse_args()

    def say(text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    with tempfile.TemporaryDirectory() as made:
        folder = (arguments.keep or Path(made)).resolve()
        tallies = kill(arguments.kills, arguments.seed, arguments.only, arguments.whole, folder, say)
    if arguments.json:
        arguments.json.write_text(json.dumps([asdict(tally) for tally in tallies], indent=2) + "\n")
    print(table(tallies))
    sys.exit(any(tally.faults for tally in tallies))


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()

"""Small changes in the code, one at a time: do the changed module's own tests notice?

    python benchmarks/mutants.py --changes 300 --seed 0 --out mutants.jsonl
    python benchmarks/mutants.py --out mutants.jsonl --read          # the table of what has been done
    python benchmarks/mutants.py --changes 20 --only ltcore/files    # a part of the code

A change is one comparison, operator, constant or truth value of ``ltcore/`` or ``plugins/*/src``; which ones is drawn
with the seed, as many per module as it has places. They are made in a copy of the tree, so that what a test starts as
a process of its own sees them too. A line of --out is written for each; a second call goes on behind the last. Which
tests come by which line is found out once for each test file, which takes an hour for all of them, and kept for the
commit in the folder OUT.known.

One process imports PyTorch and what else is not ours, and forks a child for each change, which imports the copy and
runs the module's tests, the ones named after it first, up to the first failure. Tests of a module are those that
`tests_of` names; of each file, those that have come by the changed line when nothing was changed, and all where the
line was met while importing, in a fixture that tests share, or only in other processes. So a change may be noticed that
is counted as not noticed, and never the other way round. One that makes the tests take three times as long counts as
noticed.
"""

from __future__ import annotations

import argparse
import ast
import compileall
import contextlib
import copy
import gzip
import itertools
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
#: Not ours, and imported before the first fork.
_IMPORTED = (
    "torch",
    "torch._dynamo",
    "torchvision",
    "timm",
    "numpy",
    "sklearn.datasets",
    "pydantic",
    "yaml",
    "PIL.Image",
)
_IMPORTED += ("pytest", "hypothesis", "safetensors.torch", "scipy.stats", "rich.console", "pluggy")
_SWAPS: dict[type, type] = {
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult,
    ast.Mod: ast.Add,
    ast.Pow: ast.Mult,
    ast.And: ast.Or,
    ast.Or: ast.And,
}

#: For each module or wing of the core, the tests that are its own; the longest path that fits counts.
OWN: dict[str, str] = {
    "ltcore": "tests/test_public.py tests/test_errors.py",
    "ltcore/bench": "tests/test_bench.py",
    "ltcore/cli": "tests/test_cli.py tests/test_errors.py tests/test_use_docs.py",
    "ltcore/compare": "tests/test_compare.py",
    "ltcore/contract": "tests/test_hooks.py tests/test_interface.py tests/test_public.py",
    "ltcore/contract/backbone.py": "tests/test_backbones.py tests/test_model.py",
    "ltcore/contract/classifier.py": "tests/test_classifier.py",
    "ltcore/contract/context.py": "tests/test_context.py tests/test_features.py",
    "ltcore/contract/defaults.py": "tests/test_classifier.py tests/test_step.py tests/test_hooks.py",
    "ltcore/contract/facts.py": "tests/test_rehearsal.py tests/data/test_large_sets.py",
    "ltcore/contract/figures.py": "tests/test_figures.py tests/test_compare.py",
    "ltcore/contract/imbalance.py": "tests/data/test_data_imbalance.py",
    "ltcore/contract/method.py": "tests/test_hooks.py tests/test_errors.py tests/test_discovery.py",
    "ltcore/contract/model.py": "tests/test_model.py",
    "ltcore/contract/recipe.py": "tests/recipe/test_recipe_schema.py tests/recipe/test_recipe_loading.py",
    "ltcore/contract/records.py": "tests/test_step.py tests/test_mixes.py tests/test_pairs.py",
    "ltcore/contract/samplers.py": "tests/test_samplers.py",
    "ltcore/contract/splits.py": "tests/data",
    "ltcore/contract/statistics.py": "tests/test_statistics.py",
    "ltcore/data": "tests/data tests/test_cli.py",
    "ltcore/data/describe.py": "tests/data/test_data_sets.py tests/test_cli.py",
    "ltcore/data/image_files.py": "tests/data/test_image_folder.py tests/data/test_image_list.py",
    "ltcore/data/loader.py": "tests/data/test_data_loader.py tests/data/test_data_streaming.py",
    "ltcore/data/npz.py": "tests/data/test_data_npz.py",
    "ltcore/data/partial.py": "tests/test_rehearsal.py",
    "ltcore/data/prepare.py": "tests/data/test_data_prepare.py tests/data/test_data_imbalance.py",
    "ltcore/data/streaming.py": "tests/data/test_data_streaming.py tests/data/test_image_folder.py",
    "ltcore/data/transforms.py": "tests/data/test_data_transforms.py tests/data/test_data_loader.py",
    "ltcore/discovery": "tests/test_discovery.py tests/test_static.py tests/test_hooks.py tests/test_interface.py",
    "ltcore/discovery/binding.py": "tests/test_hooks.py tests/test_errors_run.py tests/test_interface.py",
    "ltcore/errors.py": "tests/test_errors.py tests/test_errors_run.py",
    "ltcore/evaluation": "tests/test_metrics.py tests/test_diagnostics.py tests/test_saved.py",
    "ltcore/evaluation/memory.py": "tests/test_memory.py",
    "ltcore/evaluation/calibrated.py": "tests/test_saved.py",
    "ltcore/export": "tests/export",
    "ltcore/files": "tests/test_checkpoint.py tests/test_rundir.py tests/test_resume.py",
    "ltcore/init": "tests/test_init.py",
    "ltcore/listing": "tests/test_cli.py tests/test_discovery.py",
    "ltcore/networks": "tests/test_timm_backbone.py tests/test_backbones.py tests/test_weights.py tests/test_optim.py",
    "ltcore/networks/optimizers.py": "tests/test_optim.py tests/test_groups.py",
    "ltcore/networks/schedules.py": "tests/test_schedules.py",
    "ltcore/networks/weights.py": "tests/test_weights.py",
    "ltcore/new": "tests/new",
    "ltcore/plan": "tests/test_checks.py tests/test_errors.py tests/test_cli.py",
    "ltcore/plan/text.py": "tests/test_cli.py tests/test_accumulation.py tests/test_checks.py",
    "ltcore/progress": "tests/test_console.py tests/test_logs.py",
    "ltcore/ranks.py": "tests/test_together.py",
    "ltcore/recipe": "tests/recipe tests/test_errors.py",
    "ltcore/rehearsal": "tests/test_rehearsal.py",
    "ltcore/report": "tests/test_report.py tests/test_report_chart.py tests/test_report_analysis.py",
    "ltcore/report/classes.py": "tests/test_report.py tests/test_report_analysis.py tests/test_unsure.py",
    "ltcore/report/figures.py": "tests/test_report_figures.py",
    "ltcore/report/matrix.py": "tests/test_report_figures.py tests/test_report_analysis.py",
    "ltcore/runs": "tests/test_saved.py tests/test_prediction_files.py",
    "ltcore/seeding.py": "tests/test_determinism.py",
    "ltcore/shipped": "tests/test_shipped.py tests/test_docs.py",
    "ltcore/sweeps": "tests/test_sweeps.py tests/test_search.py",
    "ltcore/tables": "tests/test_tables.py",
    "ltcore/testing": "tests/testing",
    "ltcore/training": "tests/test_stage.py tests/test_step.py tests/test_loop.py tests/test_errors_run.py",
    "ltcore/training/assembly.py": "tests/test_stage.py tests/test_resume.py tests/test_hooks.py",
    "ltcore/training/data.py": "tests/test_stage_data.py tests/test_stage.py",
    "ltcore/training/execute.py": "tests/test_resume.py tests/test_selection.py tests/test_reuse.py",
    "ltcore/training/features.py": "tests/test_features.py tests/test_stage.py",
    "ltcore/training/groups.py": "tests/test_groups.py",
    "ltcore/training/logged.py": "tests/test_logs.py tests/test_diagnostics.py",
    "ltcore/training/observers.py": "tests/test_loop.py tests/test_errors_run.py tests/test_resume.py",
    "ltcore/training/position.py": "tests/test_resume.py tests/test_rundir.py",
    "ltcore/training/result.py": "tests/test_rundir.py tests/test_determinism.py",
    "ltcore/training/reuse.py": "tests/test_reuse.py",
    "ltcore/training/run.py": "tests/test_resume.py tests/test_rundir.py tests/test_stage.py",
    "ltcore/training/selection.py": "tests/test_selection.py",
    "ltcore/training/trace.py": "tests/test_trace.py",
}


# ---------------------------------------------------------------- changes


@dataclass(frozen=True)
class Change:
    """One change: file from the root, line, what stood there, and what stands there instead.

    `start` and `end` are offsets in the file's bytes.
    """

    file: str
    line: int
    before: str
    after: str
    start: int
    end: int

    def applied(self, content: bytes) -> bytes:
        """The file's content with the change."""
        return content[: self.start] + self.after.encode() + content[self.end :]

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.before}  ->  {self.after}"


def changes_of(file: str, content: bytes) -> list[Change]:
    """Every change that a source file allows: not in docstrings, annotations, f-strings or `if TYPE_CHECKING`."""
    starts = [0]
    for line in content.splitlines(keepends=True):
        starts.append(starts[-1] + len(line))
    found = []
    for node, changed in _changed_nodes(ast.parse(content)):
        assert node.end_lineno is not None and node.end_col_offset is not None
        start, end = starts[node.lineno - 1] + node.col_offset, starts[node.end_lineno - 1] + node.end_col_offset
        before, after = content[start:end].decode(), ast.unparse(changed)
        if isinstance(node, ast.BinOp | ast.BoolOp | ast.Compare | ast.UnaryOp):
            after = f"({after})"
        found.append(Change(file, node.lineno, " ".join(before.split()), after, start, end))
    return found


def is_code(text: bytes) -> bool:
    """Whether it can be parsed; a number in a pattern, for one, cannot be put into parentheses."""
    try:
        ast.parse(text)
    except SyntaxError:
        return False
    return True


def _changed_nodes(node: ast.AST) -> Iterator[tuple[ast.expr, ast.expr]]:
    """An expression and what it becomes, for all below `node`."""
    if isinstance(node, ast.JoinedStr | ast.arg) or (
        isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
    ):
        return
    if isinstance(node, ast.Compare | ast.BinOp | ast.BoolOp | ast.UnaryOp | ast.Constant):
        yield from ((node, changed) for changed in _variants(node))
    skipped = {"annotation", "returns"} if isinstance(node, ast.AnnAssign | ast.FunctionDef | ast.arg) else set()
    for name, value in ast.iter_fields(node):
        for child in value if isinstance(value, list) else [value]:
            if name not in skipped and isinstance(child, ast.AST):
                yield from _changed_nodes(child)


def _variants(node: ast.expr) -> Iterator[ast.expr]:
    changed: Any = copy.deepcopy(node)
    match changed:
        case ast.Compare(ops=ops):
            for number, operator in enumerate(ops):
                other: Any = copy.deepcopy(node)
                other.ops[number] = _SWAPS[type(operator)]()
                yield other
        case ast.BinOp(op=operator) if type(operator) in _SWAPS and not _is_text(changed):
            changed.op = _SWAPS[type(operator)]()
            yield changed
        case ast.BoolOp(op=operator):
            changed.op = _SWAPS[type(operator)]()
            yield changed
        case ast.UnaryOp(op=ast.Not()):
            yield changed.operand
        case ast.Constant(value=bool(value)):
            yield ast.Constant(not value)
        case ast.Constant(value=int(value)):
            yield ast.Constant(value + 1)
        case ast.Constant(value=float(value)):
            yield ast.Constant(value * 2 + 1)


def _is_text(node: ast.BinOp) -> bool:
    """Whether an operator joins or formats text, or joins types, which is no arithmetic."""
    sides = (node.left, node.right)
    texts = (ast.JoinedStr,)
    return any(isinstance(s, texts) or (isinstance(s, ast.Constant) and isinstance(s.value, str | None)) for s in sides)


def sources(root: Path, only: Sequence[str] = ()) -> list[str]:
    """The files that are changed, from the root."""
    files = [*root.glob("ltcore/**/*.py"), *root.glob("plugins/*/src/**/*.py")]
    names = sorted(str(path.relative_to(root)) for path in files)
    return [name for name in names if not only or name.startswith(tuple(only))]


def drawn(root: Path, number: int, seed: int, only: Sequence[str] = ()) -> list[Change]:
    """`number` different changes, drawn from all."""
    every = [change for file in sources(root, only) for change in changes_of(file, (root / file).read_bytes())]
    Random(seed).shuffle(every)
    return list(itertools.islice((c for c in every if is_code(c.applied((root / c.file).read_bytes()))), number))


# ---------------------------------------------------------------- tests


def tests_of(root: Path, file: str) -> list[str]:
    """The test files of a module, those named after it first."""
    if file.startswith("plugins/"):
        return [f"plugins/{Path(file).parts[1]}/tests"]
    stem = Path(file).stem
    named = [*root.glob(f"tests/**/test_{stem}.py"), *root.glob(f"tests/**/test_{Path(file).parts[1]}_{stem}.py")]
    first = sorted({str(path.relative_to(root)) for path in named})
    best = max((path for path in OWN if file == path or file.startswith(f"{path}/")), key=len)
    return [*first, *(path for path in OWN[best].split() if path not in first)]


@dataclass(frozen=True)
class Known:
    """What a test file does when nothing is changed.

    Attributes:
        seconds: how long it takes.
        lines: by source file and line, the tests that come by it; an empty name stands for all of them.
    """

    seconds: float
    lines: dict[str, dict[str, list[str]]]

    def of(self, file: str, lines: Sequence[int]) -> list[str] | None:
        """The tests that come by these lines; None where it may be any of the file."""
        met = {test for line in lines for test in self.lines.get(file, {}).get(str(line), ())}
        return None if "" in met or not self.lines else sorted(met)


class Chosen:
    """A plugin of pytest that leaves out all other tests."""

    def __init__(self, tests: Sequence[str]) -> None:
        self.tests = frozenset(tests)

    def pytest_collection_modifyitems(self, items: list[Any]) -> None:
        """Keep the chosen ones."""
        items[:] = [item for item in items if item.nodeid in self.tests]


class Recorder:
    """A plugin of pytest that notes which test comes by which line of the copy.

    Args:
        root: the copy.
        target: where the lines are written, as `Known.lines`.
    """

    def __init__(self, root: Path, target: Path) -> None:
        import coverage

        self.root, self.target, self.test = root, target, ""
        sources = [str(root / "ltcore"), *(str(path) for path in root.glob("plugins/*/src"))]
        self.coverage = coverage.Coverage(data_file=None, source=sources, config_file=False)
        self.coverage.start()

    @pytest.hookimpl(hookwrapper=True)
    def pytest_runtest_protocol(self, item: Any) -> Iterator[None]:
        """A test begins, and ends."""
        self._switch(item.nodeid)
        yield
        self._switch("")

    @pytest.hookimpl(hookwrapper=True)
    def pytest_fixture_setup(self, fixturedef: Any) -> Iterator[None]:
        """What several tests share is met by all of them."""
        test = self.test
        if fixturedef.scope != "function":
            self._switch("")
        yield
        self._switch(test)

    def _switch(self, test: str) -> None:
        self.test = test
        self.coverage.switch_context(test)

    def pytest_sessionfinish(self) -> None:
        """Write what was met."""
        self.coverage.stop()
        data = self.coverage.get_data()
        found = {
            str(Path(file).relative_to(self.root)): data.contexts_by_lineno(file) for file in data.measured_files()
        }
        self.target.write_text(json.dumps(found))


class Copy:
    """A copy of the tree, whose code goes before what is installed.

    Args:
        folder: an empty one.
    """

    def __init__(self, folder: Path) -> None:
        self.root = folder
        told = subprocess.run(
            ["git", "ls-files", "-z", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, check=True
        )
        for name in told.stdout.decode().split("\0"):
            if name and (ROOT / name).is_file():
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(ROOT / name, folder / name)
        self.paths = [str(folder), *(str(path) for path in sorted(folder.glob("plugins/*/src")))]
        compileall.compile_dir(folder, quiet=2)

    def run(self, test: str, seconds: float, log: Path, *plugins: Callable[[], Any]) -> tuple[str, float]:
        """Run a test file in a forked child: ``passed``, ``failed`` or ``too long``, and the seconds."""
        began = time.perf_counter()
        pid = os.fork()
        if pid == 0:
            self._test_and_leave(test, log, plugins)
        ended = os.pidfd_open(pid)
        in_time = select.select([ended], [], [], seconds)[0]
        os.close(ended)
        with contextlib.suppress(ProcessLookupError):
            if not in_time:
                os.killpg(pid, signal.SIGKILL)
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        with contextlib.suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)
        what = "too long" if not in_time else "passed" if code == 0 else "failed"
        return what, time.perf_counter() - began

    def known(self, test: str, log: Path) -> Known:
        """What a test file does when nothing is changed; some do not bear to be watched.

        Raises:
            RuntimeError: it fails.
        """
        target = log.with_name("lines.json")
        what, seconds = self.run(test, 3600, log, lambda: Recorder(self.root, target))
        if what == "passed":
            return Known(seconds, json.loads(target.read_text()))
        what, seconds = self.run(test, 3600, log)
        if what == "passed":
            return Known(seconds, {})
        raise RuntimeError(f"{test} fails without a change:\n{log.read_text(errors='replace')[-3000:]}")

    def _test_and_leave(self, test: str, log: Path, plugins: Sequence[Callable[[], Any]]) -> None:
        code = 70
        try:
            os.setsid()
            os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 1)
            os.dup2(1, 2)
            os.chdir(self.root)
            sys.dont_write_bytecode = True
            os.environ |= {"PYTHONPATH": os.pathsep.join(self.paths), "PYTHONDONTWRITEBYTECODE": "1"}
            sys.path[:0] = self.paths
            options = [
                "-x",
                "-q",
                "-p",
                "no:cacheprovider",
                "-p",
                "no:xdist",
                "-o",
                "addopts=",
                "--import-mode=importlib",
            ]
            made = [plugin() for plugin in plugins]
            code = int(pytest.main([*options, "-m", "not gpu and not slow and not fuzz", test], plugins=made))
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)


def lines_of(content: bytes, line: int) -> list[int]:
    """The lines of the statement that a line is of, its blocks left out; none outside of functions.

    What stands outside is met while importing, by whichever test happens to come first.
    """
    found: list[int] = []

    def visit(node: ast.AST, inside: bool) -> None:
        inside = inside or isinstance(node, ast.FunctionDef)
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.stmt):
                blocks = [each for each in ast.iter_child_nodes(child) if isinstance(each, ast.stmt)]
                last = min((block.lineno for block in blocks), default=(child.end_lineno or child.lineno) + 1) - 1
                if inside and child.lineno <= line <= max(last, child.lineno):
                    found[:] = range(child.lineno, max(last, child.lineno) + 1)
            visit(child, inside)

    visit(ast.parse(content), False)
    return found


class Remembered:
    """What test files do when nothing is changed, kept in a folder for the next call.

    Args:
        tree: the copy.
        folder: where; other commits have other folders.
        log: for what the tests print.
    """

    def __init__(self, tree: Copy, folder: Path, log: Path) -> None:
        self._tree, self._folder, self._log = tree, folder, log
        self._known: dict[str, Known] = {}

    def __getitem__(self, test: str) -> Known:
        """Of a test file, or a folder of them."""
        if test not in self._known:
            file = self._folder / f"{test.replace('/', '+')}.json.gz"
            if file.is_file():
                self._known[test] = Known(*json.loads(gzip.decompress(file.read_bytes())))
            else:
                found = self._known[test] = self._tree.known(test, self._log)
                self._folder.mkdir(parents=True, exist_ok=True)
                new = file.with_suffix(".new")
                new.write_bytes(gzip.compress(json.dumps([found.seconds, found.lines]).encode(), 1))
                new.replace(file)
        return self._known[test]


def judged(change: Change, tree: Copy, remembered: Remembered, log: Path) -> dict[str, Any]:
    """Make a change, run the module's tests up to the first that fails, and put the file back.

    Raises:
        RuntimeError: the tests fail without any change.
    """
    path = tree.root / change.file
    content = path.read_bytes()
    compiled = [*path.parent.glob(f"__pycache__/{path.stem}.*.pyc")]
    seconds = 0.0
    known = {test: remembered[test] for test in tests_of(tree.root, change.file)}
    lines = lines_of(content, change.line)
    for each in compiled:
        each.unlink()  # it goes by whole seconds and by size, which a change may leave as they were
    path.write_bytes(change.applied(content))
    met = {test: each.of(change.file, lines) if lines else None for test, each in known.items()}
    if not any(each is None or each for each in met.values()):  # by none of them: other processes may
        met = dict.fromkeys(known)
    try:
        for test, chosen in met.items():
            if chosen == []:
                continue
            plugins = [] if chosen is None else [partial(Chosen, chosen)]
            what, taken = tree.run(test, 3 * known[test].seconds + 60, log, *plugins)
            seconds += taken
            if what != "passed":
                return {**asdict(change), "caught": True, "by": test, "how": what, "seconds": round(seconds, 1)}
        return {**asdict(change), "caught": False, "by": "", "how": "passed", "seconds": round(seconds, 1)}
    finally:
        path.write_bytes(content)


def report(lines: Sequence[dict[str, Any]]) -> str:
    """How many were noticed, by wing and plugin, and the others one by one."""
    caught, every = Counter(_part(line) for line in lines if line["caught"]), Counter(map(_part, lines))
    table = ["| part | changes | noticed |", "| --- | --- | --- |"]
    table += [f"| {part} | {count} | {caught[part]} |" for part, count in sorted(every.items())]
    table.append(f"| all | {len(lines)} | {sum(caught.values())} |")
    unseen = [
        f"- `{line['file']}:{line['line']}`: `{line['before']}` -> `{line['after']}`"
        for line in lines
        if not line["caught"]
    ]
    return "\n".join([*table, "", f"Not noticed: {len(unseen)}", "", *unseen])


def _part(line: dict[str, Any]) -> str:
    return "/".join(Path(line["file"]).parts[:2])


def main() -> None:
    """Make what changes are not made yet, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--changes", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--share", default="0/1", help="K/N: every N-th change from the K-th, for N processes at once")
    parser.add_argument("--only", nargs="+", default=[], metavar="PATH", help="files or folders, from the root")
    parser.add_argument("--out", type=Path, default=Path("mutants.jsonl"), help="a line for each change")
    parser.add_argument("--read", action="store_true", help="only show what --out has")
    arguments = parser.parse_args()
    out = arguments.out.absolute()
    done = [json.loads(line) for line in out.read_text().splitlines()] if out.is_file() else []
    if not arguments.read:
        for name in _IMPORTED:
            __import__(name)
        with tempfile.TemporaryDirectory() as folder:
            tree, log = Copy(Path(folder).resolve() / "tree"), Path(folder) / "log"
            told = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True)
            remembered = Remembered(tree, out.with_name(f"{out.name}.known") / told.stdout[:12], log)
            seen = {(line["file"], line["start"], line["after"]) for line in done}
            share, shares = map(int, arguments.share.split("/"))
            for change in drawn(ROOT, arguments.changes, arguments.seed, arguments.only)[share::shares]:
                if (change.file, change.start, change.after) in seen:
                    continue
                line = judged(change, tree, remembered, log)
                done.append(line)
                with open(out, "a", encoding="utf-8") as file:
                    file.write(json.dumps(line) + "\n")
                print(f"{line['how']:8} {line['seconds']:6.1f} s  {change}", file=sys.stderr, flush=True)
    print(report(done))


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()

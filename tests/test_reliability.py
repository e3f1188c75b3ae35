"""The scripts that measure reliability: `benchmarks/kills.py`, `soak.py`, `mutants.py` and `reliability.py`."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

import kills
import mutants
import reliability
import soak

ROOT = Path(__file__).parents[1]

# ---------------------------------------------------------------- changes in the code

SOURCE = b'''"""A docstring with 1 and True."""
from typing import TYPE_CHECKING

if TYPE_CHECKING and 1 < 2:
    pass


def f(a: int = 3, b: "x" = None) -> list[1]:
    """Of 7."""
    if a < 2 and not b:
        return f"{a + 1}" + "x"
    return "\xc3\xa9" * 2 if a is None else 0.5 - a
'''


def made():
    return [(change.before, change.after) for change in mutants.changes_of("f.py", SOURCE)]


def test_comparisons_operators_constants_and_truth_values_are_changed():
    assert sorted(made()) == sorted(
        [
            ("3", "4"),
            ("a < 2", "(a <= 2)"),
            ("a < 2 and not b", "(a < 2 or not b)"),
            ("2", "3"),
            ("not b", "(b)"),
            ("2", "3"),
            ("a is None", "(a is not None)"),
            ("0.5", "2.0"),
            ("0.5 - a", "(0.5 + a)"),
        ]
    )


def test_a_change_changes_its_place_alone():
    change = next(change for change in mutants.changes_of("f.py", SOURCE) if change.before == "0.5 - a")
    assert change.applied(SOURCE) == SOURCE.replace(b"0.5 - a", b"(0.5 + a)")
    assert str(change) == "f.py:12: 0.5 - a  ->  (0.5 + a)"


@pytest.mark.slow
def test_the_same_changes_are_drawn_with_the_same_seed():
    first = mutants.drawn(ROOT, 40, 0)
    assert first == mutants.drawn(ROOT, 40, 0) and first[:20] == mutants.drawn(ROOT, 20, 0)
    assert first != mutants.drawn(ROOT, 40, 1) and len(set(first)) == 40
    assert {change.file.split("/")[0] for change in first} == {"ltcore", "plugins"}
    assert all(change.file.startswith("ltcore/files/") for change in mutants.drawn(ROOT, 5, 0, ["ltcore/files/"]))


def test_every_module_has_tests_that_are_there():
    for file in mutants.sources(ROOT):
        tests = mutants.tests_of(ROOT, file)
        assert tests and len(tests) == len(set(tests)), file
        assert not [test for test in tests if not (ROOT / test).exists()], file
    gone = [path for path in mutants.OWN if not (ROOT / path).exists()]
    assert not gone, "benchmarks/mutants.py names modules that are not there"


def test_tests_named_after_a_module_come_first():
    assert mutants.tests_of(ROOT, "ltcore/files/checkpoint.py")[0] == "tests/test_checkpoint.py"
    assert mutants.tests_of(ROOT, "ltcore/data/npz.py") == ["tests/data/test_data_npz.py"]
    assert mutants.tests_of(ROOT, "plugins/ofa/src/ltcore_ofa/method.py") == ["plugins/ofa/tests"]


def test_the_table_of_changes():
    line = {"file": "ltcore/files/a.py", "line": 3, "before": "a < b", "after": "(a <= b)", "caught": True}
    text = mutants.report([line, {**line, "caught": False}])
    assert "| ltcore/files | 2 | 1 |" in text and "- `ltcore/files/a.py:3`: `a < b` -> `(a <= b)`" in text


LINES = b"""A = 1


def f(a, b=2):
    if a and (
        b
    ):
        return [
            a,
        ]
    return b


class C:
    d = 3

    def g(self):
        return 4
"""


def test_a_change_is_of_the_lines_of_its_statement():
    assert mutants.lines_of(LINES, 1) == mutants.lines_of(LINES, 4) == mutants.lines_of(LINES, 15) == []  # importing
    assert mutants.lines_of(LINES, 5) == mutants.lines_of(LINES, 6) == [5, 6, 7]
    assert mutants.lines_of(LINES, 9) == [8, 9, 10]
    assert mutants.lines_of(LINES, 11) == [11] and mutants.lines_of(LINES, 18) == [18]


def test_the_tests_that_come_by_a_line_are_run_or_all():
    known = mutants.Known(1.0, {"f.py": {"1": ["a", "b"], "2": ["b", ""], "3": []}})
    assert known.of("f.py", [1, 3]) == ["a", "b"]
    assert known.of("f.py", [3]) == known.of("f.py", [7]) == known.of("g.py", [1]) == []
    assert known.of("f.py", [1, 2]) is mutants.Known(1.0, {}).of("f.py", [1]) is None


# ---------------------------------------------------------------- kills


@pytest.fixture
def run(tmp_path):
    """A directory with files of every kind."""
    folder = tmp_path / "run"
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "result.json").write_text('{"top1": 0.5, "stages": [{"seconds": 1.0, "name": "a"}]}')
    (folder / "metrics.jsonl").write_text('{"loss": 1.5, "seconds": 2}\n')
    np.savez(folder / "predictions.npz", logits=np.arange(3.0))
    from safetensors.numpy import save_file

    for name in ("last", "stage-0-a"):
        save_file({"a": np.arange(4.0)}, folder / "checkpoints" / f"{name}.safetensors")
    return folder


def test_only_clocks_and_the_last_checkpoint_may_differ(run):
    wanted = kills.contents(run)
    assert set(wanted) == {
        "result.json",
        "metrics.jsonl",
        "predictions.npz",
        "checkpoints/stage-0-a.safetensors",
    }
    (run / "result.json").write_text('{"top1": 0.5, "stages": [{"seconds": 9.0, "name": "a"}]}')
    assert kills.differences(kills.contents(run), wanted) == []
    (run / "result.json").write_text('{"top1": 0.50000000001, "stages": [{"seconds": 9.0, "name": "a"}]}')
    np.savez(run / "predictions.npz", logits=np.arange(3.0) + 1e-12)
    (run / "metrics.jsonl").unlink()
    (run / "more.json").write_text("1")
    assert kills.differences(kills.contents(run), wanted) == [
        "metrics.jsonl is missing",
        "more.json is too much",
        "predictions.npz differs",
        "result.json differs",
    ]


@pytest.mark.parametrize("file", ["result.json", "predictions.npz", "checkpoints/last.safetensors"])
def test_a_half_written_file_is_seen(run, file):
    assert kills.half_written(run) == []
    content = (run / file).read_bytes()
    (run / file).write_bytes(content[: len(content) // 2])
    (found,) = kills.half_written(run)
    assert found.startswith(f"{file} is not whole")
    (run / f"{file}.tmp").write_bytes(b"")
    assert len(kills.half_written(run)) == 1 and kills.leftovers(run) == [f"{Path(file).name}.tmp"]


def test_a_line_that_a_resumed_run_cuts_off_is_whole_enough(run):
    with open(run / "metrics.jsonl", "a") as file:
        file.write('{"loss"')
    assert kills.half_written(run) == []
    with open(run / "metrics.jsonl", "a") as file:
        file.write("\n")
    assert len(kills.half_written(run)) == 1


def test_kills_are_counted_in_a_table():
    tallies = [kills.Tally("a", 1.0, 3, 5, ["it differs"], {"x.tmp": 2}), kills.Tally("b", 2.0, 1, 2)]
    text = kills.table(tallies)
    assert "| `a` | 1.0 | 3 | 5 | 1 | 2 x `x.tmp` |" in text and "| all |  | 4 | 7 | 1 |  |" in text
    assert "a: it differs" in text


@pytest.mark.slow
def test_kills_hit_and_runs_end_the_same(tmp_path):
    tallies = kills.kill(4, 0, ["digits_lt_ce", "predict"], False, tmp_path, lambda text: None)
    assert [tally.case for tally in tallies] == ["digits_lt_ce", "predict"]
    assert sum(tally.kills for tally in tallies) >= 4 and tallies[0].faults == []


# ---------------------------------------------------------------- soak


def counts(*megabytes, files=10, threads=2):
    first = [soak.Count(100 * n, each, 10, 2, 1000) for n, each in enumerate(megabytes[:-1], 1)]
    return [*first, soak.Count(100 * len(megabytes), megabytes[-1], files, threads, 1000)]


def test_what_grows_is_said():
    flat = [500.0] * 10
    assert soak.grown(counts(*flat)) == []
    assert soak.grown(counts(*(300.0, *flat[1:])))[0] == "memory, from 300.0 MB after 100 runs to 500.0 MB"
    assert soak.grown(counts(*flat[1:], 600.0)) == []  # one large count is not growth
    assert soak.grown(counts(*[500.0 + 10 * n for n in range(10)]))[0].startswith("memory, from 500.0 MB")
    assert soak.grown(counts(*flat, files=11)) == ["open files, from 10 to 11"]
    assert soak.grown(counts(*flat, threads=3)) == ["threads, from 2 to 3"]


@pytest.mark.slow
def test_a_short_soak(tmp_path):
    found = soak.soak(6, tmp_path, lambda text: None)
    assert found[0].runs == 1 and found[0].megabytes > 50 and list(tmp_path.iterdir()) == []


# ---------------------------------------------------------------- the page

JUNIT = """<testsuites><testsuite>
<testcase classname="tests.test_fuzz" name="test_a[npz]"><properties><property name="inputs" value="20"/>
<property name="refused" value="18"/><property name="commands" value="1"/><property name="kinds" value="2 x X in y"/>
</properties><failure message="x">x</failure></testcase>
<testcase classname="tests.test_faults" name="test_b"/></testsuite></testsuites>"""


def test_the_page_has_what_the_parts_left_and_what_was_written_by_hand(tmp_path):
    for part in ("faults", "fuzz"):
        (tmp_path / f"{part}.xml").write_text(JUNIT)
    (tmp_path / "kills.json").write_text(json.dumps([{"case": "a", "seconds": 1.0, "trials": 2, "kills": 3}]))
    one = {"runs": 5, "megabytes": 1.0, "files": 2, "threads": 1, "objects": 9}
    (tmp_path / "soak.json").write_text(json.dumps({"counts": [one], "grown": ["threads, from 1 to 2"]}))
    told = {"when": "2026-01-02", "where": "here", "inputs": 20, "kills": 3, "runs": 5, "seed": 0}
    for part in reliability.PARTS:
        (tmp_path / f"{part}.told").write_text(json.dumps(told))
    text = reliability.page(tmp_path, "# old\n\n## Found and mended\n\nby hand\n")
    assert "| npz | 20 | 18 | 1 | 1 |" in text and "- npz: 2 x X in y" in text and "# old" not in text
    assert "| `tests.test_faults` | 1 | 1 |" in text and "| all | 2 | 1 |" in text
    assert "| `a` | 1.0 | 2 | 3 | 0 |" in text and "Grown: threads" in text and text.endswith("by hand\n")
    (tmp_path / "soak.told").unlink()
    assert "Many runs" not in reliability.page(tmp_path, text)


@pytest.mark.slow
def test_which_test_comes_by_which_line(tmp_path):
    line = next(
        n for n, text in enumerate((ROOT / "ltcore/seeding.py").read_text().splitlines(), 1) if "blake2b(" in text
    )
    code = (
        "import sys, json, mutants; from pathlib import Path; place = Path(sys.argv[1]); "
        'known = mutants.Copy(place / "tree").known("tests/test_determinism.py", place / "log"); '
        f'print(json.dumps(known.of("ltcore/seeding.py", [{line}])))'
    )  # in a process of its own, which has not imported the code yet
    ended = subprocess.run(
        [sys.executable, "-c", code, tmp_path], cwd=ROOT / "benchmarks", capture_output=True, text=True
    )
    tests = json.loads(ended.stdout)
    assert tests and all(test.startswith("tests/test_determinism.py::") for test in tests)

"""Every reader takes what is damaged or odd as it is meant, or refuses it with one message; `pytest -m fuzz`.

`benchmarks/fuzzing/` makes the inputs and reads them under limits. LTCORE_FUZZ_INPUTS is how many each reader gets, 200
by default; LTCORE_FUZZ_SEED makes others; LTCORE_FUZZ_KEEP names a folder for the first input of each kind of fault.
"""

import os
import sys
from pathlib import Path
from random import Random

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

from fuzzing import forked, mutation, readers_data, readers_runs
from preloaded import import_all

from ltcore.errors import RecipeError

READERS = (*readers_data.READERS, *readers_runs.READERS)
INPUTS = int(os.environ.get("LTCORE_FUZZ_INPUTS", "200"))
SEED = int(os.environ.get("LTCORE_FUZZ_SEED", "0"))
#: No valid input is at hand: nothing but the published files has the checksums that CIFAR's batches must have.
UNREADABLE = {"cifar"}
KEEP = os.environ.get("LTCORE_FUZZ_KEEP")


@pytest.fixture(scope="module", autouse=True)
def preloaded():
    """Children begin with everything imported."""
    import_all()


@pytest.mark.fuzz
@pytest.mark.parametrize("reader", READERS, ids=lambda reader: reader.name)
def test_a_damaged_input_is_refused_with_one_message(reader, tmp_path, record_property):
    outcome = forked.fuzz(reader, tmp_path.resolve(), INPUTS, SEED, Path(KEEP) if KEEP else None)
    record_property("inputs", outcome.inputs)
    record_property("refused", outcome.refused)
    record_property("commands", outcome.commands)
    record_property("kinds", "\n".join(f"{kind.count} x {kind.what}" for kind in outcome.kinds.values()))
    assert outcome.inputs == INPUTS
    assert not outcome.kinds, f"\n{outcome}"


# ---------------------------------------------------------------- what would notice, notices


def reading(read, command=None):
    def prepare(folder):
        (folder / "a.txt").write_text("one two three\n" * 3)

    def spoil(rng, folder):
        return {"a.txt": mutation.mutated_text(rng, "one two three").encode("utf-8", "surrogatepass")}

    return forked.Reader("made up", prepare, spoil, lambda folder: lambda: read(folder), command)


def kinds(read, tmp_path, inputs=3, **more):
    outcome = forked.fuzz(reading(read, **more), tmp_path.resolve(), inputs)
    assert outcome.inputs == inputs
    return {kind.what: kind.count for kind in outcome.kinds.values()}


def refuse(folder):
    raise RecipeError("no")


def test_a_refusal_and_a_value_are_right(tmp_path):
    assert kinds(lambda folder: (folder / "a.txt").read_bytes() and None, tmp_path) == {}
    outcome = forked.fuzz(reading(refuse), tmp_path.resolve(), 3)
    assert outcome.refused == 3 and not outcome.kinds


def test_another_exception_is_a_kind_by_its_place(tmp_path):
    def read(folder):
        return [][1]

    (found,) = kinds(read, tmp_path)
    assert found.startswith("IndexError in ") and found.endswith(":read")


def test_a_long_or_empty_message_is_noticed(tmp_path):
    class Uncut(RecipeError):
        def __str__(self):
            return "x" * 5000

    def long(folder):
        raise Uncut

    def empty(folder):
        raise RecipeError("")

    (found,) = kinds(long, tmp_path)
    assert found.startswith("a message of more than 4000 characters from ") and found.endswith(":long")
    assert kinds(empty, tmp_path) == {"an empty message": 3}


def test_memory_beyond_a_gigabyte_is_noticed(tmp_path):
    (found,) = kinds(lambda folder: bytearray(2 * forked.MEMORY), tmp_path)
    assert found.startswith("MemoryError in")


@pytest.mark.slow
def test_what_computes_without_end_is_noticed_and_the_others_are_read(tmp_path, monkeypatch):
    monkeypatch.setattr(forked, "CPU_SECONDS", 1)

    def read(folder):
        if "\n" not in (folder / "a.txt").read_text(errors="replace"):
            while True:
                pass

    found = kinds(read, tmp_path)
    assert list(found) == ["more than 1 CPU seconds (reading)"]


def test_what_waits_and_what_dies_is_noticed(tmp_path, monkeypatch):
    monkeypatch.setattr(forked, "_WALL_SECONDS", 1)

    def waits(folder):
        os.read(os.pipe()[0], 1)

    assert kinds(waits, tmp_path, inputs=1) == {"waits 1 s (reading)": 1}
    assert kinds(lambda folder: os.abort(), tmp_path) == {"killed by SIGABRT (reading)": 3}
    assert kinds(lambda folder: os._exit(0), tmp_path) == {"left with exit code 0 (reading)": 3}


def test_a_file_outside_and_a_program_are_noticed(tmp_path):
    outside = tmp_path / "outside"

    def writes(folder):
        outside.write_text("x")

    inside = tmp_path / "inside"
    inside.mkdir()
    assert list(kinds(writes, inside)) == [f"outside of its folder: writes {outside}"]
    assert list(kinds(lambda folder: os.system("true") and None, inside)) == ["outside of its folder: os.system"]
    assert kinds(lambda folder: (folder / "b.txt").write_text("x") and None, inside) == {}


def test_what_is_let_in_is_noticed(tmp_path):
    assert kinds(lambda folder: "a changed file", tmp_path) == {"accepted: a changed file": 3}


def test_the_command_line_reads_some_too(tmp_path, monkeypatch):
    monkeypatch.setattr(forked, "COMMAND_EVERY", 1)
    told = kinds(refuse, tmp_path, command=lambda folder: ["plan", str(folder / "a.txt")])
    assert not any("traceback" in what for what in told)

    def fails(**arguments):
        raise IndexError("no")

    monkeypatch.setattr("ltcore.recipe.loading.load_recipe", lambda *a: fails())
    (found,) = kinds(refuse, tmp_path, command=lambda folder: ["plan", str(folder / "a.txt")])
    assert found == "command line: IndexError in cli/recipes.py:plan"


@pytest.mark.sampled(5)
@pytest.mark.parametrize("reader", READERS, ids=lambda reader: reader.name)
def test_inputs_are_the_same_in_every_run_and_differ_from_each_other(reader, tmp_path):
    folder = tmp_path.resolve()
    forked._in_child(lambda: reader.prepare(folder))
    made = [forked.made(reader, folder, 0, number) for number in range(12)]
    assert made[:3] == [forked.made(reader, folder, 0, number) for number in range(3)]
    assert len({str(sorted(files.items())) for files in made}) > 8
    assert made != [forked.made(reader, folder, 1, number) for number in range(12)]


@pytest.mark.sampled(3)
@pytest.mark.parametrize("reader", READERS, ids=lambda reader: reader.name)
def test_a_valid_input_is_read(reader, tmp_path):
    whole = forked.Reader(reader.name, reader.prepare, lambda rng, folder: {}, reader.opened, reader.command)
    outcome = forked.fuzz(whole, tmp_path.resolve(), 1)
    assert outcome.refused == (reader.name in UNREADABLE) and not outcome.kinds, str(outcome)


def test_a_spoilt_value_is_another_one():
    value = {"a": [1, {"b": "text"}], "c": None}
    rng = Random(0)
    made = [mutation.mutated_value(rng, value) for _ in range(50)]
    assert sum(repr(each) != repr(value) for each in made) > 40
    assert value == {"a": [1, {"b": "text"}], "c": None}

"""Faults, damaged inputs, kills and a soak, at stated sizes; writes results/reliability.md.

    python benchmarks/reliability.py --inputs 20000 --kills 200 --runs 1000
    python benchmarks/reliability.py --only kills soak         # a part anew; the rest of the page stays
    python benchmarks/reliability.py --only fuzz --readers csv npz
    python benchmarks/reliability.py --read                    # the page from what the parts have left in --work

Each part is a process of its own and leaves its counts in --work. What stands on the page from "Found and mended" on is
written by hand, and stays.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
from collections import Counter
from datetime import date
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import kills
import soak

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "results" / "reliability.md"
BY_HAND = "## Found and mended"
PARTS = ("faults", "fuzz", "kills", "soak")
HEAD = """# Reliability

What is done to ltcore on purpose, how often, and what comes of it. Written by `python benchmarks/reliability.py`.
"""


def command(part: str, sizes: argparse.Namespace) -> list[str]:
    """The command line of a part, with where it leaves its counts."""
    readers = sizes.readers if part == "fuzz" else []
    left = str(sizes.work / f"{'-'.join([part, *readers])}.{'json' if part in ('kills', 'soak') else 'xml'}")
    tests = [
        sys.executable,
        "-m",
        "pytest",
        "-n",
        "0",
        "-q",
        "-m",
        part,
        "-o",
        "junit_family=xunit1",
        f"--junitxml={left}",
    ]
    return {
        "faults": tests,
        "fuzz": [
            *tests,
            "tests/test_fuzz.py",
            *(["-k", " or ".join(f"[{name}]" for name in readers)] if readers else []),
        ],
        "kills": [
            sys.executable,
            "benchmarks/kills.py",
            f"--kills={sizes.kills}",
            f"--seed={sizes.seed}",
            "--json",
            left,
        ],
        "soak": [sys.executable, "benchmarks/soak.py", f"--runs={sizes.runs}", "--json", left],
    }[part]


def run(part: str, sizes: argparse.Namespace) -> int:
    """Run a part; returns its exit code."""
    told = {"LTCORE_FUZZ_INPUTS": str(sizes.inputs), "LTCORE_FUZZ_SEED": str(sizes.seed), "OMP_NUM_THREADS": "1"}
    told["LTCORE_FUZZ_KEEP"] = str(sizes.work / "inputs")
    print(f"{part} ...", file=sys.stderr, flush=True)
    with open(sizes.work / f"{part}.log", "w") as log:
        code = subprocess.run(command(part, sizes), cwd=ROOT, env=os.environ | told, stdout=log, stderr=log).returncode
    (sizes.work / f"{part}.told").write_text(
        json.dumps({"when": f"{date.today()}", "where": _machine(), **_sizes(sizes)})
    )
    print(f"{part}: exit code {code}; {sizes.work / part}.log", file=sys.stderr, flush=True)
    return code


def _sizes(sizes: argparse.Namespace) -> dict[str, int]:
    return {name: getattr(sizes, name) for name in ("inputs", "kills", "runs", "seed")}


def _machine() -> str:
    import torch

    return f"Python {platform.python_version()}, torch {torch.__version__}, {os.cpu_count()} cores, one thread"


# ---------------------------------------------------------------- the page


def cases(path: Path) -> list[dict[str, Any]]:
    """The tests of a JUnit file: file, name, outcome, and what they recorded."""
    found = []
    for case in ElementTree.parse(path).iter("testcase"):
        kinds = {child.tag for child in case}
        outcome = "failed" if kinds & {"failure", "error"} else "skipped" if "skipped" in kinds else "passed"
        recorded = {str(p.get("name")): p.get("value") for p in case.iter("property")}
        found.append({"file": case.get("classname"), "name": case.get("name"), "outcome": outcome, **recorded})
    return found


def faults_text(work: Path, told: dict[str, Any]) -> str:
    """Which files inject faults, and how many."""
    every = cases(work / "faults.xml")
    count, good = Counter(case["file"] for case in every), Counter(c["file"] for c in every if c["outcome"] == "passed")
    rows = [f"| `{file}` | {number} | {good[file]} |" for file, number in sorted(count.items())]
    rows.append(f"| all | {len(every)} | {sum(good.values())} |")
    return "\n".join(["    pytest -m faults", "", "| tests | faults injected | passed |", "| --- | --- | --- |", *rows])


def fuzz_text(work: Path, told: dict[str, Any]) -> str:
    """Inputs by reader, and what went wrong by kind; of each reader what it was run on last."""
    paths = sorted(work.glob("fuzz*.xml"), key=lambda path: path.stat().st_mtime)
    every = {case["name"]: case for path in paths for case in cases(path) if "inputs" in case}.values()
    rows, kinds = [], []
    for case in every:
        name = case["name"].partition("[")[2].rstrip("]")
        own = [kind for kind in case["kinds"].splitlines() if kind]
        rows.append(f"| {name} | {case['inputs']} | {case['refused']} | {case['commands']} | {len(own)} |")
        kinds += [f"- {name}: {kind}" for kind in own]
    total = [sum(int(case[key]) for case in every) for key in ("inputs", "refused", "commands")]
    rows.append(f"| all | {' | '.join(map(str, total))} | {len(kinds)} |")
    head = "| reader | inputs | refused | also by the command line | kinds of faults |"
    asked = f"    LTCORE_FUZZ_INPUTS={told['inputs']} LTCORE_FUZZ_SEED={told['seed']} pytest -m fuzz"
    rules = (
        "A fault is: an exception that is no refusal, an empty or endless message, a control character printed, more "
        "than 10 CPU seconds or 1 GB, a file or a program outside of the run's folder, a damaged checkpoint let in."
    )
    return "\n".join([asked, "", rules, "", head, "| --- " * 5 + "|", *rows, *(["", *kinds] if kinds else [])])


def kills_text(work: Path, told: dict[str, Any]) -> str:
    """Kills by recipe and command."""
    tallies = [kills.Tally(**each) for each in json.loads((work / "kills.json").read_text())]
    asked = f"    python benchmarks/kills.py --kills {told['kills']} --seed {told['seed']}"
    return f"{asked}\n\n{kills.table(tallies)}"


def soak_text(work: Path, told: dict[str, Any]) -> str:
    """What the process held after some runs."""
    found = json.loads((work / "soak.json").read_text())
    counts = [soak.Count(**each) for each in found["counts"]]
    end = "; ".join(f"Grown: {each}" for each in found["grown"]) or "Nothing has grown."
    return f"    python benchmarks/soak.py --runs {told['runs']}\n\n{soak.table(counts)}\n\n{end}"


TITLES = {
    "faults": ("Faults injected", faults_text),
    "fuzz": ("Damaged and odd inputs", fuzz_text),
    "kills": ("Kills", kills_text),
    "soak": ("Many runs in one process", soak_text),
}


def page(work: Path, old: str) -> str:
    """The page: what the parts have left, and what was written by hand on the old one."""
    text = [HEAD]
    for part, (title, render) in TITLES.items():
        note = work / f"{part}.told"
        if note.is_file():
            told = json.loads(note.read_text())
            text.append(f"## {title}\n\n{told['when']}, {told['where']}:\n\n{render(work, told)}\n")
    hand = old[old.index(BY_HAND) :] if BY_HAND in old else f"{BY_HAND}\n"
    return "\n".join([*text, hand])


def main() -> None:
    """Run the parts and write the page; the exit code is 1 where a part found anything."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=20_000, help="inputs for each reader")
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--runs", type=int, default=1000, help="of the soak")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--readers", nargs="+", default=[], help="of the fuzz tests, by default all")
    parser.add_argument("--read", action="store_true", help="run nothing")
    parser.add_argument("--work", type=Path, default=Path("runs/reliability"), help="for counts, logs and found inputs")
    arguments = parser.parse_args()
    arguments.work = arguments.work.absolute()
    arguments.work.mkdir(parents=True, exist_ok=True)
    codes = [] if arguments.read else [run(part, arguments) for part in arguments.only]
    PAGE.write_text(page(arguments.work, PAGE.read_text() if PAGE.is_file() else ""))
    sys.exit(any(codes))


if __name__ == "__main__":
    main()

import io
import re
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from rich.console import Console

from ltcore.progress.console import Reporter, results_table

FIGURES: dict[str, Any] = {
    "top1": 0.4567,
    "top5": None,
    "many": 0.7,
    "medium": 0.3333,
    "few": None,
    "balanced_accuracy": 0.5,
    "ece": 0.0449,
}


class Clock:
    """Seconds that a test moves by hand."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def plain() -> tuple[Reporter, io.StringIO, Clock]:
    stream, clock = io.StringIO(), Clock()
    return Reporter(stream, clock=clock), stream, clock


def run_epochs(reporter: Reporter, epochs: int, first_epoch: int = 0) -> None:
    reporter.stage_started("joint", 0, 2, epochs, 10, first_epoch)
    for epoch in range(first_epoch, epochs):
        reporter.step(epoch, 9, lambda: 1.5, 1234.0)
        reporter.epoch_ended(epoch, epochs, 1.25, 0.1, 12.0, 1234.0)
    reporter.stage_ended("joint", FIGURES, 192.0)


def test_a_whole_run_in_a_log() -> None:
    reporter, stream, _ = plain()
    with reporter:
        reporter.run_started("cifar10_lt/ofa", "runs/ofa/1", ["data: cifar10_lt", "device: cpu"])
        run_epochs(reporter, 2)
        reporter.note("calibration: tau_norm")
        reporter.finished([("joint", FIGURES), ("after calibration", FIGURES)], "runs/ofa/1")
    assert stream.getvalue().splitlines() == [
        "cifar10_lt/ofa: runs/ofa/1",
        "  data: cifar10_lt",
        "  device: cpu",
        "stage 1/2 joint: 2 epochs of 10 steps",
        "  epoch 1/2  loss 1.2500  lr 0.1  12 s  1,234 images/s",
        "  epoch 2/2  loss 1.2500  lr 0.1  12 s  1,234 images/s",
        "stage 1/2 joint: done in 3 min 12 s; top-1 45.7, many 70.0, medium 33.3, few -",
        "calibration: tau_norm",
        "",
        "percent                     top-1     many   medium      few balanced      ECE",
        "joint                        45.7     70.0     33.3        -     50.0      4.5",
        "after calibration            45.7     70.0     33.3        -     50.0      4.5",
        "",
        "results: runs/ofa/1",
    ]


@pytest.mark.parametrize(
    ("epochs", "shown"),
    [
        (1, [1]),
        (20, list(range(1, 21))),
        (21, [1, *range(2, 21, 2), 21]),
        (90, [1, *range(5, 91, 5)]),
        (200, [1, *range(10, 201, 10)]),
        (1000, [1, *range(50, 1001, 50)]),
    ],
)
def test_long_stages_have_lines_at_round_epochs(epochs: int, shown: list[int]) -> None:
    reporter, stream, _ = plain()
    run_epochs(reporter, epochs)
    assert [int(number) for number in re.findall(r"^  epoch +(\d+)/", stream.getvalue(), re.MULTILINE)] == shown


def test_a_resumed_stage_says_where_it_goes_on() -> None:
    reporter, stream, _ = plain()
    run_epochs(reporter, 200, first_epoch=183)
    text = stream.getvalue()
    assert "200 epochs of 10 steps, from epoch 184 on" in text
    assert [int(number) for number in re.findall(r"epoch +(\d+)/200", text)] == [184, 190, 200]


def test_a_long_epoch_has_a_line_a_minute() -> None:
    reporter, stream, clock = plain()
    reporter.stage_started("joint", 0, 1, 3, 1000, 0)
    asked: list[int] = []
    for step in range(1000):
        clock.now = step * 0.2  # 200 seconds

        def loss(step: int = step) -> float:
            asked.append(step)
            return float(step)

        reporter.step(0, step, loss, 640.0)
    lines = stream.getvalue().splitlines()[1:]
    assert lines[0] == "  epoch 1/3  step 301/1000  loss 300.0000  640 images/s  9 min left"
    assert asked == [300, 600, 900]  # the loss is not evaluated where nothing is printed
    assert len(lines) == 3


def test_the_time_that_is_left_goes_by_the_steps_of_this_process() -> None:
    reporter, stream, clock = plain()
    reporter.stage_started("joint", 0, 1, 10, 100, 3, 50)  # resumed: 350 of 1,000 steps are done
    clock.now = 100.0
    reporter.epoch_ended(3, 10, 1.25, 0.1, 100.0, 1234.0)  # 50 steps in 100 s, so 600 in 1,200 s
    clock.now = 4000.0
    reporter.epoch_ended(4, 10, 1.25, 0.1, 3900.0, 1234.0)  # 150 in 4,000 s, so 500 in 13,333 s
    clock.now = 4001.0
    reporter.epoch_ended(8, 10, 1.25, 0.1, 1.0, 1234.0, {"balanced_accuracy": 0.5})  # 550 steps, so 100 in 727 s
    reporter.epoch_ended(9, 10, 1.25, 0.1, 1.0, 1234.0)
    ends = [line.partition("images/s")[2] for line in stream.getvalue().splitlines()[1:]]
    assert ends == ["  20 min left", "  3 h 42 min left", "  12 min left", ""]
    assert "  loss 1.2500  held out 50.0  1.0 s  " in stream.getvalue()
    assert all(len(line) <= 80 for line in stream.getvalue().splitlines())


def test_short_epochs_have_no_line_a_minute() -> None:
    reporter, stream, clock = plain()
    reporter.stage_started("joint", 0, 1, 200, 10, 0)
    for epoch in range(9):
        clock.now += 50
        reporter.step(epoch, 9, None, 1.0)
        reporter.epoch_ended(epoch, 200, 1.0, 0.1, 50.0, 1.0)
    assert len(stream.getvalue().splitlines()) == 2


def test_a_stage_without_classification() -> None:
    reporter, stream, _ = plain()
    reporter.stage_started("generator", 1, 3, 1, 1, 0)
    reporter.epoch_ended(0, 1, None, 0.001, 7000.0, float("nan"))
    reporter.stage_ended("generator", {}, 7500.0)
    reporter.finished([("generator", {})], "out")
    text = stream.getvalue()
    assert "stage 2/3 generator: 1 epoch of 1 step\n" in text
    assert "loss -" in text and "1 h 56 min" in text
    assert "stage 2/3 generator: done in 2 h 05 min\n" in text
    assert re.search(r"^generator( +-){6}$", text, re.MULTILINE)


def test_the_table_fits_80_columns_whatever_the_names() -> None:
    perfect = dict.fromkeys(FIGURES, 1.0)
    table = results_table([("a" * 100, perfect), ("阶段" * 20, perfect), ("[red]", {})])
    assert all(len(line) <= 80 for line in table.splitlines())
    assert table.count("100.0") == 12
    assert "\x1b" not in table and "[red]" in table


def test_a_log_in_ascii_does_not_end_the_run() -> None:
    raw = io.BytesIO()
    reporter = Reporter(io.TextIOWrapper(raw, encoding="ascii"))
    reporter.note("étape 1")
    assert raw.getvalue() == rb"\xe9tape 1" + b"\n"


def test_lines_reach_a_pipe_at_once() -> None:
    code = "from ltcore.progress.console import Reporter; import os; Reporter().note('now'); os._exit(0)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "now\n"


def test_rich_is_not_imported_for_a_log() -> None:
    code = (
        "import io, sys; from ltcore.progress.console import Reporter; r = Reporter(io.StringIO()); "
        "r.stage_started('a', 0, 1, 1, 1, 0); r.stage_ended('a', {}, 1.0); assert 'rich' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Iterator[Console]:
    for name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    yield Console(file=io.StringIO(), force_terminal=True, width=100)


def written(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def without_codes(text: str) -> str:
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)


def test_the_bar_on_a_terminal(terminal: Console) -> None:
    with Reporter(console=terminal) as reporter:
        reporter.run_started("recipe", "runs/[x]/1", [":smile: [bold]data"])
        run_epochs(reporter, 3)
        reporter.finished([("joint", FIGURES)], "runs/[x]/1")
    text = without_codes(written(terminal))
    assert "recipe: runs/[x]/1" in text and ":smile: [bold]data" in text  # text is never markup
    bars = [line for line in re.split(r"[\r\n]", text) if "━" in line]
    assert any(re.search(r"stage 1/2 joint ━.* epoch 2/3  loss 1.500  1,234 im/s ", line) for line in bars)
    assert all(len(line) <= 100 for line in bars)
    assert text.rstrip().endswith("results: runs/[x]/1")
    assert "stage 1/2 joint: done in 3 min 12 s; top-1 45.7" in text


def test_the_bar_is_one_line_on_a_narrow_terminal(terminal: Console) -> None:
    narrow = Console(file=io.StringIO(), force_terminal=True, width=50)
    reporter = Reporter(console=narrow)
    reporter.stage_started("a_stage_with_a_long_name", 0, 2, 100, 1000, 0)
    written_before = len(written(narrow))
    reporter.step(49, 3, lambda: 12.3456, 123456.0)
    drawn = without_codes(written(narrow)[written_before:]).strip("\r\n")
    assert "\n" not in drawn and len(drawn) <= 50
    reporter.stage_ended("a_stage_with_a_long_name", {}, 1.0)


def test_the_loss_stays_where_a_step_has_none(terminal: Console) -> None:
    reporter = Reporter(console=terminal)
    reporter.stage_started("joint", 0, 1, 2, 10, 1)
    reporter.step(1, 0, lambda: 2.5, 10.0)
    before = len(written(terminal))
    reporter.step(1, 1, None, 10.0)
    reporter.note("a note above the bar")
    assert "epoch 2/2  loss 2.500" in without_codes(written(terminal)[before:])
    assert "a note above the bar" in written(terminal)
    reporter.stage_ended("joint", {}, 1.0)


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_error_leaves_the_terminal_sane(terminal: Console, error: type[BaseException]) -> None:
    out, err = sys.stdout, sys.stderr
    with pytest.raises(error), Reporter(console=terminal) as reporter:
        reporter.stage_started("joint", 0, 1, 2, 10, 0)
        reporter.step(0, 0, lambda: 1.0, 1.0)
        raise error
    text = written(terminal)
    assert text.rfind("\x1b[?25h") > text.rfind("\x1b[?25l") >= 0  # the cursor was hidden and is shown again
    assert (sys.stdout, sys.stderr) == (out, err)


def test_no_color(terminal: Console, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    console = Console(file=io.StringIO(), force_terminal=True, width=100)
    with Reporter(console=console) as reporter:
        run_epochs(reporter, 2)
        reporter.finished([("joint", FIGURES)], "runs/1")
    assert not re.search(r"\x1b\[[0-9;]*(3[0-7]|38;|9[0-7])[0-9;]*m", written(console))


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_is_recognised(terminal: Console, monkeypatch: pytest.MonkeyPatch) -> None:
    stream = Terminal()
    run_epochs(Reporter(stream), 2)
    assert "━" in stream.getvalue()
    monkeypatch.setenv("TERM", "dumb")
    stream = Terminal()
    run_epochs(Reporter(stream), 2)
    assert "━" not in stream.getvalue() and "epoch 1/2" in stream.getvalue()

"""Pages of ``ltcore report`` and ``ltcore table`` in a headless Chromium, by its own DevTools protocol over a pipe."""

import json
import os
import select
import shutil
import signal
import subprocess
import sys
from contextlib import contextmanager
from functools import partial

import numpy as np
import pytest

import ltcore
from ltcore.report import write_report

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
pytestmark = [pytest.mark.slow, pytest.mark.skipif(not CHROMIUM, reason="there is no Chromium")]

_FLAGS = """--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking
--disable-component-update --disable-sync --hide-scrollbars --remote-debugging-pipe about:blank""".split()
TAB, LEFT, UP, RIGHT, DOWN, ENTER = "Tab", "ArrowLeft", "ArrowUp", "ArrowRight", "ArrowDown", "Enter"
#: Windows' numbers of keys, by which a browser knows those that write nothing.
_KEYS = {TAB: 9, ENTER: 13, LEFT: 37, UP: 38, RIGHT: 39, DOWN: 40}
#: A page draws in the frame after next at the latest.
_DRAWN = "new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))"


class Browser:
    """One page in one window. A command is a line of JSON that ends with a zero byte, and so is an answer or event."""

    def __init__(self, commands, answers):
        self._commands, self._answers, self._read, self._number = commands, answers, b"", 0
        self._events = []
        self._session = {}
        target = self.devtools("Target.createTarget", url="about:blank")["targetId"]
        found = self.devtools("Target.attachToTarget", targetId=target, flatten=True)
        self._session = {"sessionId": found["sessionId"]}
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.devtools(f"{domain}.enable")
        self.devtools("Emulation.setFocusEmulationEnabled", enabled=True)

    def devtools(self, command, **parameters):
        """What the browser answers."""
        self._number += 1
        message = {"id": self._number, "method": command, "params": parameters, **self._session}
        os.write(self._commands, json.dumps(message).encode() + b"\0")
        while (found := self._next()).get("id") != self._number:
            self._events.append(found)
        assert "error" not in found, (command, found["error"])
        return found["result"]

    def _next(self):
        while b"\0" not in self._read:
            assert select.select([self._answers], [], [], 60)[0], "the browser says nothing"
            read = os.read(self._answers, 1 << 20)
            assert read, "the browser has ended"
            self._read += read
        message, _, self._read = self._read.partition(b"\0")
        return json.loads(message)

    def show(self, path, width=1200, height=900):
        """Open a file in a window of that size; a width below 500 is a phone's."""
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500}
        self.devtools("Emulation.setDeviceMetricsOverride", **size)
        self._seen("Page.loadEventFired")
        self.devtools("Page.navigate", url=path.as_uri())
        while not self._seen("Page.loadEventFired"):
            self._events.append(self._next())
        self.run(f"return {_DRAWN}")

    def run(self, script, *arguments):
        """What a script returns."""
        called = f"(function () {{ {script} }}).apply(null, {json.dumps(arguments)})"
        found = self.devtools("Runtime.evaluate", expression=called, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def press(self, *keys):
        """Send keys to whatever has the focus."""
        for key in keys:
            text = {"text": "\r"} if key == ENTER else {"text": key} if len(key) == 1 else {}
            how = {"key": key, "windowsVirtualKeyCode": _KEYS.get(key) or ord(key)}
            self.devtools("Input.dispatchKeyEvent", type="keyDown" if text else "rawKeyDown", **how, **text)
            self.devtools("Input.dispatchKeyEvent", type="keyUp", **how)

    def _seen(self, *methods):
        found = [each["params"] for each in self._events if each.get("method") in methods]
        self._events = [each for each in self._events if each.get("method") not in methods]
        return found

    def console(self):
        """What the page has written to the console since the last call."""
        return self._seen("Log.entryAdded", "Runtime.consoleAPICalled", "Runtime.exceptionThrown")

    def requests(self):
        """The addresses that were asked for since the last call."""
        return [each["request"]["url"] for each in self._seen("Network.requestWillBeSent")]


_START = """
import fcntl, os, sys
read, write = (fcntl.fcntl(int(number), fcntl.F_DUPFD, 10) for number in sys.argv[1:3])
os.dup2(read, 3), os.dup2(write, 4)
os.execv(sys.argv[3], sys.argv[3:])
"""


@contextmanager
def open_browser(profile):
    """A browser with an empty profile in the directory `profile`."""
    (read, commands), (answers, write) = os.pipe(), os.pipe()
    # It reads from the file of number 3 and writes to that of number 4.
    given = [sys.executable, "-c", _START, str(read), str(write), CHROMIUM, *_FLAGS, f"--user-data-dir={profile}"]
    process = subprocess.Popen(given, pass_fds=(read, write), stderr=subprocess.DEVNULL, start_new_session=True)
    os.close(read), os.close(write)
    try:
        yield Browser(commands, answers)
    finally:
        os.close(commands), os.close(answers)  # which ends it
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with open_browser(tmp_path_factory.mktemp("profile")) as found:
        yield found


@pytest.fixture(scope="module")
def pages(digits_run, tmp_path_factory):
    """Reports of the digits run, of a run with a hundred classes, and of both."""
    folder = tmp_path_factory.mktemp("reports")
    (folder / "hundred.yaml").write_text(HUNDRED)
    hundred = ltcore.run(folder / "hundred.yaml", out=folder / "runs").path
    runs = {"digits": [digits_run], "hundred": [hundred], "both": [digits_run, hundred]}
    for name, paths in runs.items():
        write_report(paths, folder / f"{name}.html", features=name != "both", analysis=name != "both")
    return {name: folder / f"{name}.html" for name in runs}


HUNDRED = """
data:
  use: synthetic
  options: {num_classes: 100, max_count: 100, image_size: 8, test_per_class: 5, noise: 0.8}
  imbalance: {kind: exponential, factor: 50}
backbone: {use: cifar_resnet, options: {depth: 8, width: 8}}
methods: {tau_norm: {}}
calibrate: [tau_norm]
stages: [{name: joint, epochs: 2, optimizer: {lr: 0.1}}]
"""


@pytest.mark.parametrize("name", ["digits", "hundred", "both"])
@pytest.mark.parametrize("width", [1200, 390])
def test_no_errors_no_requests_no_sideways_scrolling(browser, pages, name, width):
    browser.requests(), browser.console()
    browser.show(pages[name], width)
    browser.run("document.querySelectorAll('details').forEach((each) => { each.open = true; })")
    assert browser.console() == []
    assert [url for url in browser.requests() if not url.startswith("data:")] == [pages[name].as_uri()]
    assert browser.run("return [document.documentElement.scrollWidth, innerWidth]") == [width, width]
    assert browser.run("return getComputedStyle(document.querySelector('svg text')).fontSize") == "7px"
    drawn = browser.run("return [...document.querySelectorAll('canvas')].map((each) => each.width)")
    assert all(300 <= found <= width for found in drawn) and drawn
    smallest = """return Math.min(...[...document.querySelectorAll('figure > svg text')].map((text) => {
        const turned = text.getScreenCTM();
        return parseFloat(getComputedStyle(text).fontSize) * Math.hypot(turned.a, turned.b);
    }))"""
    assert browser.run(smallest) >= 8  # pixels, as they are seen


FOCUSED = """
const found = document.activeElement, style = getComputedStyle(found);
return [found.tagName, found.getAttribute("href") || found.dataset.act || "", style.outlineStyle + style.outlineWidth];
"""


def test_everything_is_reached_and_seen_by_the_keyboard(browser, pages):
    browser.show(pages["hundred"])
    browser.run("document.activeElement.blur(); window.scrollTo(0, 0)")
    browser.press(TAB)
    assert browser.run(FOCUSED)[:2] == ["A", "#main"]
    assert browser.run("return document.activeElement.getBoundingClientRect().left") >= 0
    wanted = browser.run(
        "return [...document.querySelectorAll('a, button, canvas, summary, [tabindex=\"0\"]')]"
        ".filter((each) => each.checkVisibility()).map((each) => each.tagName)"
    )
    seen = []
    for _ in wanted:
        tag, _, outline = browser.run(FOCUSED)
        seen.append(tag)
        assert outline == "solid3px", tag
        browser.press(TAB)
    assert seen == wanted


def test_the_skip_link_leads_to_the_report(browser, pages):
    browser.show(pages["digits"])
    browser.press(TAB, ENTER)
    assert browser.run("return document.activeElement.id") == "main"


def test_the_matrix_by_keyboard(browser, pages):
    browser.show(pages["digits"])
    run = browser.run("return JSON.parse(document.getElementById('report-data').textContent).runs[0]")
    matrix = np.zeros((10, 10), int)
    for target, predicted, images in run["confusion"]:
        matrix[target, predicted] = images
    names, counts, order = run["result"]["class_names"], run["result"]["class_counts"], run["order"]
    said = partial(browser.run, "return document.querySelector('.cell').textContent")
    browser.run("document.querySelector('canvas').focus()")

    def expected(row, column):
        row, column = order[row], order[column]
        images, total = matrix[row, column], matrix[row].sum()
        start = f"{names[row]} ({counts[row]} training images): {images} of {total} test images "
        share = f"({100 * images / total:.1f} %) "
        if row == column:
            return f"{start}{share}are recognised"
        return f"{start}{share}are taken for {names[column]} ({counts[column]} training images)"

    browser.press(RIGHT)
    assert said() == expected(0, 0)
    browser.press(DOWN, DOWN, RIGHT)
    assert said() == expected(2, 1)
    browser.press(UP, LEFT, LEFT)  # stays at the border
    assert said() == expected(1, 0)
    picture = partial(browser.run, "return document.querySelector('canvas').toDataURL()")
    before = picture()
    browser.press("+")
    nearer = picture()
    assert nearer != before
    for _ in range(8):
        browser.press(DOWN, RIGHT)
    assert said() == expected(9, 8) and picture() != nearer
    browser.press("0")
    browser.press(*[UP] * 8, *[LEFT] * 8)
    assert said() == expected(1, 0) and picture() == before


def test_the_matrix_by_pointer_and_buttons(browser, pages):
    browser.show(pages["hundred"])
    press = "document.querySelector('[data-act={}]').click(); return document.querySelector('canvas').toDataURL()"
    whole = browser.run("return document.querySelector('canvas').toDataURL()")
    nearer = browser.run(press.format("in"))
    assert len({whole, nearer, browser.run(press.format("in"))}) == 3
    assert browser.run(press.format("whole")) == whole
    browser.run("""
        const canvas = document.querySelector("canvas");
        const side = canvas.clientWidth, box = canvas.getBoundingClientRect();
        const at = { clientX: box.left + side - 2, clientY: box.top + side - 2, bubbles: true };
        canvas.dispatchEvent(new PointerEvent("pointermove", at));""")
    run = browser.run("return JSON.parse(document.getElementById('report-data').textContent).runs[0]")
    rarest = run["result"]["class_names"][run["order"][-1]]
    assert browser.run("return document.querySelector('.cell').textContent").startswith(f"{rarest} (")


#: The sections that paper shows without anything to see in them; what is folded away counts where it is printed.
PRINTED = """
return [...document.querySelectorAll("section")].filter((each) => each.checkVisibility() &&
    ![...each.querySelectorAll("figure, canvas, table, pre, li")].some(
        (part) => part.checkVisibility({ contentVisibilityAuto: true }))
).map((each) => each.id);
"""


def test_dark_and_print(browser, pages):
    browser.show(pages["digits"])
    paper = "return getComputedStyle(document.body).backgroundColor"
    dark = [{"name": "prefers-color-scheme", "value": "dark"}]
    try:
        assert browser.run(paper) == "rgb(255, 255, 255)"
        browser.devtools("Emulation.setEmulatedMedia", features=dark)
        assert browser.run(paper) == "rgb(20, 24, 29)"
        browser.devtools("Emulation.setEmulatedMedia", media="print", features=dark)
        assert browser.run(paper) == "rgb(255, 255, 255)"
        assert browser.run("return document.querySelector('nav').checkVisibility()") is False
        # No section is a heading alone, and nothing is explained that paper cannot do.
        assert browser.run(PRINTED) == [] and browser.run("return document.querySelectorAll('section').length") > 10
        assert browser.run("return document.querySelector('.controls').checkVisibility()") is False
        assert browser.run("return document.querySelector('canvas').width") >= 900  # finer than a screen's
    finally:
        browser.devtools("Emulation.setEmulatedMedia", media="", features=[])


def test_contrast(browser, pages):
    """At least 4.5 to 1 for text and 3 to 1 for marks (WCAG 2, 1.4.3 and 1.4.11)."""
    browser.show(pages["digits"])
    for scheme in ("light", "dark"):
        browser.devtools("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        style = browser.run(
            "const s = getComputedStyle(document.documentElement); return Object.fromEntries("
            "['paper','ink','quiet','link','s0','s1','s2','s3','s4','s5','s6','s7']"
            ".map((name) => [name, s.getPropertyValue('--' + name).trim()]))"
        )
        light = {name: luminance(color) for name, color in style.items()}
        for name, value in light.items():
            if name != "paper":
                low, high = sorted((value, light["paper"]))
                assert (high + 0.05) / (low + 0.05) >= (3 if name.startswith("s") else 4.5), (scheme, name)
    browser.devtools("Emulation.setEmulatedMedia", media="", features=[])


def luminance(color):
    color = color.lstrip("#")
    parts = color if len(color) == 6 else "".join(2 * each for each in color)
    channels = [int(parts[i : i + 2], 16) / 255 for i in (0, 2, 4)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


# -- the pages of tables -----------------------------------------------------------------------------------------------

TABLE = """
title: Methods on made data, <b>accuracy</b>
source: A paper
seeds: [0]
recipe: hundred.yaml
columns:
  one: {label: one, group: Made, changes: [stages.joint.epochs=1]}
  two: {label: two, group: Other}
rows:
  tau: {label: tau-norm, printed: [1.0, 99.0]}
  plain: {label: plain, changes: [calibrate-=tau_norm], printed: [50.0, 51.0]}
  oltr: {label: OLTR, waits: 'method: OLTR', printed: [50.0, null]}
"""


@pytest.fixture(scope="module")
def tables(tmp_path_factory):
    """The pages of a table of which the first row is measured, for real."""
    from ltcore.sweeps.engine import Slots
    from ltcore.tables.pages import write_pages
    from ltcore.tables.records import Records
    from ltcore.tables.running import run_cells
    from ltcore.tables.state import States
    from ltcore.tables.table import Table

    folder = tmp_path_factory.mktemp("tables")
    (folder / "hundred.yaml").write_text(HUNDRED)
    (folder / "own.yaml").write_text(TABLE)
    table = Table(folder / "own.yaml")
    run_cells(table, list(table.chosen(["tau"]).values()), [0], [], Slots(1, 1), folder / "work", folder / "records")
    found = States(Records([folder / "records"])).of(table)
    write_pages([(table, found)], folder / "html", [folder / "work"])
    return folder / "html"


@pytest.mark.parametrize("width", [1200, 390])
@pytest.mark.parametrize("name", ["index", "own"])
def test_pages_of_tables_need_no_network_and_fit_a_phone(browser, tables, name, width):
    page = tables / f"{name}.html"
    browser.requests(), browser.console()
    browser.show(page, width)
    assert browser.console() == []
    assert [url for url in browser.requests() if not url.startswith("data:")] == [page.as_uri()]
    assert browser.run("return [document.documentElement.scrollWidth, innerWidth]") == [width, width]
    sizes = browser.run(
        "return [...document.querySelectorAll('button, a, input')].filter((each) => !each.closest('[hidden]'))"
        ".map((each) => each.getBoundingClientRect().height)"
    )
    assert min(sizes) >= 20 and browser.run("return parseFloat(getComputedStyle(document.body).fontSize)") >= 14


def test_a_cell_shows_the_runs_behind_it_and_filters_hide(browser, tables):
    browser.show(tables / "own.html")
    visible = "return [...document.querySelectorAll('[data-behind]')].filter((e) => !e.hidden).map((e) => e.innerText)"
    assert browser.run(visible) == []
    browser.run("document.querySelector('[data-cell=\"tau/one\"]').click()")
    (text,) = browser.run(visible)
    assert text.startswith("tau-norm, Made one\n") and "prints 1.00" in text and "-seed0.json" in text
    report = browser.run("return document.querySelector('[data-behind=\"tau/one\"] td a').href")
    assert (
        report.startswith(tables.as_uri())
        and "hundred" in (tables / report.removeprefix(tables.as_uri() + "/")).read_text()
    )
    browser.run("document.querySelector('[data-cell=\"oltr/one\"]').click()")
    (text,) = browser.run(visible)
    assert "it waits for method: OLTR" in text
    rows = "return [...document.querySelectorAll('tr[data-row]')].filter((e) => e.checkVisibility()).length"
    assert browser.run(rows) == 3
    browser.run(
        "const field = document.querySelector('#filter'); field.value = 'TAU';field.dispatchEvent(new Event('input'))"
    )
    assert browser.run(rows) == 1
    shown = "return [...document.querySelectorAll('thead th')].filter((e) => e.checkVisibility()).length"
    assert browser.run(shown) >= 3
    before = browser.run(shown)
    browser.run("document.querySelector('[data-show=\"Other\"]').click()")
    assert browser.run(shown) == before - 1


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_from_every_colour_of_a_table(browser, tables, scheme):
    browser.show(tables / "own.html")
    browser.devtools("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
    names = "paper ink even above1 above2 above3 below1 below2 below3".split()
    style = browser.run(
        "const s = getComputedStyle(document.documentElement);"
        "return Object.fromEntries(arguments[0].map((name) => [name, s.getPropertyValue('--' + name).trim()]))",
        names,
    )
    browser.devtools("Emulation.setEmulatedMedia", media="", features=[])
    ink = luminance(style["ink"])
    for name in names:
        if name != "ink":
            low, high = sorted((ink, luminance(style[name])))
            assert (high + 0.05) / (low + 0.05) >= 4.5, (scheme, name)
    # Better and worse differ in lightness from nothing, and in hue from each other: blue and orange.
    for step in "123":
        better, worse = style[f"above{step}"].lstrip("#"), style[f"below{step}"].lstrip("#")
        assert int(better[4:6], 16) > int(better[:2], 16) and int(worse[:2], 16) > int(worse[4:6], 16)

"""The version of the hook interface: which plugins work, which are warned about, which are refused."""

import json
import re
import sys

import pytest

from ltcore import Method, hookimpl
from ltcore.contract import hookspecs, interface
from ltcore.contract.interface import Change, Deprecation, Version
from ltcore.discovery import catalogue, deprecations, static

STAGES = "[{name: joint, iterations: 1, batch_size: 8, methods: [old], optimizer: {lr: 0.05}}]"

SOURCE = """
import torch
from ltcore import Method, hookimpl{more}


class Old(Method):
    interface = {stated}

    @hookimpl
    def adjust_logits(self, logits, targets{argument}):
        return logits

    @hookimpl
    def on_epoch_start(self):
        pass
"""


@pytest.fixture
def old(fake_plugin, write_recipe):
    """A recipe with the method `old`, which says that it was written for some interface."""

    def install(stated, argument="", more="", **parts):
        fake_plugin("old", SOURCE.format(stated=stated, argument=argument, more=more))
        return write_recipe(methods="{old: {}}", stages=STAGES, **parts)

    return install


def test_the_tables_speak_of_hooks_and_arguments_that_there_are():
    assert Method.interface == str(interface.FIRST)
    names = {
        *hookspecs.HOOKS,
        *(f"{hook}.{name}" for hook, found in hookspecs.HOOKS.items() for name in found.arguments),
    }
    assert {*interface.ADDED, *interface.DEPRECATED} <= names
    for added in interface.ADDED.values():
        assert interface.FIRST < added <= interface.INTERFACE
    for old in interface.DEPRECATED.values():
        assert old.since <= interface.INTERFACE < old.removed and old.removed.minor == 0
    for change in interface.CHANGED.values():
        assert interface.FIRST < change.version <= interface.INTERFACE and change.version.minor == 0


@pytest.mark.parametrize(
    "text", ["1", "1.", "1.0.0", "v1.0", "01.0", "1.0 ", "1\u0661.0", "", "1.-1", 1.0, None, (1, 0)]
)
def test_what_is_no_version(text):
    assert interface.parse(text) is None


def test_versions_compare_as_numbers():
    assert interface.parse("1.10") == Version(1, 10) > Version(1, 9) and str(Version(1, 10)) == "1.10"


@pytest.mark.parametrize("stated", ["1.2", "1.10", "2.0", "10.0"])
@pytest.mark.parametrize("more", ["", ", ThingOfTheFuture"])
def test_a_plugin_of_the_future_is_refused(cli, old, stated, more):
    path = old(f'"{stated}"', more=more)
    parts = (
        f"{path}:4: method 'old' (ltcore-old 0.2.1) is written for hook interface {stated}, and ltcore ",
        " has 1.1. Upgrade ltcore (pip install --upgrade ltcore), or install an older ltcore-old\n",
    )
    cli("plan", path).is_one_message(2, *parts)
    cli("run", path).is_one_message(2, *parts)
    cli("plugins", "show", "old").is_one_message(2, f"written for hook interface {stated}")
    (row,) = [row for row in json.loads(cli("plugins", "--json").out) if row["name"] == "old"]
    assert row["interface"] == stated and row["broken"].startswith(f"is written for hook interface {stated}, and ")


@pytest.mark.parametrize("stated", ["1.0", '"1"', '"latest"', "None"])
def test_an_interface_that_is_no_version_is_one_message(cli, old, stated):
    path, value = old(stated), stated.replace('"', "'")
    message = (
        f'method \'old\' (ltcore-old 0.2.1) says interface = {value}, which is no version "MAJOR.MINOR" such as "1.1"'
    )
    cli("plan", path).is_one_message(2, f"{path}:4: ", message)
    assert f"BROKEN: says interface = {value}" in cli("plugins").out


def test_a_deprecated_hook_and_argument_are_one_warning_where_they_are_used(cli, old, monkeypatch, tmp_path):
    monkeypatch.setattr(interface, "INTERFACE", Version(1, 3))
    two, gone = Version(1, 2), Version(2, 0)
    monkeypatch.setitem(interface.DEPRECATED, "adjust_logits.targets", Deprecation(two, gone, "use the batch's"))
    monkeypatch.setitem(interface.DEPRECATED, "on_epoch_start", Deprecation(Version(1, 3), gone, "use on_stage_start"))
    monkeypatch.setitem(interface.DEPRECATED, "adjust_logits.context", Deprecation(two, gone, "not used, not named"))
    monkeypatch.setitem(interface.DEPRECATED, "on_epoch_end", Deprecation(two, gone, "not used, not named"))
    path = old('"1.1"')
    (warning,) = json.loads(cli("plan", path, "--json").out)["warnings"]
    written = "method 'old', written for hook interface 1.1, uses"
    assert warning == (
        f"ltcore-old 0.2.1: {written} hook 'on_epoch_start', deprecated since 1.3 and removed in 2.0: use "
        f"on_stage_start; {written} argument 'targets' of hook 'adjust_logits', deprecated since 1.2 and removed in "
        "2.0: use the batch's. Try: pip install --upgrade ltcore-old; or tell its author"
    )
    assert f"\nwarning   {warning}\n" in cli("plan", path).out
    done = cli("run", path, "--out", tmp_path / "runs")
    assert done.code == 0 and done.out.count("ltcore-old 0.2.1") == 1 and f"  warning   {warning}\n" in done.out
    assert warning in json.loads(cli("rehearse", path, "--steps", "1", "--json").out)["notes"]


def test_two_methods_of_a_distribution_are_one_warning(monkeypatch):
    monkeypatch.setattr(interface, "INTERFACE", Version(2, 0))
    text = deprecations.warnings(answers_of(one=made(), again=made("one"), two=made("two")))
    assert len(text) == 1 and text[0].count("'one'") == 1 and text[0].count("'two'") == 1


def made(name=None, **functions):
    functions = functions or {"on_epoch_start": lambda self: None}
    return name, type("Made", (Method,), {key: hookimpl(function) for key, function in functions.items()})()


def answers_of(**methods):
    from itertools import chain

    from ltcore.discovery.binding import Entry, implementations

    entries = [
        Entry(key, catalogue.Offer(name or key, "x:X", "ltcore-x", "1"), method)
        for key, (name, method) in methods.items()
    ]
    return list(chain(*implementations(entries).values()))


def test_an_older_major_works_with_a_warning(cli, old, monkeypatch, tmp_path):
    monkeypatch.setattr(interface, "INTERFACE", Version(2, 1))
    monkeypatch.setitem(interface.CHANGED, "on_epoch_end", Change(Version(2, 0), "not used, so it does not matter"))
    path = old('"1.4"')
    done = cli("run", path, "--out", tmp_path / "runs")
    assert (done.code, done.err) == (0, "")
    (line,) = re.findall("^  warning   ltcore-old.*$", done.out, re.MULTILINE)
    assert "method 'old', written for hook interface 1.4, still works with 2.1, which has changed nothing" in line


@pytest.mark.parametrize(
    ("name", "spoken", "argument"),
    [
        ("on_epoch_start", "hook 'on_epoch_start'", ""),  # there is a hook of that name, with another meaning
        ("adjust_logits.targets", "argument 'targets' of hook 'adjust_logits'", ""),
        ("adjust_logits.strength", "argument 'strength' of hook 'adjust_logits'", ", strength"),  # there is no more
    ],
)
def test_what_a_major_version_has_changed_is_refused(cli, old, monkeypatch, name, spoken, argument):
    monkeypatch.setattr(interface, "INTERFACE", Version(2, 0))
    monkeypatch.setitem(interface.CHANGED, name, Change(Version(2, 0), "use the method's options"))
    path = old('"1.4"', argument)
    cli("plan", path).is_one_message(
        2,
        f"{path}:3: 'old' (ltcore-old 0.2.1) is written for hook interface 1.4 and uses {spoken}, which 2.0 has "
        "changed: use the method's options. Install a newer ltcore-old (pip install --upgrade ltcore-old), or an older",
    )


def test_a_hook_that_a_major_version_has_removed_is_refused(cli, fake_plugin, write_recipe, monkeypatch):
    monkeypatch.setattr(interface, "INTERFACE", Version(2, 0))
    monkeypatch.setitem(interface.CHANGED, "augment_maps", Change(Version(2, 0), "use augment_features with a tap"))
    source = SOURCE.format(stated='"{}"', argument="", more="").replace("on_epoch_start", "augment_maps")
    fake_plugin("old", source.replace("{}", "1.0"))
    path = write_recipe(methods="{old: {}}", stages=STAGES)
    cli("plan", path).is_one_message(2, "uses hook 'augment_maps', which 2.0 has changed: use augment_features with a")
    assert "BROKEN: is written for hook interface 1.0 and uses hook 'augment_maps'" in cli("plugins").out


def test_a_hook_that_is_newer_than_what_the_plugin_says(monkeypatch):
    monkeypatch.setattr(interface, "INTERFACE", Version(1, 2))
    monkeypatch.setitem(interface.ADDED, "on_epoch_start", Version(1, 2))
    (text,) = deprecations.warnings(answers_of(old=made()))
    assert "written for hook interface 1.0, uses hook 'on_epoch_start', which is there since 1.2 only" in text


def test_a_current_plugin_is_not_spoken_of(cli, old):
    assert json.loads(cli("plan", old('"1.0"'), "--json").out)["warnings"] == []


def test_the_interface_is_read_without_importing(cli, fake_plugin):
    base = "from ltcore import Method\nclass Base(Method):\n    interface: str = '1.0'\n"
    for name, body in [("said", "interface = '1.0'"), ("inherited", "pass"), ("computed", "interface = '1.' + '0'")]:
        fake_plugin(name, f"{base}class {name.capitalize()}(Base):\n    {body}\n")
    rows = {row["name"]: row["interface"] for row in json.loads(cli("plugins", "--json").out)}
    assert (rows["said"], rows["inherited"], rows["computed"]) == ("1.0", "1.0", None)
    assert set(rows.values()) == {"1.0", "1.1", None}  # core's own, and all that is installed
    assert re.search(r"^computed +ltcore-computed +0\.2\.1 +\? ", cli("plugins").out, re.MULTILINE)
    assert "\n  interface 1.0\n" in cli("plugins", "show", "computed").out


def test_a_plugin_that_prints_and_takes_its_time_leaves_others_alone(cli, fake_plugin, write_recipe):
    before = json.loads(cli("plugins", "--json").out)
    fake_plugin(
        "noisy",
        "import time\nprint('a greeting')\ntime.sleep(600)\nfrom ltcore import Method, hookimpl\n"
        "class Noisy(Method):\n    @hookimpl\n    def compute_loss(self, logits, targets): ...\n",
    )
    after = cli("plugins", "--json")
    rows = {row["name"]: row for row in json.loads(after.out)}
    assert rows.pop("noisy")["hooks"] == ["compute_loss"] and list(rows.values()) == before and not after.err
    path = write_recipe(methods="{focal: {}}", stages=STAGES.replace("old", "focal"))
    for words in (["plan", path], ["plugins", "show", "focal"]):
        done = cli(*words)
        assert done.code == 0 and "greeting" not in done.out + done.err, words
    assert "ltcore_noisy" not in sys.modules


def test_every_first_party_plugin_says_its_interface():
    for offer in catalogue.offers():
        if offer.distribution != "ltcore":
            assert "interface" in {key for base in catalogue.load(offer).__mro__[:-1] for key in vars(base)}
            found = static.inspect(offer)
            stated = interface.parse(found.interface)  # a field of a record may ask for more than its hooks do
            assert max(map(interface.since, found.hooks)) <= stated <= interface.INTERFACE, offer

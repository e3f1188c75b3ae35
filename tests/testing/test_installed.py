"""``ltcore check``: which methods, what it prints, and how it ends."""

import json

import pytest

from ltcore.discovery import catalogue
from ltcore.testing import installed
from ltcore.testing.report import CHECKS, Check, Report

LATE = [word for name in set(CHECKS) - {"options", "hooks", "interface"} for word in ("--without", name)]
SOURCE = """
from ltcore import Method, hookimpl

class {name}(Method):
    '''A method of a test.'''
    {mark}
    def adjust_logits(self, logits):
        return logits
"""


@pytest.fixture
def checked(monkeypatch):
    """What was checked, with a report that passes in place of the checks."""
    seen = []

    def check(offer, without, same_name):
        seen.append(offer.name)
        return Report(offer.name, f"{offer.distribution} {offer.version}", (Check("options", "none", "passed"),))

    monkeypatch.setattr(installed, "_checked", check)
    return seen


def test_without_a_name_every_plugin_and_nothing_of_core(cli, checked):
    result = cli("check", "--jobs", "1")
    assert result.code == 0
    assert checked == [offer.name for offer in catalogue.offers() if offer.distribution != "ltcore"]
    assert result.out.endswith(f"{len(checked)} methods checked, all passed\n")


def test_core_where_it_is_named(cli, checked):
    assert cli("check", "timm", "focal", "--jobs", "1").code == 0
    assert checked == ["timm", "focal"]


def test_a_failure_says_what_to_change_and_ends_with_1(cli, fake_plugin):
    fake_plugin("lame", SOURCE.format(name="Lame", mark=""))
    result = cli("check", "lame", *LATE)
    assert result.code == 1 and result.err == ""
    lines = result.out.splitlines()
    assert lines[0] == "lame (ltcore-lame 0.2.1)"
    assert lines[1].split()[:2] == ["passed", "options"] and lines[2].split()[:2] == ["FAILED", "hooks"]
    assert lines[3].strip() == "'adjust_logits' is the name of a hook and is not marked, so it is never called"
    assert lines[4].strip() == "change: mark it with @hookimpl; or give it another name"
    assert lines[-1] == "1 method checked, 1 failed: lame"


def test_json(cli, fake_plugin):
    fake_plugin("lame", SOURCE.format(name="Lame", mark=""))
    result = cli("check", "lame", "--json", *LATE)
    (report,) = json.loads(result.out)
    assert result.code == 1 and (report["method"], report["whose"], report["passed"]) == (
        "lame",
        "ltcore-lame 0.2.1",
        False,
    )
    assert [check["name"] for check in report["checks"]] == list(CHECKS)
    assert {check["outcome"] for check in report["checks"]} == {"passed", "failed", "not applicable"}


def test_a_plugin_that_cannot_be_imported_fails_and_the_others_are_checked(cli, fake_plugin):
    fake_plugin("lame", "import nowhere_at_all")
    fake_plugin("sound", SOURCE.format(name="Sound", mark="@hookimpl"))
    result = cli("check", "lame", "sound", "--json", *LATE)
    lame, sound = json.loads(result.out)
    assert result.code == 1 and sound["passed"]
    (check,) = lame["checks"]
    assert check["name"] == "import" and "No module named 'nowhere_at_all'" in check["message"]


def test_two_distributions_with_one_name(cli, fake_plugin, monkeypatch):
    for distribution in ("ltcore-one", "ltcore-two"):
        fake_plugin("twice", SOURCE.format(name="Twice", mark="@hookimpl"), distribution)
    cli("check", "twice").is_one_message(2, "method 'twice' is offered by ltcore-one 0.2.1 and ltcore-two 0.2.1")
    both = [offer for offer in catalogue.offers() if offer.name == "twice"]
    monkeypatch.setattr(catalogue, "offers", lambda: both)
    for report in installed.check_installed(jobs=1):
        assert "ltcore-one 0.2.1 and ltcore-two 0.2.1 offer the same name" in report["import"].message


def test_an_unknown_name_and_an_unknown_check(cli):
    cli("check", "focall").is_one_message(2, "method 'focall' is not installed; did you mean 'focal'?")
    cli("check", "focal", "--without", "pair").is_one_message(2, "there is no check 'pair'; did you mean 'pairs'?")

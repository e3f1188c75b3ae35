"""Listing imports nothing; finding and loading fail with a message that says whose and what to do."""

import importlib
import subprocess
import sys

import pytest

from ltcore import Method
from ltcore.discovery import catalogue
from ltcore.discovery.catalogue import find, load, offers
from ltcore.discovery.offer import Offer
from ltcore.errors import PluginError


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """Install a distribution that consists of metadata, and a module if its text is given."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def install(distribution, points, version="1.0", **modules):
        info = tmp_path / f"{distribution.replace('-', '_')}-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: {version}\n")
        lines = "".join(f"{name} = {value}\n" for name, value in points.items())
        (info / "entry_points.txt").write_text(f"[ltcore.plugins]\n{lines}")
        for name, text in modules.items():
            (tmp_path / f"{name}.py").write_text(text)
            monkeypatch.delitem(sys.modules, name, raising=False)
        importlib.invalidate_caches()

    return install


def test_offers_are_cores_own_then_the_plugins_by_name(installed):
    installed("ltcore-zebra", {"zebra": "zebra_x:Zebra", "aardvark": "zebra_x:Aardvark"}, "0.2.1")
    found = offers()
    core = [offer for offer in found if offer.distribution == "ltcore"]
    assert found[: len(core)] == core
    assert {"timm", "digits_lt", "synthetic"} <= {offer.name for offer in core}
    names = [offer.name for offer in found[len(core) :]]
    assert names == sorted(names)
    assert Offer("zebra", "zebra_x:Zebra", "ltcore-zebra", "0.2.1") in found
    assert str(found[-1]) == "method 'zebra' (ltcore-zebra 0.2.1)"


def test_listing_imports_nothing():
    code = """if True:
        import sys
        from ltcore.discovery.catalogue import offers
        heavy = {"torch", "pydantic", "timm"} | {offer.value.split(":")[0] for offer in offers()}
        assert len(heavy) > 5
        assert not heavy & set(sys.modules), heavy & set(sys.modules)
    """
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("name", catalogue._OURS)
def test_ours_are_where_the_messages_say(name):
    assert find(name).distribution == catalogue._OURS[name]


def test_what_core_offers_can_be_loaded():
    for name in catalogue._CORE:
        assert issubclass(load(find(name)), Method)


def test_unknown_name_with_the_nearest_guess(installed):
    installed("ltcore-zebra", {"zebra": "zebra_x:Zebra"})
    with pytest.raises(PluginError, match=r"^method 'zebbra' is not installed; did you mean 'zebra'\?") as caught:
        find("zebbra")
    assert str(caught.value).endswith("? 'ltcore plugins' lists what is")
    assert caught.value.exit_code == 2


def test_unknown_name_that_is_like_nothing():
    with pytest.raises(PluginError, match=r"^method 'qqqq' is not installed. 'ltcore plugins' lists"):
        find("qqqq")


def test_one_of_ours_that_is_not_installed(monkeypatch):
    monkeypatch.setattr(catalogue, "entry_points", lambda group: [])
    with pytest.raises(PluginError, match=r"^method 'focal' is not installed. Try: pip install ltcore-focal$"):
        find("focal")
    with pytest.raises(PluginError, match=r"Try: pip install ltcore-logit-adjustment$"):
        find("balanced_softmax")


def test_two_distributions_with_one_name(installed):
    installed("ltcore-zebra", {"zebra": "zebra_x:Zebra"})
    installed("their-zebra", {"zebra": "other_x:Zebra"}, "2.0")
    message = "^method 'zebra' is offered by ltcore-zebra 1.0 and their-zebra 2.0; uninstall one of them$"
    with pytest.raises(PluginError, match=message):
        find("zebra")


def test_a_plugin_cannot_take_the_name_of_a_method_of_core(installed):
    installed("their-timm", {"timm": "other_x:Timm"})
    with pytest.raises(PluginError, match=r"is offered by ltcore .* and their-timm 1\.0"):
        find("timm")


@pytest.mark.parametrize(
    "text, reason",
    [
        ("import ltcore_surely_absent", "No module named 'ltcore_surely_absent'"),
        ("x = 1", "module 'zebra_x' has no attribute 'Zebra'"),
        ("raise RuntimeError('needs a GPU')", "RuntimeError: needs a GPU"),
        ("raise RuntimeError", "RuntimeError"),
        ("raise SystemExit(4)", "SystemExit: 4"),
        ("def f(:", "SyntaxError: invalid syntax (zebra_x.py, line 1)"),
    ],
)
def test_an_import_that_fails(installed, text, reason):
    installed("ltcore-zebra", {"zebra": "zebra_x:Zebra"}, zebra_x=text)
    with pytest.raises(PluginError) as caught:
        load(find("zebra"))
    prefix = "method 'zebra' (ltcore-zebra 1.0) failed to import: "
    assert str(caught.value) == f"{prefix}{reason}. Reinstall or update ltcore-zebra, or remove it"
    assert caught.value.__cause__ is not None


@pytest.mark.parametrize("text", ["class Zebra: ...", "def Zebra(): ...", "import ltcore\nZebra = ltcore.Method()"])
def test_what_is_found_is_not_a_method(installed, text):
    installed("ltcore-zebra", {"zebra": "zebra_x:Zebra"}, zebra_x=text)
    with pytest.raises(PluginError, match=r"zebra_x:Zebra is not an ltcore.Method; tell its author$"):
        load(find("zebra"))


def test_a_class_in_a_class(installed):
    text = "import ltcore\nclass Outer:\n    class Zebra(ltcore.Method): ...\n"
    installed("ltcore-zebra", {"zebra": "zebra_x:Outer.Zebra"}, zebra_x=text)
    assert load(find("zebra")).__qualname__ == "Outer.Zebra"

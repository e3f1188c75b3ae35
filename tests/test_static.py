"""Inspection reads source files and runs none; `import_report` runs them in a process of their own."""

import importlib
import subprocess
import sys
import textwrap
import time

import pytest

from ltcore.discovery import catalogue, importing
from ltcore.discovery.importing import import_report
from ltcore.discovery.offer import Offer
from ltcore.discovery.static import Inspection, inspect

GOOD = """
    from ltcore import Method, hookimpl

    class Fake(Method):
        @hookimpl
        def compute_loss(self, logits, targets):
            return logits.sum(1)

        @hookimpl(tryfirst=True)
        def mix_inputs(self, batch):
            return batch

        def helper(self):
            return 1
"""


@pytest.fixture
def fake(tmp_path, monkeypatch):
    """Install a distribution from file texts; give its offer as `catalogue.find` does."""
    monkeypatch.syspath_prepend(str(tmp_path))
    packages = []

    def install(files, value="{package}:Fake", name="fake"):
        package = f"ltcore_{tmp_path.name.replace('-', '_')}_{len(packages)}"
        packages.append(package)
        files = {"__init__.py": files} if isinstance(files, str) else files
        for file, text in files.items():
            path = tmp_path / package / file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(textwrap.dedent(text).replace("PACKAGE", package))
        info = tmp_path / f"{package}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
        entry = f"[ltcore.plugins]\n{name} = {value.format(package=package)}\n"
        (info / "entry_points.txt").write_text(entry)
        importlib.invalidate_caches()
        return catalogue.find(name)

    yield install
    for module in [m for m in sys.modules if m.split(".")[0] in packages]:
        del sys.modules[module]


def check_imports(offer):
    """Whether the offer really imports here."""
    try:
        catalogue.load(offer)
    except catalogue.PluginError:
        return False
    return True


# Hooks


def test_the_hooks_of_a_good_plugin_in_the_order_of_the_run(fake):
    assert inspect(fake(GOOD)) == Inspection(("mix_inputs", "compute_loss"), None)


@pytest.mark.parametrize(
    "head, mark",
    [
        ("import ltcore\nfrom ltcore import Method", "ltcore.hookimpl"),
        ("import ltcore as lt\nfrom ltcore.contract.method import Method", "lt.hookimpl"),
        ("from ltcore import Method\nfrom ltcore.contract import hook", "hook.hookimpl"),
        ("from ltcore import Method\nfrom ltcore.contract.hook import hookimpl as mark", "mark()"),
        ("from ltcore import Method\nfrom ltcore import hookimpl\nmark = hookimpl", "mark"),
    ],
)
def test_the_mark_is_known_by_any_name(fake, head, mark):
    text = f"{head}\n\nclass Fake(Method):\n    @{mark}\n    def build_data(self): ...\n"
    assert inspect(fake(text)) == Inspection(("build_data",), None)


def test_the_mark_of_another_project_is_not_ours(fake):
    text = """
        from pluggy import HookimplMarker
        from ltcore import Method
        hookimpl = HookimplMarker("pytest")

        class Fake(Method):
            @hookimpl
            def pytest_configure(self): ...
    """
    assert inspect(fake(text)) == Inspection((), None)


def test_a_hook_under_another_function_name(fake):
    text = """
        from ltcore import Method, hookimpl

        class Fake(Method):
            @hookimpl(specname="augment_features")
            def mix(self, features):
                return features

            @hookimpl(optionalhook=True)
            def hook_of_the_future(self): ...
    """
    assert inspect(fake(text)) == Inspection(("augment_features",), None)


def test_a_method_with_options_in_brackets(fake):
    offer = fake(
        {
            "__init__.py": "from PACKAGE.method import Fake",
            "method.py": """
                from typing import TypeVar
                from ltcore import Method, Options, hookimpl

                class Small(Options): ...
                T = TypeVar("T", bound=Small)

                class Base(Method[T]):
                    interface = "1.0"
                    @hookimpl
                    def on_epoch_end(self): ...

                class Fake(Base[Small]):
                    @hookimpl
                    def compute_loss(self, logits, targets): ...
            """,
        }
    )
    found = inspect(offer)
    assert found == Inspection(("compute_loss", "on_epoch_end"), None, interface="1.0")
    assert found.summary == ""  # it says nothing of itself, and core's own words are not its
    assert check_imports(offer) and catalogue.load(offer).Options.__name__ == "Small"


def test_re_exports_and_bases_in_other_files(fake):
    offer = fake(
        {
            "__init__.py": "from .method import Fake as Fake",
            "method.py": """
                import PACKAGE.deep.base as base
                from PACKAGE.mixin import *

                class Fake(base.Base[int], Mixin):
                    @base.mark
                    def build_sampler(self, batch_size): ...

                    def adjust_logits(self, logits):
                        return logits
            """,
            "deep/base.py": """
                from ltcore import hookimpl as mark
                from ltcore.networks.timm_backbone import Timm

                class Base(Timm):
                    @mark
                    def adjust_logits(self, logits):
                        return logits

                    @mark
                    def on_epoch_end(self): ...

                    def __class_getitem__(cls, item):
                        return cls
            """,
            "mixin.py": """
                from ltcore import hookimpl

                class Mixin:
                    @hookimpl
                    def class_weights(self): ...
            """,
        }
    )
    # adjust_logits is overridden without the mark, which hides it from pluggy; build_backbone comes from core.
    found = inspect(offer)
    assert found == Inspection(("build_backbone", "build_sampler", "class_weights", "on_epoch_end"), None)
    assert check_imports(offer)


def test_a_class_inside_a_class_and_a_circle_of_imports(fake):
    offer = fake(
        {
            "__init__.py": "from . import a, b\n",
            "a.py": """
                from . import b
                from ltcore import Method, hookimpl

                class Outer:
                    class Fake(Method):
                        @hookimpl
                        def build_data(self): ...
            """,
            "b.py": "from . import a\n",
        },
        value="{package}.a:Outer.Fake",
    )
    assert inspect(offer) == Inspection(("build_data",), None)
    assert check_imports(offer)


@pytest.mark.parametrize(
    "name, hooks",
    [
        ("balanced_softmax", {"adjust_logits"}),
        ("cifar_resnet", {"build_backbone"}),
        ("focal", {"compute_loss"}),
        ("logit_adjustment", {"adjust_logits", "post_calibrate"}),
        ("ofa", {"on_run_start", "on_stage_start", "build_sampler", "augment_features"}),
        ("tau_norm", {"post_calibrate"}),
    ],
)
def test_our_own_plugins(name, hooks):
    found = inspect(catalogue.find(name))
    assert found.problem is None
    assert set(found.hooks) >= hooks


def test_what_is_read_is_what_pluggy_finds():
    import pluggy

    from ltcore.contract.hook import PROJECT

    manager = pluggy.PluginManager(PROJECT)
    for offer in catalogue.offers():
        method = catalogue.load(offer)
        marked = {name for name in dir(method) if manager.parse_hookimpl_opts(method, name) is not None}
        assert set(inspect(offer).hooks) == marked, offer


# Problems: each is one that importing has, too


BROKEN = {
    "third party": ("import ltcore_surely_absent.parts\n", "No module named 'ltcore_surely_absent'"),
    "from third party": ("from ltcore_surely_absent.parts import x\n", "No module named 'ltcore_surely_absent'"),
    "own module": ("from .lost import x\n", "No module named '{package}.lost'"),
    "own module, absolute": ("import PACKAGE.lost\n", "No module named '{package}.lost'"),
    "core's module": ("from ltcore.lost import x\n", "No module named 'ltcore.lost'"),
    "core's name": ("from ltcore import Metod\n", "cannot import name 'Metod' from 'ltcore'; did you mean 'Method'?"),
    "name for type checkers only": (
        "from ltcore.contract.method import Stage\n",
        "cannot import name 'Stage' from 'ltcore.contract.method', which has it for type checkers only",
    ),
    "beyond the package": ("from ..other import x\n", "attempted relative import beyond top-level package"),
    "syntax": ("def f(:\n", "SyntaxError: invalid syntax (__init__.py, line 1)"),
    "raise": ("raise RuntimeError('needs a newer GPU')\n", "RuntimeError: needs a newer GPU"),
    "raise ImportError": ("raise ImportError('pip install x')\n", "pip install x"),
    "raise with a class": ("raise NotImplementedError\n", "NotImplementedError"),
    "guard that raises": (
        "try:\n    import ltcore_surely_absent\n"
        "except ImportError as error:\n    raise ImportError('pip install it') from error\n",
        "pip install it",
    ),
    "guard that raises again": (
        "try:\n    import ltcore_surely_absent\nexcept ImportError:\n    print('no!')\n    raise\n",
        "No module named 'ltcore_surely_absent'",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_what_is_certain_to_fail(fake, case):
    text, problem = BROKEN[case]
    offer = fake(text + textwrap.dedent(GOOD))
    assert inspect(offer).problem == problem.format(package=offer.value.split(":")[0])
    assert not check_imports(offer)


def test_hooks_are_told_even_if_something_is_missing(fake):
    offer = fake("import ltcore_surely_absent\n" + textwrap.dedent(GOOD))
    assert inspect(offer).hooks == ("mix_inputs", "compute_loss")


def test_a_module_that_is_imported_on_the_way_is_broken(fake):
    offer = fake(
        {
            "__init__.py": "from PACKAGE.method import Fake\n",
            "method.py": "from . import functional\nfrom .functional import los\n" + textwrap.dedent(GOOD),
            "functional.py": "def loss(): ...\n",
        }
    )
    package = offer.value.split(":")[0]
    reason = f"cannot import name 'los' from '{package}.functional'; did you mean 'loss'?"
    assert inspect(offer) == Inspection(("mix_inputs", "compute_loss"), reason)
    assert not check_imports(offer)


def test_a_syntax_error_has_its_file_and_line(fake):
    offer = fake({"__init__.py": "from .method import Fake\n", "method.py": "\n\nclass Fake(:\n"})
    assert inspect(offer) == Inspection((), "SyntaxError: invalid syntax (method.py, line 3)")
    assert not check_imports(offer)


def test_the_class_is_missing(fake):
    offer = fake(GOOD, value="{package}:Fakes")
    package = offer.value.split(":")[0]
    assert inspect(offer).problem == f"module '{package}' has no 'Fakes'; did you mean 'Fake'?"
    assert not check_imports(offer)


def test_the_module_of_an_entry_point_is_missing(fake):
    assert inspect(fake(GOOD, value="ltcore_surely_absent.method:Fake")).problem.startswith(
        "No module named 'ltcore_su"
    )


def test_a_class_that_is_no_method(fake):
    offer = fake("class Base: ...\nclass Fake(Base): ...\n")
    assert inspect(offer).problem == f"{offer.value} is not an ltcore.Method"
    assert not check_imports(offer)


def test_a_misspelled_hook(fake):
    offer = fake(GOOD.replace("mix_inputs", "augment_feature"))
    assert inspect(offer).problem == "no hook 'augment_feature'; did you mean 'augment_features'?"
    assert inspect(offer).hooks == ("compute_loss",)


# No false alarm: each of these imports


FINE = {
    "in a function": "def f():\n    import ltcore_surely_absent\n",
    "for type checkers": (
        "import typing\nfrom typing import TYPE_CHECKING\n"
        "if TYPE_CHECKING:\n    from ltcore.lost import x\n"
        "if typing.TYPE_CHECKING:\n    import ltcore_surely_absent\n"
    ),
    "guarded": "try:\n    import ltcore_surely_absent\nexcept ImportError:\n    ltcore_surely_absent = None\n",
    "guarded by Exception": "try:\n    from .lost import x\nexcept Exception:\n    x = None\n",
    "suppressed": "import contextlib\nwith contextlib.suppress(ImportError):\n    import ltcore_surely_absent\n",
    "conditional": "import sys\nif sys.version_info < (3, 9):\n    import tomli\nelse:\n    import tomllib\n",
    "raise under a condition": "import sys\nif sys.version_info < (3, 9):\n    raise ImportError('too old')\n",
    "name from globals": "globals()['x'] = 1\nfrom PACKAGE import x\n",
    "name from __getattr__": "def __getattr__(name):\n    return 1\nfrom . import whatever\n",
    "name from a star": "from math import *\nfrom PACKAGE import pi\n",
    "module of the interpreter": "from os import path\nimport os.path, xml.dom, numpy.linalg, sys\n",
    "name that a block as a script imports from itself": (
        "def f(): ...\nif __name__ == '__main__':\n    from PACKAGE import f\nfrom PACKAGE import f as g\n"
    ),
    "a strange escape": "x = '\\d'\n",
}


@pytest.mark.parametrize("case", FINE)
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::SyntaxWarning")
def test_what_may_work_is_no_problem(fake, case):
    offer = fake(FINE[case] + textwrap.dedent(GOOD))
    assert inspect(offer) == Inspection(("mix_inputs", "compute_loss"), None)
    assert check_imports(offer)


def test_namespace_packages_are_found(fake):
    offer = fake({"inner/deep/method.py": GOOD}, value="{package}.inner.deep.method:Fake")
    assert inspect(offer) == Inspection(("mix_inputs", "compute_loss"), None)
    assert check_imports(offer)


def test_a_class_that_cannot_be_followed_is_no_problem(fake):
    offer = fake("from ltcore import Method\n\nFake = type('Fake', (Method,), {})\n")
    assert inspect(offer) == Inspection((), None)
    assert check_imports(offer)


@pytest.mark.parametrize("value", ["rich.console:Console", "_pytest.fixtures:fixture", "pluggy:PluginManager"])
def test_other_peoples_packages_import(value):
    problem = inspect(Offer("x", value, "x", "1")).problem
    assert problem in (None, f"{value} is not an ltcore.Method")


def test_nothing_runs(fake, capfd):
    offer = fake("import time\nprint('loud')\ntime.sleep(60)\n" + textwrap.dedent(GOOD))
    begin = time.perf_counter()
    assert inspect(offer) == Inspection(("mix_inputs", "compute_loss"), None)
    assert time.perf_counter() - begin < 5
    assert capfd.readouterr().out == ""
    assert offer.value.split(":")[0] not in sys.modules


def test_a_changed_file_is_read_again(fake, tmp_path):
    offer = fake(GOOD)
    assert inspect(offer).problem is None
    (tmp_path / offer.value.split(":")[0] / "__init__.py").write_text("raise OSError('changed')\n")
    assert inspect(offer).problem == "OSError: changed"


def test_inspecting_everything_imports_no_torch():
    code = """
        import sys
        from ltcore.discovery.catalogue import offers
        from ltcore.discovery.static import inspect
        assert all(inspect(offer).hooks for offer in offers()), [(o.name, inspect(o)) for o in offers()]
        heavy = {"torch", "pydantic", "numpy", "timm"} | {offer.value.split(":")[0] for offer in offers()}
        assert not heavy & set(sys.modules), heavy & set(sys.modules)
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=True)


# Importing for real


def test_import_report(fake):
    offers = [
        fake("import os, sys\nprint('loud')\nos.close(1)\n" + textwrap.dedent(GOOD), name="loud"),
        fake("import os\nos._exit(3)\n", name="exits"),
        fake("import ltcore_surely_absent\n", name="lacks"),
        fake("import sys\nsys.exit('no licence')\n", name="leaves"),
        fake("x = 1 / 0\n", name="divides"),
        fake("class Fake: ...\n", name="no_method"),
        fake("from threading import Timer\nTimer(60, print).start()\n" + textwrap.dedent(GOOD), name="lingers"),
    ]
    assert import_report(offers) == {
        "loud": None,
        "exits": "importing it ended Python with exit code 3",
        "lacks": "No module named 'ltcore_surely_absent'",
        "leaves": "SystemExit: no licence",
        "divides": "ZeroDivisionError: division by zero",
        "no_method": f"{offers[5].value} is not an ltcore.Method; tell its author",
        "lingers": None,
    }


@pytest.mark.slow
def test_import_report_goes_on_after_a_crash(fake):
    crash = fake("import os\nos.abort()\n", name="aborts")
    assert import_report([crash, crash, fake(GOOD)]) == {
        "aborts": "importing it crashed Python (Aborted)",
        "fake": None,
    }


def test_import_report_does_not_wait_for_ever(fake):
    offer = fake("import time\ntime.sleep(600)\n")
    assert import_report([offer], timeout=0.5) == {"fake": "importing it takes more than 0.5 s"}


def test_import_report_of_nothing(monkeypatch):
    monkeypatch.setattr(importing.subprocess, "Popen", None)
    assert import_report([]) == {}

"""The environment of a run: what it names, and which of its changes change figures."""

import copy
import json
import sys

import numpy
import pytest
import torch

from ltcore.discovery import catalogue
from ltcore.files.environment import differences, environment, installed_code


def test_it_names_what_a_figure_depends_on():
    found = environment("cpu", [("ltcore-ofa", "ltcore_ofa.method"), ("ltcore-made-up", "made_up")])
    versions = found["versions"]
    assert versions["torch"] == torch.__version__ and versions["numpy"] == numpy.__version__
    assert {"ltcore", "ltcore-ofa", "torchvision", "timm", "scikit-learn", "pillow"} < set(versions)
    assert versions["ltcore-made-up"] == "not installed as a distribution"
    assert found["python"] == ".".join(map(str, sys.version_info[:3])) and found["device"] == "cpu"
    assert found["threads"] == torch.get_num_threads() and found["platform"] and found["device_name"]
    assert set(found["code"]) == {"ltcore", "ltcore-ofa", "ltcore-made-up"}
    assert found["code"]["ltcore-made-up"] == "unknown"  # it is not imported here
    json.dumps(found)


def test_the_digest_of_a_plugins_code_follows_its_files(fake_plugin, tmp_path):
    fake_plugin("lame", "class Lame: ...\n")
    import ltcore_lame

    def digest():
        found = environment("cpu", [("ltcore-lame", ltcore_lame.Lame.__module__)])["code"]["ltcore-lame"]
        assert installed_code([catalogue.find("lame")]) == {"ltcore-lame": found}, "the same, not imported"
        return found

    first = digest()
    assert first == digest() and len(first) == 16
    (file,) = tmp_path.glob("site-ltcore-lame/ltcore_lame/__init__.py")
    text = file.read_text()
    file.write_text(text + "FACTOR = 2\n")
    assert digest() != first
    file.write_text(text)
    assert digest() == first
    (file.parent / "more.py").write_text("")
    assert digest() != first
    (file.parent / "more.py").unlink()
    (file.parent / "notes.txt").write_text("no code")
    assert digest() == first
    del sys.modules["ltcore_lame"]


BEFORE = {
    "python": "3.12.1",
    "platform": "Linux-1",
    "device": "cpu",
    "device_name": "x86_64",
    "threads": 1,
    "versions": {"torch": "2.9.0", "numpy": "2.3.0", "ltcore": "0.1.0"},
    "code": {"ltcore": "aa", "ltcore-ofa": "bb"},
}
GPU = BEFORE | {"device": "cuda", "device_name": "NVIDIA A100"}


@pytest.mark.parametrize(
    ("before", "change", "matters", "others"),
    [
        (BEFORE, {}, [], []),
        (GPU, {}, [], []),
        (BEFORE, {"threads": 2}, ["number of threads was 1 and is 2 (OMP_NUM_THREADS sets it)"], []),
        (GPU, {"threads": 2}, [], ["number of threads was 1 and is 2 (OMP_NUM_THREADS sets it)"]),
        (BEFORE, {"device_name": "arm"}, [], []),
        (GPU, {"device_name": "NVIDIA H100"}, ["GPU was NVIDIA A100 and is NVIDIA H100"], []),
        (GPU, {"device": "cuda:1"}, [], []),
        (BEFORE, {"python": "3.12.2"}, [], ["Python was 3.12.1 and is 3.12.2"]),
        (BEFORE, {"platform": "Linux-2"}, [], ["platform was Linux-1 and is Linux-2"]),
        (
            BEFORE,
            {"versions": {"torch": "2.10.0", "numpy": "2.4.0", "ltcore": "0.2.0"}},
            ["torch was 2.9.0 and is 2.10.0"],
            ["numpy was 2.3.0 and is 2.4.0", "ltcore was 0.1.0 and is 0.2.0"],
        ),
        (BEFORE, {"code": {"ltcore": "cc", "ltcore-ofa": "bb"}}, ["the code of ltcore has changed"], []),
        (BEFORE, {"code": {"ltcore": "aa", "ltcore-ofa": "cc"}}, ["the code of ltcore-ofa has changed"], []),
    ],
)
def test_what_changes_figures_is_told_from_what_does_not(before, change, matters, others):
    assert differences(before, copy.deepcopy(before) | change) == (matters, others)


def test_another_device_changes_figures():
    assert "device was cpu and is cuda" in differences(BEFORE, GPU)[0]
    assert "device was cuda and is cpu" in differences(GPU, BEFORE)[0]


def test_mps_is_seen_where_somebody_listens(tmp_path, monkeypatch):
    import socket

    from ltcore.files.environment import mps

    monkeypatch.setenv("CUDA_MPS_PIPE_DIRECTORY", str(tmp_path))
    assert not mps()
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as daemon:
        daemon.bind(str(tmp_path / "control"))
        daemon.listen()
        daemon.settimeout(0.1)
        assert mps()
        with pytest.raises(TimeoutError):
            daemon.accept()  # and has heard nothing
    assert not mps(), "its socket is left, and nobody listens"

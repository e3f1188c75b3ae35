"""Checks in several processes: the same reports in the same order, and one message where a process ends."""

import os
import signal
import subprocess
import sys
import time

import pytest
import torch

from ltcore.discovery import catalogue
from ltcore.errors import RecipeError, RunError
from ltcore.testing import installed, pairs, processes, workers
from ltcore.testing.parts import PARTS
from ltcore.testing.recipes import compose, part_of
from ltcore.testing.report import CHECKS
from ltcore.training.threads import usable_cores


def test_answers_come_in_the_order_of_the_tasks():
    def work(task):
        return task, os.getpid()

    answers = list(workers.spread(range(7), work, 2, str))
    assert [task for task, _ in answers] == [*range(7)]
    assert os.getpid() not in {process for _, process in answers}


@pytest.mark.parametrize(
    ("end", "how"), [(lambda: os.kill(os.getpid(), signal.SIGKILL), "signal SIGKILL"), (lambda: os._exit(3), "code 3")]
)
def test_a_process_that_ends_is_one_message(end, how):
    def work(task):
        if task == "b":
            time.sleep(1)  # by then the first process has done the others
            end()
        return task

    answers = workers.spread("abcd", work, 2, lambda task: f"'{task}'")
    assert next(answers) == "a"
    with pytest.raises(RunError, match=f"the process that checked 'b' ended .*{how}; --jobs 1 checks one"):
        next(answers)


def test_an_error_is_one_message_with_its_task():
    def work(task):
        raise ValueError("no such luck")

    with pytest.raises(RunError, match="the check of 'a' could not go on: ValueError: no such luck"):
        list(workers.spread("a", work, 2, lambda task: f"'{task}'"))


def test_processes_end_with_the_first_one():
    program = """
import os, sys, time
from ltcore.testing import workers
def work(task):
    print(os.getpid(), flush=True)
    time.sleep(task)
for _ in workers.spread([0, 0.5, 0.5], work, 2, str):
    os._exit(0)
"""
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=100)
    assert ended.stdout and ended.stderr == ""  # the pipe is closed: all of them have ended, and said nothing


def test_how_many_processes(monkeypatch):
    monkeypatch.setattr(workers.sys, "platform", "linux")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert (workers.possible(None), workers.possible(3)) == (usable_cores(), 3)
    monkeypatch.setattr(workers.sys, "platform", "darwin")
    assert (workers.possible(None), workers.possible(3)) == (1, 3)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert (workers.possible(None), workers.possible(1)) == (1, 1)
    with pytest.raises(RecipeError, match=r"--jobs 2: the checks use the GPU, which several processes .* cannot share"):
        workers.possible(2)


@pytest.mark.slow
def test_several_processes_report_the_same(monkeypatch):
    names = ["tau_norm", "drw", "focal", "ldam"]
    monkeypatch.setattr(catalogue, "_INSTALLED", [offer for offer in catalogue.offers() if offer.name in names])
    without = set(CHECKS) - {"options", "hooks", "steps", "gradients", "inputs", "processes", "pairs"}
    reports, tried = [], []
    for jobs in (2, 1):
        monkeypatch.setattr(pairs, "_TRIED", {})
        reports.append([report.plain() for report in installed.check_installed(names, sorted(without), jobs)])
        tried.append(pairs._TRIED)
    assert reports[0] == reports[1]
    assert [report["method"] for report in reports[0]] == names and all(report["passed"] for report in reports[0])
    assert tried[0] == tried[1] and len(tried[0]) >= 10  # each two of four, and each beside itself
    outcomes = {check["name"]: check["outcome"] for check in reports[0][1]["checks"]}
    assert outcomes["processes"] == outcomes["pairs"] == "passed" and outcomes["seed"] == "not applicable"


def test_pairs_are_tried_before_the_methods_and_each_once(monkeypatch):
    few = [offer for offer in catalogue.offers() if offer.name in {"focal", "drw", "ldam", "tau_norm"}]
    monkeypatch.setattr(catalogue, "_INSTALLED", few)
    with catalogue.lent(PARTS):
        offers = [catalogue.find(name) for name in ("focal", "drw")]
        monkeypatch.setattr(pairs, "_TRIED", {})
        first = pairs.untried(offers)
        keys = [pairs._key(*pair) for pair in first]
        assert len(set(keys)) == len(keys) == 7  # focal beside four, drw beside itself and the two that are left
        for pair in first:
            pairs.note(*pair, ("trained", "as noted"))
        assert pairs.untried(offers) == []
        part = pairs.installed_part(offers[0])
        assert {pairs.tried(*both) for other in pairs.others(part) for both in pairs.orders(part, other)} == {
            ("trained", "as noted")
        }


def test_two_parts_of_one_role_do_not_stand_beside_each_other(monkeypatch):
    chosen = [offer for offer in catalogue.offers() if offer.name in {"focal", "cifar_resnet", "cifar_densenet"}]
    monkeypatch.setattr(catalogue, "_INSTALLED", chosen)
    with catalogue.lent(PARTS):
        beside = {
            name: {other.name for other in pairs.others(pairs.installed_part(catalogue.find(name)))}
            for name in ("focal", "cifar_resnet")
        }
    assert beside == {"focal": {"focal", "cifar_resnet", "cifar_densenet"}, "cifar_resnet": {"focal"}}


@pytest.mark.slow
def test_another_process_is_started_where_the_one_of_the_first_process_has_ended(monkeypatch):
    gone = subprocess.Popen([sys.executable, "-c", ""], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    gone.wait()
    monkeypatch.setattr(processes, "_running", [processes._Other(gone, started_by=os.getppid())])
    with catalogue.lent(PARTS):
        offer = catalogue.find("focal")
        trained = processes.elsewhere(offer, catalogue.load(offer), compose([part_of(offer)]))
    assert trained.losses and processes._running[0].ours

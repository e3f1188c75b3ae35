"""What `ltcore check` looks at calls and steps with, part by part; whole methods are in test_checking.py."""

from collections import deque
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from ltcore import Batch, Method, hookimpl
from ltcore.contract.hookspecs import HOOKS
from ltcore.discovery import catalogue
from ltcore.discovery.binding import Entry
from ltcore.discovery.offer import Offer
from ltcore.testing import pairs
from ltcore.testing.devices import Devices
from ltcore.testing.inspecting import Call
from ltcore.testing.order import Follow
from ltcore.testing.parts import PARTS, new_order
from ltcore.testing.recipes import part_of
from ltcore.testing.records import Records
from ltcore.testing.state import held_within
from ltcore.testing.watch import Watch

N = 6
TARGETS = torch.arange(N)
BATCH = Batch(torch.zeros(N, 1), TARGETS, TARGETS)
CALL = Call(Entry("mine", Offer("mine", "", "", ""), Method()), HOOKS["mix_inputs"], {"batch": BATCH}, None)


def seeded():
    return torch.Generator().manual_seed(0)


@pytest.mark.parametrize(
    "draw",
    [
        lambda: torch.rand(N, 2, generator=seeded()),
        lambda: torch.randn((N,), generator=seeded()),
        lambda: torch.randint(9, (N,), generator=seeded()),
        lambda: torch.empty(N).uniform_(generator=seeded()),
    ],
)
def test_what_is_drawn_for_rows_follows_them(draw):
    before, follow = draw(), Follow()
    with follow(CALL):
        after = draw()
    assert torch.equal(after, before[new_order(N)]) and not torch.equal(after, before) and not follow.beyond


def test_partners_are_the_same_rows_in_their_new_places():
    order = new_order(N)
    before, follow = torch.randperm(N, generator=seeded()), Follow()
    with follow(CALL):
        after = torch.randperm(N, generator=seeded())
    for place, row in enumerate(order.tolist()):
        assert order[after[place]] == before[row], "the row's partner is another one"


def test_what_belongs_to_no_row_is_told():
    follow = Follow()
    with follow(CALL):
        torch.rand(1, generator=seeded())
        assert not follow.beyond
        torch.rand(3, generator=seeded())
        torch.bernoulli(torch.full((N,), 0.5), generator=seeded())
    assert follow.beyond == {"rand [3]", "bernoulli"}


def test_what_is_drawn_elsewhere_is_left_as_it_is():
    before, follow = torch.rand(N, generator=seeded()), Follow()
    for hook, given in (("after_step", {}), ("post_calibrate", {"classifier": nn.Linear(1, N)}), ("class_weights", {})):
        with follow(replace(CALL, hook=HOOKS[hook], given={**given, "context": None})):
            assert torch.equal(torch.rand(N, generator=seeded()), before)
    with follow(replace(CALL, hook=HOOKS["post_calibrate"], given={"classifier": TARGETS})):
        assert torch.equal(torch.rand(N, generator=seeded()), before), "its rows are no batch's"


@pytest.mark.parametrize(
    ("answer", "check"),
    [
        ({"targets": TARGETS.flip(0)}, "relabelling"),
        ({"source_index": TARGETS.flip(0)}, "sources"),
        ({"source_index": TARGETS + 1}, "sources"),
        ({"targets": TARGETS.flip(0), "source_index": TARGETS.flip(0)}, None),
        ({"targets": TARGETS[:3]}, None),  # which is no batch at all, as another check says
        ({}, None),
    ],
)
def test_labels_are_those_of_the_images_that_rows_name(answer, check):
    notes, batch = Watch(), replace(BATCH, images=torch.rand(N, 1))
    call = replace(CALL, given={"batch": batch})
    made = replace(batch, images=batch.images.clone(), **answer)
    Records(notes).after(call, made, None)
    assert not notes.faults, "there is no run yet"
    call = replace(call, state=SimpleNamespace(training_targets=TARGETS))
    Records(notes).after(call, made, None)
    assert [fault.check for fault in notes.faults] == [check] * (check is not None)
    Records(notes).after(replace(call, hook=HOOKS["sample_weights"]), made, None)
    assert len(notes.faults) == (check is not None)


def test_what_may_change_while_a_hook_is_at_work():
    watch = Watch()
    network = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    network[0].weight.requires_grad_(False)
    network.added_by = {}
    names = dict.fromkeys(("class_counts", "training_targets", "validation_targets", "progress"))
    watch.state = SimpleNamespace(model=SimpleNamespace(backbone=network, classifier=nn.Linear(2, 2)), **names)

    def kept(hook):
        return {
            name.removeprefix("context.model.") for name in watch._seen({}, hook, "") if name.startswith("context.mod")
        }

    learning, training = {"backbone.1.running_mean", "backbone.1.running_var"}, {"backbone.1.weight", "classifier.bias"}
    assert learning | training <= kept("on_epoch_end")
    assert not learning & kept("compute_gradients") and training <= kept("compute_gradients")
    for hook in ("after_step", "on_stage_end"):
        assert not (learning | training) & kept(hook) and "backbone.0.weight" in kept(hook), "what does not train stays"
    network.eval()
    assert learning <= kept("after_step")


def test_how_much_a_method_holds():
    method = Method()
    method.register_buffer("state", torch.zeros(3))
    method.list, method.last, method.bounded = [], torch.zeros(()), deque(maxlen=9)
    weight, sizes = nn.Parameter(torch.ones(())), []
    method.chain = torch.zeros(())
    for _ in range(3):
        method.list.append(torch.zeros(()))
        method.bounded.append(torch.zeros(()))
        method.last, method.chain = weight * 2, method.chain + weight
        sizes.append(dict(held_within(method)))
    assert [each["list"] for each in sizes] == [2, 3, 4]
    assert sizes[0]["last"] == sizes[2]["last"] and sizes[0]["chain"] < sizes[1]["chain"] < sizes[2]["chain"]
    assert "bounded" not in sizes[0] and "state" not in sizes[0]


X = torch.ones(4)


@pytest.mark.parametrize(
    ("work", "said"),
    [
        (lambda: X + torch.ones(4), "computes with a tensor [4] that it made on the CPU"),
        (lambda: X * (2 * torch.arange(4)[None]).float(), "computes with a tensor [1, 4] that it made on the CPU"),
        (lambda: torch.cat([X, torch.zeros(1)]), "computes with a tensor [1] that it made on the CPU"),
        (lambda: X - torch.tensor([1.0, 2.0, 3.0, 4.0]).to(torch.float32), "computes with a tensor [4]"),
        (lambda: torch.arange(4) + 1, "returns a tensor that it made on the CPU"),
        (lambda: {"term": torch.ones(2)}, "returns a tensor that it made on the CPU"),
        (lambda: Batch(X, torch.arange(4), X), "returns targets that it made on the CPU"),
        (lambda: X + torch.ones(4, device="cpu"), None),
        (lambda: X + torch.ones(4).to(X.device), None),
        (lambda: X + torch.ones(4).to(X), None),
        (lambda: X + torch.tensor(2.0), None),
        (lambda: X[torch.arange(3)], None),
        (lambda: torch.zeros_like(X) + X.new_ones(4), None),
        (lambda: X * 2, None),
    ],
)
def test_what_is_made_on_the_cpu(work, said):
    notes = Watch()
    devices = Devices(notes, "adjust_logits")
    with devices:
        answer = work()
    devices.look(answer)
    messages = [fault.message for fault in notes.faults]
    assert (said is None and not messages) or (len(messages) == 1 and said in messages[0]), messages


def test_two_installed_methods_are_tried_once_and_a_class_of_a_test_each_time(monkeypatch):
    class Mine(Method):
        @hookimpl
        def adjust_logits(self, logits):
            return logits

    tried = []
    monkeypatch.setattr(pairs, "_TRIED", {})
    monkeypatch.setattr(pairs, "together", lambda first, second: tried.append((first.name, second.name)) or ("", None))
    with catalogue.lent({**PARTS, "mine": Mine}):
        focal, cdt, mine = (part_of(catalogue.find(name)) for name in ("focal", "cdt", "mine"))
        stronger = part_of(catalogue.find("focal"), {"gamma": 3.0})
        for first, second in ((focal, cdt), (cdt, focal), (mine, cdt), (mine, cdt), (stronger, cdt)):
            assert pairs.tried(first, second) == ("", None)
        mixup, remix = (part_of(catalogue.find(name)) for name in ("mixup", "remix"))
        pairs.note(mixup, remix, ("trained", None))
        pairs.note(remix, mixup, ("refused", None))
        assert pairs.tried(mixup, remix) == ("trained", None), "both pass on batches, so that the order matters"
        assert catalogue.is_lent(mine.offer) and not catalogue.is_lent(cdt.offer)
    assert tried == [("focal", "cdt"), ("mine", "cdt"), ("mine", "cdt"), ("focal", "cdt")]

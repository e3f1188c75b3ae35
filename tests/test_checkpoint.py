"""Checkpoints: what goes in comes out, bit for bit, and what is damaged is refused with a way out."""

import builtins
import errno
import os
import pickle

import pytest
import torch
from torch import nn

from ltcore.errors import RunError
from ltcore.files import checkpoint
from ltcore.networks.optimizers import build_optimizer, set_learning_rate


def bits(tensor):
    return tensor.dtype, tensor.shape, tensor.contiguous().view(-1).view(torch.uint8).tolist()


TENSORS = {
    "float32": torch.tensor([0.1, -0.0, float("nan"), float("inf"), 1e-45]),
    "channels_last": torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last),
    "strided": torch.arange(12.0).view(3, 4)[:, ::2].t(),
    "scalar": torch.tensor(3.5, dtype=torch.float64),
    "int64": torch.tensor([2**62, -1]),
    "bool": torch.tensor([True, False]),
    "bfloat16": torch.tensor([1.1, -2.0]).bfloat16(),
    "no_rows": torch.zeros(0, 4),
    "parameter": nn.Parameter(torch.ones(2)),
}
STATE = {"position": {"epoch": 3, "seconds": 0.1 + 0.2}, "results": [{"few": None}], "text": "Zürich"}


@pytest.mark.parametrize("names", [list(TENSORS), *[[name] for name in TENSORS], []], ids="-".join)
def test_tensors_and_state_come_back(names, tmp_path):
    path = tmp_path / "last.safetensors"
    saved = {name: TENSORS[name] for name in names}
    checkpoint.save(path, saved, STATE)
    tensors, state = checkpoint.load(path)
    assert state == STATE
    assert {name: bits(t) for name, t in tensors.items()} == {name: bits(t.detach()) for name, t in saved.items()}
    assert [file.name for file in tmp_path.iterdir()] == ["last.safetensors"]


def test_what_shares_memory_is_saved_and_comes_back(tmp_path):
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model[1].weight = model[0].weight
    tensors = {**checkpoint.model_tensors(model), "row": model[0].weight[1], "turned": model[0].weight.t()}
    checkpoint.save(tmp_path / "c", tensors, {})
    loaded, _ = checkpoint.load(tmp_path / "c")
    assert {name: bits(t) for name, t in loaded.items()} == {name: bits(t.detach()) for name, t in tensors.items()}
    checkpoint.restore_model(model, loaded, tmp_path / "c")
    assert model[1].weight is model[0].weight


def test_a_new_checkpoint_replaces_the_old_one_or_leaves_it(tmp_path, monkeypatch):
    path = tmp_path / "c"
    checkpoint.save(path, {}, {"number": 1})
    checkpoint.save(path, {}, {"number": 2})
    assert checkpoint.load(path)[1] == {"number": 2}

    def fail(*paths):
        raise OSError(errno.ENOSPC, "disk full")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(RunError, match=r"c cannot be written: No space left on device; free some space there, then go"):
        checkpoint.save(path, {}, {"number": 3})
    assert checkpoint.load(path)[1] == {"number": 2} and os.listdir(tmp_path) == ["c"]


def test_nothing_is_unpickled(tmp_path, monkeypatch):
    checkpoint.save(tmp_path / "c", TENSORS, STATE)

    def refuse(*args, **kwargs):
        raise AssertionError("pickle")

    for name in ("load", "loads", "Unpickler"):
        monkeypatch.setattr(pickle, name, refuse)
    monkeypatch.setattr(torch, "load", refuse)
    checkpoint.load(tmp_path / "c")

    class Bad:
        def __reduce__(self):
            return builtins.exec, ("raise SystemExit",)

    (tmp_path / "bad").write_bytes(pickle.dumps(Bad()))
    with pytest.raises(RunError, match="not a readable checkpoint"):
        checkpoint.load(tmp_path / "bad")


@pytest.fixture
def written(tmp_path):
    path = tmp_path / "last.safetensors"
    checkpoint.save(path, {"a": torch.arange(100.0)}, {})
    return path


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: b"",
        lambda content: content[:5],
        lambda content: content[:60],
        lambda content: content[:-1],
        lambda content: content + b"more",
        lambda content: b"\xff" * len(content),
        lambda content: content.replace(b"state", b"stale", 1),
        lambda content: content.replace(b"{}", b"{[", 1),
        lambda content: content.replace(b'"a"', b'"b"', 1),
        lambda content: content.replace(b"F32", b"I32", 1),
        lambda content: content.replace(b"[100]", b"[ 25]", 1).replace(b"F32", b"F128"),
    ],
)
def test_a_damaged_file_is_named_with_a_way_out(damage, written):
    damaged = damage(written.read_bytes())
    assert damaged != written.read_bytes()
    written.write_bytes(damaged)
    with pytest.raises(RunError) as error:
        checkpoint.load(written)
    assert str(error.value).startswith(f"{written}: not a readable checkpoint (")
    assert str(error.value).endswith("Begin the run anew, without --resume")


def test_a_bit_that_turned_is_found_wherever_it_lies(written):
    content = written.read_bytes()
    for place in range(len(content)):
        damaged = bytearray(content)
        damaged[place] ^= 1 << place % 8
        written.write_bytes(damaged)
        with pytest.raises(RunError, match="not a readable checkpoint"):
            checkpoint.load(written)


def test_a_state_that_changed_is_found(tmp_path):
    path = tmp_path / "c"
    checkpoint.save(path, {"a": torch.ones(2)}, {"position": {"epoch": 3}})
    content = path.read_bytes()
    path.write_bytes(content.replace(b'epoch\\\\\\": 3', b'epoch\\\\\\": 4'))
    assert path.read_bytes() != content
    with pytest.raises(RunError, match="the digest is another"):
        checkpoint.load(path)


def test_what_was_read_stays_when_the_file_is_written_over(tmp_path):
    path = tmp_path / "c"
    checkpoint.save(path, {"large": torch.arange(100_000.0)}, {})
    tensors, _ = checkpoint.load(path)
    path.write_bytes(bytes(path.stat().st_size))  # into the same file, which is mapped where tensors are not copied
    assert torch.equal(tensors["large"], torch.arange(100_000.0))


def test_equal_content_makes_equal_files(tmp_path):
    for name in ("one", "two"):
        checkpoint.save(tmp_path / name, TENSORS, STATE)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


def test_a_missing_file_or_a_folder_is_named(tmp_path):
    for path in (tmp_path / "missing", tmp_path):
        with pytest.raises(RunError, match="not a readable checkpoint"):
            checkpoint.load(path)


def test_a_file_of_another_kind_is_named(tmp_path):
    from safetensors.torch import save_file

    save_file({"a": torch.ones(2)}, tmp_path / "c")
    with pytest.raises(RunError, match=r"not a readable checkpoint \(it has no digest; another program or another v"):
        checkpoint.load(tmp_path / "c")


def network():
    """A small network with what gives trouble: batch norm's counters, channels-last, a parameter of no dimension."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1), nn.Flatten(), nn.Linear(144, 3))
    net.scale = nn.Parameter(torch.tensor(1.5))
    return net.to(memory_format=torch.channels_last)


@pytest.mark.parametrize("other", ["shape", "more", "less"])
def test_a_model_that_does_not_fit_is_named(other, tmp_path):
    tensors = checkpoint.model_tensors(network())
    model = network()
    if other == "shape":
        model[4] = nn.Linear(144, 5)
    elif other == "more":
        model.extra = nn.Linear(1, 1)
    else:
        del model.scale
    with pytest.raises(RunError, match=r"last\.safetensors does not fit this recipe's model: .*Were plugins updated"):
        checkpoint.restore_model(model, tensors, tmp_path / "last.safetensors")


OPTIMIZERS = [
    ("sgd", {}),
    ("sgd", {"momentum": 0.9, "nesterov": True, "weight_decay": 5e-4}),
    ("adam", {"amsgrad": True}),
    ("adamw", {"betas": [0.8, 0.9]}),
    ("rmsprop", {"momentum": 0.9, "centered": True}),
    ("adagrad", {}),
    ("nadam", {}),
    ("adafactor", {}),
    ("asgd", {}),
    ("lamb", {}),  # timm's; it counts steps in the parameter groups, in a tensor
    ("adabelief", {}),  # timm's
]


@pytest.mark.parametrize(("name", "options"), OPTIMIZERS)
def test_training_goes_on_to_the_same_bits(name, options, tmp_path):
    def build():
        model = network()
        return model, build_optimizer(name, model.parameters(), 0.01, options, "cpu")

    def train(model, optimizer, steps):
        for step in steps:
            torch.manual_seed(step)
            images = torch.randn(5, 3, 8, 8).to(memory_format=torch.channels_last)
            set_learning_rate(optimizer, 0.01 / (1 + step))
            optimizer.zero_grad(set_to_none=True)
            loss = nn.functional.cross_entropy(model(images) * model.scale, torch.randint(3, (5,)))
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()

    path = tmp_path / "c"
    model, optimizer = build()
    train(model, optimizer, range(3))
    tensors, plain = checkpoint.optimizer_tensors(optimizer)
    checkpoint.save(path, tensors | checkpoint.model_tensors(model), {"optimizer": plain})
    train(model, optimizer, range(3, 6))

    resumed, optimizer_2 = build()
    loaded, state = checkpoint.load(path)
    checkpoint.restore_model(resumed, loaded, path)
    checkpoint.restore_optimizer(optimizer_2, loaded, state["optimizer"])
    train(resumed, optimizer_2, range(3, 6))
    found = {name: bits(tensor) for name, tensor in resumed.state_dict().items()}
    assert found == {name: bits(tensor) for name, tensor in model.state_dict().items()}
    assert [p.stride() for p in resumed.parameters()] == [p.stride() for p in model.parameters()]


def test_an_optimizers_hyper_parameters_are_the_recipes():
    before = build_optimizer("sgd", network().parameters(), 0.1, {"momentum": 0.9, "weight_decay": 0.1}, "cpu")
    after = build_optimizer("sgd", network().parameters(), 0.2, {"momentum": 0.5}, "cpu")
    checkpoint.restore_optimizer(after, *checkpoint.optimizer_tensors(before))
    (group,) = after.param_groups
    assert (group["lr"], group["momentum"], group["weight_decay"]) == (0.2, 0.5, 0)

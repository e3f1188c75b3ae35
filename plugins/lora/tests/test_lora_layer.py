"""The layer and its mathematics, against loralib's figures and dense matrices."""

import copy

import pytest
import torch
from ltcore_lora import LoRALinear, low_rank_change, low_rank_output
from torch import nn
from torch.nn import functional as F

from ltcore import Mergeable


def wave(*shape, k):
    return torch.sin(k * torch.arange(torch.Size(shape).numel(), dtype=torch.float64)).view(*shape)


def layer(parts, pieces, rank=2, alpha=3.0):
    """A layer with 6 inputs and 12 outputs, and values that are easy to make elsewhere."""
    plain = nn.Linear(6, 12).double()
    made = LoRALinear(plain, rank, alpha / rank, 0.0, parts, pieces)
    with torch.no_grad():
        plain.weight.copy_(wave(12, 6, k=0.7))
        plain.bias.copy_(wave(12, k=0.3))
        made.lora_a.copy_(wave(*made.lora_a.shape, k=1.1))
        made.lora_b.copy_(wave(*made.lora_b.shape, k=1.3))
    return plain, made


#: Parts, and what loralib 0.1.2 gave for the last row: MergedLinear with enable_lora, r = 2 and lora_alpha = 3; Linear.
FIGURES = [
    ((0, 2), 3, [-0.433291, 3.64604, -0.257778, -0.5777, -2.321951, 4.471631, -4.637159, 2.87613]),
    ((0,), 1, [-3.03994, 6.327293, -2.246201, 0.148761, 4.063362, -2.725204, 1.311302, -0.121373]),
    ((0, 1, 2), 3, [-6.075175, 8.842341, -3.521197, -0.181226, 6.741231, -6.500578, 5.103583, -2.845126]),
]


@pytest.mark.parametrize(("parts", "pieces", "expected"), FIGURES)
def test_output_is_that_of_loralib(parts, pieces, expected):
    _, made = layer(parts, pieces)
    found = made(wave(2, 3, 6, k=0.9))[1, 2]
    expected = torch.tensor([0.794636, -2.000434, 2.760176, 1.25948, *expected]).double()
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize(("parts", "pieces", "count"), [((0, 2), 3, 40), ((0,), 1, 36), ((0, 1, 2), 3, 60)])
def test_it_has_as_many_parameters_as_loralibs(parts, pieces, count):
    _, made = layer(parts, pieces)
    assert sum(p.numel() for name, p in made.named_parameters() if "lora_" in name) == count


@pytest.mark.parametrize(("parts", "pieces"), [((0, 2), 3), ((1,), 3), ((0,), 1), ((2, 0), 3)])
def test_merged_is_a_plain_layer_that_does_the_same(parts, pieces):
    plain, made = layer(parts, pieces)
    x = torch.randn(4, 5, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    merged = made.merged()
    assert isinstance(made, Mergeable) and type(merged) is nn.Linear and merged.weight.dtype == torch.float64
    torch.testing.assert_close(merged(x), made(x))
    assert not torch.allclose(merged(x), plain(x)) and torch.equal(plain.weight, made.weight)
    merged.weight.data.zero_()
    merged.bias.data.zero_()
    assert made.weight.abs().min() >= 0 and made.weight.any() and made.bias.any()  # values of its own


def test_the_change_is_dense_where_parts_are_and_zero_elsewhere():
    generator = torch.Generator().manual_seed(1)
    a, b = torch.randn(4, 5, generator=generator), torch.randn(6, 2, generator=generator)
    change = low_rank_change(a, b, (2, 0), 3)
    expected = torch.zeros(9, 5)
    for index, part in enumerate((2, 0)):
        for row in range(3):
            for column in range(5):
                expected[3 * part + row, column] = sum(
                    b[3 * index + row, k] * a[2 * index + k, column] for k in range(2)
                )
    torch.testing.assert_close(change, expected)
    x = torch.randn(7, 5, generator=generator)
    added = low_rank_output(x, a, b, 2)
    torch.testing.assert_close(torch.cat(added, 1), F.linear(x, torch.cat([expected[6:], expected[:3]])))


@pytest.mark.parametrize("bias", [True, False])
def test_it_begins_as_the_plain_layer_to_the_bit(bias):
    torch.manual_seed(0)
    plain = nn.Linear(8, 12, bias=bias)
    before, x = copy.deepcopy(plain), torch.randn(16, 8)
    made = LoRALinear(plain, 3, 0.5, 0.2, (0, 2), 3)
    assert torch.equal(made(x), before(x)) and made.weight is plain.weight and made.bias is plain.bias
    names = {"weight", "lora_a", "lora_b"} | ({"bias"} if bias else set())
    assert {name for name, _ in made.named_parameters()} == names
    assert made.lora_a.abs().max() <= 8**-0.5 and made.lora_a.std() > 0.1 and not made.lora_b.any()
    assert torch.equal(made.merged()(x), before(x))


def test_dropout_acts_on_what_is_added_and_in_training_alone():
    _, made = layer((0,), 1)
    made.dropout.p = 0.5
    x = wave(64, 6, k=0.9)
    torch.manual_seed(0)
    dropped, base = made(x), F.linear(x, made.weight, made.bias)
    assert not torch.equal(dropped, made.eval()(x)) and torch.equal(made(x), made(x))
    made.lora_b.data.zero_()
    assert torch.equal(made.train()(x), base)

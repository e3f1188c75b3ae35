"""The functions against loops over rows in float64."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from ltcore_rsg import centre_loss, centre_shares, off_centre, paired_rows, repeats, same_class, vector_loss

N, D, H, W, C, J = 7, 6, 3, 5, 4, 3


@pytest.fixture
def inputs():
    generator = torch.Generator().manual_seed(1)

    def normal(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    return {
        "maps": normal(N, D, H, W),
        "weight": normal(C, D, J),
        "bias": normal(C, J),
        "centres": normal(C, J, D),
        "targets": torch.randint(C, (N,), generator=generator),
        "other": normal(N, D, H, W),
        "third": normal(N, D, H, W),
    }


def loop_shares(maps, weight, bias, targets):
    rows = []
    for n, y in enumerate(targets.tolist()):
        scores = [
            sum(float(maps[n, d].mean()) * float(weight[y, d, j]) for d in range(D)) + float(bias[y, j])
            for j in range(J)
        ]
        total = sum(math.exp(s) for s in scores)
        rows.append([math.exp(s) / total for s in scores])
    return torch.tensor(rows, dtype=torch.float64)


def test_shares_are_the_loops(inputs):
    named = {name: inputs[name] for name in ("weight", "bias", "targets")}
    shares = centre_shares(inputs["maps"].mean((2, 3)), **named)
    torch.testing.assert_close(shares, loop_shares(inputs["maps"], **named))


def test_the_expanded_square_is_the_loops_and_so_is_its_gradient(inputs):
    maps, targets = inputs["maps"], inputs["targets"]
    centres = inputs["centres"].requires_grad_()
    shares = loop_shares(maps, inputs["weight"], inputs["bias"], targets).requires_grad_()
    value = torch.zeros((), dtype=torch.float64)
    for n, y in enumerate(targets.tolist()):
        for j in range(J):
            value = value + shares[n, j] * (maps[n] - centres[y, j][:, None, None]).square().sum() / N
    expected = torch.autograd.grad(value, [centres, shares])
    loss = centre_loss(maps, centres, shares, targets)
    torch.testing.assert_close(loss, value)
    for mine, loops in zip(torch.autograd.grad(loss, [centres, shares]), expected, strict=True):
        torch.testing.assert_close(mine, loops)


def test_a_map_that_is_a_centre_has_no_loss_and_nothing_off_it(inputs):
    centres, targets = inputs["centres"], inputs["targets"]
    shares = F.one_hot(torch.arange(N) % J, J).double()
    maps = centres[targets, torch.arange(N) % J][:, :, None, None].expand(N, D, H, W)
    assert abs(float(centre_loss(maps, centres, shares, targets))) < 1e-12
    assert not off_centre(maps, centres, shares, targets).any()
    less = off_centre(inputs["maps"], centres, shares, targets)
    for n, y in enumerate(targets.tolist()):
        torch.testing.assert_close(less[n], inputs["maps"][n] - centres[y, n % J][:, None, None])


@pytest.mark.parametrize("vectors", ["stored", "locations"])
def test_the_vector_loss_is_the_loops(inputs, vectors):
    moved, variation, tail = inputs["maps"], inputs["other"], inputs["third"]

    def vectors_of(x):
        if vectors == "locations":
            return [[[float(x[n, d, h, w]) for d in range(D)] for h in range(H) for w in range(W)] for n in range(N)]
        flat = x.flatten().tolist()
        size = D * H * W
        return [[flat[n * size + k * D : n * size + (k + 1) * D] for k in range(H * W)] for n in range(N)]

    total = 0.0
    for rows in zip(vectors_of(moved), vectors_of(variation), vectors_of(tail), strict=True):
        for m, v, t in zip(*rows, strict=True):
            length = [math.sqrt(sum(x * x for x in each)) for each in (m, v, t)]
            cosine = sum(a * b for a, b in zip(m, t, strict=True)) / (length[0] * length[2])
            total += abs(length[0] - length[1]) + 1 - cosine
    assert float(vector_loss(moved, variation, tail, vectors)) == pytest.approx(total / N)


def test_the_vector_loss_is_zero_where_nothing_is_turned_or_stretched(inputs):
    for vectors in ("stored", "locations"):
        assert float(vector_loss(inputs["maps"], inputs["maps"], inputs["maps"], vectors)) == pytest.approx(0, abs=1e-9)
        turned = vector_loss(inputs["maps"], inputs["maps"], -inputs["maps"], vectors)
        assert float(turned) == pytest.approx(2 * H * W)
        stretched = vector_loss(3 * inputs["maps"], inputs["maps"], inputs["maps"], vectors)
        assert float(stretched) > 1


def test_half_a_batch_is_compared_with_the_other_half():
    assert same_class(torch.tensor([0, 1, 2, 0, 2, 2])).tolist() == [1, 0, 1]
    assert same_class(torch.tensor([0, 1, 0, 3, 9])).tolist() == [1, 0]


def test_reduced_precision_is_raised(inputs):
    half = {k: v.to(torch.bfloat16) if v.is_floating_point() else v for k, v in inputs.items()}
    shares = centre_shares(half["maps"].mean((2, 3)), half["weight"], half["bias"], half["targets"])
    loss = centre_loss(half["maps"], half["centres"], shares, half["targets"])
    vector = vector_loss(half["maps"], half["other"], half["third"], "stored")
    assert shares.dtype == loss.dtype == vector.dtype == torch.float32


# ---------------------------------------------------------------- which rows


@given(st.lists(st.booleans(), max_size=40), st.integers(0, 60))
def test_rows_are_paired_in_turn(heads, rows):
    mask = torch.tensor(heads, dtype=torch.bool)
    head, tail = paired_rows(mask, rows)
    places = [[i for i, is_head in enumerate(heads) if is_head is side] for side in (True, False)]
    if not all(places):
        assert len(head) == len(tail) == 0
        return
    assert head.tolist() == [places[0][m % len(places[0])] for m in range(rows)]
    assert tail.tolist() == [places[1][m % len(places[1])] for m in range(rows)]


def test_repeats_round_down_and_are_at_least_one():
    assert [repeats(7, 3, 1.0), repeats(3, 7, 1.0), repeats(7, 3, 0.5), repeats(9, 3, 1 / 3)] == [2, 2, 1, 1]
    assert repeats(1, 127, 1.0) == 127 and repeats(5, 5, 0.01) == 1

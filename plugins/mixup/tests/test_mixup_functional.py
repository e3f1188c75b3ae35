import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from ltcore_mixup import beta_quantile, beta_table, draw_one_label, mix_images, remix_share
from scipy import stats

ALPHAS = [0.02, 0.1, 0.2, 0.5, 0.9, 1.0, 1.1, 2.0, 5.0, 50.0, 1e3]


def quantile(uniform, alpha):
    return beta_quantile(torch.as_tensor(uniform, dtype=torch.float64), beta_table(alpha), alpha)


# -- the Beta distribution ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("alpha", ALPHAS)
def test_quantiles_agree_with_scipy(alpha):
    uniform = np.concatenate([np.linspace(0, 1, 2001)[1:-1], [1e-5, 1e-4, 1 - 1e-4, 1 - 1e-5]])
    np.testing.assert_allclose(quantile(uniform, alpha).numpy(), stats.beta.ppf(uniform, alpha, alpha), atol=1e-4)


@pytest.mark.parametrize("alpha", ALPHAS)
def test_the_distribution_function_of_a_quantile_is_what_was_asked(alpha):
    # Tails, too: an error in x where the density is high, or far from the middle, would show here.
    uniform = np.linspace(0, 1, 4001)
    back = stats.beta.cdf(quantile(uniform, alpha).numpy(), alpha, alpha)
    lower = uniform <= 0.5  # above it x is so close to 1 for small alpha that its float64 loses the tail
    np.testing.assert_allclose(back[lower], uniform[lower], atol=2e-5)


@pytest.mark.parametrize("alpha", [0.2, 1.0, 4.0])
def test_draws_follow_the_distribution(alpha):
    uniform = torch.rand(20_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert stats.kstest(quantile(uniform, alpha).numpy(), stats.beta(alpha, alpha).cdf).pvalue > 0.01


@pytest.mark.parametrize("alpha", [1e-300, 1e-8, 1e-3, 1e6, 1e300])
def test_extreme_parameters_stay_finite(alpha):
    values = quantile(np.linspace(0, 1, 101), alpha)
    assert torch.isfinite(values).all() and (values >= 0).all() and (values <= 1).all()
    near = [0.0, 1.0] if alpha < 1 else [0.5]
    assert all(min(abs(v - n) for n in near) < 0.06 for v in values[5:-5].tolist() if v != 0.5 or alpha > 1)


@given(alpha=st.floats(0.05, 20), u=st.floats(0, 1), v=st.floats(0, 1))
def test_quantiles_rise_and_are_symmetric(alpha, u, v):
    table = beta_table(alpha, 256)
    low, high = beta_quantile(torch.tensor(sorted([u, v]), dtype=torch.float64), table, alpha).tolist()
    assert 0 <= low <= high <= 1
    pair = beta_quantile(torch.tensor([u, 1 - u], dtype=torch.float64), table, alpha)
    assert math.isclose(float(pair.sum()), 1.0, abs_tol=1e-9)


def test_alpha_one_is_the_uniform_number_itself():
    uniform = torch.rand(1000, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    torch.testing.assert_close(quantile(uniform, 1.0), uniform, rtol=0, atol=1e-12)


@pytest.mark.parametrize("alpha", [0.0, -1.0, math.nan])
def test_alpha_must_be_positive(alpha):
    with pytest.raises(ValueError, match="alpha must be above 0"):
        beta_table(alpha)


# -- images ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_images_agree_with_a_loop(dtype):
    generator = torch.Generator().manual_seed(2)
    images, order = torch.randn(5, 3, 4, 4, generator=generator).to(dtype), torch.randperm(5, generator=generator)
    mixed = mix_images(images, order, torch.tensor(0.3))
    assert mixed.dtype == dtype
    for row in range(5):
        expected = 0.3 * images[row].double().numpy() + 0.7 * images[order[row]].double().numpy()
        tolerance = 3e-2 if dtype == torch.bfloat16 else 1e-6
        np.testing.assert_allclose(mixed[row].double().numpy(), expected, atol=tolerance, rtol=tolerance)


def test_share_one_is_the_images_and_share_zero_the_partners_bit_for_bit():
    images, order = torch.randn(4, 1, 2, 2), torch.tensor([2, 0, 3, 1])
    assert torch.equal(mix_images(images, order, torch.tensor(1.0)), images)
    assert torch.equal(mix_images(images, order, torch.tensor(0.0)), images[order])


def test_images_keep_their_memory_format():
    images = torch.randn(4, 3, 6, 6).to(memory_format=torch.channels_last)
    mixed = mix_images(images, torch.tensor([1, 0, 3, 2]), torch.tensor(0.4))
    assert mixed.is_contiguous(memory_format=torch.channels_last)


# -- remix -------------------------------------------------------------------------------------------------------------


def remix_by_hand(share, first, second, kappa, tau):
    if first / second >= kappa and share < tau:
        return 0.0
    if second / first >= kappa and 1 - share < tau:
        return 1.0
    return share


@given(
    share=st.integers(0, 64).map(lambda k: k / 64),
    pairs=st.lists(st.tuples(st.integers(1, 5000), st.integers(1, 5000)), min_size=1, max_size=8),
    kappa=st.sampled_from([1.5, 2.0, 3.0, 10.0]),
    tau=st.integers(0, 8).map(lambda k: k / 8),
)
def test_remix_agrees_with_a_loop(share, pairs, kappa, tau):
    first, second = torch.tensor(pairs).T
    found = remix_share(torch.tensor(share), first, second, kappa, tau)
    assert found.tolist() == [remix_by_hand(share, *pair, kappa, tau) for pair in pairs]


def test_remix_worked_by_hand():
    counts, partners = torch.tensor([300, 299, 100, 100, 100]), torch.tensor([100, 100, 300, 299, 100])
    assert remix_share(torch.tensor(0.25), counts, partners).tolist() == [0, 0.25, 0.25, 0.25, 0.25]
    assert remix_share(torch.tensor(0.75), counts, partners).tolist() == [0.75, 0.75, 1, 0.75, 0.75]
    assert remix_share(torch.tensor(0.5), counts, partners).tolist() == [0.5] * 5  # neither is below tau


@given(share=st.floats(0, 1, width=32), count=st.integers(1, 5000), tau=st.floats(0, 1))
def test_two_equal_classes_are_mixup(share, count, tau):
    counts = torch.full((3,), count)
    assert torch.equal(remix_share(torch.tensor(share), counts, counts, 1.01, tau), torch.full((3,), share))


@given(share=st.integers(0, 64).map(lambda k: k / 64), first=st.integers(1, 999), second=st.integers(1, 999))
def test_labels_lean_to_the_rarer_class_and_places_may_change(share, first, second):
    a, b = torch.tensor([first]), torch.tensor([second])
    found, swapped = remix_share(torch.tensor(share), a, b), remix_share(torch.tensor(1 - share), b, a)
    assert torch.equal(found, 1 - swapped)
    rare_image, rare_label = (share, found) if first <= second else (1 - share, 1 - found)
    assert rare_label >= rare_image


def test_tau_zero_is_mixup_bit_for_bit():
    share = torch.rand(64, generator=torch.Generator().manual_seed(3))
    counts = torch.arange(1, 65)
    assert torch.equal(remix_share(share, counts, counts.flip(0), 3.0, 0.0), share)


def test_remix_refuses_wrong_options():
    one = torch.ones(1)
    with pytest.raises(ValueError, match="kappa must be above 1, not 1"):
        remix_share(one, one, one, kappa=1.0)
    for tau in (-0.1, 1.1, math.nan):
        with pytest.raises(ValueError, match="tau must be in"):
            remix_share(one, one, one, tau=tau)


# -- a blend of blends -------------------------------------------------------------------------------------------------


def test_one_label_is_drawn_with_its_share():
    n, generator = 40_000, torch.Generator().manual_seed(4)
    first, second = torch.zeros(n, dtype=torch.int64), torch.ones(n, dtype=torch.int64)
    uniform = torch.rand(n, generator=generator)
    drawn = draw_one_label(first, second, torch.full((n,), 0.7), uniform)
    assert abs(drawn.double().mean().item() - 0.3) < 0.01
    assert torch.equal(draw_one_label(first, second, torch.ones(n), uniform), first)
    assert torch.equal(draw_one_label(first, second, torch.zeros(n), uniform), second)

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from ltcore_decoupling import class_mean_directions, cosine_logits, scaled_logits
from sklearn.datasets import load_digits
from sklearn.neighbors import NearestCentroid
from sklearn.preprocessing import normalize


def case(seed, n=5, d=4, c=3, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    made = [torch.randn(*shape, generator=generator, dtype=dtype) for shape in [(n, d), (c, d), (c,), (c,)]]
    return made[0], made[1], made[2], made[3].exp()


# -- learnable weight scaling ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bias_is", ["scaled", "kept", "none"])
def test_scaled_logits_are_those_of_a_scaled_classifier(bias_is):
    x, weight, bias, scale = case(0)
    found = scaled_logits(
        F.linear(x, weight, None if bias_is == "none" else bias), scale, bias if bias_is == "kept" else None
    )
    for row in range(5):
        for c in range(3):
            expected = sum((scale[c] * weight[c, k] * x[row, k]).item() for k in range(4))
            expected += {"scaled": scale[c] * bias[c], "kept": bias[c], "none": torch.zeros(())}[bias_is].item()
            assert found[row, c].item() == pytest.approx(expected)


def test_scaled_logits_worked_by_hand():
    # w x = (4, -2), b = (1, 3): z = (5, 1); scales 2 and 1/2 give (10, 1/2), and (8 + 1, -1 + 3) with the bias kept.
    logits, scale = torch.tensor([[5.0, 1.0]]), torch.tensor([2.0, 0.5])
    assert scaled_logits(logits, scale).tolist() == [[10.0, 0.5]]
    assert scaled_logits(logits, scale, torch.tensor([1.0, 3.0])).tolist() == [[9.0, 2.0]]


@given(seed=st.integers(0, 2**31), kept=st.booleans(), size=st.sampled_from([1e-30, 1.0, 1e30]))
def test_scale_one_is_the_logits_bit_for_bit(seed, kept, size):
    x, weight, bias, _ = (t.float() for t in case(seed))
    logits = F.linear(x, weight, bias) * size
    assert torch.equal(scaled_logits(logits, torch.ones(3), bias if kept else None), logits)


def test_gradient_of_a_scale_is_the_logit_and_without_a_bias_that_is_kept():
    x, weight, bias, scale = case(1)
    for kept in (None, bias):
        scale = scale.detach().requires_grad_()
        scaled_logits(F.linear(x, weight, bias), scale, kept).sum().backward()
        torch.testing.assert_close(scale.grad, F.linear(x, weight, bias if kept is None else None).sum(0))
        assert torch.autograd.gradcheck(lambda z, s, b=kept: scaled_logits(z, s, b), (x[:, :3].requires_grad_(), scale))


# -- nearest class mean ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def digits():
    images, targets = load_digits(return_X_y=True)
    return images[:1000], targets[:1000], images[1000:]


@pytest.mark.filterwarnings("ignore:self.within_class_std_dev_")  # pixels that are always black
def test_agrees_with_scikit_learns_nearest_centroid(digits):
    features, targets, queries = digits
    oracle = NearestCentroid().fit(normalize(features), targets)
    directions = class_mean_directions(torch.tensor(features), torch.tensor(targets), 10)
    np.testing.assert_allclose(directions.numpy(), normalize(oracle.centroids_), atol=1e-12)
    # Kang et al. normalise the means too, so that cosine and Euclidean distance agree.
    oracle.centroids_ = normalize(oracle.centroids_)
    found = cosine_logits(torch.tensor(queries), directions).argmax(1)
    assert np.array_equal(found.numpy(), oracle.predict(normalize(queries)))
    assert (found[:500] == torch.tensor(load_digits().target[1000:1500])).double().mean() > 0.8


def test_means_agree_with_a_loop():
    x, _, _, _ = case(2, n=20)
    targets = torch.arange(20) % 3
    for c, row in enumerate(class_mean_directions(x, targets, 3).numpy()):
        unit = [v / np.linalg.norm(v) for v in x[targets == c].numpy()]
        mean = np.mean(unit, axis=0)
        np.testing.assert_allclose(row, mean / np.linalg.norm(mean), rtol=1e-12)


def test_means_worked_by_hand():
    # (3, 4) and (0, 5) are (.6, .8) and (0, 1) once normalised: their lengths do not count.
    x, targets = torch.tensor([[3.0, 4.0], [0.0, 5.0], [2.0, 0.0]]), torch.tensor([0, 0, 1])
    expected = F.normalize(torch.tensor([[0.3, 0.9], [1.0, 0.0]]))
    torch.testing.assert_close(class_mean_directions(x, targets, 2), expected)
    torch.testing.assert_close(cosine_logits(torch.tensor([[0.0, 7.0]]), 4 * expected), 4 * expected[:, 1][None])


@given(seed=st.integers(0, 2**31), length=st.sampled_from([1e-6, 0.5, 1e6]))
def test_lengths_of_features_change_nothing(seed, length):
    x, _, _, _ = case(seed, n=12)
    targets = torch.arange(12) % 3
    directions = class_mean_directions(x, targets, 3)
    torch.testing.assert_close(class_mean_directions(length * x, targets, 3), directions)
    torch.testing.assert_close(cosine_logits(length * x, directions), cosine_logits(x, directions))
    assert (cosine_logits(x, directions).abs() <= 1 + 1e-12).all()
    torch.testing.assert_close(directions.norm(dim=1), torch.ones(3, dtype=torch.float64))


def test_features_that_are_zero_or_cancel_out_are_finite():
    x = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 0.0]])
    directions = class_mean_directions(x, torch.tensor([0, 0, 1]), 2)
    assert directions.tolist() == [[0, 0], [0, 0]]
    assert cosine_logits(torch.zeros(1, 2), torch.eye(2)).tolist() == [[0, 0]]


def test_dtype_is_kept():
    x = torch.randn(6, 3)
    assert class_mean_directions(x, torch.arange(6) % 2, 2).dtype == torch.float32


def test_a_class_without_images_is_named():
    with pytest.raises(ValueError, match="no training images of class 1, 3: "):
        class_mean_directions(torch.ones(2, 2), torch.tensor([0, 2]), 4)
    with pytest.raises(ValueError, match="1, 2, 3, 4, 5, 6, 7, 8 and 3 more"):
        class_mean_directions(torch.ones(1, 2), torch.tensor([0]), 12)

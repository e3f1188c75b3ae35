import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from ltcore_cifar_resnet import option_a_shortcut


def slow_shortcut(x: torch.Tensor, channels: int, stride: int) -> torch.Tensor:
    """Option A one number at a time."""
    n, d, h, w = x.shape
    before = (channels - d) // 2
    out = torch.zeros(n, channels, -(-h // stride), -(-w // stride), dtype=x.dtype)
    for i in range(n):
        for c in range(d):
            for row in range(out.shape[2]):
                for column in range(out.shape[3]):
                    out[i, before + c, row, column] = x[i, c, row * stride, column * stride]
    return out


@settings(max_examples=40, deadline=None)
@given(
    n=st.integers(1, 2),
    d=st.integers(1, 4),
    extra=st.integers(0, 5),
    h=st.integers(1, 6),
    w=st.integers(1, 6),
    stride=st.integers(1, 3),
)
def test_agrees_with_a_slow_construction(n, d, extra, h, w, stride):
    x = torch.randn(n, d, h, w)
    assert torch.equal(option_a_shortcut(x, d + extra, stride), slow_shortcut(x, d + extra, stride))


def test_worked_by_hand():
    x = torch.arange(18.0).reshape(1, 2, 3, 3)
    zeros = [[0.0, 0.0], [0.0, 0.0]]
    expected = [zeros, [[0.0, 2.0], [6.0, 8.0]], [[9.0, 11.0], [15.0, 17.0]], zeros]
    assert option_a_shortcut(x, 4, 2)[0].tolist() == expected


def test_it_is_the_identity_where_nothing_changes():
    x = torch.randn(2, 3, 4, 4)
    assert option_a_shortcut(x, 3, 1) is x


def test_has_the_size_of_a_strided_convolution():
    for size in range(1, 12):
        strided = torch.nn.Conv2d(2, 4, 3, 2, padding=1, bias=False)(torch.randn(1, 2, size, size))
        assert option_a_shortcut(torch.randn(1, 2, size, size), 4, 2).shape == strided.shape


def test_stays_channels_last():
    x = torch.randn(2, 4, 8, 8).to(memory_format=torch.channels_last)
    assert option_a_shortcut(x, 8, 2).is_contiguous(memory_format=torch.channels_last)


def test_gradcheck():
    x = torch.randn(1, 2, 3, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: option_a_shortcut(x, 4, 2), (x,))


@pytest.mark.parametrize(("channels", "stride"), [(1, 1), (4, 0)])
def test_wrong_input_is_refused(channels, stride):
    with pytest.raises(ValueError, match="no shortcut from 2"):
        option_a_shortcut(torch.zeros(1, 2, 2, 2), channels, stride)

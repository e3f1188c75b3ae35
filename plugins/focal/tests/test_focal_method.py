import math

import pytest
import torch
import torch.nn.functional as F
from ltcore_focal import Focal, FocalOptions, focal_loss
from pydantic import ValidationError


def test_defaults_and_bounds():
    assert Focal().options.gamma == 2.0
    for wrong in [{"gamma": -1}, {"gamma": math.inf}, {"gamma": math.nan}, {"gama": 1}]:
        with pytest.raises(ValidationError):
            FocalOptions(**wrong)
    with pytest.raises(ValidationError):
        Focal().options.gamma = 3.0


def test_every_option_is_described():
    assert all(field.description for field in FocalOptions.model_fields.values())


@pytest.mark.parametrize("n", [1, 8])
def test_hook_is_the_function_with_the_option(n):
    logits, targets = torch.randn(n, 5, generator=torch.Generator().manual_seed(0)), torch.arange(n) % 5
    values = Focal(FocalOptions(gamma=0.5)).compute_loss(logits=logits, targets=targets)
    assert torch.equal(values, focal_loss(logits, targets, 0.5)) and values.shape == (n,)
    assert torch.equal(
        Focal(FocalOptions(gamma=0)).compute_loss(logits=logits, targets=targets),
        F.cross_entropy(logits, targets, reduction="none"),
    )


def test_one_hook_and_no_state():
    assert Focal.compute_loss.ltcore_impl  # marked, so pluggy finds it
    assert not Focal().state_dict()

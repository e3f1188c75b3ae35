import pytest
import timm
import torch
from torch import nn

from ltcore.contract.backbone import Backbone
from ltcore.networks.timm_backbone import TimmBackbone


class Net(Backbone):
    inner_taps = ("early", "late")
    feature_dim = 3

    def __init__(self) -> None:
        super().__init__()
        self.early, self.late = nn.Conv2d(2, 4, 1), nn.Conv2d(4, 3, 1)

    def forward_maps(self, images: torch.Tensor) -> torch.Tensor:
        return self.late(self.early(images))


@pytest.mark.parametrize(
    ("make", "images"),
    [
        (Net, (5, 2, 6, 6)),
        (lambda: TimmBackbone(timm.create_model("test_resnet", num_classes=0), 3, None), (5, 3, 64, 64)),
    ],
)
def test_tap_functions_change_features_and_the_number_of_rows(make, images):
    backbone, images, met = make().eval(), torch.randn(images), []

    def at(tap):
        def change(x):
            met.append((tap, len(x)))
            return torch.cat([x, 2 * x[:1]])

        return change

    with torch.no_grad():
        plain = backbone.run(images)
        changed = backbone.run(images, at={tap: at(tap) for tap in reversed(backbone.taps)})
    assert met == [(tap, 5 + before) for before, tap in enumerate(backbone.taps)]
    torch.testing.assert_close(changed[:5], plain)
    torch.testing.assert_close(changed[-1], 2 * plain[0])
    assert len(changed) == 5 + len(backbone.taps)
    torch.testing.assert_close(backbone.run(images), plain)  # nothing stays behind
    assert not any(module._forward_hooks for module in backbone.modules())


def test_a_tap_function_that_fails_leaves_nothing_behind():
    backbone = Net()
    with pytest.raises(ZeroDivisionError):
        backbone.run(torch.randn(1, 2, 2, 2), at={"early": lambda x: 1 / 0})
    assert not backbone.early._forward_hooks and not backbone.late._forward_hooks


def test_a_run_can_begin_at_maps_or_pooled():
    backbone, images = Net(), torch.randn(4, 2, 6, 6)
    maps = backbone.forward_maps(images)
    plain = backbone(images)
    assert torch.equal(backbone.run(maps, "maps"), plain) and torch.equal(backbone.run(plain, "pooled"), plain)
    double = {"maps": lambda x: 2 * x, "pooled": lambda x: x + 1}
    torch.testing.assert_close(backbone.run(maps, "maps", double), 2 * plain + 1)
    torch.testing.assert_close(backbone.run(plain, "pooled", double), plain + 1)
    assert backbone.spatial and backbone.taps == ("early", "late", "maps", "pooled")
    assert [backbone.has_maps(tap) for tap in backbone.taps] == [True, True, True, False]

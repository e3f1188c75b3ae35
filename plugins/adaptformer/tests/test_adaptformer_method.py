"""The bottleneck against a loop in float64, and the method on timm's vision transformers."""

import numpy as np
import pytest
import torch
from ltcore_adaptformer import AdaptedBlock, AdaptFormer, AdaptFormerOptions, Bottleneck
from pydantic import ValidationError
from torch import nn

import ltcore
from ltcore import RecipeError
from ltcore.export import export
from ltcore.files import checkpoint
from ltcore.networks.timm_backbone import Timm, TimmOptions
from ltcore.plan.plan import make_plan
from ltcore.plan.text import describe
from ltcore.recipe.loading import load_recipe
from ltcore.testing import write_short_recipe

LIFT = {"bottleneck": 4, "scale": 1.0, "learn_scale": True, "norm": True, "dropout": 0.0}
SMALL = {"model": "test_vit", "arguments": {"patch_size": 4, "depth": 2}}


def network(size=16, **options):
    return Timm(TimmOptions(**{**SMALL, **options})).build_backbone(3, size)


def test_defaults_and_bounds():
    assert AdaptFormer().options.model_dump() == {
        **{"bottleneck": 64, "scale": 0.1, "learn_scale": False, "norm": False, "dropout": 0.1}
    }
    for wrong in [{"bottleneck": 0}, {"scale": 0}, {"dropout": 1.0}, {"dropout": -0.1}, {"width": 3}]:
        with pytest.raises(ValidationError):
            AdaptFormerOptions(**wrong)
    assert all(field.description for field in AdaptFormerOptions.model_fields.values())


@pytest.mark.parametrize("norm", [False, True])
def test_a_bottleneck_against_a_loop(norm):
    torch.manual_seed(0)
    made = Bottleneck(5, 3, 0.7, learn_scale=norm, norm=norm).double()
    for parameter in made.parameters():
        nn.init.normal_(parameter)
    x = torch.randn(2, 4, 5, dtype=torch.float64)
    made.requires_grad_(False)
    found, scale = made(x), float(made.scale)
    for row in x.reshape(-1, 5).split(1):
        (row,) = row
        expected, at = [], (x.reshape(-1, 5) == row).all(1).nonzero().item()
        if norm:
            mean = row.sum() / 5
            variance = ((row - mean) ** 2).sum() / 5
            row = made.norm.weight * (row - mean) / (variance + 1e-5) ** 0.5 + made.norm.bias
        inner = [max(0.0, float((made.down.weight[i] * row).sum() + made.down.bias[i])) for i in range(3)]
        for j in range(5):
            expected.append(scale * float(sum(made.up.weight[j, i] * inner[i] for i in range(3)) + made.up.bias[j]))
        torch.testing.assert_close(found.reshape(-1, 5)[at], torch.tensor(expected).double(), rtol=1e-6, atol=1e-7)


def test_initial_values():
    torch.manual_seed(0)
    made = Bottleneck(64, 48, 0.1)
    bound = 64**-0.5  # of uniform values whose deviation is that of normal ones with a = sqrt(5)
    assert made.down.weight.abs().max() <= bound and made.down.weight.std().item() == pytest.approx(
        bound / 3**0.5, rel=0.05
    )
    assert not any(each.any() for each in (made.down.bias, made.up.weight, made.up.bias))
    assert made.scale == 0.1 and isinstance(Bottleneck(4, 2, 0.5, learn_scale=True).scale, nn.Parameter)


def test_a_block_is_the_plain_one_and_what_the_bottleneck_adds():
    torch.manual_seed(0)
    plain = network()
    block = plain.model.blocks[0]
    x = torch.randn(2, 5, 64)
    before = block(x)
    adapted = AdaptedBlock(block, Bottleneck(64, 8, 0.5))
    assert torch.equal(adapted(x), before)
    nn.init.normal_(adapted.adapter.up.weight)
    middle = x + block.attn(block.norm1(x))  # no layer scale, no stochastic depth in this network
    torch.testing.assert_close(adapted(x), before + adapted.adapter(middle))
    assert not torch.allclose(adapted(x), before)


def test_layer_scale_and_stochastic_depth_do_not_reach_the_bottleneck():
    torch.manual_seed(0)
    options = {"arguments": {"patch_size": 4, "depth": 2, "init_values": 0.5}, "drop_path_rate": 0.999999}
    adapted = AdaptFormer(AdaptFormerOptions(**LIFT)).adapt_backbone(backbone=network(**options)).train()
    block = adapted.model.blocks[1]
    nn.init.normal_(block.adapter.up.weight)
    x = torch.randn(3, 5, 64)
    torch.testing.assert_close(block(x), x + block.adapter(x))  # both branches are dropped
    evaluated = block.eval()(x)
    middle = x + 0.5 * block.attn(block.norm1(x))
    expected = middle + 0.5 * block.mlp(block.norm2(middle)) + block.adapter(middle)
    torch.testing.assert_close(evaluated, expected)


@pytest.mark.parametrize("options", [{}, LIFT])
def test_at_the_beginning_nothing_has_changed_to_the_bit(options):
    torch.manual_seed(0)
    plain = network()
    images, state = torch.randn(3, 3, 16, 16), {name: value.clone() for name, value in plain.state_dict().items()}
    before, taps, spatial = plain(images), plain.taps, plain.spatial
    adapted = AdaptFormer(AdaptFormerOptions(**options)).adapt_backbone(backbone=plain)
    assert torch.equal(adapted(images), before)
    assert adapted.taps == taps == ("blocks.0", "blocks.1", "maps", "pooled") and adapted.spatial == spatial
    assert all(torch.equal(adapted.state_dict()[name], value) for name, value in state.items())


# By hand: 12 * (2 * 64 * 768 + 64 + 768), and 12 * (2 * 4 * 768 + 4 + 768 + 2 * 768 + 1). The paper's table 1 has 1.26
# million for the first with a classifier of 100 classes, 76,900.
@pytest.mark.parametrize(("options", "count"), [({}, 1_189_632), (LIFT, 101_436)])
def test_parameters_of_a_vit_b16(tmp_path, options, count):
    described = describe(recipe(tmp_path, {"model": "vit_base_patch16_224"}, plan=True, **options))
    assert described["backbone"]["adapt"][0]["parameters"] == count
    assert described["stages"][0]["trained_backbone_parameters"] == count
    assert options or round((count + 76_900) / 1e6, 2) == 1.27


def test_another_network_is_refused_with_one_message(tmp_path):
    with pytest.raises(RecipeError) as error:
        recipe(tmp_path, {"model": "test_resnet"}, plan=True)
    assert "'adaptformer' (ltcore-adaptformer 0.1.0): it adapts the blocks of timm's vision" in str(error.value)
    assert "\n" not in str(error.value)
    once = AdaptFormer().adapt_backbone(backbone=network())
    with pytest.raises(RecipeError, match="or they are adapted already"):
        AdaptFormer().adapt_backbone(backbone=once)


# In a run


def recipe(tmp_path, options=SMALL, name="r", plan=False, stages=None, adapt=("adaptformer",), methods=None, **own):
    stages = stages or [{"name": "adapt", "trainable": ["adaptformer", "classifier"]}]
    data = {"class_counts": [24, 16, 8, 4], "image_size": 16, "test_per_class": 4}
    path = write_short_recipe(
        tmp_path / f"{name}.yaml",
        backbone={"use": "timm", "options": options, "adapt": list(adapt)},
        data={"use": "synthetic", "options": data},
        methods={"adaptformer": {"options": own}} | (methods or {}),
        stages=[{"methods": [], "optimizer": {"name": "adamw", "lr": 0.01}, **each} for each in stages],
    )
    return make_plan(load_recipe(path)) if plan else path


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("adaptformer")
    return ltcore.run(recipe(folder, bottleneck=4), out=folder / "out")


def last(path):
    return checkpoint.load(sorted(path.glob("checkpoints/stage-*"))[-1])[0]


def test_a_run_is_opened_and_exports_with_its_bottlenecks(trained, tmp_path):
    again = ltcore.load(trained.path)
    images = torch.randn(5, 3, 16, 16)
    assert torch.equal(again.model(images), trained.model(images))
    assert again.model.backbone.model.blocks[1].adapter.up.weight.any()
    onnxruntime = pytest.importorskip("onnxruntime")
    assert "checked on 16 test images" in export(trained, "onnx", tmp_path / "model.onnx")[-1]
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    (found,) = session.run(["logits"], {"images": images.numpy()})
    np.testing.assert_allclose(found, trained.model(images).numpy(), rtol=0, atol=1e-5)


def test_the_hub_folder_holds_the_program_because_timm_has_no_such_model(trained, tmp_path):
    export(trained, "hub", tmp_path / "hub")
    assert (tmp_path / "hub" / "model.pt2").exists()
    assert "timm has no model of these weights" in (tmp_path / "hub" / "README.md").read_text()


def test_a_cache_is_refused_where_it_trains(tmp_path):
    stages = [{"name": "s", "epochs": 1, "trainable": ["adaptformer", "classifier"], "cache": "eval"}]
    with pytest.raises(RecipeError, match="needs a frozen backbone; 'adaptformer' trains it"):
        recipe(tmp_path, stages=stages, plan=True)


def test_killed_and_gone_on_with_to_the_bit_beside_lora_and_cosines(tmp_path, copy_at_checkpoint):
    pytest.importorskip("ltcore_lora")
    pytest.importorskip("ltcore_cosine_classifier")
    stages = [
        {"name": "s", "epochs": 2, "trainable": ["adaptformer", "lora", "classifier"], "methods": ["cosine_classifier"]}
    ]
    path = recipe(
        tmp_path,
        stages=stages,
        adapt=("lora", "adaptformer"),
        methods={"lora": {"options": {"rank": 2}}, "cosine_classifier": {}},
    )
    often = ["checkpoint_seconds=0"]
    copy_at_checkpoint(2, tmp_path / "killed" / "r")
    one = ltcore.run(path, often, out=tmp_path / "out").path
    copy_at_checkpoint()
    (other,) = (tmp_path / "killed" / "r").iterdir()
    assert not (other / "result.json").exists()
    assert ltcore.run(path, often, out=tmp_path / "killed", resume=True).path == other
    mine, theirs = last(one), last(other)
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)
    assert "model/classifier.directions" in mine and any("lora_b" in name for name in mine)
    model = ltcore.load(other).model
    with np.load(one / "predictions.npz") as found:
        assert np.isfinite(found["logits"]).all() and found["logits"].shape == (16, 4)
    assert set(model.backbone.added_by.values()) == {"lora", "adaptformer"}

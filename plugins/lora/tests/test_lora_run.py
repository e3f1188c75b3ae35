"""The method on timm's vision transformers: what trains, what is merged, what is gone on with."""

import re

import numpy as np
import pytest
import torch
from ltcore_lora import LoRA, LoRALinear, LoRAOptions
from pydantic import ValidationError
from torch import nn

import ltcore
from ltcore import RecipeError
from ltcore.export import export
from ltcore.export.deployed import deploy
from ltcore.files import checkpoint
from ltcore.networks.timm_backbone import Timm, TimmOptions
from ltcore.plan.plan import make_plan
from ltcore.plan.text import describe
from ltcore.recipe.loading import load_recipe
from ltcore.testing import write_short_recipe

ALL = ["q", "k", "v", "proj", "mlp"]
SMALL = {"model": "test_vit", "arguments": {"patch_size": 4, "depth": 2}}


def network(model="test_vit", size=16, **arguments):
    return Timm(TimmOptions(model=model, arguments=arguments or {"patch_size": 4, "depth": 2})).build_backbone(3, size)


def test_defaults_and_bounds():
    assert LoRA().options.model_dump() == {"rank": 8, "alpha": 8.0, "dropout": 0.0, "targets": ["q", "v"]}
    wrong = [{"rank": -1}, {"alpha": 0}, {"dropout": 1.0}, {"targets": []}, {"targets": ["q", "q"]}, {"targets": ["x"]}]
    for options in wrong:
        with pytest.raises(ValidationError):
            LoRAOptions(**options)
    assert all(field.description for field in LoRAOptions.model_fields.values())


# What loralib's layers have in 12 blocks of width 768, counted with its code.
@pytest.mark.parametrize(
    ("targets", "rank", "count"),
    [
        (["q", "v"], 4, 147_456),
        (["q", "v"], 8, 294_912),
        (["q", "k", "v", "proj"], 4, 294_912),
        (ALL, 4, 663_552),
        (ALL, 8, 1_327_104),
    ],
)
def test_parameters_of_a_vit_b16(tmp_path, targets, rank, count):
    described = describe(recipe(tmp_path, {"model": "vit_base_patch16_224"}, rank=rank, targets=targets, plan=True))
    assert described["backbone"]["adapt"][0]["parameters"] == count
    assert described["stages"][0]["trained_backbone_parameters"] == count


@pytest.mark.parametrize("options", [{"rank": 0}, {"rank": 4}, {"rank": 4, "targets": ALL, "dropout": 0.5}])
def test_at_the_beginning_nothing_has_changed_to_the_bit(options):
    torch.manual_seed(0)
    plain = network()
    images, state = torch.randn(3, 3, 16, 16), {name: value.clone() for name, value in plain.state_dict().items()}
    before, taps = plain(images), plain.taps
    adapted = LoRA(LoRAOptions(**options)).adapt_backbone(backbone=plain)
    assert torch.equal(adapted(images), before) and adapted.taps == taps == ("blocks.0", "blocks.1", "maps", "pooled")
    assert all(torch.equal(adapted.state_dict()[name], value) for name, value in state.items())
    assert any(isinstance(module, LoRALinear) for module in adapted.modules()) == bool(options["rank"])


def test_targets_are_the_layers_they_say():
    for targets, layers in [
        (["q"], {"attn.qkv"}),
        (["proj"], {"attn.proj"}),
        (["mlp"], {"mlp.fc1", "mlp.fc2"}),
        (["v", "k"], {"attn.qkv"}),
    ]:
        adapted = LoRA(LoRAOptions(targets=targets)).adapt_backbone(backbone=network())
        found = {name for name, module in adapted.model.named_modules() if isinstance(module, LoRALinear)}
        assert found == {f"blocks.{block}.{layer}" for block in (0, 1) for layer in layers}
        assert {m.parts for m in adapted.modules() if isinstance(m, LoRALinear)} == {(1, 2) if "k" in targets else (0,)}


def test_only_the_chosen_part_of_the_attention_changes():
    torch.manual_seed(0)
    adapted = LoRA(LoRAOptions(targets=["k"], rank=2)).adapt_backbone(backbone=network())
    layer = adapted.model.blocks[0].attn.qkv
    x = torch.randn(2, 5, layer.in_features)
    before = layer(x).chunk(3, -1)
    nn.init.normal_(layer.lora_b)
    after = layer(x).chunk(3, -1)
    assert torch.equal(before[0], after[0]) and torch.equal(before[2], after[2])
    assert not torch.allclose(before[1], after[1])


@pytest.mark.parametrize("model", ["test_resnet", "test_efficientnet"])
def test_another_network_is_refused_with_one_message(tmp_path, model):
    with pytest.raises(RecipeError) as error:
        recipe(tmp_path, {"model": model}, plan=True)
    message = str(error.value)
    assert "\n" not in message
    assert re.search(r"r\.yaml:\d+: backbone 'timm' cannot be adapted \(hook adapt_backbone\): 'lora' \(", message)
    assert "the network has none; choose one such as vit_base_patch16_224" in message


def test_the_same_layer_twice_is_refused():
    once = LoRA(LoRAOptions(targets=["q"])).adapt_backbone(backbone=network())
    LoRA(LoRAOptions(targets=["mlp"])).adapt_backbone(backbone=once)
    with pytest.raises(RecipeError, match=r"attn\.qkv is adapted already; choose other targets"):
        LoRA(LoRAOptions(targets=["v"])).adapt_backbone(backbone=once)


# In a run


def recipe(tmp_path, options=SMALL, name="r", plan=False, stages=None, methods=None, adapt=("lora",), **lora):
    stages = stages or [{"name": "adapt", "trainable": ["lora", "classifier"]}]
    data = {"class_counts": [24, 16, 8, 4], "image_size": 16, "test_per_class": 4}
    path = write_short_recipe(
        tmp_path / f"{name}.yaml",
        backbone={"use": "timm", "options": options, "adapt": list(adapt)},
        data={"use": "synthetic", "options": data},
        methods=({"lora": {"options": lora}} if "lora" in adapt else {}) | (methods or {}),
        stages=[{"methods": [], "optimizer": {"name": "adamw", "lr": 0.01}, **each} for each in stages],
    )
    return make_plan(load_recipe(path)) if plan else path


TWO = [
    {"name": "first", "epochs": 1, "trainable": ["backbone.*.weight", "backbone.*.bias", "classifier"]},
    {"name": "second", "epochs": 2, "trainable": ["lora", "classifier"]},
]


def files(path):
    return [checkpoint.load(file)[0] for file in sorted(path.glob("checkpoints/stage-*"))]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("lora")
    return ltcore.run(recipe(folder, stages=TWO, targets=ALL, rank=2), out=folder / "out")


def test_a_stage_trains_what_it_should_and_nothing_else(trained):
    first, second = files(trained.path)
    moved = {name for name in first if not torch.equal(first[name], second[name])}
    assert moved == {name for name in first if "lora_" in name or "classifier" in name}
    zero = [name for name, value in first.items() if name.endswith("lora_b") and value.any()]
    assert not zero and len([name for name in first if name.endswith("lora_b")]) == 2 * 4


def test_a_run_is_opened_and_predicts_as_it_did(trained):
    again = ltcore.load(trained.path)
    images = torch.randint(0, 256, (5, 3, 16, 16), dtype=torch.uint8)
    assert torch.equal(torch.from_numpy(again.predict(images).logits), torch.from_numpy(trained.predict(images).logits))
    assert isinstance(again.model.backbone.model.blocks[1].mlp.fc2, LoRALinear)


def test_what_is_exported_has_plain_layers_and_the_same_logits(trained):
    model = deploy(trained)
    assert not any(isinstance(module, LoRALinear) for module in model.modules())
    plain = {name for name, _ in network(size=16).named_parameters()}
    assert {name for name, _ in model.backbone.named_parameters()} == plain
    images = torch.randn(9, 3, 16, 16)
    with torch.no_grad():
        torch.testing.assert_close(model(images), trained.model(images), rtol=0, atol=1e-5)
    before = deploy(trained).backbone.model.blocks[0].attn.qkv.weight
    assert not torch.equal(before, trained.model.backbone.model.blocks[0].attn.qkv.weight)


@pytest.mark.slow
def test_onnx_has_the_adapters_merged(trained, tmp_path):
    onnxruntime, onnx = pytest.importorskip("onnxruntime"), pytest.importorskip("onnx")
    said = export(trained, "onnx", tmp_path / "model.onnx")
    assert "checked on 16 test images" in said[-1]
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    images = torch.randn(7, 3, 16, 16)
    (found,) = session.run(["logits"], {"images": images.numpy()})
    np.testing.assert_allclose(found, trained.model(images).numpy(), rtol=0, atol=1e-5)
    assert not any("lora" in each.name for each in onnx.load(tmp_path / "model.onnx").graph.initializer)


def test_timm_loads_the_hub_folder(trained, tmp_path):
    import timm

    export(trained, "hub", tmp_path / "hub")
    model = timm.create_model(f"local-dir:{tmp_path / 'hub'}", pretrained=True).eval()
    images = torch.randn(3, 3, 16, 16)
    with torch.no_grad():
        torch.testing.assert_close(model(images), trained.model(images), rtol=0, atol=1e-5)


def test_rank_zero_trains_as_without_the_method(tmp_path):
    stages = [{"name": "joint", "epochs": 2}]
    runs = [
        ltcore.run(recipe(tmp_path, name="plain", adapt=(), stages=stages), out=tmp_path / "out"),
        ltcore.run(recipe(tmp_path, name="zero", rank=0, stages=stages), out=tmp_path / "out"),
    ]
    assert np.array_equal(runs[0].logits, runs[1].logits)
    one, other = (files(run.path)[0] for run in runs)
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_a_frozen_lora_at_zero_trains_as_without_the_method(tmp_path):
    """Its initial values move no other draw of the run."""
    stages = [{"name": "joint", "epochs": 2, "trainable": ["backbone.blocks.*.weight", "classifier"]}]
    runs = [
        ltcore.run(recipe(tmp_path, name="plain", adapt=(), stages=stages), out=tmp_path / "out"),
        ltcore.run(recipe(tmp_path, name="zero", stages=stages), out=tmp_path / "out"),
    ]
    assert np.array_equal(runs[0].logits, runs[1].logits)


def test_a_cache_is_refused_where_it_trains(tmp_path):
    stages = [{"name": "s", "epochs": 1, "trainable": ["lora", "classifier"], "cache": "eval"}]
    with pytest.raises(RecipeError, match="cache 'eval' needs a frozen backbone; 'lora' trains it"):
        recipe(tmp_path, stages=stages, plan=True)
    recipe(tmp_path, stages=[{**stages[0], "trainable": ["classifier"]}], plan=True)


def run(path, out, **more):
    """Its directory."""
    return ltcore.run(path, ["checkpoint_seconds=0"], out=out, **more).path


def test_killed_and_gone_on_with_to_the_bit(tmp_path, copy_at_checkpoint):
    path = recipe(tmp_path, stages=TWO, dropout=0.3)
    copy_at_checkpoint(3, tmp_path / "killed" / "r", stage="second")
    whole = run(path, tmp_path / "out")
    copy_at_checkpoint()
    (killed,) = (tmp_path / "killed" / "r").iterdir()
    assert not (killed / "result.json").exists() and run(path, tmp_path / "killed", resume=True) == killed
    for mine, theirs in zip(files(whole), files(killed), strict=True):
        assert all(torch.equal(mine[name], theirs[name]) for name in mine)


def test_a_later_stage_goes_on_from_another_run(trained, tmp_path):
    third = [*TWO, {"name": "third", "epochs": 1, "trainable": ["classifier"]}]
    later = run(recipe(tmp_path, name="later", stages=third, targets=ALL, rank=2), tmp_path, source=trained.path)
    for mine, theirs in zip(files(trained.path), files(later)[:2], strict=True):
        assert all(torch.equal(mine[name], theirs[name]) for name in mine)
    other = recipe(tmp_path, name="other", stages=third, targets=ALL, rank=3)
    with pytest.raises(RecipeError, match="'lora', which adapts the backbone, has other options"):
        run(other, tmp_path, source=trained.path)

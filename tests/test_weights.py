import os
import pickle

import pytest
import timm
import torch
from pydantic import ValidationError
from safetensors.torch import save_file

from ltcore.errors import RecipeError
from ltcore.networks.timm_backbone import Timm, TimmOptions


def build(model="test_resnet", channels=3, size=32, **options):
    return Timm(TimmOptions(model=model, **options)).build_backbone(channels, size).eval()


@pytest.fixture
def saved(tmp_path):
    """A function that saves a model with a classifier of 7 classes as its owner would; returns model and file."""

    def save(name="test_resnet", file="weights.safetensors", wrap=lambda state: state, **arguments):
        torch.manual_seed(5)
        model = timm.create_model(name, num_classes=7, **arguments).eval()
        with torch.no_grad():
            for buffer in model.buffers():
                if buffer.is_floating_point():
                    buffer.add_(0.1)  # running statistics are weights, too
        path = tmp_path / file
        if path.suffix == ".safetensors":
            save_file(wrap(model.state_dict()), path)
        else:
            torch.save(wrap(model.state_dict()), path)
        return model, path

    return save


def same(backbone, model):
    state = backbone.model.state_dict()
    assert state and all(torch.equal(value, model.state_dict()[key]) for key, value in state.items())


@pytest.mark.parametrize("name", ["test_resnet", "test_efficientnet", "test_convnext", "test_byobnet"])
def test_a_file_of_the_model_is_loaded_without_its_classifier(saved, name):
    model, path = saved(name)
    backbone = build(name, weights=str(path))
    same(backbone, model)
    images = torch.randn(2, 3, 32, 32)
    expected = model.forward_head(model.forward_features(images), pre_logits=True)
    torch.testing.assert_close(backbone(images), expected)


def test_two_classifiers_are_both_left_out(saved):
    model, path = saved("deit_tiny_distilled_patch16_224", depth=1)
    keys = {key.split(".")[0] for key in model.state_dict()}
    assert {"head", "head_dist"} <= keys
    with torch.device("meta"), pytest.raises(RecipeError) as refused:
        build("deit_tiny_distilled_patch16_224", size=224, weights=str(path))
    assert "missing (blocks.1." in str(refused.value) and "unexpected" not in str(refused.value)  # a head would be


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: state,
        lambda state: {"state_dict": state, "epoch": 3},
        lambda state: {"model": {f"module.{key}": value for key, value in state.items()}},
        lambda state: {key: value for key, value in state.items() if "num_batches_tracked" not in key},
    ],
    ids=["plain", "state_dict", "model of several devices", "without counters"],
)
def test_what_pytorch_programs_save(saved, wrap):
    model, path = saved(file="weights.pth", wrap=wrap)
    same(build(weights=str(path)), model)


def test_a_path_is_relative_to_the_working_directory_or_the_home(saved, monkeypatch):
    model, path = saved()
    monkeypatch.chdir(path.parent)
    same(build(weights="weights.safetensors"), model)
    monkeypatch.setenv("HOME", str(path.parent))
    same(build(weights="~/weights.safetensors"), model)


def test_grey_images_take_the_sum_of_the_first_convolutions_channels(saved):
    model, path = saved()
    backbone = build(channels=1, weights=str(path))
    torch.testing.assert_close(backbone.model.conv1[0].weight, model.conv1[0].weight.sum(1, keepdim=True))
    grey = torch.randn(2, 1, 32, 32)
    expected = model.forward_head(model.forward_features(grey.expand(-1, 3, -1, -1)), pre_logits=True)
    torch.testing.assert_close(backbone(grey), expected, rtol=1e-4, atol=1e-5)


def test_a_file_for_grey_images_fits_grey_images_only(saved):
    model, path = saved(in_chans=1)
    same(build(channels=1, weights=str(path)), model)
    with pytest.raises(RecipeError, match=r"1 of another shape \(conv1\.0\.weight \[16, 1, 3, 3\] for \[16, 3, 3, 3\]"):
        build(channels=3, weights=str(path))
    with torch.device("meta"):
        build(weights=str(path))  # a plan does not know the images


def test_a_transformer_is_fitted_to_the_images(saved):
    model, path = saved("test_vit")
    native = model.pretrained_cfg["input_size"][1]
    same(build("test_vit", size=native, weights=str(path)), model)
    smaller = build("test_vit", size=native // 2, weights=str(path))
    assert torch.equal(smaller.model.blocks[0].attn.qkv.weight, model.blocks[0].attn.qkv.weight)
    assert smaller(torch.randn(2, 3, native // 2, native // 2)).shape == (2, smaller.feature_dim)
    assert smaller.model.pos_embed.shape[1] < model.pos_embed.shape[1]
    with torch.device("meta"):
        planned = build("test_vit", size=native // 2, weights=str(path))
    assert planned.model.pos_embed.shape == smaller.model.pos_embed.shape


def test_on_the_meta_device_a_file_is_compared_and_nothing_is_loaded(saved):
    _, path = saved()
    with torch.device("meta"):
        backbone = build(weights=str(path))
        assert next(backbone.parameters()).is_meta
        with pytest.raises(RecipeError, match="does not fit 'test_efficientnet'"):
            build("test_efficientnet", weights=str(path))


# -- what is refused -------------------------------------------------------------------------------------------------


def test_another_networks_file_is_refused_with_the_first_names_and_counts(saved):
    _, path = saved()
    with pytest.raises(RecipeError) as refused:
        build("resnet18", weights=str(path))
    message = str(refused.value)
    assert message.startswith(f"backbone.options.weights: {path} does not fit 'resnet18': of its 120 tensors")
    for what in (
        "missing (conv1.weight, layer1.1.conv1.weight, layer1.1.bn1.weight, ...); ",
        "unexpected (conv1.0.weight",
    ):
        assert what in message
    assert "of another shape (bn1.weight [32] for [64], " in message and "num_batches" not in message
    assert "\n" not in message and len(message) < 700


def test_a_key_too_many_and_one_too_few(saved):
    def wrap(state):
        return {("layer9.weight" if key == "conv1.0.weight" else key): value for key, value in state.items()}

    _, path = saved(wrap=wrap)
    with pytest.raises(RecipeError, match=r"1 missing \(conv1\.0\.weight\); 1 unexpected \(layer9\.weight\)\. Name"):
        build(weights=str(path))


def test_cifar_stem_does_not_take_a_file_with_the_other_stem(saved):
    _, path = saved("resnet18")
    with pytest.raises(RecipeError, match=r"1 of another shape \(conv1\.weight \[64, 3, 7, 7\] for \[64, 3, 3, 3\]\)"):
        build("resnet18", weights=str(path), cifar_stem=True)


class Code:
    def __reduce__(self):
        return os.mkdir, ("made-by-a-pickle",)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("write", [torch.save, lambda content, path: path.write_bytes(pickle.dumps(content))])
def test_code_in_a_file_is_refused_and_not_run(tmp_path, monkeypatch, write):
    monkeypatch.chdir(tmp_path)
    write({"conv1.weight": Code()}, tmp_path / "weights.pth")
    with pytest.raises(RecipeError, match=r"weights\.pth holds more than tensors, or is damaged"):
        build(weights="weights.pth")
    assert not (tmp_path / "made-by-a-pickle").exists()


@pytest.mark.parametrize("name", ["weights.safetensors", "weights.pth"])
def test_unreadable_files_are_refused(tmp_path, saved, name):
    with pytest.raises(RecipeError, match=r"backbone\.options\.weights: .*weights\.\w+ is not there"):
        build(weights=str(tmp_path / name))
    _, path = saved(file=name)
    whole = path.read_bytes()
    for content in (b"", b"no weights at all", whole[: len(whole) // 2]):
        path.write_bytes(content)
        with pytest.raises(RecipeError, match=r"is neither a safetensors file nor|holds more than tensors") as refused:
            build(weights=str(path))
        assert "\n" not in str(refused.value)
    path.unlink()
    path.mkdir()
    with pytest.raises(RecipeError, match="is not there"):
        build(weights=str(path))


@pytest.mark.parametrize("content", [[torch.zeros(2)], {"a": torch.zeros(2), "b": 3}, torch.zeros(2)])
def test_a_file_without_a_state_dict_is_refused(tmp_path, content):
    torch.save(content, tmp_path / "weights.pth")
    with pytest.raises(RecipeError, match="holds no state dict"):
        build(weights=str(tmp_path / "weights.pth"))


def test_pretrained_and_weights_exclude_each_other():
    with pytest.raises(ValidationError, match=r"pretrained loads timm's weights and weights those of a file; keep one"):
        TimmOptions(model="resnet18", pretrained=True, weights="weights.safetensors")


def test_the_command_line_says_where_it_is_in_the_recipe(cli, write_recipe, saved):
    _, path = saved()
    recipe = write_recipe(backbone=f"{{use: timm, options: {{model: resnet18, weights: {path}}}}}")
    failed = cli("plan", recipe)
    assert failed.code == 2 and "does not fit 'resnet18'" in failed.err and f"{recipe}:2: " in failed.err
    recipe = write_recipe(backbone=f"{{use: timm, options: {{model: test_resnet, weights: {path}}}}}")
    assert cli("plan", recipe).code == 0


@pytest.mark.parametrize("prefix", ["_orig_mod.", "model.", "backbone.", "encoder_q.", "module._orig_mod."])
def test_a_prefix_of_all_names_is_left_out(saved, prefix):
    model, path = saved(wrap=lambda state: {f"{prefix}{key}": value for key, value in state.items()})
    same(build(weights=str(path)), model)


def test_a_prefix_of_some_names_is_named(saved):
    def wrap(state):
        return {f"net.{key}": value for key, value in state.items()} | {"loss.weight": torch.ones(7)}

    _, path = saved(wrap=wrap)
    with pytest.raises(RecipeError) as refused:
        build(weights=str(path))
    count = len(build().model.state_dict())
    assert f"{count} of them stand there under 'net.', beside other names: save these alone" in str(refused.value)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_values_that_are_not_finite_are_refused_by_name(saved, value, device):
    def wrap(state):
        state["conv1.0.weight"][0, 0, 0, 0] = value
        state["fc.weight"][0, 0] = value  # the classifier's are not read
        return state

    _, path = saved(wrap=wrap)
    with torch.device(device), pytest.raises(RecipeError) as refused:
        build(weights=str(path))
    assert "not finite in 1 of its tensors (conv1.0.weight)" in str(refused.value) and str(path) in str(refused.value)


def test_averaged_weights_beside_the_others_are_said_to_be_there(saved):
    def wrap(state):
        return {"state_dict": state, "state_dict_ema": {key: 2 * value for key, value in state.items()}}

    model, path = saved(file="weights.pth", wrap=wrap)
    backbone = build(weights=str(path))
    same(backbone, model)
    (note,) = backbone.pretraining.notes
    assert f"{path} also holds state_dict_ema" in note and "'state_dict' is read" in note
    _, alone = saved(file="weights.pth", wrap=lambda state: {"state_dict_ema": state})
    backbone = build(weights=str(alone))
    same(backbone, model)
    assert backbone.pretraining.notes == ()


def test_a_network_that_timm_cannot_change_loads_where_shapes_agree(saved):
    model, path = saved("xcit_nano_12_p16_224", depth=1)
    assert not hasattr(model, "set_input_size")
    weights = {"weights": str(path)}
    backbone = Timm(TimmOptions(model="xcit_nano_12_p16_224", **weights))
    real = timm.create_model
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(timm, "create_model", lambda name, **arguments: real(name, depth=1, **arguments))
        built = backbone.build_backbone(3, 64).eval()
    same(built, model)
    assert built(torch.randn(1, 3, 64, 64)).shape == (1, 128)


def test_a_network_that_takes_one_size_only_is_refused_in_words(saved):
    _, path = saved("convit_tiny", depth=1)
    real = timm.create_model
    with pytest.MonkeyPatch.context() as patch, pytest.raises(RecipeError) as refused:
        patch.setattr(timm, "create_model", lambda name, **arguments: real(name, depth=1, **arguments))
        build("convit_tiny", size=64, weights=str(path))
    text = str(refused.value)
    assert "cannot be changed to images of 64 pixels; set data.transform.image_size to 224" in text
    assert "Error" not in text

"""The readers of recipes, data sets and weights: valid files, how they are spoilt, and who reads them."""

from __future__ import annotations

import gzip
import io
import json
import pickle
import struct
import zipfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch
import yaml
from PIL import Image
from safetensors.torch import save as to_safetensors
from torch import nn

from fuzzing.forked import Files, Reader
from fuzzing.mutation import (
    ODD_TEXT,
    json_text,
    mutated_bytes,
    mutated_json,
    mutated_safetensors,
    mutated_text,
    mutated_value,
)
from ltcore.data.counts import read_counts
from ltcore.data.image_list import ImageList, ImageListOptions
from ltcore.data.image_table import ImageTable
from ltcore.data.inaturalist import INaturalist2018
from ltcore.data.npz import Npz, NpzOptions
from ltcore.data.torchvision_sets import CIFAR10LT, CIFAR100LT, FASHION_STEMS, FashionMNISTLT
from ltcore.networks.weights import load_weights
from ltcore.recipe.loading import load_recipe
from ltcore.recipe.yaml_source import dump_yaml

RECIPES = Path(__file__).parents[2] / "recipes"
NETWORK = "backbone: {use: cifar_resnet, options: {depth: 8, width: 4}}\n"
STAGE = "stages: [{name: joint, epochs: 1, batch_size: 8, optimizer: {name: sgd, lr: 0.05}}]\n"
SEEDS = (
    *("digits_lt_ofa_focal", "digits_lt_glag", "digits_lt_stg_selected", "digits_lt_count_norm", "digits_lt_safa"),
    *("cifar10_lt_cdt_selected", "cifar100_lt_mislas", "imagenet_lt_resnext50_ldam_drs", "photos_lt_safa_ldam"),
)
CHILD = """extends: parent.yaml
description: a child
stages:
  joint: {epochs: 2, methods: [focal]}
methods: &m {focal: {}}
"""


def in_text(text: str, rng: Random) -> bytes:
    """Text spoilt as text, or as bytes."""
    if rng.random() < 0.75:
        return mutated_text(rng, text).encode("utf-8", "surrogatepass")
    return mutated_bytes(rng, text.encode())


def describes(folder: Path) -> list[str]:
    """The command that reads a data set."""
    return ["data", "describe", str(folder / "d.yaml")]


# ---------------------------------------------------------------- recipes


def _recipes(folder: Path) -> None:
    for name in SEEDS:
        (folder / f"{name}.seed").write_text(dump_yaml(load_recipe(RECIPES / f"{name}.yaml").source))
    (folder / "parent.yaml").write_text("data: {use: digits_lt}\n" + NETWORK + STAGE)
    (folder / "child.seed").write_text(CHILD)
    (folder / "r.yaml").write_text(CHILD)


def _spoilt_recipe(rng: Random, folder: Path) -> Files:
    text = rng.choice(sorted(folder.glob("*.seed"))).read_text()
    if rng.random() < 0.5:
        value = mutated_value(rng, yaml.safe_load(text))
        shown = json_text(rng, value) if rng.random() < 0.5 else yaml.safe_dump(value, allow_unicode=True)
        return {"r.yaml": shown.encode("utf-8", "surrogatepass")}
    return {"r.yaml": in_text(text, rng)}


SETS = (
    *("seed=1", "name=a", "stages.joint.epochs=4", "stages.0.optimizer.lr=1e-3", "data.options.root=/x", "methods={}"),
    *("stages.joint.optimizer={name: sgd, lr: 0.1, nesterov: true, momentum: 0.9}", "backbone.options.width=2"),
    *("stages.joint.trainable=[backbone, classifier]", "data.imbalance={kind: step, factor: 10}", "calibrate=[]"),
    *("stages.joint.schedule={name: multistep, milestones: [1], gamma: 0.1}", "device=cpu", "data.holdout=2"),
)


def _one_recipe(folder: Path) -> None:
    (folder / "d.yaml").write_text("data: {use: digits_lt}\n" + NETWORK + STAGE)
    (folder / "set.txt").write_text(SETS[0])


def _spoilt_set(rng: Random, folder: Path) -> Files:
    text = rng.choice(SETS)
    path, _, value = text.partition("=")
    way = rng.random()
    if way < 0.3:
        text = mutated_text(rng, text, 2)
    elif way < 0.5:
        text = f"{path}={rng.choice(ODD_TEXT)}"
    elif way < 0.7:
        text = f"{path}={json_text(rng, mutated_value(rng, yaml.safe_load(value)))}"
    elif way < 0.85:
        keys = path.split(".")
        keys[rng.randrange(len(keys))] = rng.choice(ODD_TEXT)
        text = f"{'.'.join(keys)}={value}"
    else:
        return {"set.txt": mutated_bytes(rng, text.encode(), 2)}
    return {"set.txt": text.encode("utf-8", "surrogatepass")}


def _the_set(folder: Path) -> str:
    """As the system hands over an argument."""
    return (folder / "set.txt").read_bytes()[:100_000].decode("utf-8", "surrogateescape")


# ---------------------------------------------------------------- lists


def _images(folder: Path, pattern: str = "{label}/{number}.png") -> list[tuple[str, int]]:
    """Sixteen small images of three classes."""
    made = []
    for number in range(16):
        label = (0, 0, 1, 2)[number % 4]
        path = folder / pattern.format(label=f"class {label}", number=number)
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((8, 8, 3), number, np.uint8)).save(path)
        made.append((str(path.relative_to(folder)), label))
    return made


def _lists(folder: Path, suffix: str = "txt", line: str = "{} {}", head: str = "") -> None:
    images = _images(folder)
    for split, part in (("train", images[:8]), ("test", images[8:])):
        rows = [line.format(*image) for image in part]
        (folder / f"{split}.{suffix}").write_text("\n".join([*([head] if head else []), *rows]) + "\n")
    (folder / "names.txt").write_text("cat\ndog\nelk\n")
    use, options = "image_list", "train: train.txt, test: test.txt, class_names: names.txt"
    if suffix == "csv":
        use, options = "image_table", "table: train.csv, test: test.csv"
    source = f"data: {{use: {use}, options: {{root: '{folder}', {options}}}}}\n"
    (folder / "d.yaml").write_text(source + NETWORK + STAGE)


def _spoilt_lists(rng: Random, folder: Path, suffix: str = "txt") -> Files:
    name = rng.choice((f"train.{suffix}", f"train.{suffix}", f"test.{suffix}", "names.txt"))
    return {name: in_text((folder / name).read_text(), rng)}


def _opened_lists(folder: Path) -> Callable[[], None]:
    names = {"train": "train.txt", "test": "test.txt", "class_names": "names.txt"}
    data = ImageList(ImageListOptions(root=str(folder), **names))
    return lambda: _read(data.build_data)


def _opened_table(folder: Path) -> Callable[[], None]:
    data = ImageTable(ImageTable.Options(root=str(folder), table="train.csv", test="test.csv"))
    return lambda: _read(data.build_data)


def _read(build: Callable[[], object]) -> None:
    build()


# ---------------------------------------------------------------- JSON

_ANNOTATIONS = ("train2018.json", "val2018.json")


def _annotations(folder: Path) -> None:
    images = _images(folder, "train_val2018/{label}/{number}.jpg")
    for name, part in zip(_ANNOTATIONS, (images[:8], images[8:]), strict=True):
        content = {
            "images": [{"id": number, "file_name": file} for number, (file, _) in enumerate(part)],
            "annotations": [{"image_id": number, "category_id": 5 + label} for number, (_, label) in enumerate(part)],
            "categories": [{"id": 5 + label, "name": f"kind {label}"} for label in range(3)],
        }
        (folder / name).write_text(json.dumps(content))
    (folder / "counts.json").write_text('{"class_counts": [120, 40, 8]}')
    data = f"data: {{use: inaturalist2018, options: {{root: '{folder}', subset: true}}}}\n"
    (folder / "d.yaml").write_text(data + NETWORK + STAGE)


def _spoilt_annotations(rng: Random, folder: Path) -> Files:
    name = rng.choice((*_ANNOTATIONS, *_ANNOTATIONS, "counts.json"))
    return {name: mutated_json(rng, (folder / name).read_text())}


def _opened_annotations(folder: Path) -> Callable[[], None]:
    data = INaturalist2018(INaturalist2018.Options(root=str(folder), subset=True))

    def read() -> None:
        read_counts(folder / "counts.json")
        data.build_data()

    return read


# ---------------------------------------------------------------- arrays


def _arrays() -> dict[str, Any]:
    draw = np.random.default_rng(0)
    made: dict[str, Any] = {}
    for split, labels in (("train", [0] * 6 + [1] * 3 + [2] * 2), ("val", [0, 1, 2]), ("test", [0, 1, 2, 0])):
        made[f"{split}_images"] = draw.integers(0, 256, (len(labels), 6, 6, 3), dtype=np.uint8)
        made[f"{split}_labels"] = np.array(labels)
    return made


def _npz(folder: Path) -> None:
    np.savez_compressed(folder / "d.npz", **_arrays())
    (folder / "d.yaml").write_text(f"data: {{use: npz, options: {{path: '{folder / 'd.npz'}'}}}}\n" + NETWORK + STAGE)


_DTYPES = (*("float64", "float16", "int8", "uint64", "bool", "complex64", "U4", "S4", "O", "M8[s]", ">i2", "V3"), "u1")
_SHAPES = ((), (0,), (1,), (-1,), (1, -1), (-1, 1), (2, -1), (1, 1, 1, 1, -1), (0, 6, 6, 3), (11, 108), (11, 4, 27))


def _spoilt_npz(rng: Random, folder: Path) -> Files:
    if rng.random() < 0.35:
        return {"d.npz": mutated_bytes(rng, (folder / "d.npz").read_bytes())}
    arrays = _arrays()
    for _ in range(rng.randint(1, 2)):
        key = rng.choice(list(arrays))
        match rng.randrange(7):
            case 0:
                arrays[key] = _cast(arrays[key], rng.choice(_DTYPES))
            case 1:
                shape = rng.choice(_SHAPES)
                size = int(np.prod([abs(n) for n in shape]))
                arrays[key] = np.resize(arrays[key], size).reshape(shape) if size else np.zeros(shape)
            case 2:
                del arrays[key]
            case 3:
                arrays[rng.choice(("", "x", "../x", "é", "train_images.npy", "a" * 300))] = arrays[key]
            case 4:
                odd = rng.choice((-1, 3, 255, 10**9, 2**62, float("nan"), float("inf"), 0.5))
                arrays[key] = _cast(arrays[key].real, "float64" if isinstance(odd, float) else "int64")
                if arrays[key].size:
                    arrays[key].flat[rng.randrange(arrays[key].size)] = odd
            case 5:
                arrays[key] = np.array(rng.choice((None, "text", b"bytes", {"a": 1}, [1, [2]])), dtype=object)
            case _:
                arrays[key] = arrays[rng.choice(list(arrays))]
        if not arrays:
            break
    return {"d.npz": _stored(rng, arrays)}


def _cast(array: Any, dtype: str) -> Any:
    try:
        return array.astype(dtype)
    except (TypeError, ValueError, RuntimeError):
        return np.zeros(array.shape, dtype=dtype)


def _stored(rng: Random, arrays: dict[str, Any]) -> bytes:
    """The file, now and then with an array's head that promises something else than follows, or a key twice."""
    out = io.BytesIO()
    spoil = rng.random() < 0.3 and arrays
    chosen = rng.choice(list(arrays)) if arrays else ""
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for key, array in arrays.items():
            member = io.BytesIO()
            np.lib.format.write_array(member, np.asarray(array), allow_pickle=True)
            content = member.getvalue()
            if spoil and key == chosen:
                content = _other_head(rng, content)
            archive.writestr(zipfile.ZipInfo(f"{key}.npy"), content)
    return out.getvalue()


def _other_head(rng: Random, content: bytes) -> bytes:
    end = content.index(b"\n") + 1
    head = content[10:end].decode("latin-1").strip()
    claims = ("(100000, 64, 64)", "(99999999999, 6, 6, 3)", "(-1,)", "(2, 3", "('a',)", "()", "(1.5,)", "(None,)")
    head = rng.choice(
        (
            head[: head.index("'shape'")] + f"'shape': {rng.choice(claims)}, }}",
            head.replace("'descr': ", f"'descr': {rng.choice(('[', '{}', '1', repr('|V9'), repr('O')))} or "),
            mutated_text(rng, head, 2),
            "[" * rng.choice((50, 500, 9_000)),
        )
    )
    encoded = head.encode("utf-8", "surrogatepass") + b"\n"
    return content[:8] + struct.pack("<H", len(encoded) & 0xFFFF) + encoded + content[end:]


def _idx(folder: Path) -> None:
    draw = np.random.default_rng(0)
    for number, (images, labels) in enumerate(FASHION_STEMS.values()):
        pixels = draw.integers(0, 256, (20, 6, 6), dtype=np.uint8)
        content = struct.pack(">4B3I", 0, 0, 8, 3, 20, 6, 6) + pixels.tobytes()
        numbers = struct.pack(">4BI", 0, 0, 8, 1, 20) + bytes(range(10)) * 2
        for stem, what in ((images, content), (labels, numbers)):
            name = f"{stem}.gz" if number else stem
            (folder / name).write_bytes(gzip.compress(what, mtime=0) if number else what)
    options = f"options: {{root: '{folder}'}}, imbalance: null"
    (folder / "d.yaml").write_text(f"data: {{use: fashion_mnist_lt, {options}}}\n" + NETWORK + STAGE)
    # Members of 10 MB of zeros in 10 kB each, one behind the other: 1.5 GB once it is unpacked.
    (folder / "bomb").write_bytes(gzip.compress(bytes(10_000_000), mtime=0) * 150)


def _spoilt_idx(rng: Random, folder: Path) -> Files:
    name = rng.choice([path.name for path in sorted(folder.iterdir()) if "ubyte" in path.name])
    content = (folder / name).read_bytes()
    packed = name.endswith(".gz")
    way = rng.random()
    if packed and way < 0.02:
        return {name: (folder / "bomb").read_bytes()}
    if way < 0.4:
        return {name: mutated_bytes(rng, content)}
    raw = bytearray(gzip.decompress(content) if packed else content)
    if way < 0.7:
        at = rng.choice((0, 1, 2, 3, 4, 8, 12))
        raw[at : at + 4] = struct.pack(">I", rng.choice((0, 1, 2, 8, 19, 21, 2**16, 2**31, 2**32 - 1)))
    else:
        raw = bytearray(mutated_bytes(rng, bytes(raw)))
    return {name: gzip.compress(bytes(raw), mtime=0) if packed else bytes(raw)}


def _cifar(folder: Path) -> None:
    """Batches of CIFAR's form; their checksums are not the published ones, so that none may be unpickled."""
    draw = np.random.default_rng(0)
    for data, key in ((CIFAR10LT, "labels"), (CIFAR100LT, "fine_labels")):
        place = folder / data.folder
        place.mkdir()
        for name in data.files:
            rows = {"data": draw.integers(0, 256, (4, 3072), dtype=np.uint8), key: [0, 1, 2, 3]}
            names = {"label_names": list("abcdefghij"), "fine_label_names": [str(n) for n in range(100)]}
            (place / name).write_bytes(pickle.dumps(names if "meta" in name else rows))
    data_part = f"data: {{use: cifar10_lt, options: {{root: '{folder}'}}}}\n"
    (folder / "d.yaml").write_text(data_part + NETWORK + STAGE)


class _Runs:
    """What a pickle of a stranger may do when it is opened."""

    def __reduce__(self) -> tuple[Any, ...]:
        import os

        return os.system, ("touch /tmp/a_pickle_was_run",)


def _spoilt_cifar(rng: Random, folder: Path) -> Files:
    data = rng.choice((CIFAR10LT, CIFAR100LT))
    name = f"{data.folder}/{rng.choice(data.files)}"
    content = (folder / name).read_bytes()
    if rng.random() < 0.2:
        return {name: pickle.dumps(rng.choice(([_Runs()], {"data": _Runs()}, None, 1, "x" * 10_000)))}
    return {name: mutated_bytes(rng, content)}


def _opened_cifar(folder: Path) -> Callable[[], None]:
    sets = [data(data.Options(root=str(folder))) for data in (CIFAR10LT, CIFAR100LT)]
    turn = iter(range(10**9))
    return lambda: _read(sets[next(turn) % 2].build_data)


# ---------------------------------------------------------------- weights


class _Net(nn.Module):
    """A network as timm makes them, but small."""

    def __init__(self) -> None:
        super().__init__()
        self.pretrained_cfg = {"first_conv": "conv", "classifier": "fc"}
        self.conv, self.norm = nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4)


def _state() -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)
    state: dict[str, Any] = {key: value.clone() for key, value in _Net().state_dict().items()}
    state |= {"fc.weight": torch.zeros(5, 4), "fc.bias": torch.zeros(5)}
    return {
        key: torch.randn(value.shape, generator=generator) if value.is_floating_point() else value
        for key, value in state.items()
    }


def _weights(folder: Path) -> None:
    for name, content in _saved(_state()).items():
        (folder / name).write_bytes(content)


def _saved(content: Any) -> dict[str, bytes]:
    out = io.BytesIO()
    torch.save(content, out)  # PyTorch's older format holds addresses, so it is another file in every run
    files = {"w.pt": out.getvalue()}
    if isinstance(content, dict) and all(isinstance(value, torch.Tensor) for value in content.values()):
        files["w.safetensors"] = to_safetensors({str(key): value.contiguous() for key, value in content.items()})
    return files


def _odd_tensors(rng: Random) -> list[Any]:
    one = torch.randn(4, 3, 3, 3, generator=torch.Generator().manual_seed(rng.randrange(100)))
    return [
        *(one * float("nan"), one * float("inf"), one[:, :1], one[:2], one.double(), one.half(), one.to(torch.int8)),
        *(one.bool(), one.to(torch.complex64), torch.zeros(0), torch.tensor(1.0), one.to_sparse(), torch.zeros(4)),
        *(None, 1, "text", [one], {"weight": one}, (one, one), torch.Size([1]), torch.float32, _Runs()),
    ]


def _spoilt_weights(rng: Random, folder: Path) -> Files:
    way = rng.random()
    if way < 0.5:
        name = rng.choice(("w.pt", "w.safetensors"))
        content = (folder / name).read_bytes()
        if name == "w.safetensors":
            return {name: mutated_safetensors(rng, content)}
        if name == "w.pt" and rng.random() < 0.6:
            return {name: _other_member(rng, content)}
        return {name: mutated_bytes(rng, content)}
    state: Any = _state()
    for _ in range(rng.randint(1, 3)):
        key = rng.choice(list(state))
        match rng.randrange(5):
            case 0:
                state[key] = rng.choice(_odd_tensors(rng))
            case 4 if isinstance(state[key], torch.Tensor) and state[key].is_floating_point():
                state[key] = state[key] * rng.choice((float("nan"), float("inf")))
            case 1:
                del state[key]
            case 2:
                state[rng.choice((*ODD_TEXT, 1, None, (1, 2), "module.conv.weight", "conv.bias"))] = state[key]
            case _:
                prefix = rng.choice(("module.", "model.", "_orig_mod.", "backbone.", "encoder_q."))
                state = {f"{prefix}{name}": value for name, value in state.items()}
        if not state:
            break
    around = rng.random()
    if around < 0.3:
        key = rng.choice(("state_dict", "model", "state_dict_ema", "net"))
        state = {key: state, "epoch": 3, "args": rng.choice((None, {"lr": 0.1}, _Runs()))}
    elif around < 0.35:
        state = rng.choice(([state], None, 1, "text", torch.zeros(2), {}))
    try:
        files = _saved(state)
    except Exception:  # not every odd thing can be saved
        files = {"w.pt": b"", "w.safetensors": b""}
    name = rng.choice(sorted(files))
    return {name: files[name]}


def _other_member(rng: Random, content: bytes) -> bytes:
    """A PyTorch file of which one member is spoilt, with the checksums of a whole archive."""
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as archive, zipfile.ZipFile(out, "w") as changed:
        names = archive.namelist()
        chosen = rng.choice([name for name in names if name.endswith(".pkl")] * 3 + names)
        for name in names:
            member = archive.read(name)
            changed.writestr(name, mutated_bytes(rng, member) if name == chosen else member)
    return out.getvalue()


def _opened_weights(folder: Path) -> Callable[[], str]:
    """Reads the newest of the three files; says where a network with values that are not finite comes out."""
    valid = {path: path.read_bytes() for path in folder.glob("w.*")}

    def read() -> str:
        changed = [path for path, content in valid.items() if path.read_bytes() != content]
        for path in changed or list(valid)[:1]:
            net = _Net()
            load_weights(net, str(path), "net")
            if not all(bool(torch.isfinite(value).all()) for value in net.state_dict().values()):
                return "weights that are not finite"
        return ""

    return read


READERS: Sequence[Reader] = (
    Reader(
        "recipe",
        _recipes,
        _spoilt_recipe,
        lambda folder: lambda: _read(partial(load_recipe, folder / "r.yaml")),
        lambda folder: ["plan", str(folder / "r.yaml")],
    ),
    Reader(
        "set",
        _one_recipe,
        _spoilt_set,
        lambda folder: lambda: _read(lambda: load_recipe(folder / "d.yaml", [_the_set(folder)])),
        lambda folder: ["plan", str(folder / "d.yaml"), f"--set={_the_set(folder)}"],
    ),
    Reader("image_list", _lists, _spoilt_lists, _opened_lists, describes),
    Reader(
        "csv",
        partial(_lists, suffix="csv", line="{},{}", head="file,label"),
        partial(_spoilt_lists, suffix="csv"),
        _opened_table,
        describes,
    ),
    Reader("json", _annotations, _spoilt_annotations, _opened_annotations, describes),
    Reader(
        "npz",
        _npz,
        _spoilt_npz,
        lambda folder: lambda: _read(Npz(NpzOptions(path=str(folder / "d.npz"))).build_data),
        describes,
    ),
    Reader(
        "idx",
        _idx,
        _spoilt_idx,
        lambda folder: lambda: _read(FashionMNISTLT(FashionMNISTLT.Options(root=str(folder))).build_data),
        describes,
    ),
    Reader("cifar", _cifar, _spoilt_cifar, _opened_cifar, describes),
    Reader("weights", _weights, _spoilt_weights, _opened_weights),
)

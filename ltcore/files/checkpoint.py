"""Checkpoints: one safetensors file, tensors beside plain data, written atomically and loaded without pickle.

Each carries a digest of what it holds, so that a file which was damaged on its way is refused, whatever the damage.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from textwrap import shorten
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_bytes
from torch import Tensor, nn

from ltcore import ranks
from ltcore.errors import RunError
from ltcore.files.writing import write_atomically
from ltcore.untrusted import parse_json

#: What a reader of a checkpoint is told to do where nothing else is known.
ANEW = "Begin the run anew, without --resume"


class Damaged(RunError):
    """A file does not hold what was written into it, or was not written by this version of ltcore."""


def save(path: Path, tensors: dict[str, Tensor], state: dict[str, Any]) -> None:
    """Write tensors and JSON-able state into one file, with a digest of both.

    Raises:
        RunError: it cannot be written.
    """
    if not ranks.leading():
        return
    plain = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    text = json.dumps(state)
    # One entry only: safetensors writes several in an order that differs from process to process.
    content = json.dumps({"digest": _digest(plain, text), "state": text})
    write_atomically(path, to_bytes(plain, metadata={"ltcore": content}))


def load(
    path: Path, device: torch.device | str = "cpu", advice: str = ANEW
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what `save` wrote.

    Args:
        path: the file.
        device: where the tensors are wanted.
        advice: what to do, for the message about a file that cannot be used.

    Raises:
        Damaged: the file is missing, is damaged, or another version of ltcore wrote it.
    """
    try:
        with safe_open(path, framework="pt") as file:
            written = (file.metadata() or {}).get("ltcore")
            # Copies: what safetensors gives is the file itself, which may be another one before a tensor is used.
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}
        if written is None:
            raise ValueError("it has no digest; another program or another version of ltcore wrote it")
        content = parse_json(written)
        if _digest(tensors, content["state"]) != content["digest"]:
            raise ValueError("its content is not what was written: the digest is another")
        state: dict[str, Any] = parse_json(content["state"])
    except (OSError, SafetensorError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise Damaged(f"{path}: not a readable checkpoint ({error}). {advice}") from error
    return {name: tensor.to(device) for name, tensor in tensors.items()}, state


def digest_of(path: Path) -> str:
    """The digest of what a file holds, as `save` wrote it.

    Raises:
        Damaged: there is none.
    """
    try:
        with safe_open(path, framework="pt") as file:
            digest: str = parse_json((file.metadata() or {})["ltcore"])["digest"]
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise Damaged(f"{path}: not a readable checkpoint ({error}). {ANEW}") from error
    return digest


def _digest(tensors: dict[str, Tensor], text: str) -> str:
    """SHA-256 of names, types, shapes and values of tensors on the CPU, in any order, and of the state's text."""
    digest = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"\0{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
        if tensor.numel():
            digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def model_tensors(model: nn.Module) -> dict[str, Tensor]:
    """The model's parameters and buffers, named ``model/...``."""
    return {f"model/{name}": tensor for name, tensor in model.state_dict().items()}


def restore_model(model: nn.Module, tensors: dict[str, Tensor], path: Path) -> None:
    """Copy the ``model/...`` tensors into the model.

    Raises:
        RunError: names or shapes differ, as when a plugin's version changed between the two runs.
    """
    found = {name.removeprefix("model/"): t for name, t in tensors.items() if name.startswith("model/")}
    try:
        model.load_state_dict(found, strict=True)
    except RuntimeError as error:
        problem = shorten(str(error).split("\n", 1)[-1], 300)
        raise RunError(f"{path} does not fit this recipe's model: {problem} Were plugins updated meanwhile?") from error


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> tuple[dict[str, Tensor], dict[str, dict[str, Any]]]:
    """The optimiser's state: tensors named ``optimizer/<parameter>/<name>``, and the rest as plain data."""
    tensors: dict[str, Tensor] = {}
    plain: dict[str, dict[str, Any]] = {}
    # What steps have changed in the groups, such as timm's step counters; the learning rate is set in every step.
    for number, group in enumerate(optimizer.param_groups):
        for name, value in group.items():
            if name in ("lr", "capturable"):
                continue
            if isinstance(value, Tensor):
                tensors[f"optimizer/group {number}/{name}"] = value
            elif isinstance(value, int | float) and value != optimizer.defaults.get(name):
                plain.setdefault(f"group {number}", {})[name] = value
    for index, values in optimizer.state_dict()["state"].items():
        for name, value in values.items():
            if isinstance(value, Tensor):
                tensors[f"optimizer/{index}/{name}"] = value
            else:
                plain.setdefault(str(index), {})[name] = value
    return tensors, plain


def restore_optimizer(
    optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor], plain: dict[str, dict[str, Any]]
) -> None:
    """Give the optimiser back its state; hyper-parameters are the recipe's."""
    state: dict[int, dict[str, Any]] = {int(key): dict(values) for key, values in plain.items() if key.isdecimal()}
    for number, group in enumerate(optimizer.param_groups):
        group.update(plain.get(f"group {number}", {}))
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for name, value in tensors.items():
        if name.startswith("optimizer/"):
            _, index, key = name.split("/", 2)
            if index.startswith("group "):
                optimizer.param_groups[int(index.removeprefix("group "))][key] = value
                continue
            like = parameters[int(index)]
            if value.shape == like.shape:
                # The same memory layout as before, so that sums over it are taken in the same order.
                value = torch.empty_like(like, dtype=value.dtype).copy_(value)
            state.setdefault(int(index), {})[key] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})

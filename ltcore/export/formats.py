"""The formats of one file: each is written with what goes along, and loaded again."""

from __future__ import annotations

import copy
import json
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ltcore.errors import RecipeError, RunError
from ltcore.export.deployed import marked

if TYPE_CHECKING:
    from ltcore.export.deployed import Deployed
    from ltcore.runs.saved import SavedRun

#: Name of what goes along, in the formats that hold files or properties.
ABOUT = "ltcore.json"
#: A model that was loaded again: images to logits, with whether each prediction is unsure where it marks that.
Call = Callable[[Tensor], Tensor | tuple[Tensor, Tensor]]


def write_torchscript(saved: SavedRun, model: Deployed, about: dict[str, Any], path: Path) -> Call:
    """TorchScript by tracing; what goes along is the extra file ``ltcore.json``.

    Raises:
        RunError: the model cannot be traced.
    """
    with saying("this network cannot be written as TorchScript"):
        # PyTorch's own check imports much, and `compare` is the stricter one: the run's logits, and other batch sizes.
        traced = torch.jit.trace(marked(saved, model), _example(saved), check_trace=False)  # type: ignore[no-untyped-call]
        torch.jit.save(traced, path, _extra_files={ABOUT: json.dumps(about)})
        loaded: Call = torch.jit.load(path)  # type: ignore[no-untyped-call]
    return loaded


def write_torch_export(saved: SavedRun, model: Deployed, about: dict[str, Any], path: Path) -> Call:
    """``torch.export`` with any number of images; what goes along is the extra file ``ltcore.json``.

    Raises:
        RunError: the model cannot be exported.
    """
    with saying("this network cannot be written as torch.export"):
        torch.export.save(_program(saved, model), path, extra_files={ABOUT: json.dumps(about)})
        loaded: Call = torch.export.load(path).module()
    return loaded


def write_onnx(saved: SavedRun, model: Deployed, about: dict[str, Any], path: Path) -> Call:
    """ONNX with the input ``images``, of any number, and the output ``logits``; properties hold what goes along.

    Where the run has thresholds there is a second output, ``unsure``.

    Raises:
        RecipeError: the extra ``onnx`` is missing.
        RunError: the model cannot be exported.
    """
    try:
        import onnxruntime
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise RecipeError(f"the package '{error.name}' is missing. Try: pip install 'ltcore[onnx]'") from error
    outputs = ["logits"] if saved.description.unsure is None else ["logits", "unsure"]
    with saying("this network cannot be written as ONNX"):
        program = torch.onnx.export(
            _program(saved, model), input_names=["images"], output_names=outputs, dynamo=True, verbose=False
        )
        assert program is not None
        program.model.metadata_props[ABOUT] = json.dumps(about)
        program.save(path)
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    def call(images: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        logits, *marks = map(torch.from_numpy, session.run(outputs, {"images": images.numpy()}))
        return (logits, marks[0]) if marks else logits

    return call


def write_safetensors(saved: SavedRun, model: Deployed, about: dict[str, Any], path: Path) -> Call:
    """The tensors, ``backbone. ...`` and ``classifier. ...``; the metadata ``ltcore.json`` holds what goes along."""
    from safetensors.torch import load_file, save_file

    # Contiguous copies that share no memory, as safetensors wants them.
    tensors = {name: tensor.contiguous().clone() for name, tensor in model.state_dict().items()}
    save_file(tensors, path, metadata={"format": "pt", ABOUT: json.dumps(about)})
    _order(path)
    empty = copy.deepcopy(model)
    for tensor in empty.state_dict().values():
        tensor.zero_()
    empty.load_state_dict(load_file(path))
    return empty


def _order(path: Path) -> None:
    """Bring the metadata of a safetensors file into one order; otherwise it has another one in each process."""
    with open(path, "r+b") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        ordered = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        if len(ordered) <= length:
            file.seek(8)
            file.write(ordered.ljust(length))


def _example(saved: SavedRun) -> Tensor:
    return saved.description.normalised(saved.calibrated.images).contiguous()


def _program(saved: SavedRun, model: Deployed) -> torch.export.ExportedProgram:
    batch = {0: torch.export.Dim("batch")}
    return torch.export.export(marked(saved, model), (_example(saved),), dynamic_shapes={"images": batch})


@contextmanager
def saying(what: str) -> Iterator[None]:
    """One message of what a library raises, after `what`, and none of what it warns of: the result is checked.

    Raises:
        RunError: the library raised.
    """
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            yield
    except Exception as error:
        first = next((line for line in str(error).splitlines() if line.strip()), "")
        raise RunError(f"{what} ({type(error).__name__}: {first.strip()})") from error

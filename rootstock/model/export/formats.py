"""The formats: how a network is written in each, with its metadata, and run from its file as a user would."""

import importlib.util
import json
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from rootstock.config.flow_params import ExportFormat as Format
from rootstock.features.engines import write_onnx
from rootstock.model.export.network import INPUT, ExportedNetwork
from rootstock.system.errors import ParamsError

Outputs = list[NDArray[np.float32]]  # probabilities (n, k) and, if the model has it, novelty (n,)
Run = Callable[[NDArray[np.uint8]], Outputs]  # of images (n, 3, size, size)
FILES: dict[Format, str] = {
    "onnx": "model.onnx",
    "openvino": "model.xml",  # with model.bin
    "torch": "model.pt2",
    "torchscript": "model.pt",
}
NEEDS: dict[Format, tuple[str, ...]] = {"onnx": ("onnxruntime",), "openvino": (), "torch": (), "torchscript": ()}
ATTACHED = "metadata.json"  # in the archives of torch


def check_installed(*packages: str) -> None:
    """Check that packages are there.

    Raises:
        ParamsError: one is not installed.
    """
    if missing := [name for name in packages if importlib.util.find_spec(name) is None]:
        raise ParamsError(f"This export needs {' and '.join(missing)}: pip install -c constraints.txt -e '.[export]'")


def write(format: Format, network: ExportedNetwork, size: int, folder: Path, metadata: Mapping[str, Any]) -> Path:
    """Write a network to a folder, and return the path of its file.

    Args:
        format: of the file.
        network: that is written; the number of images stays free.
        size: of the images, in pixels.
        folder: that exists.
        metadata: JSON values, by name; each is JSON in the file, too.
    """
    path = folder / FILES[format]
    texts = {name: json.dumps(value, ensure_ascii=False) for name, value in metadata.items()}
    match format:
        case "onnx":
            _write_onnx(network, size, path, texts)
        case "openvino":
            _write_openvino(network, size, path, texts)
        case "torch":
            _write_exported_program(network, size, path, json.dumps(metadata, ensure_ascii=False))
        case "torchscript":
            _write_torchscript(network, size, path, json.dumps(metadata, ensure_ascii=False))
    return path


def open_file(path: Path) -> Run:
    """Start what `write` wrote, by the library that its users have, in float32 and on all cores."""
    match path.suffix:
        case ".onnx":
            return _open_onnx(path)
        case ".xml":
            return _open_openvino(path)
        case ".pt2":
            return _in_torch(torch.export.load(path).module())
        case _:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # that TorchScript is no longer developed
                return _in_torch(torch.jit.load(path))


def _write_onnx(network: ExportedNetwork, size: int, path: Path, texts: dict[str, str]) -> None:
    import onnx

    write_onnx(network, size, path, network.outputs)
    model = onnx.load(path)
    onnx.helper.set_model_props(model, texts)
    onnx.checker.check_model(model)
    onnx.save(model, path)


def _write_openvino(network: ExportedNetwork, size: int, path: Path, texts: dict[str, str]) -> None:
    import openvino

    through = write_onnx(network, size, path.with_suffix(".onnx"), network.outputs)
    model = openvino.Core().read_model(through)
    for name, text in texts.items():
        model.set_rt_info(text, ["rootstock", name])
    openvino.save_model(model, path, compress_to_fp16=False)
    through.unlink()


def _write_exported_program(network: ExportedNetwork, size: int, path: Path, text: str) -> None:
    example = torch.zeros(2, 3, size, size, dtype=torch.uint8)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        program = torch.export.export(network, (example,), dynamic_shapes={INPUT: {0: torch.export.Dim("n")}})
        torch.export.save(program, path, extra_files={ATTACHED: text})


def _write_torchscript(network: ExportedNetwork, size: int, path: Path, text: str) -> None:
    example = torch.zeros(2, 3, size, size, dtype=torch.uint8)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # that TorchScript is no longer developed; and from tracing
        traced = torch.jit.trace(network, (example,), check_trace=False)
        torch.jit.save(traced, path, _extra_files={ATTACHED: text})


def _open_onnx(path: Path) -> Run:
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])

    def run(images: NDArray[np.uint8]) -> Outputs:
        return list(session.run(None, {INPUT: images}))

    return run


def _open_openvino(path: Path) -> Run:
    import openvino

    core: Any = openvino.Core()
    compiled = core.compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})  # on some CPUs bf16 is the default

    def run(images: NDArray[np.uint8]) -> Outputs:
        return [values.copy() for values in compiled(images).values()]

    return run


def _in_torch(network: Any) -> Run:  # noqa: ANN401  a GraphModule or a ScriptModule
    def run(images: NDArray[np.uint8]) -> Outputs:
        with torch.no_grad():
            found = network(torch.from_numpy(images))
        return [values.numpy() for values in (found if isinstance(found, tuple) else (found,))]

    return run

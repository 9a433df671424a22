"""Inference engines for extraction: PyTorch (eager) or OpenVINO on a CPU, PyTorch on a GPU.

On a CPU each core works independently: one thread decodes a few images and computes their features. Cores that share
a forward pass wait for each other at every layer; here they never do, and small batches stay in the CPU cache (figures
in docs/extraction.md). For a GPU the cores decode, and one thread feeds it (gpu.py).
"""

import importlib.util
import logging
import tempfile
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from math import log2
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from rootstock.backbones.backbones import Backbone
from rootstock.config import params
from rootstock.features import feature_keys, gpu
from rootstock.features.feature_spec import Precision
from rootstock.images.loader import Normalise
from rootstock.system import causes, devices, packages
from rootstock.system.errors import ParamsError
from rootstock.system.parallel import cores

log = logging.getLogger(__name__)
Name = feature_keys.Engine
Forward = Callable[[Any], NDArray[np.float32]]  # from uint8 images, which may already be on the GPU
Stream = Callable[[Iterable[Any]], Iterator[NDArray[np.float32]]]
ENGINES: tuple[Name, ...] = ("openvino", "eager")
# Images from which OpenVINO's start-up pays off (docs/extraction.md, "Engines").
OPENVINO_FROM = 256
# Batch size per core at 224 px, and the most for smaller images (docs/extraction.md, "One thread per core").
BATCH_SIZE_AT_224, MAX_BATCH_SIZE = 4, 64
GPU_BATCH_SIZE_AT_224, GPU_MAX_BATCH_SIZE = 256, 2048
DECODED_TOGETHER = 16  # images that a thread decodes at a time for a GPU: sixteen threads fill a batch of 256 together


class Unavailable(Exception):  # noqa: N818  not an error: another engine may do
    """The reason why an engine cannot be used on this machine."""


@dataclass(frozen=True)
class Engine:
    """A network ready for inference.

    `forward` maps uint8 images (n, 3, size, size), n up to `batch_size`, to features (n, width) float32. On a CPU it
    may be called from one thread per core at once, each of which has called `limit_to_one_core`. `stream` maps an
    iterator of such batches on a GPU, several of which are on their way; None on a CPU.
    """

    name: str
    forward: Forward
    batch_size: int
    stream: Stream | None = None

    @property
    def group_size(self) -> int:
        """Return how many images a thread reads and decodes at a time."""
        return self.batch_size if self.stream is None else min(self.batch_size, DECODED_TOGETHER)


def start(
    name: str, backbone: Backbone, precision: Precision = "f32", batch_size: int | None = None,
    device: torch.device | None = None, threads: int | None = None,
) -> Engine:  # fmt: skip
    """Start an engine.

    Args:
        name: of the engine.
        backbone: in evaluation mode.
        precision: of the computation; features are float32 in any case.
        batch_size: most images per forward pass; None is the fastest measured, and so is any in eager bf16 on a CPU,
            where features would depend on it.
        device: the GPU, or None for the CPU.
        threads: how many will call it at once; None is one per core.

    Raises:
        Unavailable: the engine is not installed, or does not support this backbone, precision or device.
    """
    on_gpu = device is not None and device.type != "cpu"
    batch_size = batch_size or best_batch_size(backbone.transform.size, on_gpu)
    network = nn.Sequential(Normalise(backbone.transform), backbone.network).eval()
    if device is not None and on_gpu:
        if name != "eager":
            raise Unavailable("it runs on CPUs only, and this machine has a GPU")
        there = gpu.GpuNetwork(network, precision, device, batch_size)
        return Engine(name, there.forward, batch_size, there.stream)
    match name:
        case "eager":
            forward = _in_torch(network.to(memory_format=torch.channels_last), precision)
            if precision == "bf16":  # torch's kernels, and so the rounding, depend on the size of the batch
                batch_size = best_batch_size(backbone.transform.size)
                forward = _padded(forward, batch_size)
        case "openvino":
            forward = _in_openvino(network, precision, backbone.transform.size, batch_size, threads or cores())
        case _:
            raise Unavailable("there is no such engine in this version")
    return Engine(name, forward, batch_size)


def start_named(name: str, backbone: Backbone, settings: params.Extract, threads: int | None = None) -> Engine:
    """Start the engine named by a parameter.

    Args:
        name: of the engine.
        backbone: in evaluation mode.
        settings: the section `extract` of params.yaml.
        threads: how many will call it at once; None is one per core.

    Raises:
        ParamsError: it cannot be used on this machine.
    """
    if settings.decode == "gpu" and devices.device().type == "cpu":
        raise ParamsError(
            "params.yaml: extract.decode is 'gpu', but this machine has no GPU; expected full or reduced."
        )
    try:
        return start(name, backbone, settings.precision, settings.batch_size, devices.device(), threads)
    except Unavailable as why:
        raise ParamsError(
            f"params.yaml: extract.engine is {name!r} and extract.precision {settings.precision!r}, but {why}; "
            "expected another engine, or auto if nothing has been extracted yet"
        ) from None


def start_auto(backbone: Backbone, settings: params.Extract, images: int) -> Engine:
    """Start the engine that `auto` stands for: OpenVINO on a CPU from 256 images on, else eager PyTorch.

    Where OpenVINO does not support an operation or the precision, eager is used instead.

    Args:
        backbone: in evaluation mode.
        settings: the section `extract` of params.yaml.
        images: how many are to be computed.
    """
    if images >= OPENVINO_FROM and devices.device().type == "cpu":
        try:
            return start("openvino", backbone, settings.precision, settings.batch_size)
        except Exception as error:  # exporter and runtime raise anything for an unsupported operation
            log.warning("extract: falling back to the eager engine, as OpenVINO failed: %s", causes.first_line(error))
    return start_named("eager", backbone, settings)


def libraries(name: str) -> dict[str, str]:
    """Return the versions of the libraries that decode images and compute features with an engine."""
    return packages.installed_versions("torch", "simplejpeg", "pillow", *(["openvino"] if name == "openvino" else []))


def best_batch_size(size: int, on_gpu: bool = False) -> int:
    """Return the batch size for images of `size` pixels a side: a power of two."""
    at_224, largest = (GPU_BATCH_SIZE_AT_224, GPU_MAX_BATCH_SIZE) if on_gpu else (BATCH_SIZE_AT_224, MAX_BATCH_SIZE)
    return min(largest, int(2 ** max(0, round(log2(at_224 * (224 / size) ** 2)))))


def _in_torch(network: nn.Module, precision: Precision) -> Forward:
    def forward(images: NDArray[np.uint8]) -> NDArray[np.float32]:
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            batch = torch.from_numpy(images).to(memory_format=torch.channels_last)
            features: Tensor = network(batch)
            return features.float().numpy()

    return forward


def _in_openvino(network: nn.Module, precision: Precision, size: int, batch_size: int, threads: int) -> Forward:
    _installed("openvino")
    import openvino

    core: Any = openvino.Core()
    if precision == "bf16" and "BF16" not in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        raise Unavailable("this CPU has no bf16 instructions")
    with tempfile.TemporaryDirectory(prefix="rootstock-") as folder:
        model = core.read_model(write_onnx(network, size, Path(folder) / "network.onnx"))
        model.reshape([batch_size, 3, size, size])  # a fixed shape: faster, and the same values whatever the batch
        settings = {
            "INFERENCE_PRECISION_HINT": precision,  # explicit: the default is bf16 on some CPUs
            "INFERENCE_NUM_THREADS": threads,
            "NUM_STREAMS": threads,
        }
        compiled = core.compile_model(model, "CPU", settings)
    requests = threading.local()

    def forward(images: NDArray[np.uint8]) -> NDArray[np.float32]:
        if not hasattr(requests, "own"):
            requests.own = compiled.create_infer_request()
        features: NDArray[np.float32] = requests.own.infer([images], share_inputs=True)[0]
        return features.copy()  # the next call overwrites it

    # The first call initialises state shared by OpenVINO's Python bindings. Two threads that make it at once can
    # deadlock between that state's lock and the GIL (seen with 2026.4).
    forward(np.zeros((batch_size, 3, size, size), np.uint8))
    return _padded(forward, batch_size)


def write_onnx(network: nn.Module, size: int, path: Path, outputs: Sequence[str] = ("features",)) -> Path:
    """Write a network as ONNX, by tracing: half a second against seven for torch.export, and hooks are followed.

    Args:
        network: maps uint8 images (n, 3, size, size), the input `images`, to one tensor per output, of n rows.
        size: of the images, in pixels.
        path: of the file.
        outputs: their names.
    """
    _installed("onnx")
    images = torch.zeros(2, 3, size, size, dtype=torch.uint8)
    with warnings.catch_warnings(), torch.inference_mode():
        warnings.simplefilter("ignore")  # from tracing: shapes become constants
        torch.onnx.export(
            network, (images,), path, dynamo=False, input_names=["images"], output_names=[*outputs],
            dynamic_axes={name: {0: "n"} for name in ("images", *outputs)},
        )  # fmt: skip
    return path


def _installed(package: str) -> None:
    if importlib.util.find_spec(package) is None:
        raise Unavailable(f"{package} is not installed")


def _padded(forward: Forward, batch_size: int) -> Forward:
    """Pad incomplete batches with copies of their first image."""

    def padded(images: NDArray[np.uint8]) -> NDArray[np.float32]:
        n = len(images)
        if n < batch_size:
            images = np.concatenate([images, np.repeat(images[:1], batch_size - n, axis=0)])
        return forward(images)[:n]

    return padded

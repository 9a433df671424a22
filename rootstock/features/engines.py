"""What computes features: torch as it is (eager), or OpenVINO; on a GPU torch.

On a processor each core works for itself: it decodes a few images and computes their features, on one thread. Cores
that share one pass wait for each other at every layer; this way they never do, and small batches stay in the cache
(docs/extraction.md has the figures). On a GPU the cores decode, and two threads feed it.
"""

import importlib.util
import logging
import tempfile
import threading
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from math import log2
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits
from torch import Tensor, nn

from rootstock.backbones.backbones import Backbone
from rootstock.config import params
from rootstock.features import feature_keys, gpu
from rootstock.images import loader
from rootstock.images.loader import Normalise
from rootstock.system import causes
from rootstock.system.errors import ParamsError
from rootstock.system.parallel import cores

log = logging.getLogger(__name__)
Name = feature_keys.Engine
Precision = Literal["f32", "bf16"]
Forward = Callable[[Any], NDArray[np.float32]]  # of uint8 images; of a GPU's engine, they may be there already
ENGINES: tuple[Name, ...] = ("openvino", "eager")
# From so many images on OpenVINO's start, one to three seconds, is made up for: its passes take a third of torch's.
OPENVINO_FROM = 256
# Images of 224 pixels a pass on one core: 1 to 8 are within 5 % of each other, 32 is 10 % slower (their maps leave the
# cache); smaller images make up for it in number, up to where the call itself costs nothing.
AT_224, MOST_AT_ONCE = 4, 64
AT_224_ON_GPU, MOST_AT_ONCE_ON_GPU = 256, 2048  # not measured: no GPU was at hand


class Unavailable(Exception):  # noqa: N818  a verdict on this machine, and no fault
    """An engine that cannot do this here, and why."""


@dataclass(frozen=True)
class Engine:
    """A network that has been made ready.

    `forward` turns uint8 images (n, 3, size, size), n up to `batch_size`, into features (n, width) float32; where
    `on_each_core`, from as many threads at once as there are cores, each of which has called `alone` first.
    """

    name: str
    forward: Forward
    batch_size: int
    on_each_core: bool = True


def start(
    name: str, backbone: Backbone, precision: Precision = "f32", batch_size: int | None = None,
    device: torch.device | None = None, threads: int | None = None,
) -> Engine:  # fmt: skip
    """Make a network ready.

    Args:
        name: of the engine.
        backbone: in evaluation mode.
        precision: of what is computed inside; what comes out is float32 in any case.
        batch_size: images a pass at most; None is what was fastest.
        device: the GPU, or the processor (None).
        threads: that are going to call it at once; None is a core each.

    Raises:
        Unavailable: the engine is not installed, or cannot do this.
    """
    on_gpu = device is not None and device.type != "cpu"
    batch_size = batch_size or best_batch_size(backbone.transform.size, on_gpu)
    network = nn.Sequential(Normalise(backbone.transform), backbone.network).eval()
    if device is not None and on_gpu:
        if name != "eager":
            raise Unavailable("it computes on a processor, and here is a GPU")
        return Engine(name, gpu.forward(network, precision, device), batch_size, on_each_core=False)
    match name:
        case "eager":
            forward = _in_torch(network.to(memory_format=torch.channels_last), precision)
        case "openvino":
            forward = _in_openvino(network, precision, backbone.transform.size, batch_size, threads or cores())
        case _:
            raise Unavailable("this version has no such engine")
    return Engine(name, forward, batch_size)


def start_named(name: str, backbone: Backbone, settings: params.Extract, threads: int | None = None) -> Engine:
    """Start the engine that a parameter names, for so many threads (all cores).

    Raises:
        ParamsError: it cannot do this here.
    """
    if settings.decode == "gpu" and loader.device().type == "cpu":
        raise ParamsError("params.yaml: extract.decode is 'gpu', and here is none; expected full or reduced.")
    try:
        return start(name, backbone, settings.precision, settings.batch_size, loader.device(), threads)
    except Unavailable as why:
        raise ParamsError(
            f"params.yaml: extract.engine is {name!r} and extract.precision {settings.precision!r}, but {why}; "
            "expected another engine, or auto where nothing has been extracted yet"
        ) from None


def start_auto(backbone: Backbone, settings: params.Extract, images: int) -> Engine:
    """Start what `auto` means: on a processor OpenVINO from 256 images on, else torch as it is.

    OpenVINO does not know every operation and every precision; torch computes what it does not.

    Args:
        backbone: in evaluation mode.
        settings: the section `extract` of params.yaml.
        images: how many there are to compute.
    """
    if images >= OPENVINO_FROM and loader.device().type == "cpu":
        try:
            return start("openvino", backbone, settings.precision, settings.batch_size)
        except Exception as error:  # an exporter or a runtime that does not know an operation raises what it likes
            log.warning("extract: eager, as OpenVINO cannot compute this: %s", causes.first_line(error))
    return start_named("eager", backbone, settings)


def best_batch_size(size: int, on_gpu: bool = False) -> int:
    """Say how many images of so many pixels a side go into a pass: a power of two."""
    at_224, most = (AT_224_ON_GPU, MOST_AT_ONCE_ON_GPU) if on_gpu else (AT_224, MOST_AT_ONCE)
    return min(most, int(2 ** max(0, round(log2(at_224 * (224 / size) ** 2)))))


def alone() -> None:
    """Have the calling thread compute on its own core: it starts no OpenMP threads, and others keep theirs."""
    torch.get_num_threads()  # torch sets a thread's number when it first asks; after that it stays what is set here
    threadpool_limits(1, user_api="openmp")


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
        raise Unavailable("this processor has no instructions for bf16")
    with tempfile.TemporaryDirectory(prefix="rootstock-") as folder:
        model = core.read_model(_export(network, size, Path(folder)))
        model.reshape([batch_size, 3, size, size])  # one shape: faster than any, and the same numbers for each image
        settings = {
            "INFERENCE_PRECISION_HINT": precision,  # said, because the default is bf16 on some processors
            "INFERENCE_NUM_THREADS": threads,
            "NUM_STREAMS": threads,
        }
        compiled = core.compile_model(model, "CPU", settings)
    requests = threading.local()

    def forward(images: NDArray[np.uint8]) -> NDArray[np.float32]:
        if not hasattr(requests, "own"):
            requests.own = compiled.create_infer_request()
        features: NDArray[np.float32] = requests.own.infer([images], share_inputs=True)[0]
        return features.copy()  # the next call writes over it

    # OpenVINO's first call sets up what its Python part shares. Two threads that make it at once can wait for each
    # other for ever: one has the lock of that and wants Python's, the other the reverse (seen with 2026.4).
    forward(np.zeros((batch_size, 3, size, size), np.uint8))
    return _filled_up(forward, batch_size)


def _export(network: nn.Module, size: int, folder: Path) -> Path:
    """Write a network, with its normalisation, as ONNX.

    By tracing: it takes half a second, where torch.export takes seven, and follows the hooks that cut a network.
    """
    _installed("onnx")
    path = folder / "network.onnx"
    images = torch.zeros(2, 3, size, size, dtype=torch.uint8)
    with warnings.catch_warnings(), torch.inference_mode():
        warnings.simplefilter("ignore")  # of tracing: that shapes are constants
        torch.onnx.export(
            network, (images,), path, dynamo=False, input_names=["images"], output_names=["features"],
            dynamic_axes={"images": {0: "n"}, "features": {0: "n"}},
        )  # fmt: skip
    return path


def _installed(package: str) -> None:
    if importlib.util.find_spec(package) is None:
        raise Unavailable(f"{package} is not installed")


def _filled_up(forward: Forward, batch_size: int) -> Forward:
    """Fill a batch that is not full up with its own first image."""

    def full(images: NDArray[np.uint8]) -> NDArray[np.float32]:
        n = len(images)
        if n < batch_size:
            images = np.concatenate([images, np.repeat(images[:1], batch_size - n, axis=0)])
        return forward(images)[:n]

    return full

"""Quantisation to 8-bit integers after training, calibrated on training images.

The convolutions and linear layers of the backbone are quantised; the head, the temperature and the novelty stay in
float32: they take little time, and calibrated probabilities need more than 8 bits.
"""

import io
import logging
from collections.abc import Iterable, Iterator
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rootstock.config.flow_params import ExportFormat as Format
from rootstock.model.export.formats import check_installed
from rootstock.model.export.network import INPUT
from rootstock.system.errors import ParamsError

CALIBRATION_IMAGES = 300  # NNCF's default
NEEDS: dict[Format, tuple[str, ...]] = {"onnx": ("onnxruntime",), "openvino": ("nncf",)}
BACKBONE = "/backbone/"  # how the names of its nodes begin, as they are traced


def check_format(format: Format) -> None:
    """Check that a format can be quantised here.

    Raises:
        ParamsError: it cannot, or a package is missing.
    """
    if format not in NEEDS:
        raise ParamsError(f"int8 is for the formats {' and '.join(NEEDS)}, not for {format}.")
    check_installed(*NEEDS[format])


def quantise(path: Path, images: Iterable[NDArray[np.uint8]], *, transformer: bool) -> Path:
    """Write an int8 version beside a file in ONNX or OpenVINO, and return its path.

    Args:
        path: of the float32 version.
        images: training images in batches (n, 3, size, size).
        transformer: whether the backbone is a vision transformer, whose attention NNCF keeps more exact.
    """
    beside = path.with_name(f"{path.stem}.int8{path.suffix}")
    if path.suffix == ".onnx":
        _by_onnx_runtime(path, beside, images)
    else:
        _by_nncf(path, beside, images, transformer=transformer)
    return beside


def _by_nncf(path: Path, beside: Path, images: Iterable[NDArray[np.uint8]], *, transformer: bool) -> None:
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)  # that there is no CUDA
    import nncf
    import openvino

    logging.getLogger("nncf").setLevel(logging.ERROR)
    model = openvino.Core().read_model(path)
    outside = [op.friendly_name for op in model.get_ops() if not op.friendly_name.startswith(BACKBONE)]
    with redirect_stdout(io.StringIO()):  # progress bars
        quantised: Any = nncf.quantize(
            model,
            nncf.Dataset(list(images)),
            subset_size=CALIBRATION_IMAGES,
            model_type=nncf.ModelType.TRANSFORMER if transformer else None,
            ignored_scope=nncf.IgnoredScope(names=outside, validate=False),
        )
    openvino.save_model(quantised, beside, compress_to_fp16=False)


def _by_onnx_runtime(path: Path, beside: Path, images: Iterable[NDArray[np.uint8]]) -> None:
    import onnx
    from onnxruntime import quantization
    from onnxruntime.quantization import shape_inference

    class Images(quantization.CalibrationDataReader):
        """Hands out one batch after the other."""

        def __init__(self) -> None:
            self._batches: Iterator[NDArray[np.uint8]] = iter(images)

        def get_next(self) -> dict[str, NDArray[np.uint8]] | None:
            """Return the next batch by the name of the input; None at the end."""
            batch = next(self._batches, None)
            return None if batch is None else {INPUT: batch}

    inferred = beside.with_suffix(".inferred.onnx")
    shape_inference.quant_pre_process(path, inferred, skip_symbolic_shape=True)
    outside = [node.name for node in onnx.load(inferred).graph.node if not node.name.startswith(BACKBONE)]
    quantization.quantize_static(
        inferred,
        beside,
        Images(),
        op_types_to_quantize=["Conv", "MatMul", "Gemm"],
        nodes_to_exclude=outside,
        per_channel=True,
        reduce_range=True,  # weights of 7 bits: on CPUs without VNNI sums of 8 saturate, and accuracy with them
    )
    inferred.unlink()

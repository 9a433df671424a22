"""Inference on a GPU, with batches copied from pinned memory while others are computed.

Not measured: no GPU was available (docs/extraction.md).
"""

import threading
from collections.abc import Callable
from contextlib import nullcontext

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from rootstock.features.feature_spec import Precision


def forward(
    network: nn.Module, precision: Precision, device: torch.device, batch_size: int
) -> Callable[[NDArray[np.uint8] | Tensor], NDArray[np.float32]]:
    """Move a network to a GPU; the returned function may be called from several threads, each with its own stream.

    Args:
        network: uint8 images (n, 3, size, size) to features (n, width).
        precision: bf16 uses autocast.
        device: the GPU; the CPU in tests.
        batch_size: most images per call; in bf16 fewer are padded to it, as the rounding depends on it.
    """
    network = network.to(device).to(memory_format=torch.channels_last)
    own = threading.local()

    def run(images: NDArray[np.uint8] | Tensor) -> NDArray[np.float32]:
        if device.type == "cuda" and not hasattr(own, "stream"):
            own.stream = torch.cuda.Stream(device)
        stream = torch.cuda.stream(own.stream) if device.type == "cuda" else nullcontext()
        autocast = torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")
        with torch.inference_mode(), stream, autocast:
            batch = torch.from_numpy(images) if isinstance(images, np.ndarray) else images
            if device.type == "cuda" and not batch.is_cuda:
                batch = batch.pin_memory()
            batch = batch.to(device, non_blocking=True)
            n = len(batch)
            if precision == "bf16" and n < batch_size:
                batch = torch.cat([batch, batch[:1].expand(batch_size - n, -1, -1, -1)])
            features: Tensor = network(batch.contiguous(memory_format=torch.channels_last))
            return features[:n].float().cpu().numpy()

    return run

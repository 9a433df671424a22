"""Inference on a GPU: one thread launches, every batch has one shape, and copies overlap with computation.

cuDNN plans its kernels anew for each thread and each shape of the input, which takes seconds (docs/extraction.md), and
a copy overlaps with computation only from pinned memory, whose allocation takes as long as a batch. So a thread of its
own launches all batches, filled up to one size, through buffers that are used again. TF32 is off: f32 is float32.
"""

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, nullcontext, suppress
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from rootstock.features.feature_spec import Precision
from rootstock.system.parallel import limit_to_one_core

IN_FLIGHT = 3  # batches: one is copied to the GPU, one is computed, one is copied back
Images = NDArray[np.uint8] | Tensor  # (n, 3, size, size) uint8; a tensor is on the GPU


class GpuNetwork:
    """A network on a GPU.

    Args:
        network: uint8 images (n, 3, size, size) to features (n, width).
        precision: bf16 uses autocast.
        device: the GPU; the CPU in tests.
        batch_size: of all batches; smaller ones are filled up with copies of their first image.
    """

    def __init__(self, network: nn.Module, precision: Precision, device: torch.device, batch_size: int) -> None:
        self.network = network.to(device).to(memory_format=torch.channels_last)
        self.precision, self.device, self.batch_size = precision, device, batch_size
        self._launching = ThreadPoolExecutor(1, "gpu", limit_to_one_core)
        self._streams = [torch.cuda.Stream(device) for _ in range(2)] if device.type == "cuda" else []
        self._free: SimpleQueue[_Buffers] = SimpleQueue()
        for _ in range(IN_FLIGHT):
            self._free.put(_Buffers(pinned=device.type == "cuda"))

    def forward(self, images: Images) -> NDArray[np.float32]:
        """Return the features (n, width) of at most `batch_size` images; may be called from any thread."""
        return self._launching.submit(self._launch, images).result().wait()

    def stream(self, batches: Iterable[Images]) -> Iterator[NDArray[np.float32]]:
        """Yield the features of batches in order, with some on their way while the caller prepares the next."""
        on_their_way: deque[Future[_Computed]] = deque()
        try:
            for images in batches:
                if len(on_their_way) == IN_FLIGHT:
                    yield on_their_way.popleft().result().wait()
                on_their_way.append(self._launching.submit(self._launch, images))
            while on_their_way:
                yield on_their_way.popleft().result().wait()
        finally:  # buffers of batches that nobody waits for any more are free again
            for left in on_their_way:
                with suppress(Exception):
                    left.result().wait()

    def _launch(self, images: Images) -> "_Computed":
        buffers = self._free.get()
        try:
            with ExitStack() as contexts:
                for context in self._contexts():
                    contexts.enter_context(context)
                batch = self._filled(images) if isinstance(images, Tensor) else self._copied(images, buffers)
                features: Tensor = self.network(batch.contiguous(memory_format=torch.channels_last))
                return _Computed(len(images), buffers, buffers.copy_back(features.float()), self._free)
        except BaseException:
            self._free.put(buffers)
            raise

    def _contexts(self) -> Iterator[AbstractContextManager[Any]]:
        yield torch.inference_mode()
        yield torch.backends.cudnn.flags(enabled=True, benchmark=False, allow_tf32=False)  # TF32 is torch's default
        yield torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16")
        yield torch.cuda.stream(self._streams[0]) if self._streams else nullcontext()

    def _filled(self, images: Tensor) -> Tensor:
        """Fill up a batch that is on the GPU already; its memory is not given out again before it has been computed."""
        if self._streams:
            self._streams[0].wait_stream(torch.cuda.default_stream(self.device))  # which may still put it together
            images.record_stream(self._streams[0])
        missing = self.batch_size - len(images)
        return torch.cat([images, images[:1].expand(missing, -1, -1, -1)]) if missing else images

    def _copied(self, images: NDArray[np.uint8], buffers: "_Buffers") -> Tensor:
        """Copy a batch to the GPU while the one before is computed, filled up."""
        host = buffers.input(self.batch_size, images.shape[1:])
        host[: len(images)] = torch.from_numpy(images)
        host[len(images) :] = host[:1]
        if not self._streams:
            return host.to(self.device)
        computing, copying = self._streams
        with torch.cuda.stream(copying):
            batch = host.to(self.device, non_blocking=True)
        computing.wait_stream(copying)
        batch.record_stream(computing)
        return batch


class _Buffers:
    """Memory of the host that one batch after the other is copied from, and its features to."""

    def __init__(self, *, pinned: bool) -> None:
        self.pinned = pinned
        self._input: Tensor | None = None
        self._output: Tensor | None = None

    def input(self, batch_size: int, shape: tuple[int, ...]) -> Tensor:
        """Return the images' memory, channels last as decoders leave them, of a size that never changes."""
        if self._input is None:
            self._input = torch.empty(
                (batch_size, *shape), dtype=torch.uint8, pin_memory=self.pinned, memory_format=torch.channels_last
            )
        return self._input

    def copy_back(self, features: Tensor) -> tuple[Tensor, "torch.cuda.Event | None"]:
        """Copy features (n, width) to the host; they are there once the event has happened."""
        if not self.pinned:
            return features, None
        if self._output is None:
            self._output = torch.empty(features.shape, dtype=features.dtype, pin_memory=True)
        self._output.copy_(features, non_blocking=True)
        return self._output, torch.cuda.current_stream(features.device).record_event()


@dataclass(frozen=True)
class _Computed:
    """A batch whose features are on their way back."""

    images: int
    buffers: _Buffers
    features: "tuple[Tensor, torch.cuda.Event | None]"
    free: "SimpleQueue[_Buffers]"

    def wait(self) -> NDArray[np.float32]:
        """Return the features once they are there, and make the buffers free."""
        features, there = self.features
        try:
            if there is not None:
                there.synchronize()
            return features[: self.images].numpy().copy()
        finally:
            self.free.put(self.buffers)

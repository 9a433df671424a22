"""Steps of training as CUDA graphs: launching their kernels one by one from Python takes longer than computing them."""

import logging
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

log = logging.getLogger(__name__)
STEPS_BEFORE_CAPTURE = 3  # in which libraries allocate what they keep
MOST_SHAPES = 8  # of images that grow from epoch to epoch, and a shorter last mini-batch of each
Step = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class _Captured:
    """A graph, and the memory that it reads a mini-batch from and writes the loss to."""

    graph: torch.cuda.CUDAGraph
    batch: Tensor
    target: Tensor
    loss: Tensor

    def replay(self, batch: Tensor, target: Tensor) -> Tensor:
        self.batch.copy_(batch)
        self.target.copy_(target)
        self.graph.replay()
        return self.loss.clone()


class StepGraphs:
    """A step that is computed a few times for each shape, then captured as a CUDA graph, and replayed.

    Where it cannot be captured (an operation that waits for the GPU), it is computed as it comes.

    Args:
        step: given a mini-batch and its target, returns the loss.
    """

    def __init__(self, step: Step) -> None:
        self._step = step
        self._stream = torch.cuda.Stream()
        self._met: Counter[Any] = Counter()
        self._captured: dict[Any, _Captured] = {}
        self._most = MOST_SHAPES
        # Of one pool, as only the loss of a step is read after it, and before the next one.
        self._pool = torch.cuda.graph_pool_handle()

    def __call__(self, batch: Tensor, target: Tensor) -> Tensor:
        """Compute the step.

        Raises:
            torch.OutOfMemoryError: there is not enough memory for the first shape.
        """
        shape = batch.shape, batch.dtype, target.shape, target.dtype
        if shape not in self._captured and self._met[shape] >= STEPS_BEFORE_CAPTURE:
            self._capture(shape, batch, target)
        if found := self._captured.get(shape):
            return found.replay(batch, target)
        self._met[shape] += 1
        return self._beside(batch, target)

    def __len__(self) -> int:
        """Return how many graphs have been captured."""
        return len(self._captured)

    def _beside(self, batch: Tensor, target: Tensor) -> Tensor:
        """Compute on another stream than the default one, to which a captured step may not be tied."""
        current = torch.cuda.current_stream()
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            loss = self._step(batch, target)
        current.wait_stream(self._stream)
        return loss

    def _capture(self, shape: Any, batch: Tensor, target: Tensor) -> None:  # noqa: ANN401
        if len(self._captured) >= self._most:
            return
        graph, current = torch.cuda.CUDAGraph(), torch.cuda.current_stream()
        batch, target = batch.clone(), target.clone()
        try:
            with torch.cuda.graph(graph, pool=self._pool):
                loss = self._step(batch, target)
            self._captured[shape] = _Captured(graph, batch, target, loss)
        except RuntimeError as error:
            self._most = 0  # what fails once would fail again
            if isinstance(error, torch.OutOfMemoryError) and not self._captured:
                raise
            log.info("fine_tune: the step could not be captured as a CUDA graph, and runs eagerly: %s", error)
        finally:
            torch.cuda.set_stream(current)  # torch leaves its own one only if the capture could be ended

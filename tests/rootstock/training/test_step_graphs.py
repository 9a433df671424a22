"""Which steps are captured as CUDA graphs and replayed. CUDA's own calls are pretended; tests/gpu has the real ones."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import pytest
import torch
from torch import Tensor

from rootstock.training.step_graphs import MOST_SHAPES, STEPS_BEFORE_CAPTURE, StepGraphs


class Cuda:
    """Counts what is computed and replayed; `fails` is raised when a capture ends, as torch does: on its stream."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.computed, self.replayed, self.captures = 0, 0, 0
        self.stream, self.fails = "current", dict[int, Exception]()
        self._is_capturing = False
        cuda = self

        class Graph:
            def replay(self) -> None:
                cuda.replayed += 1

        class Stream:
            def wait_stream(self, other: object) -> None: ...

        class Current(str, Stream): ...

        for name, value in {
            "Stream": Stream, "CUDAGraph": Graph, "stream": lambda stream: nullcontext(), "graph": self._capturing,
            "current_stream": lambda: Current(cuda.stream), "graph_pool_handle": object,
            "set_stream": lambda stream: setattr(cuda, "stream", stream),
        }.items():  # fmt: skip
            monkeypatch.setattr(torch.cuda, name, value)

    @contextmanager
    def _capturing(self, graph: object, pool: object) -> Iterator[None]:
        self.captures, self._is_capturing, self.stream = self.captures + 1, True, "of the capture"
        yield
        self._is_capturing = False
        if error := self.fails.get(self.captures):
            raise error
        self.stream = "current"

    def step(self, batch: Tensor, target: Tensor) -> Tensor:
        self.computed += not self._is_capturing
        return torch.zeros(())


@pytest.fixture
def cuda(monkeypatch) -> Cuda:
    return Cuda(monkeypatch)


def run(graphs: StepGraphs, shapes: list[tuple[int, ...]]) -> None:
    for shape in shapes:
        graphs(torch.zeros(shape), torch.zeros(shape[0]))


def test_every_shape_is_captured_after_a_few_steps_of_its_own(cuda):
    """Of images that grow from stage to stage, and of a smaller last mini-batch that comes in between."""
    whole, last, larger = (8, 3, 4, 4), (5, 3, 4, 4), (8, 3, 6, 6)
    run(StepGraphs(cuda.step), [*([whole, whole, last] * 10), *([larger] * 20)])
    assert cuda.computed == 3 * STEPS_BEFORE_CAPTURE
    assert cuda.replayed == 50 - cuda.computed


def test_of_very_many_shapes_the_first_ones_have_graphs(cuda):
    graphs = StepGraphs(cuda.step)
    run(graphs, [(1 + number % (MOST_SHAPES + 2), 3) for number in range(100 * (MOST_SHAPES + 2))])
    assert len(graphs) == MOST_SHAPES
    assert cuda.computed == MOST_SHAPES * STEPS_BEFORE_CAPTURE + 2 * 100


def test_a_step_that_cannot_be_captured_goes_on_eagerly_on_the_stream_of_before(cuda, caplog):
    cuda.fails = {1: RuntimeError("operation not permitted when stream is capturing")}
    with caplog.at_level("INFO"):
        run(StepGraphs(cuda.step), [(8, 3)] * 10 + [(4, 3)] * 10)
    assert (cuda.computed, cuda.replayed, cuda.captures, cuda.stream) == (20, 0, 1, "current")
    assert "runs eagerly: operation not permitted when stream is capturing" in caplog.text


def test_without_memory_for_the_first_graph_the_caller_decides_and_later_ones_are_left_out(cuda):
    cuda.fails = {1: torch.OutOfMemoryError(), 3: torch.OutOfMemoryError()}
    with pytest.raises(torch.OutOfMemoryError):
        run(StepGraphs(cuda.step), [(8, 3)] * 4)
    cuda.computed = 0
    run(StepGraphs(cuda.step), [(8, 3)] * 10 + [(4, 3)] * 10)
    assert (cuda.computed, cuda.replayed, cuda.stream) == (STEPS_BEFORE_CAPTURE + 10, 7, "current")

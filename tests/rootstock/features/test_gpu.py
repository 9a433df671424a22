"""The GPU's code path, on the CPU: one thread, one shape, and the same features as on the CPU's path."""

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from rootstock.config.architectures import Transform
from rootstock.config.params import Extract
from rootstock.dataset import shards
from rootstock.features import feature_keys, gpu, planning, reader
from rootstock.images.loader import Normalise
from rootstock.system import devices
from rootstock.system.errors import DamagedError, SourceError
from rootstock.system.parallel import ordered_map
from tests.gpu_path import BATCH, CPU, EAGER, Seen, computed, engine_of

Meets = set[tuple[int, tuple[int, ...]]]


@pytest.fixture
def meets(backbone) -> Meets:
    """The pairs of a thread and a shape that the backbone was called with: cuDNN would plan again for each."""
    found: Meets = set()
    backbone.network.register_forward_pre_hook(
        lambda network, given: found.add((threading.get_ident(), tuple(given[0].shape)))
    )
    return found


def features_in(folder: Path, small) -> np.ndarray:
    return np.concatenate([x for x, _ in reader.Features(folder, small.manifest)])


def test_an_extraction_of_many_shards_calls_the_network_from_one_thread_with_one_shape(
    small, folder, backbone, meets, tmp_path
):
    todo = planning.plan(backbone, EAGER, small.images, tmp_path)
    assert len(todo.missing) > 5
    meets.clear()
    engine = engine_of(backbone)
    computed(todo.missing, engine, backbone, EAGER, small.images)
    size = backbone.transform.size
    assert [shape for _, shape in meets] == [(BATCH, 3, size, size)]
    few = [np.zeros((count, 3, size, size), np.uint8) for count in (1, 2, 3, BATCH)]
    assert [len(features) for features in ordered_map(engine.forward, few, threads=4)] == [1, 2, 3, BATCH]
    assert len(meets) == 1  # whoever asks
    np.testing.assert_allclose(
        features_in(folder, small), features_in(tmp_path / todo.key, small), rtol=1e-4, atol=1e-4
    )


def test_a_file_has_the_same_bytes_whatever_else_is_computed_with_it(small, backbone, tmp_path):
    both = []
    for name in ("together", "alone"):
        files = planning.plan(backbone, EAGER, small.images, tmp_path / name).missing
        for part in [files] if name == "together" else [[file] for file in files]:
            computed(part, engine_of(backbone), backbone, EAGER, small.images)
        both.append({file.path.name: file.path.read_bytes() for file in files})
    assert both[0] == both[1]


def test_a_damaged_shard_does_not_affect_the_others(small, backbone, tmp_path):
    images = tmp_path / "images"
    images.mkdir()
    names = shards.names(small.images)
    for name in names:
        content = bytearray((small.images / f"{name}.tar").read_bytes())
        if name == names[2]:
            content[700] ^= 255
        (images / f"{name}.tar").write_bytes(content)
    todo = planning.plan(backbone, EAGER, images, tmp_path / "features")
    with pytest.raises((DamagedError, SourceError), match=names[2]):
        computed(todo.missing, engine_of(backbone), backbone, EAGER, images)
    assert sorted(path.stem for path in (tmp_path / "features" / todo.key).glob("*.parquet")) == names[:2]


def test_images_decoded_by_the_device_have_nearly_the_same_features_beside_views_that_are_not(
    small, folder, backbone, tmp_path, monkeypatch
):
    monkeypatch.setattr(devices, "device", lambda: CPU)
    settings = Extract(engine="eager", decode="gpu", views=1)
    todo = planning.plan(backbone, settings, small.images, tmp_path)
    assert todo.key != folder.name
    computed(todo.missing, engine_of(backbone), backbone, settings, small.images)
    plain, view = feature_keys.find(backbone.description, settings, tmp_path)
    np.testing.assert_allclose(features_in(folder, small), features_in(plain, small), rtol=1e-4, atol=1e-4)
    assert not np.allclose(features_in(plain, small), features_in(view, small))


def test_a_caller_that_stops_waiting_or_fails_leaves_the_network_usable(backbone):
    there = gpu.GpuNetwork(nn.Flatten(), "f32", CPU, 2)
    batch = np.ones((2, 3, 1, 1), np.uint8)

    def batches(fail: bool) -> Iterator[np.ndarray]:
        yield from [batch] * 5
        if fail:
            raise OSError("no more")

    for _ in range(4):
        stream = there.stream(batches(fail=False))
        next(stream)
        stream.close()
        with pytest.raises(OSError, match="no more"):
            list(there.stream(batches(fail=True)))
        with pytest.raises(RuntimeError):  # more than a batch
            there.forward(np.repeat(batch, 2, axis=0))
    assert there.forward(batch[:1]).tolist() == [[1, 1, 1]]


# How the network is computed


def test_a_network_computes_in_float32_without_tf32_and_cudnn_tries_no_kernels(monkeypatch):
    """Also in a process that has allowed them; trying kernels would take time for each shape, and vary results."""
    for flag in ("allow_tf32", "benchmark"):
        monkeypatch.setattr(torch.backends.cudnn, flag, True)
    flags = []
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    network = Seen(lambda: flags.append((cudnn.enabled, cudnn.allow_tf32, cudnn.benchmark, matmul.allow_tf32)))
    there = gpu.GpuNetwork(network, "f32", CPU, 2)
    batch = np.zeros((2, 3, 4, 4), np.uint8)
    there.forward(batch)
    list(there.stream([batch, batch]))
    assert flags == 3 * [(True, False, False, False)]
    assert torch.backends.cudnn.allow_tf32 and torch.backends.cudnn.benchmark  # elsewhere as it was


@pytest.mark.parametrize(("precision", "dtype"), [("f32", torch.float32), ("bf16", torch.bfloat16)])
def test_a_network_computes_without_gradients_in_the_precision_asked_for(precision, dtype):
    network, dtypes = nn.Sequential(Seen(), nn.Linear(1, 5)), []
    network[1].register_forward_hook(lambda layer, given, made: dtypes.append((made.dtype, made.requires_grad)))
    features = gpu.GpuNetwork(network, precision, CPU, 2).forward(np.zeros((2, 3, 4, 4), np.uint8))
    assert dtypes == [(dtype, False)] and features.dtype == np.float32


def test_weights_and_images_are_channels_last_however_the_images_come():
    images = np.random.default_rng(0).integers(0, 256, (3, 3, 5, 4), np.uint8)
    convolution, inputs = nn.Conv2d(3, 2, 3), []
    convolution.register_forward_pre_hook(lambda layer, given: inputs.append(given[0]))
    network = nn.Sequential(Normalise(Transform(4, 4, "bilinear", (0.5,) * 3, (0.5,) * 3)), convolution, nn.Flatten())
    there = gpu.GpuNetwork(network, "f32", CPU, 4)
    assert convolution.weight.is_contiguous(memory_format=torch.channels_last)
    as_decoded = np.ascontiguousarray(images.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)
    found = [there.forward(way) for way in (images, as_decoded, torch.from_numpy(images), torch.from_numpy(as_decoded))]
    assert all(np.array_equal(one, found[0]) for one in found)
    assert all(given.is_contiguous(memory_format=torch.channels_last) for given in inputs) and len(inputs) == 4


def test_three_batches_are_on_their_way_and_their_memory_on_the_host_is_used_again():
    network, pulled = Seen(), []
    there = gpu.GpuNetwork(network, "f32", CPU, 2)

    def batches() -> Iterator[np.ndarray]:
        for number in range(20):
            pulled.append(number)
            yield np.full((2, 3, 4, 4), number, np.uint8)

    for taken, features in enumerate(there.stream(batches()), start=1):
        assert features.tolist() == 2 * [[(taken - 1) * 48]]
        assert len(pulled) == min(20, taken + 3)
        until = time.monotonic() + 10
        while len(network.seen) < min(20, taken + 2) and time.monotonic() < until:
            time.sleep(0.001)
        assert len(network.seen) >= min(20, taken + 2)  # computed, though nobody has taken them
    assert len({images.data_ptr() for images in network.seen}) == 3


def test_features_come_back_through_memory_that_is_used_again(monkeypatch):
    """Pinned memory, here without the pin: its allocation would take as long as a batch."""
    empty, pinned = torch.empty, []

    def allocated(*given, pin_memory=False, **named) -> Tensor:
        pinned.append(pin_memory)
        return empty(*given, **named)

    monkeypatch.setattr(torch, "empty", allocated)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: SimpleNamespace(record_event=lambda: "there"))
    buffers = gpu._Buffers(pinned=True)
    made = [buffers.copy_back(torch.full((2, 3), float(number))) for number in range(5)]
    assert {(features.data_ptr(), event) for features, event in made} == {(made[0][0].data_ptr(), "there")}
    assert made[0][0].tolist() == 2 * [3 * [4.0]]
    assert len({buffers.input(2, (3, 4, 4)).data_ptr() for _ in range(5)}) == 1
    assert pinned == [True, True]

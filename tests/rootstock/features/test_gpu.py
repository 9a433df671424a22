"""The GPU's code path, on the CPU: one thread, one shape, and the same features as on the CPU's path."""

import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from rootstock.backbones.backbones import Backbone
from rootstock.config.architectures import Transform
from rootstock.config.params import Extract
from rootstock.dataset import shards
from rootstock.features import computing, feature_keys, gpu, planning, reader
from rootstock.features.computing import File
from rootstock.features.engines import Engine
from rootstock.features.feature_extractor import FeatureExtractor
from rootstock.features.feature_spec import FeatureSpec
from rootstock.images import gpu_decoding, loader, pixels
from rootstock.images.loader import Normalise
from rootstock.system import devices, processes
from rootstock.system.errors import DamagedError, SourceError
from rootstock.system.parallel import ordered_map
from tests.images import encoded, picture

BATCH = 7  # shards hold about ten images
CPU = torch.device("cpu")
EAGER = Extract(engine="eager")
Meets = set[tuple[int, tuple[int, ...]]]


@pytest.fixture
def meets(backbone) -> Meets:
    """The pairs of a thread and a shape that the backbone was called with: cuDNN would plan again for each."""
    found: Meets = set()
    backbone.network.register_forward_pre_hook(
        lambda network, given: found.add((threading.get_ident(), tuple(given[0].shape)))
    )
    return found


def engine_of(backbone: Backbone, batch_size: int = BATCH) -> Engine:
    network = nn.Sequential(Normalise(backbone.transform), backbone.network).eval()
    there = gpu.GpuNetwork(network, "f32", CPU, batch_size)
    return Engine("eager", there.forward, batch_size, there.stream)


def computed(files: list[File], engine: Engine, backbone: Backbone, settings: Extract, images: Path) -> None:
    computing.compute(files, engine, backbone, settings, images, lambda n, **counts: None, threads=4)


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


def kinds_of_files() -> list[bytes]:
    exif = Image.Exif()
    exif[0x0112] = 6
    return [
        encoded(picture(1, 90, 60), "JPEG"),
        encoded(picture(2, 90, 60, "L"), "JPEG"),
        encoded(picture(3, 90, 60, "CMYK"), "JPEG"),
        encoded(picture(4, 90, 60), "JPEG", exif=exif.tobytes()),
        encoded(picture(5, 90, 60), "PNG"),
        encoded(picture(6, 61, 90), "JPEG"),
    ]


@pytest.mark.parametrize("left_to_the_cpu", ["none", "one", "all"])
def test_files_of_all_kinds_share_batches_and_the_device_decodes_those_that_it_can(monkeypatch, left_to_the_cpu):
    monkeypatch.setattr(devices, "device", lambda: CPU)
    to = Transform(32, 36, "bilinear", (0.5,) * 3, (0.5,) * 3)
    contents = kinds_of_files()
    expected = np.stack([loader.view(content, to).numpy() for content in contents])
    on_device: list[int] = []
    decode = gpu_decoding.decode_jpegs

    def decode_jpegs(encoded: list[torch.Tensor], device: torch.device) -> list[torch.Tensor]:
        refused = contents[0] if left_to_the_cpu == "one" else b""
        if left_to_the_cpu == "all" or any(bytes(one.numpy()) == refused for one in encoded):
            raise RuntimeError("nvjpeg: unsupported")
        on_device.append(len(encoded))
        return decode(encoded, device)

    monkeypatch.setattr(gpu_decoding, "decode_jpegs", decode_jpegs)
    network = gpu.GpuNetwork(nn.Flatten(), "f32", CPU, len(contents))
    spec = FeatureSpec.of(to, Extract(decode="gpu"), "eager")
    extractor = FeatureExtractor(spec, Engine("eager", network.forward, len(contents), network.stream), 3 * 32 * 32)
    [(_, seen)] = extractor.features([contents], lambda group: (None, [extractor.prepare(data) for data in group]))
    assert sum(on_device) == {"none": 4, "one": 3, "all": 0}[left_to_the_cpu]
    assert np.abs(seen.reshape(expected.shape) - expected).max() <= 2


def test_large_images_are_decoded_in_parts_that_fit_into_the_devices_memory(monkeypatch):
    monkeypatch.setattr(gpu_decoding, "DECODED_BYTES", 2 * 3 * 90 * 60)
    to = Transform(32, 36, "bilinear", (0.5,) * 3, (0.5,) * 3)
    contents = [encoded(picture(seed, 90, 60), "JPEG") for seed in range(5)]
    parts: list[int] = []
    decode = gpu_decoding.decode_jpegs

    def decode_jpegs(encoded: list[torch.Tensor], device: torch.device) -> list[torch.Tensor]:
        parts.append(len(encoded))
        return decode(encoded, device)

    monkeypatch.setattr(gpu_decoding, "decode_jpegs", decode_jpegs)
    seen = gpu_decoding.views([pixels.open_file(content) for content in contents], to, CPU)
    assert parts == [2, 2, 1]
    assert np.array_equal(seen.numpy(), np.stack([loader.view(content, to).numpy() for content in contents]))


def test_decoding_in_processes_gives_the_same_files_as_in_threads(small, backbone, tmp_path, monkeypatch):
    both = []
    for name, images in (("threads", 10**9), ("processes", 1)):
        monkeypatch.setattr(processes, "FROM_IMAGES", images)
        monkeypatch.setattr(processes, "FROM_CORES", 1)
        files = planning.plan(backbone, EAGER, small.images, tmp_path / name).missing
        computed(files, engine_of(backbone), backbone, EAGER, small.images)
        both.append({file.path.name: file.path.read_bytes() for file in files})
    assert both[0] == both[1]

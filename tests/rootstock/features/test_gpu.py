"""The GPU's code path, on the CPU: one thread, one shape, and the features that the CPU's path gives."""

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
from rootstock.images import gpu_decoding, loader
from rootstock.images.loader import Normalise
from rootstock.system.errors import DamagedError, SourceError
from rootstock.system.parallel import ordered_map
from tests.images import encoded, picture

BATCH = 7  # shards hold about ten images
CPU = torch.device("cpu")
EAGER = Extract(engine="eager")
Meets = set[tuple[int, tuple[int, ...]]]


@pytest.fixture
def meets(backbone) -> Meets:
    """The pairs of a thread and a shape that the backbone has met: cuDNN would plan anew for each."""
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


def test_an_extraction_of_many_shards_meets_one_thread_and_one_shape(small, folder, backbone, meets, tmp_path):
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


def test_a_file_has_the_same_bytes_whatever_is_computed_beside_it(small, backbone, tmp_path):
    both = []
    for name in ("together", "alone"):
        files = planning.plan(backbone, EAGER, small.images, tmp_path / name).missing
        for part in [files] if name == "together" else [[file] for file in files]:
            computed(part, engine_of(backbone), backbone, EAGER, small.images)
        both.append({file.path.name: file.path.read_bytes() for file in files})
    assert both[0] == both[1]


def test_a_damaged_shard_costs_no_other(small, backbone, tmp_path):
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


def test_what_the_device_decodes_gives_nearly_the_same_features_beside_views_that_it_does_not(
    small, folder, backbone, tmp_path, monkeypatch
):
    monkeypatch.setattr(loader, "device", lambda: CPU)
    settings = Extract(engine="eager", decode="gpu", views=1)
    todo = planning.plan(backbone, settings, small.images, tmp_path)
    assert todo.key != folder.name
    computed(todo.missing, engine_of(backbone), backbone, settings, small.images)
    plain, view = feature_keys.find(backbone.description, settings, tmp_path)
    np.testing.assert_allclose(features_in(folder, small), features_in(plain, small), rtol=1e-4, atol=1e-4)
    assert not np.allclose(features_in(plain, small), features_in(view, small))


def test_whoever_stops_waiting_or_fails_leaves_the_network_usable(backbone):
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


def test_a_batch_of_all_kinds_is_decoded_on_the_device_where_it_can_be(monkeypatch):
    exif = Image.Exif()
    exif[0x0112] = 6
    contents = [
        encoded(picture(1, 90, 60), "JPEG"),
        encoded(picture(2, 90, 60, "L"), "JPEG"),
        encoded(picture(3, 90, 60, "CMYK"), "JPEG"),
        encoded(picture(4, 90, 60), "JPEG", exif=exif.tobytes()),
        encoded(picture(5, 90, 60), "PNG"),
    ]
    to = Transform(32, 36, "bilinear", (0.5,) * 3, (0.5,) * 3)
    expected = np.stack([loader.view(content, to).numpy() for content in contents])
    assert np.array_equal(gpu_decoding.views(contents, to, CPU).numpy(), expected)
    monkeypatch.setattr(gpu_decoding.torchvision_io, "decode_jpeg", fails)  # as nvJPEG does where it does not know one
    assert np.abs(gpu_decoding.views(contents, to, CPU).numpy().astype(int) - expected).max() <= 2


def fails(*_: object, **__: object) -> None:
    raise RuntimeError("nvjpeg: unsupported")

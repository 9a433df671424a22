"""The GPU's code path, on the CPU: one thread, one shape, and the same features as on the CPU's path."""

import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from itertools import cycle
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from rootstock.backbones.backbones import Backbone
from rootstock.config.architectures import Transform
from rootstock.config.params import Extract
from rootstock.dataset import shards
from rootstock.features import computing, feature_keys, gpu, planning, reader
from rootstock.features.computing import File
from rootstock.features.engines import Engine
from rootstock.features.feature_extractor import FeatureExtractor
from rootstock.features.feature_spec import FeatureSpec
from rootstock.images import decoding, gpu_decoding, loader, pixel_store, pixels
from rootstock.images.loader import Normalise
from rootstock.system import devices, processes
from rootstock.system.errors import DamagedError, SourceError
from rootstock.system.parallel import cores, ordered_map
from rootstock.training.split_images import SplitImages
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


# How the network is computed


class Seen(nn.Module):
    """A network that keeps what it is given, and calls a function first."""

    def __init__(self, first=lambda: None) -> None:
        super().__init__()
        self.first, self.seen = first, []

    def forward(self, images: Tensor) -> Tensor:
        self.first()
        self.seen.append(images)
        return images.flatten(1).float().sum(1, keepdim=True)


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


# Decoding


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


def test_two_batches_are_decoded_at_a_time_while_the_network_computes_others(monkeypatch):
    monkeypatch.setattr(devices, "device", lambda: CPU)
    both, begun, decode = threading.Barrier(2, timeout=10), [], gpu_decoding.decode_jpegs
    five_begun, alone, waited = threading.Event(), [], []

    def decode_jpegs(encoded: list[Tensor], device: torch.device) -> list[Tensor]:
        begun.append(len(encoded))
        if len(begun) == 5:  # three are given to the network, one waits for it, and one is decoded
            five_begun.set()
        try:
            both.wait()
        except threading.BrokenBarrierError:
            alone.append(encoded)
        return decode(encoded, device)

    monkeypatch.setattr(gpu_decoding, "decode_jpegs", decode_jpegs)
    to = Transform(32, 36, "bilinear", (0.5,) * 3, (0.5,) * 3)
    network = gpu.GpuNetwork(Seen(lambda: waited.append(five_begun.wait(10))), "f32", CPU, 2)
    extractor = FeatureExtractor(
        FeatureSpec.of(to, Extract(decode="gpu"), "eager"), Engine("eager", network.forward, 2, network.stream), 1
    )
    contents = [encoded(picture(number, 90, 60), "JPEG") for number in range(12)]
    groups = [contents[first : first + 2] for first in range(0, 12, 2)]
    found = list(extractor.unrounded(groups, lambda group: (None, [extractor.prepare(data) for data in group])))
    expected = [[float(loader.view(content, to).sum())] for content in contents]
    assert np.concatenate([features for _, features in found]).tolist() == expected
    assert begun == 6 * [2] and not alone and waited == 6 * [True]


def test_decoding_in_processes_gives_the_same_files_as_in_threads(small, backbone, tmp_path, monkeypatch, work):
    """As many as are asked for; here there are as many as there are cores."""
    both, counts, pool = [], [], processes._pool
    monkeypatch.setattr(processes, "_pool", lambda first, count: (counts.append(count), pool(first, cores()))[1])
    for name, images in (("threads", 10**9), ("processes", 1)):
        monkeypatch.setattr(processes, "FROM_IMAGES", images)
        monkeypatch.setattr(processes, "FROM_CORES", 1)
        files = planning.plan(backbone, EAGER, small.images, tmp_path / name).missing
        work.decoded.clear()
        computed(files, engine_of(backbone), backbone, EAGER, small.images)
        assert len(work.decoded) == (len(small.manifest) if name == "threads" else 0)  # here
        both.append({file.path.name: file.path.read_bytes() for file in files})
    assert both[0] == both[1]
    assert counts == [4]


@pytest.mark.parametrize("kept", ["nothing", "images", "whole images for crops"])
def test_processes_decode_the_same_batches_to_train_on_as_threads_and_leave_the_same_in_a_store(
    small, tmp_path, monkeypatch, kept
):
    decoded, decode = [], decoding.decode_opened
    monkeypatch.setattr(decoding, "decode_opened", lambda *given: (decoded.append(given), decode(*given))[1])
    augment = "crop" if kept == "whole images for crops" else "none"
    refs = SplitImages(small.manifest, small.images).refs(seed=None if augment == "none" else 1)
    to = Transform(32, 36, "bilinear", (0.5,) * 3, (0.5,) * 3)
    given = (to, small.images, shards.names(small.images), 1.0)
    found: list[list[Tensor]] = []
    for in_processes in (False, True):
        decoded.clear()
        with ExitStack() as stack, shards.Reader(small.images) as reader:
            store = crops = None
            if kept == "images":
                store = stack.enter_context(pixel_store.opened(tmp_path / f"{in_processes}", *given))
            elif augment == "crop":
                whole = pixel_store.opened_for_crops(tmp_path / f"{in_processes}", 48, *given, beside=None)
                crops = stack.enter_context(whole)
            named = {"augment": augment, "store": store, "processes": in_processes, "crops": crops}
            orders = refs[:50], refs[::-1]  # the second finds some in the store
            found.append(
                [
                    torch.cat(list(loader.batches(reader, order, to, loader.batch_sizes(len(order), 32), **named)))
                    for order in orders
                ]
            )
            for ref in refs if kept != "nothing" else ():
                found[-1].append(torch.from_numpy((store or crops.store).get(ref.shard, ref.offset).copy()))
        assert len(decoded) == (0 if in_processes else len(refs) + 50 * (kept == "nothing"))  # here
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


@pytest.mark.parametrize(
    ("missing", "in_processes"),
    [("nothing", True), ("images", False), ("cores", False), ("a GPU", False), ("an end", False), ("work", False)],
)
def test_many_images_for_a_gpu_are_decoded_in_processes_on_many_cores_and_the_log_says_so(
    small, backbone, tmp_path, monkeypatch, caplog, missing, in_processes
):
    """Not where the GPU decodes, where the cores compute as well, or for a measurement, which goes on for ever."""
    settings = Extract(engine="eager", decode="gpu" if missing == "work" else "full")
    engine, images = engine_of(backbone), len(small.manifest)
    if missing == "a GPU":
        engine = Engine("eager", engine.forward, BATCH)
    monkeypatch.setattr(devices, "device", lambda: CPU)
    count = 3 if missing == "cores" else 4
    monkeypatch.setattr(computing, "cores", lambda: count)
    monkeypatch.setattr(processes, "FROM_IMAGES", images + (missing == "images"))
    used: list[bool] = []

    def unrounded(extractor, groups, prepare, threads=None, processes=False):
        used.append(processes)
        yield from ()

    monkeypatch.setattr(FeatureExtractor, "unrounded", unrounded)
    files = [File(tmp_path / f"{name}.parquet", name, 0) for name in shards.names(small.images)]
    with caplog.at_level("INFO"):
        given = cycle(files) if missing == "an end" else files
        assert list(computing.groups_of(given, engine, backbone, settings, small.images)) == []
    assert used == [in_processes]
    said = [line for line in caplog.messages if line.startswith("extract: decoding in ")]
    if missing in ("a GPU", "an end", "work"):
        assert said == []
    else:
        assert said == [f"extract: decoding in {count} {'processes' if in_processes else 'threads'}"]

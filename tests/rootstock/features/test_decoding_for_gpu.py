"""Images are decoded for a network on a GPU: by it, or on all cores; on the CPU."""

import threading
from contextlib import ExitStack
from itertools import cycle

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from rootstock.config.architectures import Transform
from rootstock.config.params import Extract
from rootstock.dataset import shards
from rootstock.features import computing, gpu, planning
from rootstock.features.computing import File
from rootstock.features.engines import Engine
from rootstock.features.feature_extractor import FeatureExtractor
from rootstock.features.feature_spec import FeatureSpec
from rootstock.images import decoding, gpu_decoding, loader, pixel_store, pixels
from rootstock.system import devices, processes
from rootstock.system.parallel import cores
from rootstock.training.split_images import SplitImages
from tests.gpu_path import BATCH, CPU, EAGER, Seen, computed, engine_of
from tests.images import encoded, picture


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

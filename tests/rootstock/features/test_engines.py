"""Engines: each computes the same features, from one thread per core."""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import nn

from rootstock.backbones import backbones
from rootstock.config import params
from rootstock.dataset.shards import Reader
from rootstock.features import engines
from rootstock.features.engines import ENGINES, Unavailable, best_batch_size, start, start_auto
from rootstock.images.loader import Normalise, view
from rootstock.system.parallel import limit_to_one_core, ordered_map
from tests.small_dataset import Small, small_backbone

CUT = [("shufflenet_v2_x0_5", "penultimate", "avg"), ("resnet18", "mid", "gem"), ("resnet18", "low", "avgmax")]


@pytest.fixture(scope="module", params=CUT, ids=["-".join(entry) for entry in CUT])
def backbone(tmp_path_factory, request) -> backbones.Backbone:
    name, layer, pooling = request.param
    return backbones.load(small_backbone(tmp_path_factory.getbasetemp(), name), layer, pooling)


@pytest.fixture(scope="module")
def images(small, backbone) -> np.ndarray:
    return images_of(small, backbone)


def images_of(small: Small, backbone: backbones.Backbone, most: int | None = None) -> np.ndarray:
    """The backbone's input for the test images."""
    rows = small.split("test").head(most or len(small.manifest))
    with Reader(small.images) as reader:
        places = zip(rows["shard"], rows["offset"], rows["size"], strict=True)
        return np.stack([view(reader.read(*place), backbone.transform).numpy() for place in places])


@pytest.fixture(scope="module")
def expected(backbone, images) -> np.ndarray:
    """Reference features: fp32, eager, channels first."""
    network = nn.Sequential(Normalise(backbone.transform), backbone.network).eval()
    with torch.inference_mode():
        return network(torch.from_numpy(images)).numpy()


def computed(engine: engines.Engine, images: np.ndarray) -> np.ndarray:
    groups = np.array_split(images, max(1, len(images) // engine.batch_size))
    groups = [
        part for group in groups for part in np.split(group, range(engine.batch_size, len(group), engine.batch_size))
    ]
    return np.concatenate(list(ordered_map(engine.forward, groups, first=limit_to_one_core)))


def cosines(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    one, other = one.astype(np.float64), other.astype(np.float64)
    return (one * other).sum(1) / np.linalg.norm(one, axis=1) / np.linalg.norm(other, axis=1)


@pytest.mark.parametrize("name", ["eager", "openvino"])
def test_features_in_f32_equal_those_of_plain_torch(name, backbone, images, expected):
    found = computed(start(name, backbone, batch_size=4), images)
    assert found.shape == expected.shape and found.dtype == np.float32
    assert cosines(found, expected).min() >= 0.9999
    assert np.abs(found - expected).max() <= 1e-4 * np.abs(expected).max()


@pytest.mark.parametrize("name", ["eager", "openvino"])
def test_features_in_bf16_are_close_to_those_of_plain_torch_but_not_equal(name, backbone, images, expected):
    try:
        engine = start(name, backbone, "bf16", batch_size=4)
    except Unavailable as why:
        pytest.skip(str(why))
    found = computed(engine, images)
    assert 0.8 < cosines(found, expected).min() < 0.9999999  # random weights: those of a trained network, below
    assert not np.array_equal(found, expected)


@pytest.mark.parametrize(
    ("name", "precision", "least"),
    [(name, "f32", 0.9999) for name in ("eager", "openvino")] + [("openvino", "bf16", 0.99)],
)
def test_features_of_the_default_network_equal_those_of_plain_torch(tmp_path_factory, small, name, precision, least):
    backbone = backbones.load(shipped(tmp_path_factory.getbasetemp()))
    images = images_of(small, backbone, 12)
    with torch.inference_mode():
        plain = nn.Sequential(Normalise(backbone.transform), backbone.network)(torch.from_numpy(images)).numpy()
    try:
        found = computed(start(name, backbone, precision), images)
    except Unavailable as why:
        pytest.skip(str(why))
    assert cosines(found, plain).min() >= least


@cache
def shipped(base: Path) -> Path:
    """The network whose weights come with a package, at 96 pixels, as for the sample."""
    folder = base / "efficientnet_lite0"
    backbones.prepare(params.Backbone(image_size=96), 0, folder)
    return folder


@pytest.mark.parametrize("name", ["eager", "openvino"])
def test_a_feature_does_not_depend_on_the_images_beside_it(name, backbone, images):
    engine = start(name, backbone, batch_size=4)
    alone = computed(engine, images[:1])
    assert all(np.array_equal(computed(engine, images[:n])[0], alone[0]) for n in (2, 3, 4)) or name == "eager"
    np.testing.assert_allclose(computed(engine, images[:3])[:1], alone, rtol=1e-4, atol=1e-5)


AT_ONCE = """
import sys, threading
from pathlib import Path
import numpy as np
from rootstock.backbones import backbones
from rootstock.features import engines
from rootstock.system.parallel import limit_to_one_core, ordered_map

backbone = backbones.load(Path(sys.argv[1]))
engine = engines.start("openvino", backbone, batch_size=4, threads=8)
together = threading.Barrier(8)
images = np.zeros((4, 3, 32, 32), np.uint8)
list(ordered_map(engine.forward, [images] * 16, threads=8, window=16, first=together.wait))
print("done")
"""


@pytest.mark.slow
def test_the_first_calls_of_a_process_may_come_from_many_threads_at_once(tmp_path_factory):
    weights = small_backbone(tmp_path_factory.getbasetemp())
    for _ in range(3):  # it hung in one process of a few, before the first call was made alone
        command = [sys.executable, "-c", AT_ONCE, str(weights)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
        assert done.stdout.strip() == "done"


def test_limiting_one_thread_to_one_core_does_not_limit_the_others():
    before = torch.get_num_threads()
    with ThreadPoolExecutor(1, initializer=limit_to_one_core) as pool:
        assert pool.submit(torch.get_num_threads).result() == 1
    assert torch.get_num_threads() == before


def test_a_block_that_is_limited_to_one_core_limits_its_own_thread_until_it_ends():
    before = torch.get_num_threads()
    with ThreadPoolExecutor(1) as pool:
        with limit_to_one_core():
            assert torch.get_num_threads() == 1
            assert pool.submit(torch.get_num_threads).result() == before
        assert torch.get_num_threads() == before


def test_an_unavailable_engine_is_an_error_that_says_why(backbone, monkeypatch):
    with pytest.raises(Unavailable, match="on CPUs only, and this machine has a GPU"):
        start("openvino", backbone, device=torch.device("cuda"))
    monkeypatch.setattr(engines.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(Unavailable, match="openvino is not installed"):
        start("openvino", backbone)


# auto


@pytest.mark.parametrize(("images", "name"), [(1, "eager"), (255, "eager"), (256, "openvino"), (10**6, "openvino")])
def test_auto_is_openvino_from_256_images_on(tmp_path_factory, images, name):
    backbone = backbones.load(small_backbone(tmp_path_factory.getbasetemp()))
    assert start_auto(backbone, params.Extract(), images).name == name


def test_auto_falls_back_to_eager_where_openvino_fails_and_says_why(backbone, monkeypatch, caplog):
    def fail(*_: object) -> None:
        raise RuntimeError("unsupported operator: aten::new\nwith a stack")

    monkeypatch.setattr(engines, "_in_openvino", fail)
    assert start_auto(backbone, params.Extract(), 1000).name == "eager"
    assert "falling back to the eager engine, as OpenVINO failed: unsupported operator: aten::new" in caplog.text
    assert "with a stack" not in caplog.text


def test_auto_on_a_gpu_is_torch(backbone, monkeypatch):
    monkeypatch.setattr(engines.devices, "device", lambda: torch.device("meta"))
    asked = []
    monkeypatch.setattr(engines, "start", lambda name, *_: asked.append(name))
    start_auto(backbone, params.Extract(), 10**6)
    assert asked == ["eager"]


@given(st.integers(16, 1024), st.booleans())
@settings(max_examples=50, deadline=None)
def test_smaller_images_are_computed_in_larger_batches(size, on_gpu):
    assert best_batch_size(size, on_gpu) >= best_batch_size(size + 1, on_gpu) >= 1
    assert best_batch_size(size, on_gpu).bit_count() == 1


def test_every_engine_that_the_parameters_allow_exists():
    from typing import get_args

    from rootstock.config.params import Extract

    assert {*ENGINES, "auto"} == set(get_args(Extract.model_fields["engine"].annotation))

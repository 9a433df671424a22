"""Published weights, of torchvision and timm: downloaded once, from where they are published or from a mirror."""

import hashlib
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import fsspec
import pytest
import safetensors.torch
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torchvision.models import SqueezeNet1_1_Weights

from rootstock.backbones import backbones, weights
from rootstock.backbones.networks import import_timm, timm_config
from rootstock.config.params import Backbone
from rootstock.system import downloads
from rootstock.system.errors import ParamsError, WeightsError
from tests.site import site as opened
from tests.squeezenet import NAME, prepared, same


@pytest.fixture
def named(state, tmp_path, monkeypatch) -> str:
    """A file name as torchvision's, with the digest of its content."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(downloads, "RETRY_AFTER_S", ())
    torch.save(state, tmp_path / "state.pth")
    digest = hashlib.sha256((tmp_path / "state.pth").read_bytes()).hexdigest()
    name = f"{NAME}-{digest[:8]}.pth"
    url = f"https://download.pytorch.org/models/{name}"
    monkeypatch.setattr(SqueezeNet1_1_Weights.IMAGENET1K_V1.value, "url", url)
    return name


@pytest.fixture
def site(named, tmp_path, monkeypatch):
    with opened(**{named: (tmp_path / "state.pth").read_bytes()}) as found:
        monkeypatch.setenv(weights.MIRROR, found.address)
        yield found


def test_pretrained_weights_are_downloaded_once(site, named, expected, tmp_path):
    assert same(prepared("pretrained", tmp_path / "first"), expected)
    assert same(prepared("pretrained", tmp_path / "second"), expected)
    assert site.asked == [(named, 0, 200)]
    described = backbones.describe(tmp_path / "first")
    assert described["origin"] == f"torchvision SqueezeNet1_1_Weights.IMAGENET1K_V1 {named}"
    assert described["licence"].startswith("BSD-3-Clause") and "127.0.0.1" not in str(described)
    assert (tmp_path / "first/backbone.json").read_bytes() == (tmp_path / "second/backbone.json").read_bytes()


def test_weights_in_torchs_cache_are_used_without_a_network(named, expected, tmp_path, monkeypatch):
    kept = tmp_path / "torch/hub/checkpoints" / named
    kept.parent.mkdir(parents=True)
    (tmp_path / "state.pth").rename(kept)

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("the network was touched")

    monkeypatch.setattr(socket, "create_connection", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    assert same(prepared("pretrained", tmp_path / "out"), expected)


def test_a_download_that_does_not_match_the_digest_in_its_name_is_refused_and_not_kept(site, named, expected, tmp_path):
    good = site.files[named]
    site.files[named] = good[:-9] + b"different"
    with pytest.raises(WeightsError, match=r"are damaged: its digest begins with .*\nRemove .* and try again"):
        prepared("pretrained", tmp_path / "out")
    site.files[named] = good
    assert same(prepared("pretrained", tmp_path / "out"), expected)


def test_a_download_that_broke_off_is_resumed_by_the_next_run(site, named, expected, tmp_path):
    half = len(site.files[named]) // 2
    site.breaks = [half]
    with pytest.raises(WeightsError, match=rf"cannot be loaded from http.*: the connection was lost after {half:,} of"):
        prepared("pretrained", tmp_path / "out")
    assert same(prepared("pretrained", tmp_path / "out"), expected)
    assert site.asked == [(named, 0, 200), (named, half, 206)]


def test_a_damaged_file_in_torchs_cache_is_named(site, named, tmp_path):
    prepared("pretrained", tmp_path / "out")
    kept = tmp_path / "torch/hub/checkpoints" / named
    kept.write_bytes(kept.read_bytes()[:1000])
    with pytest.raises(WeightsError, match=f"Remove {re.escape(str(kept))}"):
        prepared("pretrained", tmp_path / "out")


def test_the_error_for_a_missing_file_or_an_unreachable_address_says_what_to_do(site, named, tmp_path, monkeypatch):
    del site.files[named]
    advice = f"Set {weights.MIRROR} to a folder or URL that contains {named}, or backbone.weights to a local file"
    with pytest.raises(
        WeightsError, match=f"(?s)cannot be loaded from {site.address}/{named}: HTTP Error 404.*{advice}"
    ):
        prepared("pretrained", tmp_path / "out")
    monkeypatch.setenv(weights.MIRROR, "http://127.0.0.1:9")
    with pytest.raises(WeightsError, match=f"(?s)Connection re(?:fused|set).*{advice}"):
        prepared("pretrained", tmp_path / "out")


def test_a_folder_serves_as_a_mirror(named, expected, tmp_path, monkeypatch):
    folder = tmp_path / "a mirror, 100% local"
    folder.mkdir()
    (tmp_path / "state.pth").rename(folder / named)
    monkeypatch.setenv(weights.MIRROR, str(folder))
    assert same(prepared("pretrained", tmp_path / "out"), expected)
    monkeypatch.setenv(weights.MIRROR, str(tmp_path / "nowhere"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "another"))
    with pytest.raises(WeightsError, match=r"cannot be loaded from .*/nowhere/"):
        prepared("pretrained", tmp_path / "out")


def test_any_store_that_fsspec_reaches_serves_as_a_mirror(named, expected, tmp_path, monkeypatch):
    fsspec.filesystem("memory").pipe(f"/shelf/{named}", (tmp_path / "state.pth").read_bytes())
    monkeypatch.setenv(weights.MIRROR, "memory://shelf/")
    assert same(prepared("pretrained", tmp_path / "out"), expected)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "another"))
    monkeypatch.setenv(weights.MIRROR, "sfpt://shelf")
    with pytest.raises(WeightsError, match="cannot be loaded from sfpt://shelf/"):
        prepared("pretrained", tmp_path / "out")


def test_weights_with_a_licence_of_their_own_are_recorded_with_it(tmp_path, monkeypatch):
    from torchvision.models import RegNet_Y_128GF_Weights

    torch.save({"a": torch.zeros(1)}, tmp_path / "state.pth")
    digest = hashlib.sha256((tmp_path / "state.pth").read_bytes()).hexdigest()
    monkeypatch.setattr(RegNet_Y_128GF_Weights.DEFAULT.value, "url", f"https://host/regnet_y_128gf-{digest[:8]}.pth")
    (tmp_path / "state.pth").rename(tmp_path / f"regnet_y_128gf-{digest[:8]}.pth")
    monkeypatch.setenv(weights.MIRROR, str(tmp_path))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    found = weights.find(Backbone(name="regnet_y_128gf"), 0, 384)
    assert "SWAG" in found.licence and "BSD" not in found.licence


@pytest.mark.parametrize(("name", "variant"), [("lenet5", None), ("plain34", None), ("resnet34", "shortcut_a")])
def test_a_network_without_published_weights_is_an_error_that_says_so(name, variant):
    with pytest.raises(WeightsError, match=f"no published weights for {name}.*; expected random, or the path"):
        weights.find(Backbone(name=name, variant=variant), 0, 32)


# timm


TIMM = "test_efficientnet"  # timm's own, for tests: 0.4 M parameters
PREPARE = """
import sys
from pathlib import Path
from rootstock.backbones import backbones
from rootstock.backbones.networks import timm_config
from rootstock.config.params import Backbone
print(backbones.prepare(Backbone(name=sys.argv[1], image_size=64), 0, Path(sys.argv[2]))["origin"])
"""


def prepared_alone(name: str, folder: Path, **env: str) -> str:
    """Prepare in a separate process: the Hugging Face hub reads its settings on import."""
    clean = {key: value for key, value in os.environ.items() if not key.startswith("HF_") and key != weights.MIRROR}
    quiet = {"no_proxy": "127.0.0.1", "HF_HUB_DISABLE_TELEMETRY": "1"}
    done = subprocess.run(
        [sys.executable, "-c", PREPARE, name, str(folder)], env=clean | quiet | env, capture_output=True, text=True
    )
    return done.stdout.strip() or done.stderr.strip().splitlines()[-1]


@pytest.fixture(scope="module")
def efficient() -> dict[str, Tensor]:
    torch.manual_seed(5)
    return dict(import_timm().create_model(TIMM).state_dict())


@pytest.mark.slow
def test_timms_weights_are_downloaded_from_the_configured_hub_and_stay_in_its_cache(efficient, tmp_path):
    hub = f"timm/{import_timm().get_pretrained_cfg(TIMM).hf_hub_id.removeprefix('timm/')}"
    with opened(**{f"{hub}/resolve/main/model.safetensors": safetensors.torch.save(efficient)}) as site:
        site.headers = {"X-Repo-Commit": "0" * 40, "ETag": '"1"'}
        env = {"HF_ENDPOINT": site.address, "HF_HOME": str(tmp_path / "hub")}
        assert hub in prepared_alone(f"timm/{TIMM}", tmp_path / "out", **env)
        assert site.asked
    got = load_file(tmp_path / "out" / backbones.WEIGHTS)
    assert got and all(torch.equal(value, efficient[name]) for name, value in got.items())
    assert hub in prepared_alone(f"timm/{TIMM}", tmp_path / "again", **env, HF_HUB_OFFLINE="1")
    nowhere = {**env, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "empty")}
    assert weights.MIRROR in prepared_alone(f"timm/{TIMM}", tmp_path / "none", **nowhere)


def test_a_mirror_provides_timms_weights_under_the_name_of_the_model(efficient, tmp_path, monkeypatch):
    save_file(efficient, tmp_path / f"{TIMM}.safetensors")
    monkeypatch.setenv(weights.MIRROR, str(tmp_path))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    described = backbones.prepare(Backbone(name=f"timm/{TIMM}", image_size=64), 0, tmp_path / "out")
    got = load_file(tmp_path / "out" / backbones.WEIGHTS)
    assert got and all(torch.equal(value, efficient[name]) for name, value in got.items())
    assert described["transform"]["size"] == 64 and described["depths"]["high"]["width"] > 0


@pytest.mark.parametrize("name", ["hf-hub:x/resnet18", "local-dir:/tmp", "hf_hub:resnet18", "../resnet18"])
def test_timm_names_that_denote_locations_are_not_architectures(name):
    with pytest.raises(ParamsError, match="has no model of that name"):
        timm_config(f"timm/{name}")

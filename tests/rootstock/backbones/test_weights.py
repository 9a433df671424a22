"""Pretrained weights: from a URL, a mirror or a file, checked before use, and never executed."""

import hashlib
import os
import re
import socket
import subprocess
import sys
from functools import partial
from pathlib import Path

import fsspec
import numpy as np
import pytest
import safetensors.torch
import timm
import torch
from hypothesis import given, settings, strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor
from torchvision.models import SqueezeNet1_1_Weights, get_model

from rootstock.backbones import backbones, state_dicts, weights
from rootstock.backbones.networks import timm_config
from rootstock.config.params import Backbone
from rootstock.model import model
from rootstock.system import downloads
from rootstock.system.errors import DamagedError, ParamsError, WeightsError
from rootstock.training.classifier import Classifier
from rootstock.training.head import Head
from tests.site import site as opened

NAME = "squeezenet1_1"


@pytest.fixture(scope="module")
def state() -> dict[str, Tensor]:
    """The weights of a SqueezeNet for five classes."""
    torch.manual_seed(7)
    return dict(get_model(NAME, num_classes=5).state_dict())


@pytest.fixture(scope="module")
def expected(state) -> dict[str, Tensor]:
    """The same without its last layer, which is for other classes."""
    return {name: value for name, value in state.items() if not name.startswith("classifier.")}


def prepared(source: str | Path, folder: Path) -> dict[str, Tensor]:
    """Prepare a backbone from a source, and return its weights."""
    backbones.prepare(Backbone(name=NAME, weights=str(source), image_size=32), 0, folder)
    return load_file(folder / backbones.WEIGHTS)


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


# From a file


def test_a_safetensors_file_gives_its_weights_and_its_name_but_not_its_folder(state, expected, tmp_path):
    save_file(state, tmp_path / "mine.safetensors")
    assert same(prepared(tmp_path / "mine.safetensors", tmp_path / "out"), expected)
    described = backbones.describe(tmp_path / "out")
    assert described["origin"] == "file mine.safetensors"
    assert str(tmp_path) not in (tmp_path / "out" / backbones.DESCRIPTION).read_text()


@pytest.mark.parametrize(
    "wrapped",
    [
        lambda state: state,
        lambda state: {"state_dict": state, "epoch": 3, "optimizer": {"lr": 0.1}},
        lambda state: {"model": state, "args": None},
        lambda state: {"model_state_dict": {f"module.{name}": value for name, value in state.items()}},
        lambda state: {f"module.{name}": value for name, value in state.items()},
    ],
    ids=["plain", "state_dict", "model", "model_state_dict and module.", "module."],
)
def test_a_pth_file_gives_its_weights_however_they_are_wrapped(wrapped, state, expected, tmp_path):
    torch.save(wrapped(state), tmp_path / "mine.pth")
    assert same(prepared(tmp_path / "mine.pth", tmp_path / "out"), expected)


def test_a_file_in_half_precision_is_taken_as_float32(state, expected, tmp_path):
    save_file({name: value.half() for name, value in state.items()}, tmp_path / "half.safetensors")
    got = prepared(tmp_path / "half.safetensors", tmp_path / "out")
    assert same(got, {name: value.half().float() for name, value in expected.items()})


class Opens:
    """The content of a malicious file: unpickling it runs a command."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


def test_code_in_a_pickle_is_refused_and_not_executed(tmp_path):
    torch.save({"features.0.weight": Opens(tmp_path / "owned")}, tmp_path / "evil.pth")
    with pytest.raises(WeightsError, match=r"evil\.pth: not a weights-only file.*Save the state dict"):
        weights.read(tmp_path / "evil.pth")
    assert not (tmp_path / "owned").exists()


def test_a_whole_pickled_network_is_refused_with_what_to_do(tmp_path):
    torch.save(get_model(NAME), tmp_path / "whole.pth")
    with pytest.raises(WeightsError, match=r"Save the state dict: torch\.save\(model\.state_dict\(\), path\)"):
        weights.read(tmp_path / "whole.pth")


def test_a_missing_file_is_named_with_what_is_expected(tmp_path):
    with pytest.raises(
        WeightsError, match=r"backbone\.weights: .*gone\.pth does not exist; expected pretrained, random"
    ):
        prepared(tmp_path / "gone.pth", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("content", "what"), [([1, 2], "list"), ({"epoch": 3, "net": {}}, "dict of epoch, net"), (3, "int")]
)
def test_a_file_of_something_else_is_said_to_be_that(content, what, tmp_path):
    torch.save(content, tmp_path / "other.pth")
    with pytest.raises(WeightsError, match=f"contains a {what}; expected a state dict"):
        weights.read(tmp_path / "other.pth")


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> dict[str, bytes]:
    """Two small tensors in each format."""
    path, tensors = tmp_path_factory.mktemp("files") / "file", {"a": torch.randn(4, 4), "b": torch.randn(3)}
    contents = {}
    for kind, store in (
        (".pth", torch.save),
        (".pt", partial(torch.save, _use_new_zipfile_serialization=False)),
        (".safetensors", save_file),
    ):
        store(tensors, path)
        contents[kind] = path.read_bytes()
    return contents


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@given(kind=st.sampled_from([".pth", ".pt", ".safetensors"]), data=st.data())
@settings(max_examples=150, deadline=None)
def test_a_truncated_or_damaged_file_is_an_error_that_names_it(files, tmp_path_factory, kind, data):
    content = bytearray(files[kind])
    for place in data.draw(st.lists(st.integers(0, len(content) - 1), max_size=8), "damaged at"):
        content[place] ^= 0xFF
    end = data.draw(st.integers(0, len(content) - 1), "cut at")
    path = tmp_path_factory.getbasetemp() / f"damaged{kind}"
    path.write_bytes(content[:end])
    with pytest.raises(WeightsError, match=re.escape(str(path))):
        weights.read(path)


# Loading the state dict


def test_entries_that_do_not_fit_are_listed_by_name(state, tmp_path):
    odd = dict(state) | {"features.3.squeeze.weight": torch.zeros(2, 2), "neck.weight": torch.zeros(1)}
    del odd["features.0.bias"]
    torch.save(odd, tmp_path / "odd.pth")
    with pytest.raises(WeightsError) as error:
        prepared(tmp_path / "odd.pth", tmp_path / "out")
    assert str(error.value).splitlines() == [
        "backbone.weights: file odd.pth does not fit the architecture:",
        "  features.0.bias is missing",
        "  features.3.squeeze.weight has shape (2, 2), expected (16, 64, 1, 1)",
        "  neck.weight is not in the architecture",
    ]
    assert not (tmp_path / "out").exists()


def test_of_many_entries_that_do_not_fit_twenty_are_listed(tmp_path):
    torch.save({f"layer{number}": torch.zeros(1) for number in range(60)}, tmp_path / "other.pth")
    with pytest.raises(WeightsError) as error:
        prepared(tmp_path / "other.pth", tmp_path / "out")
    assert len(str(error.value).splitlines()) == 22 and "\n  and 90 more" in str(error.value)


def test_weights_that_give_no_finite_features_are_refused(state, tmp_path):
    torch.save(dict(state) | {"features.0.bias": torch.full((64,), torch.nan)}, tmp_path / "nan.pth")
    with pytest.raises(WeightsError, match="features would not be finite"):
        prepared(tmp_path / "nan.pth", tmp_path / "out")


ODD = {
    "int8": lambda weight: (weight * 100).to(torch.int8),
    "int64": lambda weight: weight.long(),
    "bool": lambda weight: weight > 0,
    "complex64": lambda weight: weight.to(torch.complex64),
}


@pytest.mark.parametrize("kind", [".safetensors", ".pth"])
@pytest.mark.parametrize("dtype", ODD)
def test_weights_that_are_no_floating_point_numbers_are_refused_by_name(dtype, kind, state, tmp_path):
    odd = dict(state) | {"features.0.weight": ODD[dtype](state["features.0.weight"])}
    (save_file if kind == ".safetensors" else torch.save)(odd, tmp_path / f"odd{kind}")
    with pytest.raises(WeightsError) as error:
        prepared(tmp_path / f"odd{kind}", tmp_path / "out")
    expected = f"features.0.weight has dtype {dtype}, expected a floating-point dtype"
    assert str(error.value).splitlines()[1:] == [f"  {expected}"]


def test_a_sparse_tensor_is_no_weight(state, tmp_path):
    torch.save(dict(state) | {"features.0.bias": state["features.0.bias"].to_sparse()}, tmp_path / "odd.pth")
    with pytest.raises(WeightsError, match=r"features\.0\.bias is not a plain dense tensor"):
        prepared(tmp_path / "odd.pth", tmp_path / "out")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_floating_point_numbers_of_any_width_and_whole_counters_are_weights(dtype, tmp_path):
    network = backbones.build("resnet18", 32)
    given = {
        name: value.to(dtype) if value.is_floating_point() else value for name, value in network.state_dict().items()
    }
    assert {value.dtype for value in given.values()} == {dtype, torch.int64}
    state_dicts.load_pretrained_state(network, given, "file")
    assert network.state_dict()["conv1.weight"].dtype == torch.float32


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_a_tensor_that_is_not_finite_is_named(value, state, tmp_path):
    torch.save(dict(state) | {"features.0.bias": torch.full((64,), value)}, tmp_path / "nan.pth")
    with pytest.raises(WeightsError, match=r"features\.0\.bias holds NaN or infinite values"):
        prepared(tmp_path / "nan.pth", tmp_path / "out")


OLDER = {  # names in torchvision's older files that differ from its code
    "resnet18": lambda name: None if name.endswith(".num_batches_tracked") else name,
    "densenet121": lambda name: re.sub(r"(denselayer\d+\.(?:norm|conv))([12])\.", r"\1.\2.", name),
    "vit_b_32": lambda name: name.replace(".mlp.0.", ".mlp.linear_1.").replace(".mlp.3.", ".mlp.linear_2."),
    "mnasnet0_5": lambda name: name,  # but it requires a version, which a plain dictionary lacks
}


@pytest.mark.parametrize("name", OLDER)
def test_weights_from_before_torchvision_renamed_a_layer_fit(name):
    network, other = (backbones.build(name, 64) for _ in range(2))
    older = {OLDER[name](key): value for key, value in network.state_dict().items()}
    assert name == "mnasnet0_5" or older.keys() != network.state_dict().keys()
    state_dicts.load_pretrained_state(other, {key: value for key, value in older.items() if key}, "file")
    assert same(other.state_dict(), network.state_dict())


def test_the_auxiliary_classifiers_of_googlenet_are_left_out():
    whole = get_model("googlenet", aux_logits=True, init_weights=False)
    network = backbones.build("googlenet", 64)
    state_dicts.load_pretrained_state(network, whole.state_dict(), "file")
    assert torch.equal(network.state_dict()["conv1.conv.weight"], whole.state_dict()["conv1.conv.weight"])


@pytest.mark.parametrize("said", [b"", b"[]", b'{"backbone": {}}', b'{"backbone": "resnet"}', b'{"name": "resn'])
def test_an_earlier_model_whose_description_is_damaged_is_named_and_never_guessed(state, tmp_path, said):
    save_file(state, tmp_path / "model.safetensors")
    (tmp_path / "model.json").write_bytes(said)
    with pytest.raises(DamagedError, match=re.escape(str(tmp_path / "model.json"))):
        prepared(str(tmp_path), tmp_path / "out")


def test_an_address_that_is_no_file_of_this_machine_is_said_to_be_one(tmp_path):
    with pytest.raises(WeightsError, match=r"backbone.weights is 'https://h/x.pth', a URL; expected pretrained"):
        prepared("https://h/x.pth", tmp_path / "out")


# From torchvision


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


def test_what_is_in_torchs_own_cache_is_taken_from_there_without_a_network(named, expected, tmp_path, monkeypatch):
    kept = tmp_path / "torch/hub/checkpoints" / named
    kept.parent.mkdir(parents=True)
    (tmp_path / "state.pth").rename(kept)

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("the network was touched")

    monkeypatch.setattr(socket, "create_connection", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    assert same(prepared("pretrained", tmp_path / "out"), expected)


def test_a_file_that_is_not_what_its_name_says_is_refused_and_not_kept(site, named, expected, tmp_path):
    good = site.files[named]
    site.files[named] = good[:-9] + b"different"
    with pytest.raises(WeightsError, match=r"are damaged: its digest begins with .*\nRemove .* and try again"):
        prepared("pretrained", tmp_path / "out")
    site.files[named] = good
    assert same(prepared("pretrained", tmp_path / "out"), expected)


def test_after_a_broken_connection_the_next_run_fetches_the_rest(site, named, expected, tmp_path):
    half = len(site.files[named]) // 2
    site.breaks = [half]
    with pytest.raises(WeightsError, match=rf"cannot be loaded from http.*: the connection was lost after {half:,} of"):
        prepared("pretrained", tmp_path / "out")
    assert same(prepared("pretrained", tmp_path / "out"), expected)
    assert site.asked == [(named, 0, 200), (named, half, 206)]


def test_a_damaged_file_in_torchs_own_cache_is_named(site, named, tmp_path):
    prepared("pretrained", tmp_path / "out")
    kept = tmp_path / "torch/hub/checkpoints" / named
    kept.write_bytes(kept.read_bytes()[:1000])
    with pytest.raises(WeightsError, match=f"Remove {re.escape(str(kept))}"):
        prepared("pretrained", tmp_path / "out")


def test_an_address_that_has_no_such_file_or_does_not_answer_says_what_to_do(site, named, tmp_path, monkeypatch):
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


def test_weights_under_a_licence_of_their_own_are_said_to_be(tmp_path, monkeypatch):
    from torchvision.models import RegNet_Y_128GF_Weights

    torch.save({"a": torch.zeros(1)}, tmp_path / "state.pth")
    digest = hashlib.sha256((tmp_path / "state.pth").read_bytes()).hexdigest()
    monkeypatch.setattr(RegNet_Y_128GF_Weights.DEFAULT.value, "url", f"https://host/regnet_y_128gf-{digest[:8]}.pth")
    (tmp_path / "state.pth").rename(tmp_path / f"regnet_y_128gf-{digest[:8]}.pth")
    monkeypatch.setenv(weights.MIRROR, str(tmp_path))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    found = weights.find(Backbone(name="regnet_y_128gf"), 0, 384)
    assert "SWAG" in found.licence and "BSD" not in found.licence


# From timm

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
    return dict(timm.create_model(TIMM).state_dict())


@pytest.mark.slow
def test_timms_weights_come_from_the_hub_that_is_set_and_stay_in_its_cache(efficient, tmp_path):
    hub = f"timm/{timm.get_pretrained_cfg(TIMM).hf_hub_id.removeprefix('timm/')}"
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


def test_a_mirror_has_timms_weights_under_the_models_name(efficient, tmp_path, monkeypatch):
    save_file(efficient, tmp_path / f"{TIMM}.safetensors")
    monkeypatch.setenv(weights.MIRROR, str(tmp_path))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    described = backbones.prepare(Backbone(name=f"timm/{TIMM}", image_size=64), 0, tmp_path / "out")
    got = load_file(tmp_path / "out" / backbones.WEIGHTS)
    assert got and all(torch.equal(value, efficient[name]) for name, value in got.items())
    assert described["transform"]["size"] == 64 and described["depths"]["high"]["width"] > 0


# From packages and earlier runs


@pytest.mark.parametrize(("name", "variant"), [("lenet5", None), ("plain34", None), ("resnet34", "shortcut_a")])
def test_where_nobody_publishes_weights_it_is_said(name, variant):
    with pytest.raises(WeightsError, match=f"no published weights for {name}.*; expected random, or the path"):
        weights.find(Backbone(name=name, variant=variant), 0, 32)


def test_the_projecting_variant_has_torchvisions_weights(tmp_path):
    torch.manual_seed(1)
    state = get_model("resnet34").state_dict()
    save_file(state, tmp_path / "b.safetensors")
    asked = Backbone(name="resnet34", variant="shortcut_b", weights=str(tmp_path / "b.safetensors"), image_size=32)
    described = backbones.prepare(asked, 0, tmp_path / "out")
    assert described["variant"] == "shortcut_b"
    assert torch.equal(load_file(tmp_path / "out" / backbones.WEIGHTS)["conv1.weight"], state["conv1.weight"])


def test_a_package_that_ships_weights_is_taken_by_its_name(state, expected, tmp_path, monkeypatch):
    package = tmp_path / "squeezed"
    package.mkdir()
    (package / "__init__.py").touch()
    save_file(state, package / "weights.safetensors")
    info = tmp_path / "squeezed-2.1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: squeezed\nVersion: 2.1\n")
    (info / "top_level.txt").write_text("squeezed\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert same(prepared("package:squeezed/*.safetensors", tmp_path / "out"), expected)
    assert backbones.describe(tmp_path / "out")["origin"].startswith("package squeezed 2.1")
    with pytest.raises(WeightsError, match=r"expected exactly one matching file in the package, found none"):
        weights.find(Backbone(name=NAME, weights="package:squeezed/*.pth"), 0, 32)
    with pytest.raises(WeightsError, match=r"the package sqeezed is not installed; install the one"):
        weights.find(Backbone(name=NAME, weights="package:sqeezed/*.pth"), 0, 32)


HOSTILE = "open({marker!r}, 'w').close()\n"


@pytest.mark.parametrize("place", ["data.inbox.field.bee.evil/x", "evil/*.pth", "evil", "installed_here/*.pth"])
def test_what_lies_in_the_workspace_is_no_package_and_is_never_executed(place, state, tmp_path):
    folder = tmp_path / "data" / "inbox" / "field" / "bee"
    folder.mkdir(parents=True)
    marker = tmp_path / "ran"
    for module in (folder / "evil.py", tmp_path / "evil" / "__init__.py", tmp_path / "installed_here" / "__init__.py"):
        module.parent.mkdir(exist_ok=True)
        module.write_text(HOSTILE.format(marker=str(marker)))
        torch.save(state, module.parent / "weights.pth")
    info = tmp_path / "installed_here-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: installed_here\nVersion: 1\n")
    (info / "top_level.txt").write_text("installed_here\n")
    ask = (
        "import sys\nfrom rootstock.backbones import weights\nfrom rootstock.config import params\n"
        "try: weights.find(params.Backbone(name='squeezenet1_1', "
    )
    code = (
        f"{ask}weights='package:' + sys.argv[1]), 0, 32)\nexcept Exception as error: print(type(error).__name__, error)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, place], cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(tmp_path)},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert "WeightsError" in done.stdout and "is not installed" in done.stdout
    assert not marker.exists()


@pytest.mark.parametrize(
    "place",
    ["package:", "package:/x", "package:os/", "package:x/../../y", "package:x//y", "package:../x/y", "package:x y/z",
     "package:x/\0", "package:.x/y", "package:x./y"],
)  # fmt: skip
def test_a_place_in_a_package_that_is_none_is_refused_before_anything_runs(place):
    with pytest.raises(ValueError, match=r"expected package:<import name>/<file>|control character"):
        Backbone(name=NAME, weights=place)


@pytest.mark.parametrize(
    ("place", "said"),
    [
        ("package:os", "the package os is not installed"),
        ("package:no_such.thing/x", "the package no_such.thing is not installed"),
        ("package:timm/nothing.pth", "expected exactly one matching file in the package, found none"),
        ("package:timm/models", "expected exactly one matching file in the package, found none"),  # a folder
        ("package:timm/*.py", "expected exactly one matching file in the package, found __init__.py, version.py"),
        ("package:timm/version.py", "not a weights-only file"),
        ("/tmp/" + 300 * "x", "cannot be read"),
        (".", "contains none of model.safetensors"),
    ],
)
def test_what_a_package_or_a_path_does_not_hold_is_said_in_a_sentence(place, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(WeightsError, match=re.escape(said)):
        weights.find(Backbone(name=NAME, weights=place), 0, 32)


def test_a_link_out_of_a_package_into_the_workspace_is_not_followed(state, tmp_path, monkeypatch):
    (tmp_path / "site" / "linked").mkdir(parents=True)
    (tmp_path / "workspace").mkdir()
    torch.save(state, tmp_path / "workspace" / "w.pth")
    (tmp_path / "site" / "linked" / "w.pth").symlink_to(tmp_path / "workspace" / "w.pth")
    info = tmp_path / "site" / "linked-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: linked\nVersion: 1\n")
    (info / "RECORD").write_text("linked/w.pth,,\n")
    monkeypatch.syspath_prepend(tmp_path / "site")
    monkeypatch.chdir(tmp_path / "workspace")
    with pytest.raises(WeightsError, match="found none"):
        weights.find(Backbone(name=NAME, weights="package:linked/w.pth"), 0, 32)


@pytest.mark.parametrize("name", ["hf-hub:x/resnet18", "local-dir:/tmp", "hf_hub:resnet18", "../resnet18"])
def test_timms_names_of_places_are_no_architectures(name):
    with pytest.raises(ParamsError, match="has no model of that name"):
        timm_config(f"timm/{name}")


@pytest.fixture
def earlier(tmp_path) -> tuple[Path, dict[str, Tensor]]:
    """A model of an earlier run, and its backbone's weights."""
    backbones.prepare(Backbone(name=NAME, weights="random", image_size=32), 3, tmp_path / "backbone")
    backbone = backbones.load(tmp_path / "backbone")
    head = Head(np.ones((5, 512), np.float32), np.zeros(5, np.float32), list("abcde"), 1.0)
    network = Classifier(backbone.network, backbone.transform, head)
    model.save(tmp_path / "model", network, {"backbone": backbone.description}, "a card")
    return tmp_path / "model", load_file(tmp_path / "backbone" / backbones.WEIGHTS)


@pytest.mark.parametrize("file", ["", "model.safetensors"])
def test_a_model_of_an_earlier_run_gives_its_backbone(file, earlier, tmp_path):
    folder, backbone = earlier
    assert same(prepared(folder / file, tmp_path / "out"), backbone)


def test_a_backbone_of_an_earlier_run_and_a_checkpoint_of_fine_tuning_do_too(earlier, tmp_path):
    folder, backbone = earlier
    assert same(prepared(tmp_path / "backbone", tmp_path / "out"), backbone)
    content = {"model": {}, "best": load_file(folder / "model.safetensors"), "epoch": 3}
    torch.save(content, tmp_path / "finetune.pt")
    assert same(prepared(tmp_path / "finetune.pt", tmp_path / "out"), backbone)


def test_a_model_of_another_architecture_is_refused_by_name(earlier, tmp_path):
    with pytest.raises(
        WeightsError, match=r"weights of squeezenet1_1, but backbone.name is resnet18; set it to squeezenet1_1"
    ):
        weights.find(Backbone(name="resnet18", weights=str(earlier[0])), 0, 32)
    (tmp_path / "empty").mkdir()
    with pytest.raises(WeightsError, match=r"contains none of model\.safetensors, weights\.safetensors"):
        weights.find(Backbone(name=NAME, weights=str(tmp_path / "empty")), 0, 32)


@pytest.mark.slow
def test_weights_are_the_file_mapped_into_memory_and_not_a_copy(tmp_path):
    backbones.prepare(Backbone(name="vgg11", weights="random", image_size=32), 0, tmp_path / "out")
    code = f"""
import psutil, torch
from pathlib import Path
from rootstock.backbones import backbones
own = psutil.Process()
before = own.memory_full_info()
network = backbones.load(Path({str(tmp_path / "out")!r})).network
after = own.memory_full_info()
print((after.uss - before.uss) // 2**20, sum(p.numel() for p in network.parameters()) // 2**18)
with torch.no_grad():
    next(network.parameters()).add_(1)  # what is trained is this process's alone
"""
    digest = hashlib.sha256((tmp_path / "out" / backbones.WEIGHTS).read_bytes()).hexdigest()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    own, size = map(int, done.stdout.split())
    assert size > 450 and own < 100  # MiB
    assert hashlib.sha256((tmp_path / "out" / backbones.WEIGHTS).read_bytes()).hexdigest() == digest

"""Pretrained weights: from an address, a mirror or a file, checked before their use, and never executed."""

import hashlib
import os
import re
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings, strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor
from torchvision.models import SqueezeNet1_1_Weights, get_model

from rootstock import backbones, weights
from rootstock.errors import WeightsError
from rootstock.params import Backbone

NAME = "squeezenet1_1"


@pytest.fixture(scope="module")
def state() -> dict[str, Tensor]:
    """The weights of a SqueezeNet for five classes."""
    torch.manual_seed(7)
    return dict(get_model(NAME, num_classes=5).state_dict())


@pytest.fixture(scope="module")
def expected(state) -> dict[str, Tensor]:
    """Without its last layer, which is not for our classes."""
    return {name: value for name, value in state.items() if not name.startswith("classifier.")}


def prepared(source: str | Path, folder: Path) -> dict[str, Tensor]:
    """The weights that a backbone gets from a source."""
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
    """What a malicious file holds: unpickling it runs a command."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


def test_code_in_a_pickle_is_refused_and_not_executed(tmp_path):
    torch.save({"features.0.weight": Opens(tmp_path / "owned")}, tmp_path / "evil.pth")
    with pytest.raises(WeightsError, match=r"evil\.pth: not a file of weights alone.*Save the state dict"):
        weights.read(tmp_path / "evil.pth")
    assert not (tmp_path / "owned").exists()


def test_a_whole_pickled_network_is_refused_with_what_to_do(tmp_path):
    torch.save(get_model(NAME), tmp_path / "whole.pth")
    with pytest.raises(WeightsError, match=r"Save the state dict: torch\.save\(model\.state_dict\(\), path\)"):
        weights.read(tmp_path / "whole.pth")


def test_a_missing_file_is_named_with_what_is_expected(tmp_path):
    with pytest.raises(WeightsError, match=r"backbone\.weights: .*gone\.pth is not there; expected pretrained, random"):
        prepared(tmp_path / "gone.pth", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("content", "what"), [([1, 2], "list"), ({"epoch": 3, "net": {}}, "dict of epoch, net"), (3, "int")]
)
def test_a_file_of_something_else_is_said_to_be_that(content, what, tmp_path):
    torch.save(content, tmp_path / "other.pth")
    with pytest.raises(WeightsError, match=f"holds a {what}; expected a state dict"):
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


# Fitting


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
    with pytest.raises(WeightsError, match="features that are not finite"):
        prepared(tmp_path / "nan.pth", tmp_path / "out")


OLDER = {  # torchvision's files are older than its code: what they call by another name, or do not have
    "resnet18": lambda name: None if name.endswith(".num_batches_tracked") else name,
    "densenet121": lambda name: re.sub(r"(denselayer\d+\.(?:norm|conv))([12])\.", r"\1.\2.", name),
    "vit_b_32": lambda name: name.replace(".mlp.0.", ".mlp.linear_1.").replace(".mlp.3.", ".mlp.linear_2."),
    "mnasnet0_5": lambda name: name,  # but it asks a state dict for its version, which a plain dictionary lacks
}


@pytest.mark.parametrize("name", OLDER)
def test_weights_from_before_torchvision_renamed_a_layer_fit(name):
    network, other = (backbones.build(name, 64) for _ in range(2))
    older = {OLDER[name](key): value for key, value in network.state_dict().items()}
    assert name == "mnasnet0_5" or older.keys() != network.state_dict().keys()
    weights.fit(other, {key: value for key, value in older.items() if key}, "file")
    assert same(other.state_dict(), network.state_dict())


def test_the_auxiliary_classifiers_of_googlenet_are_left_out():
    whole = get_model("googlenet", aux_logits=True, init_weights=False)
    network = backbones.build("googlenet", 64)
    weights.fit(network, whole.state_dict(), "file")
    assert torch.equal(network.state_dict()["conv1.conv.weight"], whole.state_dict()["conv1.conv.weight"])


# From torchvision's address


class Site:
    """A web site on this machine: what it has, what it was asked for, and how much of each file it gives."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self.folder, self.asked, self.share = folder, [], 1.0
        site = self

        class Handler(SimpleHTTPRequestHandler):
            def copyfile(self, source, outputfile):
                content = source.read()
                outputfile.write(content[: int(len(content) * site.share)])

            def log_request(self, code="-", size="-"):
                site.asked.append((self.path.lstrip("/"), int(code)))

            def log_message(self, *args):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(folder)))
        self.address = f"http://127.0.0.1:{self.server.server_port}"

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def named(state, tmp_path, monkeypatch) -> str:
    """A file as torchvision names it, after the digest of its content; `site` has it."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    torch.save(state, tmp_path / "state.pth")
    digest = hashlib.sha256((tmp_path / "state.pth").read_bytes()).hexdigest()
    name = f"{NAME}-{digest[:8]}.pth"
    url = f"https://download.pytorch.org/models/{name}"
    monkeypatch.setattr(SqueezeNet1_1_Weights.IMAGENET1K_V1.value, "url", url)
    return name


@pytest.fixture
def site(named, tmp_path, monkeypatch):
    site = Site(tmp_path / "site")
    (tmp_path / "state.pth").rename(tmp_path / "site" / named)
    monkeypatch.setenv(weights.MIRROR, site.address)
    threading.Thread(target=site.server.serve_forever, args=(0.01,), daemon=True).start()
    yield site
    site.close()


def test_pretrained_weights_are_downloaded_once(site, named, expected, tmp_path):
    assert same(prepared("pretrained", tmp_path / "first"), expected)
    assert same(prepared("pretrained", tmp_path / "second"), expected)
    assert site.asked == [(named, 200)]
    described = backbones.describe(tmp_path / "first")
    assert described["origin"] == f"torchvision SqueezeNet1_1_Weights.IMAGENET1K_V1 {named}"
    assert described["licence"].startswith("BSD-3-Clause") and "127.0.0.1" not in str(described)
    assert (tmp_path / "first/backbone.json").read_bytes() == (tmp_path / "second/backbone.json").read_bytes()


def test_a_file_that_is_not_what_its_name_says_is_refused_and_not_kept(site, named, expected, tmp_path):
    good = (site.folder / named).read_bytes()
    (site.folder / named).write_bytes(good[:-9] + b"different")
    with pytest.raises(WeightsError, match=r"are damaged: invalid hash value.*\nRemove .* and try again"):
        prepared("pretrained", tmp_path / "out")
    (site.folder / named).write_bytes(good)
    assert same(prepared("pretrained", tmp_path / "out"), expected)


def test_a_connection_that_breaks_off_is_an_error_and_the_next_run_starts_afresh(site, expected, tmp_path):
    site.share = 0.5
    with pytest.raises(WeightsError, match=r"squeezenet1_1's weights from http.* are damaged"):
        prepared("pretrained", tmp_path / "out")
    site.share = 1.0
    assert same(prepared("pretrained", tmp_path / "out"), expected)


def test_a_damaged_file_in_torchs_own_cache_is_named(site, named, tmp_path):
    prepared("pretrained", tmp_path / "out")
    kept = tmp_path / "torch/hub/checkpoints" / named
    kept.write_bytes(kept.read_bytes()[:1000])
    with pytest.raises(WeightsError, match=f"Remove {re.escape(str(kept))}"):
        prepared("pretrained", tmp_path / "out")


def test_an_address_that_has_no_such_file_or_does_not_answer_says_what_to_do(site, named, tmp_path):
    (site.folder / named).unlink()
    advice = f"Set {weights.MIRROR} to a folder or address that holds {named}, or backbone.weights to a local file"
    with pytest.raises(WeightsError, match=f"(?s)cannot be had from {site.address}/{named}: HTTP Error 404.*{advice}"):
        prepared("pretrained", tmp_path / "out")
    site.server.server_close()
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
    with pytest.raises(WeightsError, match=r"cannot be had from file:.*/nowhere/"):
        prepared("pretrained", tmp_path / "out")


def test_weights_under_a_licence_of_their_own_are_said_to_be(tmp_path, monkeypatch):
    from torchvision.models import RegNet_Y_128GF_Weights

    torch.save({"a": torch.zeros(1)}, tmp_path / "state.pth")
    digest = hashlib.sha256((tmp_path / "state.pth").read_bytes()).hexdigest()
    monkeypatch.setattr(RegNet_Y_128GF_Weights.DEFAULT.value, "url", f"https://host/regnet_y_128gf-{digest[:8]}.pth")
    (tmp_path / "state.pth").rename(tmp_path / f"regnet_y_128gf-{digest[:8]}.pth")
    monkeypatch.setenv(weights.MIRROR, str(tmp_path))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    found = weights.find(Backbone(name="regnet_y_128gf"), 0)
    assert "SWAG" in found.licence and "BSD" not in found.licence

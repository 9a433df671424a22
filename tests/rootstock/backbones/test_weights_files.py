"""Weights in a local file, of any usual form: read without executing anything, and refused in a sentence."""

import hashlib
import os
import re
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings, strategies as st
from safetensors.torch import save_file
from torchvision.models import get_model

from rootstock.backbones import backbones, weights
from rootstock.config.params import Backbone
from rootstock.system.errors import WeightsError
from tests.squeezenet import NAME, prepared, same


def test_a_safetensors_file_is_recorded_by_its_name_without_its_folder(state, expected, tmp_path):
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
def test_a_pth_file_is_read_however_its_state_dict_is_wrapped(wrapped, state, expected, tmp_path):
    torch.save(wrapped(state), tmp_path / "mine.pth")
    assert same(prepared(tmp_path / "mine.pth", tmp_path / "out"), expected)


def test_weights_in_half_precision_are_converted_to_float32(state, expected, tmp_path):
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


def test_a_pickled_network_is_refused_with_the_advice_to_save_its_state_dict(tmp_path):
    torch.save(get_model(NAME), tmp_path / "whole.pth")
    with pytest.raises(WeightsError, match=r"Save the state dict: torch\.save\(model\.state_dict\(\), path\)"):
        weights.read(tmp_path / "whole.pth")


def test_a_missing_file_is_named_and_the_error_says_what_is_expected(tmp_path):
    with pytest.raises(
        WeightsError, match=r"backbone\.weights: .*gone\.pth does not exist; expected pretrained, random"
    ):
        prepared(tmp_path / "gone.pth", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_url_is_refused_and_the_error_says_what_is_expected(tmp_path):
    with pytest.raises(WeightsError, match=r"backbone.weights is 'https://h/x.pth', a URL; expected pretrained"):
        prepared("https://h/x.pth", tmp_path / "out")


@pytest.mark.parametrize(
    ("content", "what"), [([1, 2], "list"), ({"epoch": 3, "net": {}}, "dict of epoch, net"), (3, "int")]
)
def test_a_file_without_a_state_dict_is_refused_and_the_error_says_what_it_contains(content, what, tmp_path):
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


@pytest.mark.slow
def test_weights_are_mapped_into_memory_and_not_copied(tmp_path):
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

"""A state dict is checked against the architecture, entry by entry, before it is loaded."""

import re

import pytest
import torch
from safetensors.torch import load_file, save_file
from torchvision.models import get_model

from rootstock.backbones import backbones, state_dicts
from rootstock.config.params import Backbone
from rootstock.system.errors import WeightsError
from tests.squeezenet import prepared, same


def test_entries_that_do_not_fit_the_architecture_are_listed_by_name(state, tmp_path):
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


def test_at_most_twenty_entries_that_do_not_fit_are_listed(tmp_path):
    torch.save({f"layer{number}": torch.zeros(1) for number in range(60)}, tmp_path / "other.pth")
    with pytest.raises(WeightsError) as error:
        prepared(tmp_path / "other.pth", tmp_path / "out")
    assert len(str(error.value).splitlines()) == 22 and "\n  and 90 more" in str(error.value)


def test_weights_that_make_features_infinite_or_nan_are_refused(state, tmp_path):
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
def test_weights_that_are_not_floating_point_numbers_are_refused_by_name(dtype, kind, state, tmp_path):
    odd = dict(state) | {"features.0.weight": ODD[dtype](state["features.0.weight"])}
    (save_file if kind == ".safetensors" else torch.save)(odd, tmp_path / f"odd{kind}")
    with pytest.raises(WeightsError) as error:
        prepared(tmp_path / f"odd{kind}", tmp_path / "out")
    expected = f"features.0.weight has dtype {dtype}, expected a floating-point dtype"
    assert str(error.value).splitlines()[1:] == [f"  {expected}"]


def test_a_sparse_tensor_is_refused(state, tmp_path):
    torch.save(dict(state) | {"features.0.bias": state["features.0.bias"].to_sparse()}, tmp_path / "odd.pth")
    with pytest.raises(WeightsError, match=r"features\.0\.bias is not a plain dense tensor"):
        prepared(tmp_path / "odd.pth", tmp_path / "out")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_floating_point_weights_of_any_width_and_integer_counters_are_loaded(dtype, tmp_path):
    network = backbones.build("resnet18", 32)
    given = {
        name: value.to(dtype) if value.is_floating_point() else value for name, value in network.state_dict().items()
    }
    assert {value.dtype for value in given.values()} == {dtype, torch.int64}
    state_dicts.load_pretrained_state(network, given, "file")
    assert network.state_dict()["conv1.weight"].dtype == torch.float32


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_a_tensor_with_infinite_or_nan_values_is_named(value, state, tmp_path):
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
def test_weights_from_before_torchvision_renamed_a_layer_are_loaded(name):
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


def test_resnet34_with_shortcut_b_loads_torchvisions_weights(tmp_path):
    torch.manual_seed(1)
    state = get_model("resnet34").state_dict()
    save_file(state, tmp_path / "b.safetensors")
    asked = Backbone(name="resnet34", variant="shortcut_b", weights=str(tmp_path / "b.safetensors"), image_size=32)
    described = backbones.prepare(asked, 0, tmp_path / "out")
    assert described["variant"] == "shortcut_b"
    assert torch.equal(load_file(tmp_path / "out" / backbones.WEIGHTS)["conv1.weight"], state["conv1.weight"])

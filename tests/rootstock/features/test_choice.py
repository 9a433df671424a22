"""Which engine is the fastest for so many images, its start included; the same answer to the same question."""

import json
import logging

import pytest
import torch
from hypothesis import given, settings, strategies as st

from rootstock.backbones import backbones
from rootstock.config.params import Extract
from rootstock.features import choice, engines
from rootstock.features.choice import STARTS_IN_S, WORTH, Measured, choose, decide
from rootstock.features.engines import ENGINES, Unavailable
from rootstock.features.extraction import extract
from rootstock.system.errors import ParamsError
from tests.small_dataset import small_backbone, small_dataset

CPU = torch.device("cpu")
# What was measured with efficientnet_lite0 at 224 pixels on two cores with AVX-512.
HERE = {
    "eager": Measured(0.3, 80),
    "openvino": Measured(0.9, 200),
    "onnxruntime": Measured(0.8, 170),
    "compile": Measured(35, 108),
}


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("ROOTSTOCK_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "engines"


def fastest(images: int, machine: dict[str, Measured]) -> tuple[str, list[str]]:
    """The engine that is chosen, and those that were measured for it, in their order."""
    measured = decide(images, {}, lambda name: machine[name])
    return min(measured, key=lambda name: measured[name].seconds(images)), list(measured)


def test_few_images_are_computed_before_another_engine_has_started():
    assert fastest(100, HERE) == ("eager", ["eager"])


def test_more_images_make_up_for_the_start_of_a_faster_one():
    assert fastest(2_000, HERE) == ("openvino", ["eager", "openvino"])


def test_of_very_many_the_rest_are_tried_too():
    chosen, tried = fastest(1_000_000, HERE)
    assert (chosen, tried) == ("openvino", list(ENGINES))
    slow = HERE | {"openvino": Measured(0.9, 150)}
    assert fastest(1_000_000, slow)[0] == "onnxruntime"


def test_one_that_cannot_is_passed_over():
    without = HERE | {"openvino": Measured(reason="openvino is not installed")}
    assert fastest(10_000, without)[0] == "onnxruntime"


@given(images=st.integers(1, 10**7), rates=st.tuples(*[st.floats(0.5, 5000)] * 4))
@settings(max_examples=200, deadline=None)
def test_what_is_chosen_is_hardly_slower_than_the_best_of_all(images, rates):
    """Never by more than what it would have cost to find out, or by more than an engine is known to be faster."""
    machine = {name: Measured(STARTS_IN_S[name], rate) for name, rate in zip(ENGINES, rates, strict=True)}
    chosen, tried = fastest(images, machine)
    assert machine[chosen].seconds(images) == min(machine[name].seconds(images) for name in tried)
    if "openvino" not in tried:
        assert machine["eager"].seconds(images) * (1 - 1 / 3) <= WORTH * STARTS_IN_S["openvino"]


def test_what_is_known_is_not_measured_again():
    def measure(name: str) -> Measured:
        raise AssertionError(f"{name} is measured")

    assert decide(10**6, HERE, measure) == HERE
    assert decide(10, HERE, measure) == {"eager": HERE["eager"]}  # whatever else has been measured since


def test_a_machine_is_measured_once_and_says_why(backbone, cache, monkeypatch):
    first = choose(backbone, "f32", None, 1000, CPU)
    assert first.engine is not None and first.why.startswith(
        f"{first.name} is the fastest for 1,000 images here (eager "
    )
    [kept] = cache.iterdir()
    monkeypatch.setattr(engines, "start", lambda *_: pytest.fail("measured again"))
    again = choose(backbone, "f32", None, 1000, CPU)
    assert (again.name, again.why, again.engine) == (first.name, first.why, None)
    assert json.loads(kept.read_bytes())["backbone"] == "shufflenet_v2_x0_5"


def test_another_network_another_size_or_precision_is_another_question(backbone, cache, tmp_path_factory):
    base = tmp_path_factory.getbasetemp()
    for asked in (
        backbone,
        backbones.load(small_backbone(base, "resnet18")),
        backbones.load(small_backbone(base, size=48)),
    ):
        choose(asked, "f32", None, 1, CPU)
    choose(backbone, "bf16", None, 1, CPU)
    choose(backbone, "f32", 7, 1, CPU)
    choose(backbones.load(small_backbone(base, seed=1)), "f32", None, 1, CPU)  # weights do not make it slower
    assert len(list(cache.iterdir())) == 5


DAMAGED = [
    "", "{", "[]", "7", "null", "\0" * 100, "[" * 100_000, '{"engines": []}', '{"engines": {"eager": 3}}',
    '{"engines": {"eager": {"rate": "fast"}}}', '{"engines": {"eager": {"rate": null}}}',
    '{"engines": {"eager": {"rate": NaN}}}', '{"engines": {"eager": {"rate": 80, "start_s": -1}}}',
    '{"engines": {"eager": {"rate": 80, "reason": 5}}}', '{"engines": {"eager": {"rate": [80]}}}',
]  # fmt: skip


def test_a_damaged_note_is_measured_anew(backbone, cache):
    choose(backbone, "f32", None, 1, CPU)
    [kept] = cache.iterdir()
    for text in DAMAGED:
        kept.write_text(text)
        assert choice._recall(kept) == {}, text[:60]
    assert choose(backbone, "f32", None, 1, CPU).engine is not None
    kept.unlink()
    kept.mkdir()  # cannot be replaced: it is measured again each time
    assert choose(backbone, "f32", None, 1, CPU).engine is not None


def test_where_no_engine_can_it_is_an_error_that_says_why_each_cannot(backbone, cache, monkeypatch):
    def cannot(name: str, *_: object) -> None:
        raise Unavailable(f"{name} is on strike")

    monkeypatch.setattr(choice.engines, "start", cannot)
    with pytest.raises(ParamsError, match=r"extract\.precision is 'f32', .*openvino cannot \(openvino is on strike\)"):
        choose(backbone, "f32", None, 10, CPU)


def test_an_extraction_logs_its_choice_and_the_next_one_keeps_it(backbone, cache, caplog, tmp_path, tmp_path_factory):
    small = small_dataset(tmp_path_factory.getbasetemp())
    with caplog.at_level(logging.INFO):
        first = extract(backbone, Extract(), small.images, tmp_path / "features")
        assert f"extract: {first.engine} is the fastest for 120 images here" in caplog.text
        caplog.clear()
        assert extract(backbone, Extract(), small.images, tmp_path / "features").engine == first.engine
    assert "is the fastest" not in caplog.text


def test_on_a_gpu_many_images_are_worth_compiling_for(backbone, cache):
    gpu = torch.device("cuda")
    assert choose(backbone, "f32", None, 1000, gpu).name == "eager"
    assert choose(backbone, "f32", None, 10**6, gpu).name == "compile"
    assert not cache.exists()

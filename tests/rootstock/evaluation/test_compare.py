"""Comparison of backbones: candidates and measurements."""

from dataclasses import replace

import numpy as np
import pytest

from rootstock.backbones import backbones
from rootstock.config import params
from rootstock.config.architectures import GROUPS, NAMES
from rootstock.config.params_file import load
from rootstock.evaluation import compare
from rootstock.evaluation.compare import Candidate, Paths, candidates, expand, measure
from rootstock.evaluation.compare_table import Row
from rootstock.features import extraction, feature_keys
from rootstock.system.errors import ParamsError
from tests.small_dataset import small_dataset

TINY = "shufflenet_v2_x0_5"


def settings(**asked) -> params.Params:
    return params.Params(
        backbone=params.Backbone(name=TINY, weights="random", image_size=32),
        extract=params.Extract(batch_size=16),
        head=params.Head(l2=(1.0, 0.1)),
        finetune=params.Finetune(batch_size=8),
        evaluate=params.Evaluate(),
        compare=params.Compare(**{"backbones": (TINY,), **asked}),
    )


@pytest.fixture(scope="module")
def paths(tmp_path_factory) -> Paths:
    small, own = small_dataset(tmp_path_factory.getbasetemp()), tmp_path_factory.mktemp("compare")
    return Paths(small.images, small.dataset, own / "pipeline", own / "features", own / "backbones")


@pytest.fixture(scope="module")
def row(paths) -> Row:
    found, _ = measure(candidates(settings())[0], settings(), paths)
    return found


# Candidates


def test_a_group_name_stands_for_its_members_and_each_is_tried_once():
    assert expand(["classics", "resnet34", "resnet18"]) == [*GROUPS["classics"], "resnet18"]
    assert expand(["all"]) == list(NAMES)
    assert set(GROUPS["small"]) < set(NAMES)


def test_every_backbone_is_tried_at_every_depth_and_then_from_scratch():
    asked = settings(backbones=("resnet18", "lenet5"), depths=("low", "penultimate"), scratch=("lenet5",))
    titles = [candidate.title for candidate in candidates(asked)]
    assert titles == [
        "resnet18, low", "resnet18, penultimate", "lenet5, low", "lenet5, penultimate", "lenet5, from scratch"
    ]  # fmt: skip


def test_a_backbone_without_pretrained_weights_is_tried_with_random_ones_at_its_own_image_size():
    residual, first = candidates(settings(backbones=("resnet34", "lenet5")))
    assert (residual.backbone.weights, residual.backbone.image_size) == ("pretrained", 32)
    assert (first.backbone.weights, first.backbone.image_size) == ("random", None)
    [small] = candidates(settings(backbones=("resnet34",), image_size=64))
    assert small.backbone.image_size == 64


def test_a_variant_is_named_after_a_colon():
    asked = settings(backbones=("resnet34:shortcut_a", "resnet34:shortcut_b", "lenet5:average_pooling"))
    a, b, pooled = candidates(asked)
    assert (a.title, a.backbone.weights) == ("resnet34 shortcut_a, penultimate", "random")
    assert (b.backbone.variant, b.backbone.weights) == ("shortcut_b", "pretrained")
    assert pooled.backbone.variant == "average_pooling"


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ("backbones: ['resnet34:shortcut_d']", "compare.backbones is 'shortcut_d'; expected shortcut_a, shortcut_b"),
        (
            "backbones: [resnet43]",
            r"compare.backbones is 'resnet43'; .* timm/<name>, classics, small, all\. Did you mean",
        ),
        ("backbones: [clasics]", "Did you mean classics"),
        ("scratch: [lenet]", "compare.scratch is 'lenet'; .*Did you mean lenet5"),
        ("depths: [hihg]", "compare.depths is 'hihg'; expected low, mid, high, penultimate, or a module name"),
    ],
)
def test_a_misspelt_candidate_is_refused_and_the_nearest_is_suggested(written, said, tmp_path):
    (tmp_path / "params.yaml").write_text(f"compare: {{{written}}}")
    with pytest.raises(ParamsError, match=said):
        load(tmp_path / "params.yaml")


# Measurements


def test_a_row_has_accuracy_size_and_speed(row, paths):
    described = backbones.describe(next(paths.own_backbones.iterdir()))
    assert (row.backbone, row.trained, row.layer, row.reason) == (TINY, "frozen", "penultimate", "")
    assert (row.width, row.parameters, row.macs) == (1024, described["parameters"], described["macs"])
    assert row.feature_bytes == 4 * 1024 and row.image_size == 32
    assert row.accuracy_low <= row.accuracy <= row.accuracy_high
    assert row.images_per_second > 10 and row.seconds > 0
    assert row.train_images + row.val_images < row.computed == 120


def test_extracted_features_are_not_extracted_again(row, paths):
    again, _ = measure(candidates(settings())[0], settings(), paths)
    assert again.computed == 0
    assert (again.accuracy, again.l2, again.log_loss) == (row.accuracy, row.l2, row.log_loss)


@pytest.mark.parametrize("name", [backbones.WEIGHTS, backbones.DESCRIPTION])
def test_a_damaged_cached_backbone_is_prepared_again(row, paths, name):
    [folder] = {path.parent for path in paths.own_backbones.glob(f"{row.backbone}-*/{name}")}
    kept = {path: path.read_bytes() for path in folder.iterdir()}
    for harmed in (b"", kept[folder / name][:50], None):
        (folder / name).write_bytes(harmed) if harmed is not None else (folder / name).unlink()
        compare._prepared(candidates(settings())[0], settings(), paths)
        assert {path: path.read_bytes() for path in folder.iterdir()} == kept


def test_a_comparison_reuses_features_that_the_pipeline_extracted(row, paths, tmp_path):
    [folder] = {path for path in paths.own_features.iterdir() if path.is_dir()}
    elsewhere = replace(paths, features=paths.own_features, own_features=tmp_path / "features")
    found, _ = measure(candidates(settings())[0], settings(), elsewhere)
    assert found.computed == 0
    assert {path.name for path in (tmp_path / "features" / folder.name).iterdir()} == {p.name for p in folder.iterdir()}


def test_the_pipeline_reuses_features_that_a_comparison_extracted(row, paths, tmp_path):
    backbone = backbones.load(next(paths.own_backbones.iterdir()))
    wanted = settings().extract
    key = feature_keys.find(backbone.description, wanted, paths.own_features)[0].name
    gone = paths.own_features / key / "999999-00000000.parquet"  # of a shard that was here once
    gone.write_bytes(b"")
    done = extraction.extract(backbone, wanted, paths.images, tmp_path / "out", fallback_cache=paths.own_features)
    gone.unlink()
    assert not (tmp_path / "out" / key / gone.name).exists()
    assert (done.computed, done.images) == (0, 120)
    fresh = extraction.extract(backbone, wanted, paths.images, tmp_path / "fresh")
    assert fresh.computed == 120
    for path in (tmp_path / "fresh" / fresh.key).iterdir():
        assert (tmp_path / "out" / done.key / path.name).read_bytes() == path.read_bytes()


def test_a_lower_depth_costs_less(row, paths):
    asked = settings(depths=("low", "stage2.0"))
    low, module = (measure(candidate, asked, paths)[0] for candidate in candidates(asked))
    assert (low.reason, module.reason) == ("", "")
    assert low.macs < module.macs < row.macs and low.parameters < module.parameters < row.parameters
    assert (low.width, low.pooling, row.pooling) == (24, "avg", "")


@pytest.mark.parametrize(
    ("backbone", "layer", "reason"),
    [
        (params.Backbone(name="resnet18", weights="gone.pth"), "penultimate", "gone.pth does not exist"),
        (params.Backbone(name=TINY, weights="random", image_size=32), "stage9", "extract.layer is 'stage9'"),
        (params.Backbone(name="timm/resnet_18"), "low", "has no model of that name. Did you mean timm/resnet18"),
    ],
)
def test_a_candidate_that_fails_is_a_row_with_the_reason(backbone, layer, reason, paths):
    found, _ = measure(Candidate(backbone, layer), settings(), paths)
    assert reason in found.reason and found.accuracy is None and found.backbone == backbone.name


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (RuntimeError("[alloc_cpu.cpp:98] DefaultCPUAllocator: can't allocate memory\nstack"), "can't allocate memory"),
        (MemoryError(), "MemoryError"),
    ],
)
def test_a_candidate_that_needs_too_much_memory_is_a_row_with_the_reason(paths, monkeypatch, error, reason):
    def too_much(*_: object) -> None:
        raise error

    monkeypatch.setattr(extraction, "speed", too_much)
    found, _ = measure(candidates(settings())[0], settings(), paths)
    assert found.reason.endswith(reason)


@pytest.mark.slow
def test_training_from_scratch_learns_keeps_its_history_and_is_reproducible(paths):
    asked = settings(backbones=(), scratch=(TINY,), epochs=16, lr=0.003)
    [candidate] = candidates(asked)
    found, epochs = measure(candidate, asked, paths)
    assert (found.reason, found.trained, found.layer) == ("", "scratch", "penultimate")
    assert [epoch.epoch for epoch in epochs] == list(range(16))
    assert epochs[-1].val_loss < 0.9 * epochs[0].val_loss
    again, _ = measure(candidate, asked, paths)
    assert (again.accuracy, again.log_loss) == (found.accuracy, found.log_loss)  # seeded


def test_the_speed_includes_decoding_and_the_network(paths):
    prepared = next(paths.own_backbones.glob(f"{TINY}-*"))
    for batch_size in (8, 4096):  # of which all images are less than one
        settings = params.Extract(engine="eager", batch_size=batch_size)
        rate = extraction.speed(backbones.load(prepared), settings, paths.images)
        assert np.isfinite(rate) and rate > 1

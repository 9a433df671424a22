"""What is measured is what is used: a loaded model predicts, image by image, what its evaluation wrote."""

import dataclasses
import importlib.util
import io
import json
import shutil
from collections.abc import Callable
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image, ImageOps

import rootstock
from rootstock.backbones import backbones
from rootstock.config.params import (
    Evaluate,
    Extract,
    Finetune,
    Head as HeadSettings,
    Ingest,
    Params,
    Source,
    Split,
    Stage,
)
from rootstock.evaluation import evaluate
from rootstock.evaluation.evaluate import Inputs
from rootstock.features import extraction, feature_keys
from rootstock.features.reader import Features
from rootstock.ingest.ingest import ingest
from rootstock.system.errors import DamagedError, ParamsError
from rootstock.training import classifier, finetune, head, heads
from rootstock.training.course import save_course
from rootstock.training.split_images import SplitImages
from tests.slow import slow
from tests.small_dataset import CLASSES, Small, classifier_from, ingested, picture, small_backbone, small_head

ATOL = 1e-5
PHOTO_PX = 150  # at 32 px, reduced decoding halves it twice
TUNED = (Stage(unfreeze="all", epochs=5, lr=1e-3),)
KEYS = ("engine", "precision", "decode", "dtype")
EVERY = [("openvino", *spec) for spec in product(("f32", "bf16"), ("full", "reduced"), ("float32", "float16"))]
FAST = [("openvino", "f32", "full", "float32"), ("eager", "bf16", "reduced", "float16")]  # every value of every key
EAGER = ("eager", "f32", "full", "float32")
SPECS = [*FAST, *slow(EAGER, *(spec for spec in EVERY if spec not in FAST))]
INEXACT = [("decode", "reduced", "full"), *(pytest.param(*one, marks=pytest.mark.slow) for one in (
    ("precision", "bf16", "f32"), ("dtype", "float16", "float32")))]  # fmt: skip


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Small:
    """JPEGs large enough that reduced decoding differs from full decoding."""
    folder = tmp_path_factory.mktemp("photos")
    for label in CLASSES:
        (folder / "source" / label).mkdir(parents=True)
        for number in range(16):
            picture(label, number, PHOTO_PX).save(folder / "source" / label / f"{number:02d}.jpg", quality=90)
    return ingested(folder, (folder / "source", "studio"))


@pytest.fixture(scope="module")
def evaluated(photos, tmp_path_factory) -> Callable[..., Path]:
    """Return a function that extracts, trains and evaluates as a pipeline run does; returns the folder of it all."""
    base = tmp_path_factory.getbasetemp()

    def run(
        extract: Extract, stages: tuple[Stage, ...] = (), photos: Small = photos, max_side: int | None = None,
        kind: str = "logistic", views: int = 1,
    ) -> Path:  # fmt: skip
        folder = tmp_path_factory.mktemp("run")
        params = Params(
            ingest=Ingest(max_side=max_side), extract=extract, finetune=Finetune(stages=stages, batch_size=16),
            evaluate=Evaluate(mistakes=0, label_issues=0, learning_curve=False, explain=False, views=views),
        )  # fmt: skip
        backbone = backbones.load(small_backbone(base), extract.layer, extract.pooling)
        extraction.extract(backbone, extract, photos.images, folder / "features")
        features, *_ = feature_keys.find(backbone.description, extract, folder / "features")
        train, val = (Features(features, photos.split(split)) for split in ("train", "val"))
        settings = HeadSettings(kind=kind, l2=(3000.0, 300.0, 30.0))
        found = heads.fit(train, val, CLASSES, settings, np.arange(len(val)))
        cut = {"layer": extract.layer, "pooling": extract.pooling}
        fitted, linear = (dataclasses.replace(one, **cut) for one in (found.head, found.linear))
        head.save(fitted, folder / "head", {}, linear if kind == "knn" else None)
        network = classifier.Classifier(backbone.network, backbone.transform, head.load_linear(folder / "head"))
        parts = (SplitImages(photos.split(split), photos.images) for split in ("train", "val"))
        course = finetune.fine_tune(
            network, backbone.transform, *parts, params.finetune, 0, folder / "checkpoint", ""
        )  # fmt: skip
        save_course(network, course, folder / "finetuned")
        if stages:  # let the fine-tuned network win
            head.save(dataclasses.replace(linear, weight=0 * linear.weight), folder / "head", {})
        folders = (small_backbone(base), *(folder / name for name in ("features", "head", "finetuned")))
        inputs = Inputs(photos.images, photos.dataset, *folders)
        evaluate.evaluate(inputs, params, folder / "model", folder / "report", list)
        return folder

    return run


def run_or_skip(evaluated: Callable[..., Path], **extract: str) -> Path:
    try:
        return evaluated(Extract(**extract))
    except ParamsError as why:  # a CPU without bf16 instructions
        pytest.skip(str(why))


def record(folder: Path, **features: str | None) -> None:
    """Change what model.json says about the features; None removes an entry."""
    path = folder / "model" / "model.json"
    described = json.loads(path.read_text())
    changed = described["features"] | features
    path.write_text(json.dumps(described | {"features": {k: v for k, v in changed.items() if v is not None}}))


def measured(folder: Path, photos: Small) -> tuple[list[Path], np.ndarray]:
    """The files of validation and test images, and the probabilities that the evaluation wrote."""
    table = pd.read_parquet(folder / "report" / "predictions.parquet")
    rows = photos.manifest.set_index("image_id").loc[table["image_id"]]
    kind = json.loads((folder / "model" / "model.json").read_text())["kind"]
    return [photos.source / path for path in rows["path"]], np.stack(table[kind])


def predicted(folder: Path, images: list[Path] | list[bytes]) -> np.ndarray:
    predictions = rootstock.load_model(folder / "model").predict(images)
    return np.array([list(prediction.probabilities.values()) for prediction in predictions], np.float32)


@pytest.mark.parametrize("kind", ["ridge", *slow("knn", "prototype")])
def test_every_kind_of_head_is_saved_with_its_backbone_and_predicts_as_measured(evaluated, photos, kind):
    folder = evaluated(Extract(), kind=kind)
    images, expected = measured(folder, photos)
    np.testing.assert_allclose(predicted(folder, images), expected, atol=ATOL)
    assert rootstock.load_model(folder / "model").head.kind == kind


@pytest.mark.parametrize("kind", ["knn", *slow("prototype")])
def test_fine_tuning_starts_from_every_kind_of_head(evaluated, photos, kind):
    folder = evaluated(Extract(), TUNED, kind=kind)
    images, expected = measured(folder, photos)
    assert json.loads((folder / "model" / "model.json").read_text())["kind"] == "finetuned"
    np.testing.assert_allclose(predicted(folder, images), expected, atol=ATOL)


@pytest.mark.parametrize("spec", SPECS, ids="-".join)
def test_a_head_is_served_with_the_features_it_was_measured_with(photos, evaluated, spec, caplog):
    named = dict(zip(KEYS, spec, strict=True))
    folder = run_or_skip(evaluated, **named)
    recorded = json.loads((folder / "model" / "model.json").read_text())["features"]
    assert recorded == {**named, "layer": "penultimate", "pooling": "avg", "mirror": False, "width": 1024}
    caplog.clear()
    images, probabilities = measured(folder, photos)
    np.testing.assert_allclose(predicted(folder, images), probabilities, atol=ATOL)
    assert caplog.text == ""


@pytest.mark.parametrize(("name", "value", "exact"), INEXACT, ids=lambda value: str(value))
def test_predictions_without_the_record_would_differ_from_those_measured(photos, evaluated, name, value, exact):
    folder = run_or_skip(evaluated, engine="openvino", **{name: value})
    images, probabilities = measured(folder, photos)
    record(folder, **{name: exact})
    assert np.abs(predicted(folder, images) - probabilities).max() > ATOL


def test_a_head_is_served_with_the_layer_and_pooling_that_it_was_fitted_on(photos, evaluated):
    folder = evaluated(Extract(engine="eager", layer="mid", pooling="gem"))
    images, probabilities = measured(folder, photos)
    np.testing.assert_allclose(predicted(folder, images), probabilities, atol=ATOL)


def test_images_are_downscaled_as_ingest_downscaled_the_measured_ones(photos, evaluated, tmp_path):
    source = Source(path=str(photos.source), domain="studio")
    settings = Ingest(sources=(source,), max_side=100, split=Split(val=0.2, test=0.2))
    ingest(settings, 0, tmp_path / "images", tmp_path / "dataset", tmp_path / "scratch")
    smaller = Small(photos.source, tmp_path / "images", tmp_path / "dataset")
    folder = evaluated(Extract(engine="eager"), photos=smaller, max_side=100)
    images, probabilities = measured(folder, smaller)
    np.testing.assert_allclose(predicted(folder, images), probabilities, atol=ATOL)


@pytest.mark.parametrize(
    ("stages", "engine"),
    [
        ((), "eager"),
        pytest.param((), "openvino", marks=pytest.mark.slow),
        pytest.param(TUNED, "eager", marks=pytest.mark.slow),
    ],
)
def test_with_two_views_an_image_is_measured_and_classified_with_its_mirror_image(photos, evaluated, stages, engine):
    folder = evaluated(Extract(engine=engine), stages, views=2)
    images, probabilities = measured(folder, photos)
    np.testing.assert_allclose(predicted(folder, images), probabilities, atol=ATOL)
    turned = [io.BytesIO() for _ in images]
    for image, file in zip(images, turned, strict=True):
        ImageOps.mirror(Image.open(image)).save(file, "png")
    mirrored = predicted(folder, [file.getvalue() for file in turned])
    record(folder, mirror=False)
    alone = predicted(folder, images)
    assert np.abs(mirrored - probabilities).max() < np.abs(alone - probabilities).max() / 3 > ATOL


def test_a_fine_tuned_network_is_exact_whatever_features_its_head_was_fitted_on(photos, evaluated):
    folder = evaluated(Extract(engine="eager", precision="bf16", decode="reduced", dtype="float16"), TUNED)
    described = json.loads((folder / "model" / "model.json").read_text())
    assert described["kind"] == "finetuned"
    recorded = {name: described["features"][name] for name in ("engine", "precision", "decode", "dtype")}
    assert recorded == {"engine": "eager", "precision": "f32", "decode": "full", "dtype": "float32"}
    images, probabilities = measured(folder, photos)
    np.testing.assert_allclose(predicted(folder, images), probabilities, atol=ATOL)


@pytest.fixture(scope="module")
def with_openvino(photos, evaluated) -> Path:
    """A run whose features OpenVINO computed, decoding JPEGs at full size."""
    return evaluated(Extract(engine="openvino"))


def test_an_image_has_the_same_prediction_alone_as_among_others(photos, evaluated):
    folder = run_or_skip(evaluated, engine="openvino", precision="bf16")
    images, _ = measured(folder, photos)
    read = rootstock.load_model(folder / "model")
    together = read.predict(images)
    for image, expected in list(zip(images, together, strict=True))[:5]:
        assert read.predict(image)[0].probabilities == pytest.approx(expected.probabilities, abs=ATOL)


def test_torch_replaces_a_missing_engine_and_one_warning_says_by_how_much_it_may_differ(
    photos, with_openvino, monkeypatch, caplog
):
    images, probabilities = measured(with_openvino, photos)
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *more: None if name == "openvino" else find(name))
    read = rootstock.load_model(with_openvino / "model")
    got = [list(one.probabilities.values()) for image in images for one in read.predict(image)]
    np.testing.assert_allclose(got, probabilities, atol=1e-4)
    [warning] = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert warning == (
        "The features of this model cannot be computed as they were when it was measured: openvino computed them, but "
        "openvino is not installed: torch computes them. Probabilities may differ by less than 0.0001 from those of "
        "its report."
    )


def test_the_cpu_decodes_where_there_is_no_gpu_and_one_warning_says_so(photos, with_openvino, tmp_path, caplog):
    shutil.copytree(with_openvino, tmp_path / "run")
    record(tmp_path / "run", decode="gpu")
    images, probabilities = measured(with_openvino, photos)
    np.testing.assert_allclose(predicted(tmp_path / "run", images), probabilities, atol=ATOL)
    [warning] = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert "their images were decoded on a GPU, and this machine has none" in warning


@pytest.mark.parametrize("engine", ["onnxruntime", "compile", "one of a later version"])
def test_an_engine_of_another_version_is_used(photos, with_openvino, tmp_path, caplog, engine):
    shutil.copytree(with_openvino, tmp_path / "run")
    record(tmp_path / "run", engine=engine)
    images, probabilities = measured(with_openvino, photos)
    np.testing.assert_allclose(predicted(tmp_path / "run", images), probabilities, atol=1e-4)
    assert f"{engine} computed them, but there is no such engine in this version" in caplog.text


def test_a_model_of_an_earlier_version_without_the_record_is_computed_by_torch_as_it_was(
    photos, with_openvino, tmp_path, caplog
):
    shutil.copytree(with_openvino, tmp_path / "run")
    record(tmp_path / "run", engine=None, precision=None, decode=None, dtype=None)
    read = rootstock.load_model(tmp_path / "run" / "model")
    assert read.extractor.engine.name == "eager"
    images, probabilities = measured(with_openvino, photos)
    np.testing.assert_allclose(predicted(tmp_path / "run", images), probabilities, atol=1e-4)
    assert caplog.text == ""


def test_a_damaged_record_is_an_error_that_names_the_file(with_openvino, tmp_path):
    shutil.copytree(with_openvino, tmp_path / "run")
    record(tmp_path / "run", precision="f8")
    with pytest.raises(DamagedError, match=r"model\.json is damaged"):
        rootstock.load_model(tmp_path / "run" / "model")


def test_the_head_is_applied_in_float32_where_the_network_computes_in_bfloat16(base):
    network = classifier_from(small_head(base), small_backbone(base)).eval()
    batch = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        features, logits = network.backbone(network.normalise(batch)).float(), network(batch)
        with torch.autocast("cpu", enabled=False):
            expected = network.head(features)
    assert logits.dtype == torch.float32
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-5)

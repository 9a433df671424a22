"""A model in other formats computes what it computes here, and its file is used as its README says."""

import dataclasses
import importlib.util
import json
import re
from pathlib import Path

import numpy as np
import onnx
import openvino
import pytest
import torch

import rootstock
from rootstock.dataset import tables
from rootstock.model.export import checking, exporting, formats
from rootstock.model.export.exporting import Dataset
from rootstock.model.export.network import ExportedNetwork
from rootstock.model.model import Model
from rootstock.system.errors import ParamsError, RootstockError
from rootstock.training.classifier import Classifier
from rootstock.training.head import Head
from tests.small_dataset import CLASSES, SIDE, picture, small_dataset

pytestmark = pytest.mark.parametrize("evaluated", ["finetuned"], indirect=True, scope="session")
EXACT = 1e-4  # of a probability, by other kernels
RESIZED = 0.1  # by Pillow instead of torchvision


@pytest.fixture(scope="module", autouse=True)
def measures_speed_only_briefly():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checking, "TIMED_SECONDS", 0.05)
        yield


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> Dataset:
    small = small_dataset(tmp_path_factory.getbasetemp())
    return Dataset(tables.load_manifest(small.dataset), small.images)


@pytest.fixture(scope="module")
def model(evaluated) -> Model:
    return rootstock.load_model(evaluated[1] / "model")


@pytest.fixture(scope="module", params=formats.FILES)
def exported(request, model, dataset, tmp_path_factory) -> exporting.Exported:
    out = tmp_path_factory.mktemp("exported") / request.param
    return exporting.export(model, "abc", request.param, out, dataset)


def pixels(model: Model, images: int) -> np.ndarray:
    size = model.spec.transform.size
    return np.random.default_rng(1).integers(0, 256, (images, 3, size, size), np.uint8)


def computed_here(model: Model, images: np.ndarray) -> list[np.ndarray]:
    features = model.extractor_of_many.features_of(list(images))
    return [model.probabilities(features), *([model.novelty.score(features)] if model.novelty else [])]


def differences(found: list[np.ndarray], expected: list[np.ndarray]) -> list[float]:
    return [float(np.abs(one - other).max()) for one, other in zip(found, expected, strict=True)]


def test_it_agrees_with_the_model_on_the_test_images_and_its_size_and_speed_are_told(exported, dataset):
    [version] = exported.versions
    agreement = version.agreement
    assert agreement.images == (dataset.manifest["split"] == "test").sum() == agreement.same_class
    assert agreement.largest_difference < EXACT and version.images_per_second > 0
    files = [path for path in exported.folder.iterdir() if path.name not in ("README.md", "export.json")]
    assert version.bytes == sum(path.stat().st_size for path in files)
    said = json.loads((exported.folder / "export.json").read_text())
    assert said["versions"][0]["agreement"]["largest_difference"] == agreement.largest_difference
    assert f"{version.file}: float32, {version.bytes / 1e6:.1f} MB" in str(version)
    assert f"same class for all {agreement.images} test images" in (exported.folder / "README.md").read_text()


def test_the_number_of_images_is_free(exported, model):
    run = formats.open_file(exported.folder / exported.versions[0].file)
    for images in (1, 3, 40):
        given = pixels(model, images)
        assert max(differences(run(given), computed_here(model, given))) < EXACT


def test_the_code_in_its_readme_classifies_a_photo_as_the_model_does(exported, model, tmp_path, monkeypatch, capsys):
    photo = picture("rings", 7, SIDE * 3).crop((0, 0, SIDE * 3, SIDE * 2))
    photo.save(tmp_path / "photo.jpg", quality=95)
    for path in exported.folder.iterdir():
        (tmp_path / path.name).symlink_to(path)
    monkeypatch.chdir(tmp_path)
    there: dict[str, object] = {}
    for code in re.findall(r"```python\n(.*?)```", Path("README.md").read_text(), re.S):
        exec(code, there)
    [here] = model.predict("photo.jpg")
    said = capsys.readouterr().out.split()
    assert said[0] == here.label and said[2] == ("unknown" if here.unknown else "known")
    assert float(said[1]) == pytest.approx(here.probabilities[here.label], abs=RESIZED)
    assert there["unknown_above"] == model.novelty.threshold


def attached(exported: exporting.Exported) -> dict[str, object]:
    """Read the metadata as a user of the format does."""
    path = exported.folder / exported.versions[0].file
    match path.suffix:
        case ".onnx":
            return {entry.key: json.loads(entry.value) for entry in onnx.load(path).metadata_props}
        case ".xml":
            found = openvino.Core().read_model(path).get_rt_info(["rootstock"])
            return {name: json.loads(text) for name, text in found.value.items()}
        case suffix:
            files = {"metadata.json": ""}
            if suffix == ".pt2":
                torch.export.load(path, extra_files=files)
            else:
                torch.jit.load(path, _extra_files=files)
            return json.loads(files["metadata.json"])


@pytest.mark.filterwarnings("ignore:.*torch.jit.load.*")
def test_the_file_holds_classes_temperature_threshold_and_transform(exported, model):
    found = attached(exported)
    assert found["classes"] == CLASSES and found["model"] == "abc"
    assert (found["temperature"], found["unknown_above"]) == (model.temperature, model.novelty.threshold)
    assert found["transform"] == model.spec.transform.as_dict()


def nearest_neighbours(width: int) -> Head:
    rng = np.random.default_rng(0)
    exemplars = rng.normal(size=(30, width)).astype(np.float32)
    exemplars /= np.linalg.norm(exemplars, axis=1, keepdims=True)
    center, classes = rng.normal(size=width).astype(np.float32) / 100, np.arange(30) % len(CLASSES)
    return Head(exemplars, np.zeros(3, np.float32), CLASSES, 0.0, kind="knn", center=center,
                exemplar_classes=classes, neighbours=5)  # fmt: skip


@pytest.mark.parametrize("format", ["onnx", "torchscript", pytest.param("torch", marks=pytest.mark.slow)])
def test_nearest_neighbours_on_two_views_without_novelty_are_exported_too(model, tmp_path, format):
    network = Classifier(
        model.network.backbone, model.spec.transform, nearest_neighbours(model.network.head.in_features)
    )
    spec = dataclasses.replace(model.spec, mirror=True)
    voting = dataclasses.replace(model, network=network.eval(), spec=spec, novelty=None)
    done = exporting.export(voting, "", format, tmp_path / "out")
    assert done.versions[0].agreement.of == "images of noise, as there is no dataset"
    run = formats.open_file(tmp_path / "out" / done.versions[0].file)
    for images in (1, 9):
        given = pixels(model, images)
        assert max(differences(run(given), computed_here(voting, given))) < EXACT


@pytest.mark.parametrize("format", ["onnx", pytest.param("openvino", marks=pytest.mark.slow)])
def test_int8_is_kept_only_if_validation_accuracy_falls_by_no_more_than_allowed(model, dataset, tmp_path, format):
    kept = exporting.export(model, "", format, tmp_path / "out", dataset, max_loss=1.0)
    float32, int8 = kept.versions
    assert int8.precision == "int8" and int8.bytes < 0.75 * float32.bytes and not kept.dropped
    assert 0 <= int8.validation_accuracy <= 1
    run = formats.open_file(tmp_path / "out" / int8.file)
    assert max(differences(run(pixels(model, 3)), computed_here(model, pixels(model, 3)))) > 0
    dropped = exporting.export(model, "", format, tmp_path / "out", dataset, max_loss=-1.1)  # it would have to gain
    assert [version.precision for version in dropped.versions] == ["float32"]
    assert "int8 was not kept: validation accuracy falls from" in dropped.dropped
    assert not list((tmp_path / "out").glob("*int8*"))


def test_what_computes_something_else_is_not_written(model, dataset, tmp_path, monkeypatch):
    class Other(ExportedNetwork):
        def forward(self, images):
            probabilities, novelty = super().forward(images)
            return probabilities.flip(1), novelty

    monkeypatch.setattr(exporting, "ExportedNetwork", Other)
    with pytest.raises(RootstockError, match="this network computes something else: probabilities differ by up to"):
        exporting.export(model, "", "torchscript", tmp_path / "out", dataset)
    assert not (tmp_path / "out").exists()


def test_an_exporters_error_is_one_sentence(model, tmp_path, monkeypatch):
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("Unsupported: aten::frobnicate\nand a page more")

    monkeypatch.setattr(torch.jit, "trace", fail)
    with pytest.raises(RootstockError) as raised:
        exporting.export(model, "", "torchscript", tmp_path / "out")
    said = "This network cannot be exported to torchscript: Unsupported: aten::frobnicate"
    assert str(raised.value) == said and not (tmp_path / "out").exists()


def test_a_folder_with_something_else_is_left_alone(model, tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    for out in (tmp_path, tmp_path / "thesis.tex"):
        with pytest.raises(ParamsError, match="holds something else than an export, and is left alone"):
            exporting.export(model, "", "torchscript", out)
    assert (tmp_path / "thesis.tex").read_text() == "years of work"


@pytest.mark.parametrize(
    ("format", "missing", "max_loss", "said"),
    [
        ("onnx", "onnxruntime", None, "This export needs onnxruntime: pip install"),
        ("openvino", "nncf", 0.01, "This export needs nncf: pip install"),
        ("torch", None, 0.01, "int8 is for the formats onnx and openvino, not for torch"),
        ("openvino", None, 0.01, "int8 is calibrated on training images, and there is no dataset here"),
    ],
)
def test_what_cannot_be_done_is_said_before_anything_is_written(
    model, tmp_path, monkeypatch, format, missing, max_loss, said
):
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == missing else found(name))
    with pytest.raises(ParamsError, match=said):
        exporting.export(model, "", format, tmp_path / "out", max_loss=max_loss)
    assert not list(tmp_path.iterdir())

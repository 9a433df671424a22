"""A model for any number of classes per image: rows of predictions, exported files, answers, and labels to ask for."""

import json
import re
import shutil
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest

import rootstock
from rootstock.dataset import label_sets, tables
from rootstock.evaluation import drift
from rootstock.evaluation.label_batch import write_batch
from rootstock.evaluation.labelling import Candidate
from rootstock.images.inspection import Checks
from rootstock.ingest.unlabelled import list_images
from rootstock.model.export import checking, exporting
from rootstock.model.export.exporting import Dataset
from rootstock.model.prediction import predict
from rootstock.system.errors import DamagedError
from tests.served_model import serving
from tests.shapes import SHAPES, picture
from tests.shapes_dataset import shapes_dataset, shapes_evaluated

READERS = {".csv": pd.read_csv, ".parquet": pd.read_parquet, ".jsonl": lambda path: pd.read_json(path, lines=True)}


@pytest.fixture(scope="module")
def folder(base):
    return shapes_evaluated(base).model


@pytest.fixture(scope="module")
def model(folder):
    return rootstock.load_model(folder)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    place = tmp_path_factory.mktemp("photos")
    for number, labels in enumerate(([], ["disc"], ["cross", "square"], ["cross", "disc", "square"]) * 3):
        picture(labels, 5000 + number).save(place / f"{number:02d}.png")
    (place / "broken.png").write_bytes(b"x")
    return place


@pytest.mark.parametrize("suffix", READERS)
def test_rows_have_the_labels_predicted_beside_the_most_probable_classes(model, photos, tmp_path, suffix):
    out = tmp_path / f"predictions{suffix}"
    predict(model, list_images(str(photos)), out)
    rows = READERS[suffix](out)
    assert list(rows.columns)[:4] == ["path", "labels", "label", "probability"] and len(rows) == 13
    for row in rows.to_dict("records"):
        [expected] = model.predict(photos / row["path"])
        if expected.reason:
            assert row["reason"] == expected.reason and pd.isna(row["label"])
            continue
        assert ("" if pd.isna(row["labels"]) else row["labels"]) == expected.label
        best = max(expected.probabilities, key=expected.probabilities.__getitem__)
        assert (row["label"], row["probability"]) == (best, pytest.approx(expected.probabilities[best], abs=1e-5))


def test_labels_are_those_whose_probability_reaches_their_threshold(model, photos):
    for one in model.predict(sorted(photos.glob("[0-9]*.png"))):
        reached = [name for name, cut in zip(SHAPES, model.thresholds, strict=True) if one.probabilities[name] >= cut]
        assert one.labels == tuple(reached) and one.label == label_sets.join(reached)


def test_a_model_without_its_thresholds_is_damaged(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "model")
    described = json.loads((folder / "model.json").read_text())
    del described["thresholds"]["disc"]
    (tmp_path / "model" / "model.json").write_text(json.dumps(described))
    with pytest.raises(DamagedError, match=r"model\.json"):
        rootstock.load_model(tmp_path / "model")


@pytest.mark.parametrize("format", ["onnx", "openvino", "torch"])
def test_exported_files_give_the_same_labels_and_hold_the_thresholds(
    model, base, tmp_path, format, monkeypatch, capsys
):
    monkeypatch.setattr(checking, "TIMED_SECONDS", 0.05)
    small = shapes_dataset(base)
    dataset = Dataset(tables.load_manifest(small.dataset), small.images)
    done = exporting.export(model, "abc", format, tmp_path / format, dataset)
    [version] = done.versions
    images = int((dataset.manifest["split"] == "test").sum())
    assert (version.agreement.images, version.agreement.same_class) == (images, images)
    assert version.agreement.largest_difference < 1e-4
    described = json.loads((tmp_path / format / "export.json").read_text())
    assert described["thresholds"] == pytest.approx(model.thresholds.tolist())
    picture(["cross", "disc"], 9000).resize((32, 32)).save(tmp_path / format / "photo.jpg", quality=98)
    monkeypatch.chdir(tmp_path / format)
    there: dict[str, object] = {}
    for code in re.findall(r"```python\n(.*?)```", (tmp_path / format / "README.md").read_text(), re.S):
        exec(code, there)
    assert capsys.readouterr().out.splitlines()[0] == str(list(model.predict("photo.jpg")[0].labels))


def test_a_server_answers_with_all_labels(folder, model, photos):
    path = photos / "02.png"
    [expected] = model.predict(path)
    with serving(folder) as site:
        [found] = site.predict([("02.png", path.read_bytes())]).json()["images"]
    assert found["labels"] == list(expected.labels)
    assert found["label"] == max(expected.probabilities, key=expected.probabilities.__getitem__)


def test_an_image_is_as_uncertain_as_its_least_sure_class():
    confidence, entropy, margin = drift._certainty(np.array([0.9, 0.4, 0.99]), multi_label=True)
    chances = np.array([0.9, 0.4, 0.99, 0.1, 0.6, 0.01])
    assert (confidence, margin) == (pytest.approx(0.6), pytest.approx(0.2))
    assert entropy == pytest.approx(-(chances * np.log(chances)).sum())


def test_label_studio_is_asked_for_any_number_of_classes(photos, tmp_path):
    batch = [
        Candidate("02.png", "desk", "cross;square", 0.6, 1.0, 0.2, 0, ""),
        Candidate("00.png", "desk", "", 0.6, 1.0, 0.2, 0, ""),
    ]
    write_batch(
        tmp_path / "to_label.csv", batch, list_images(str(photos)), SHAPES, Checks(1, 100, None, True), multi_label=True
    )
    tasks = json.loads((tmp_path / "to_label.json").read_text())
    choices = [task["predictions"][0]["result"][0]["value"]["choices"] for task in tasks]
    assert choices == [["cross", "square"], []]
    assert ElementTree.parse(tmp_path / "to_label.xml").find("Choices").get("choice") == "multiple"
    assert "a semicolon alone means none" in (tmp_path / "to_label.html").read_text()

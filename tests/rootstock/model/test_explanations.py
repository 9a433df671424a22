"""Predictions are explained by a picture of each image, in a folder that no name of an image leads out of."""

import io
import json

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from rootstock.ingest.unlabelled import list_images
from rootstock.model import explanations, model, parts, prediction
from rootstock.model.explanations import into, overlay
from rootstock.model.prediction import predict
from rootstock.system.errors import ParamsError
from tests.images import encoded, picture
from tests.small_dataset import small_dataset, small_features

NAME = "shufflenet_v2_x0_5"


@pytest.fixture(scope="module")
def loaded(evaluated):
    return model.load(evaluated[1] / "model")


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos" / "a"
    folder.mkdir(parents=True)
    for number, name in enumerate(["one.png", "x..png", "-rf.png", "a b?.png", "é.png", "CON.png"]):
        (folder / name).write_bytes(encoded(picture(number, 60, 50), "PNG"))
    (folder / "half.png").write_bytes((folder / "one.png").read_bytes()[:90])
    return folder.parent


def test_each_image_that_is_classified_has_a_picture_which_its_row_names(loaded, photos, tmp_path):
    plain, explained, why = tmp_path / "plain.csv", tmp_path / "explained.csv", tmp_path / "why"
    predict(loaded, list_images(str(photos)), plain)
    predict(loaded, list_images(str(photos)), explained, explain=into(why, loaded, NAME))
    rows = pd.read_csv(explained)
    pd.testing.assert_frame_equal(rows.drop(columns="explanation"), pd.read_csv(plain))
    assert rows["explanation"].isna().tolist() == rows["reason"].notna().tolist()
    named = rows["explanation"].dropna()
    assert sorted(named) == sorted(path.name for path in why.iterdir()) and named.is_unique and len(named) == 6
    for name in named:
        with Image.open(why / name) as drawn:
            assert drawn.format == "JPEG" and min(drawn.size) >= explanations.SIDE


def test_pictures_are_the_same_in_every_run(loaded, photos, tmp_path):
    runs = []
    for name in ("one", "two"):
        predict(loaded, list_images(str(photos)), tmp_path / f"{name}.csv", explain=into(tmp_path / name, loaded, NAME))
        runs.append({path.name: path.read_bytes() for path in (tmp_path / name).iterdir()})
    assert runs[0] == runs[1]


def test_no_name_of_an_image_leads_out_of_the_folder_and_a_link_in_it_is_replaced(loaded, photos, tmp_path):
    why, target = tmp_path / "why", tmp_path / "target"
    why.mkdir()
    target.write_text("not to be touched")
    (why / "one.png.jpg").symlink_to(target)
    lines = [str(photos / "a" / ".." / "a" / "x..png"), str(photos / "a" / "one.png")]
    predict(loaded, list_images("-", lines), tmp_path / "out.csv", explain=into(why, loaded, NAME))
    cam = into(why, loaded, NAME)
    pixels = np.zeros((3, 3, 32, 32), np.uint8)
    names = cam.write(["../../escaped", "one.png", "/etc/passwd"], pixels, [0, 0, 0])
    assert all("/" not in name and not name.startswith(".") for name in names) and len(set(names)) == 3
    assert target.read_text() == "not to be touched" and not (why / "one.png.jpg").is_symlink()
    assert {path.name for path in tmp_path.iterdir()} == {"photos", "out.csv", "why", "target"}


def test_a_killed_run_goes_on_and_explains_no_image_twice(loaded, photos, tmp_path, monkeypatch):
    monkeypatch.setattr(prediction, "grouped", lambda items, _: ([item] for item in items))
    monkeypatch.setattr(parts, "ROWS", 1)
    out, why, whole = tmp_path / "out.jsonl", tmp_path / "why", explanations.Explanations.write
    written: list[str] = []

    def write(self, paths, *others):
        if len(written) == 3:
            raise KeyboardInterrupt
        written.extend(paths)
        return whole(self, paths, *others)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(explanations.Explanations, "write", write)
        predict(loaded, list_images(str(photos)), out, explain=into(why, loaded, NAME))
    before = {path: path.stat().st_mtime_ns for path in why.iterdir()}
    assert predict(loaded, list_images(str(photos)), out, explain=into(why, loaded, NAME)).resumed >= 3
    assert len(before) == 3 and all(path.stat().st_mtime_ns == at for path, at in before.items())
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert sorted(row["explanation"] for row in rows if row["label"]) == sorted(path.name for path in why.iterdir())


def test_images_with_cached_features_are_explained_too(loaded, base, tmp_path):
    small = small_dataset(base)
    listed = [str(base / "small" / row.source / row.path) for row in small.manifest.head(3).itertuples()]
    known = prediction.known_features(loaded, small_features(base).parent, small.dataset)
    tally = predict(
        loaded,
        list_images("-", listed),
        tmp_path / "out.parquet",
        known=known,
        explain=into(tmp_path / "why", loaded, NAME),
    )
    assert tally.known == 0 and len(list((tmp_path / "why").iterdir())) == 3


def test_a_file_in_place_of_the_folder_is_refused_in_a_sentence(loaded, tmp_path):
    (tmp_path / "why").write_text("")
    with pytest.raises(ParamsError, match="why is a file; expected a folder for the explanations"):
        into(tmp_path / "why", loaded, NAME)


def test_evidence_is_colour_over_a_grey_image_and_no_evidence_leaves_it_grey():
    pixels = np.random.default_rng(0).integers(0, 256, (3, 32, 32), np.uint8)
    evidence = np.zeros((32, 32), np.float32)
    plain = np.asarray(overlay(pixels, evidence), int)
    assert plain.shape == (224, 224, 3) and np.ptp(plain, axis=2).max() == 0
    evidence[16:] = 1
    drawn = np.asarray(overlay(pixels, evidence), int)
    assert np.ptp(drawn[:90], axis=2).max() == 0 and np.ptp(drawn[130:], axis=2).min() > 20
    assert Image.open(io.BytesIO(explanations.encoded(overlay(pixels, evidence)))).size == (224, 224)

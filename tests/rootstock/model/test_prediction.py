"""Many images are classified into one file: a row each, whatever they are; a killed run goes on where it was."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from rootstock.ingest.unlabelled import list_images
from rootstock.model import model, parts, prediction
from rootstock.model.model import Model
from rootstock.model.prediction import Tally, known_features, predict
from rootstock.system.errors import ParamsError
from tests.images import encoded, picture
from tests.small_dataset import small_dataset, small_features

READERS = {".csv": pd.read_csv, ".parquet": pd.read_parquet, ".jsonl": lambda path: pd.read_json(path, lines=True)}


@pytest.fixture(scope="module")
def loaded(evaluated) -> Model:
    _, folder = evaluated
    return model.load(folder / "model")


@pytest.fixture
def photos(tmp_path) -> Path:
    """Twenty images, and three files that are none."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(20):
        (folder / f"{number:02d}.png").write_bytes(encoded(picture(number, 60, 50), "PNG"))
    (folder / "empty.png").write_bytes(b"")
    (folder / "half.png").write_bytes((folder / "00.png").read_bytes()[:90])
    (folder / "=cmd|' .png").write_bytes(encoded(picture(20), "PNG"))
    return folder


@pytest.mark.parametrize("suffix", READERS)
def test_there_is_a_row_for_each_image_as_the_model_classifies_it_or_with_the_reason(loaded, photos, tmp_path, suffix):
    out = tmp_path / f"predictions{suffix}"
    tally = predict(loaded, list_images(str(photos)), out, top=2)
    rows = READERS[suffix](out)
    columns = ["path", "label", "probability", "label_2", "probability_2", "unknown", "novelty", "reason", "detail"]
    assert list(rows.columns) == columns and len(rows) == 23
    for row in rows.to_dict("records"):
        path = photos / row["path"].removeprefix("'")
        [expected] = loaded.predict(path)
        if expected.reason:
            assert (row["reason"], row["label"] is None or pd.isna(row["label"])) == (expected.reason, True)
            continue
        ranked = sorted(expected.probabilities, key=expected.probabilities.__getitem__, reverse=True)
        assert [row["label"], row["label_2"]] == ranked[:2] and bool(row["unknown"]) == expected.unknown
        assert row["probability"] == pytest.approx(expected.probabilities[ranked[0]], abs=1e-5)
        assert row["probability_2"] == pytest.approx(expected.probabilities[ranked[1]], abs=1e-5)
        assert row["novelty"] == pytest.approx(expected.novelty, abs=1e-4)
    unknown = int((rows["unknown"].astype("boolean").fillna(False)).sum())
    assert str(tally) == f"23 images: 21 classified ({unknown} as unknown), 2 rejected (1 not_an_image, 1 truncated)"
    assert names(tmp_path) == ["photos", out.name]


def test_a_name_that_a_spreadsheet_would_execute_is_escaped_in_csv(loaded, photos, tmp_path):
    predict(loaded, list_images(str(photos)), tmp_path / "a.csv")
    assert "\n'=cmd|' .png," in (tmp_path / "a.csv").read_text()
    predict(loaded, list_images(str(photos)), tmp_path / "a.jsonl")
    assert "=cmd|' .png" in [json.loads(line)["path"] for line in (tmp_path / "a.jsonl").read_text().splitlines()]


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


class StoppedError(Exception):
    """What ends a run before its time."""


def stopped(loaded, photos, out, monkeypatch, after: int, **given) -> None:
    """Predict, and end after some images, as a kill would."""
    answered, whole = 0, prediction._table

    def table(model, found, *others):
        nonlocal answered
        if answered >= after:
            raise StoppedError
        answered += len(found)
        return whole(model, found, *others)

    with monkeypatch.context() as patch, pytest.raises(StoppedError):
        patch.setattr(prediction, "_table", table)
        predict(loaded, list_images(str(photos)), out, **given)


@pytest.fixture
def one_by_one(monkeypatch) -> None:
    """Groups of an image each, each a part."""
    monkeypatch.setattr(prediction, "grouped", lambda items, _: ([item] for item in items))
    monkeypatch.setattr(parts, "ROWS", 1)


@pytest.mark.usefixtures("one_by_one")
def test_a_killed_run_goes_on_where_it_was_and_ends_with_the_rows_of_an_undisturbed_one(
    loaded, photos, tmp_path, monkeypatch, work
):
    predict(loaded, list_images(str(photos)), tmp_path / "whole.parquet")
    stopped(loaded, photos, tmp_path / "out.parquet", monkeypatch, after=9)
    assert not (tmp_path / "out.parquet").exists()
    decoded = work.images[0]
    tally = predict(loaded, list_images(str(photos)), tmp_path / "out.parquet")
    assert (tally.resumed, tally.images) == (9, 23)
    assert work.images[0] - decoded == 12  # of 14, of which two are no images
    whole, resumed = (pd.read_parquet(tmp_path / name) for name in ("whole.parquet", "out.parquet"))
    pd.testing.assert_frame_equal(whole, resumed)
    assert names(tmp_path) == ["out.parquet", "photos", "whole.parquet"]


@pytest.mark.usefixtures("one_by_one")
@pytest.mark.parametrize("change", ["top", "image", "model"])
def test_a_run_of_other_images_another_model_or_more_classes_starts_anew(loaded, photos, tmp_path, monkeypatch, change):
    out = tmp_path / "out.csv"
    stopped(loaded, photos, out, monkeypatch, after=9, top=2)
    if change == "image":
        (photos / "00.png").write_bytes(encoded(picture(5, 61, 50), "PNG"))
    changed = model.replace(loaded, temperature=loaded.temperature * 2) if change == "model" else loaded
    assert predict(changed, list_images(str(photos)), out, top=1 if change == "top" else 2).resumed == 0


def test_features_that_are_cached_are_not_computed_again(evaluated, base, tmp_path, work):
    winner, folder = evaluated
    loaded, small = model.load(folder / "model"), small_dataset(base)
    listed = [str(base / "small" / row.source / row.path) for row in small.manifest.itertuples()]
    new = tmp_path / "new.png"
    new.write_bytes(encoded(picture(77, 60, 50), "PNG"))
    lines = [*listed[:5], str(new), *listed[5:]]
    predict(loaded, list_images("-", lines), tmp_path / "computed.parquet")
    before = work.images[0]
    known = known_features(loaded, small_features(base).parent, small.dataset)
    tally = predict(loaded, list_images("-", lines), tmp_path / "known.parquet", known=known)
    assert tally.known == (len(listed) if winner == "head" else 0)
    assert work.images[0] - before == (1 if winner == "head" else len(lines))
    computed, found = (pd.read_parquet(tmp_path / f"{name}.parquet") for name in ("computed", "known"))
    assert found["path"].tolist() == lines and found["label"].equals(computed["label"])
    np.testing.assert_allclose(found["probability"], computed["probability"], atol=1e-4)


def test_without_a_dataset_nothing_is_known(loaded, tmp_path):
    assert not known_features(loaded, tmp_path / "features", tmp_path / "dataset")


@pytest.mark.parametrize(
    ("name", "said"), [("out.txt", r"out\.txt: expected a name that ends in \.csv"), ("a.csv", "a.csv is a folder")]
)
def test_an_output_that_cannot_be_written_is_refused_before_anything_is_computed(loaded, photos, tmp_path, name, said):
    (tmp_path / "a.csv").mkdir()
    with pytest.raises(ParamsError, match=said):
        predict(loaded, list_images(str(photos)), tmp_path / name)


def test_a_tally_is_a_line():
    assert str(Tally(1234, unknown=5)) == "1,234 images: 1,234 classified (5 as unknown)"

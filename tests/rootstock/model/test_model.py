"""The model as one folder: loaded anywhere, it predicts what the evaluation predicted."""

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

import rootstock
from rootstock.evaluation.figures import percent, percents
from rootstock.model import model
from tests.image_files import GREY, RGB
from tests.image_writers import png, tiff
from tests.images import encoded, picture
from tests.imports import ROOT
from tests.small_dataset import (
    CLASSES,
    small_dataset,
)


def shown(base: Path, rows: pd.DataFrame) -> list[Path]:
    return [base / "small" / source / path for source, path in zip(rows["source"], rows["path"], strict=True)]


def test_predictions_equal_those_of_the_evaluation(evaluated, tmp_path_factory):
    winner, folder = evaluated
    base = tmp_path_factory.getbasetemp()
    rows = small_dataset(base).manifest.set_index("image_id")
    expected = pd.read_parquet(folder / "report/predictions.parquet")
    read = model.load(folder / "model")
    got = read.predict(shown(base, rows.loc[expected["image_id"]]))
    probabilities = np.array([list(prediction.probabilities.values()) for prediction in got])
    np.testing.assert_allclose(probabilities, np.stack(expected[winner]), atol=1e-4)
    assert read.classes == CLASSES and all(list(prediction.probabilities) == CLASSES for prediction in got)
    assert [prediction.label for prediction in got] == [CLASSES[row.argmax()] for row in probabilities]
    described = json.loads((folder / "model/model.json").read_text())
    assert described["kind"] == winner and described["temperature"] == read.temperature


def test_paths_and_bytes_may_be_mixed_and_any_number_is_predicted_in_order(evaluated, tmp_path_factory):
    _, folder = evaluated
    base = tmp_path_factory.getbasetemp()
    paths = shown(base, small_dataset(base).manifest)
    read = model.load(folder / "model")
    assert len(paths) > read.extractor.engine.batch_size
    expected = [prediction for path in paths for prediction in read.predict(path)]
    mixed = [path.read_bytes() if index % 2 else path for index, path in enumerate(paths)]
    got = read.predict(mixed)
    assert [prediction.label for prediction in got] == [prediction.label for prediction in expected]
    for one, other in zip(got, expected, strict=True):
        assert one.probabilities == pytest.approx(other.probabilities, abs=1e-5)
        assert sum(one.probabilities.values()) == pytest.approx(1, abs=1e-5)
    assert read.predict([]) == []


def test_a_model_needs_nothing_but_its_folder(evaluated, tmp_path_factory, tmp_path):
    _, folder = evaluated
    base = tmp_path_factory.getbasetemp()
    shutil.copytree(folder / "model", tmp_path / "elsewhere")
    paths = shown(base, small_dataset(base).manifest.iloc[:2])
    assert rootstock.load_model(tmp_path / "elsewhere").predict(paths) == model.load(folder / "model").predict(paths)


def test_importing_rootstock_does_not_import_torch():
    look = "import sys, rootstock; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", look], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_the_card_describes_the_model_its_figures_and_its_use(evaluated):
    winner, folder = evaluated
    card = (folder / "model/README.md").read_text()
    scores = json.loads((folder / "report/test.json").read_text())
    accuracy = scores["accuracy"]
    assert "\n---\n\n# shufflenet_v2_x0_5: 3 classes\n" in card
    assert f"{'The head on frozen' if winner == 'head' else 'The fine-tuned'}" in card
    assert f"| Accuracy | {percent(accuracy['value'])} | {percents(accuracy)} |" in card
    assert "Images**: 72 for training, 24 for validation, 24 for testing" in card and "checks, rings, stripes" in card
    assert (
        "| field | 12 |" in card
        and "| studio | 12 |" in card
        and "Licence of its weights**: unknown: a file of your" in card
    )
    assert 'rootstock.load_model("data/model").predict(["photo.jpg"])' in card


# Untrusted input


def test_a_bad_file_among_many_is_rejected_with_a_reason_and_affects_no_other(evaluated, tmp_path_factory, tmp_path):
    _, folder = evaluated
    read = model.load(str(folder / "model"))
    good = shown(tmp_path_factory.getbasetemp(), small_dataset(tmp_path_factory.getbasetemp()).manifest.iloc[:3])
    sound = good[0].read_bytes()
    photo = encoded(picture(1, 300, 200), "JPEG", quality=95)
    eps = encoded(picture(1), "EPS")
    bad = {
        "cut.png": (sound[: len(sound) // 2], "truncated"),
        "empty.jpg": (b"", "not_an_image"),
        "page.jpg": (b"<html>404</html>", "undecodable"),
        "page": (b"<html>404</html>", "not_an_image"),
        "program.eps": (eps, "not_an_image"),
        "program.png": (eps, "undecodable"),
        "hurt.jpg": (photo[: len(photo) // 2] + b"\xff\xd9", "damaged"),
        "large.png": (png(RGB, 8, 2).replace(RGB.shape[1].to_bytes(4, "big") + RGB.shape[0].to_bytes(4, "big"),
                                             (2**30).to_bytes(4, "big") * 2), "too_large"),
        "float.tif": (tiff(GREY / 255, 32, 3), "value_range"),
        "twelve.tif": (tiff(GREY.astype(int) * 16, 16), "value_range"),
    }  # fmt: skip
    for name, (data, _) in bad.items():
        (tmp_path / name).write_bytes(data)
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "folder.png").mkdir()
    others = [tmp_path / f"{name}.png" for name in ("pipe", "folder", "missing", "no\0name")]
    wrong = [*(tmp_path / name for name in bad), *others]
    got = read.predict([good[0], *wrong, str(good[1]), sound])
    assert [said.label for said in (got[0], *got[-2:])] == [said.label for said in read.predict([*good[:2], good[0]])]
    assert [said.name for said in got] == [*map(str, (good[0], *wrong, good[1])), f"image {len(got) - 1}"]
    expected = [*(reason for _, reason in bad.values()), *["unreadable"] * len(others)]
    assert [said.reason for said in got[1:-2]] == expected
    assert not any(said.label or said.probabilities for said in got[1:-2])
    assert [prediction.detail for prediction in got[-4:-2]] == ["No such file or directory", "embedded null byte"]
    assert read.predict([tmp_path / "empty.jpg"])[0].reason == "not_an_image"  # and of nothing else


def test_one_image_may_be_given_by_itself(evaluated, tmp_path_factory):
    _, folder = evaluated
    base = tmp_path_factory.getbasetemp()
    [path] = shown(base, small_dataset(base).manifest.iloc[:1])
    read = model.load(folder / "model")
    [expected] = read.predict([path])
    content = path.read_bytes()
    for given in (path, str(path), content, bytearray(content), memoryview(content), iter([path])):
        assert read.predict(given)[0].label == expected.label


def test_an_argument_that_is_not_an_image_or_a_value_range_is_refused_by_name(evaluated):
    _, folder = evaluated
    read = model.load(folder / "model")
    for low, high in ((0, 0), (5, 1), (0, float("nan")), (0, float("inf"))):
        with pytest.raises(ValueError, match="expected two numbers, black below white"):
            read.predict(b"", value_range=(low, high))


def test_deep_images_are_read_with_the_models_value_range_or_a_given_one(evaluated):
    _, folder = evaluated
    read = model.load(folder / "model")
    seen, deep = encoded(Image.fromarray(GREY)), tiff(GREY.astype(int) * 16, 16)
    [expected] = read.predict(seen)
    told = read.predict(deep, value_range=(0, 4080))[0]
    known = dataclasses.replace(read, value_range=(0, 4080)).predict(deep)[0]
    full = read.predict(tiff(GREY.astype(int) * 257, 16))[0]
    for said in (told, known, full):
        assert said.probabilities == pytest.approx(expected.probabilities, abs=1e-5)


def test_loading_leaves_pillows_limits_as_they_were():
    code = "from PIL import Image; was = Image.MAX_IMAGE_PIXELS; import rootstock.model.model; "
    code += "print(was == Image.MAX_IMAGE_PIXELS)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "True\n"

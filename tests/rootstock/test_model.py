"""The winner as one folder: loaded anywhere, it says of an image what the evaluation said."""

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from rootstock import evaluate, finetune, head, model
from rootstock.evaluate import Inputs
from rootstock.head import Head
from rootstock.params import Evaluate, Params
from tests.small_dataset import (
    CLASSES,
    classifier_from,
    small_backbone,
    small_dataset,
    small_features,
    small_finetuned,
    small_head,
)


def inputs_where(winner: str, base: Path, folder: Path) -> Inputs:
    """Make one of the two models useless, so that the other wins."""
    small = small_dataset(base)
    inputs = Inputs(
        small.images, small.dataset, small_backbone(base), small_features(base).parent, small_head(base),
        small_finetuned(base),
    )  # fmt: skip
    if winner == "head":
        useless = classifier_from(small_head(base), small_backbone(base))
        torch.nn.init.zeros_(useless.head.weight)
        finetune.save(useless, finetune.read_history(inputs.finetuned / finetune.HISTORY), folder / "finetuned")
        return dataclasses.replace(inputs, finetuned=folder / "finetuned")
    fitted = head.load(inputs.head)
    head.save(Head(0 * fitted.weight, fitted.bias, CLASSES, 1.0, fitted.path), folder / "head", {})
    return dataclasses.replace(inputs, head=folder / "head")


@pytest.fixture(scope="module", params=["head", "finetuned"])
def evaluated(request, tmp_path_factory) -> tuple[str, Path]:
    """A winner, and the folder that holds model/ and report/."""
    folder = tmp_path_factory.mktemp(request.param)
    inputs = inputs_where(request.param, tmp_path_factory.getbasetemp(), folder)
    params = Params(evaluate=Evaluate(resamples=100, mistakes=0))
    evaluate.evaluate(inputs, params, folder / "model", folder / "report", list)
    return request.param, folder


def shown(base: Path, rows: pd.DataFrame) -> list[Path]:
    return [base / "small" / source / path for source, path in zip(rows["source"], rows["path"], strict=True)]


def test_it_says_of_an_image_file_what_the_evaluation_said(evaluated, tmp_path_factory):
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


def test_paths_and_bytes_may_be_mixed_and_come_in_order_however_many_there_are(
    evaluated, tmp_path_factory, monkeypatch
):
    _, folder = evaluated
    base = tmp_path_factory.getbasetemp()
    paths = shown(base, small_dataset(base).manifest.iloc[:9])
    read = model.load(folder / "model")
    expected = read.predict(paths)
    mixed = [path.read_bytes() if index % 2 else path for index, path in enumerate(paths)]
    monkeypatch.setattr(model, "AT_ONCE", 4)
    got = read.predict(mixed)
    assert [prediction.label for prediction in got] == [prediction.label for prediction in expected]
    for one, other in zip(got, expected, strict=True):
        assert one.probabilities == pytest.approx(other.probabilities, abs=1e-5)
        assert sum(one.probabilities.values()) == pytest.approx(1, abs=1e-5)
    assert read.predict([]) == []


def test_the_folder_is_all_it_needs(evaluated, tmp_path_factory, tmp_path):
    _, folder = evaluated
    base = tmp_path_factory.getbasetemp()
    shutil.copytree(folder / "model", tmp_path / "elsewhere")
    paths = shown(base, small_dataset(base).manifest.iloc[:2])
    assert model.load(tmp_path / "elsewhere").predict(paths) == model.load(folder / "model").predict(paths)


def test_the_card_says_what_it_is_how_good_it_is_and_how_to_use_it(evaluated):
    winner, folder = evaluated
    card = (folder / "model/README.md").read_text()
    scores = json.loads((folder / "report/metrics.json").read_text())
    accuracy = scores[winner]["accuracy"]
    assert card.startswith("# shufflenet_v2_x0_5: 3 classes\n")
    assert f"{'The head on frozen' if winner == 'head' else 'The fine-tuned'}" in card
    assert f"| accuracy | {accuracy['value']:.4f} | {accuracy['low']:.4f} to {accuracy['high']:.4f} |" in card
    assert "Trained on** 72 images, chosen on 24, tested on 24" in card and "checks, rings, stripes" in card
    assert (
        "| field | 12 |" in card
        and "| studio | 12 |" in card
        and "Licence of its weights**: unknown: a file of your" in card
    )
    assert 'load(Path("data/model")).predict([Path("photo.jpg")])' in card

"""predictions.parquet: all probabilities of few classes; of many, the most probable ones and the label's."""

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from rootstock.config.params import Evaluate
from rootstock.evaluation import predictions
from rootstock.evaluation.predictions import keeps_all, read_predicted
from rootstock.evaluation.scored import Scored
from rootstock.system.errors import DamagedError


def scored(split: str, images: int, classes: int, *models: str, asked: str) -> tuple[Scored, dict[str, np.ndarray]]:
    """Return what models predict, and their probabilities."""
    random = np.random.default_rng(images)
    labels = random.integers(0, classes, images)
    rows = pd.DataFrame({"image_id": [f"{split} {number}" for number in range(images)], "class_index": labels})
    rows = rows.assign(domain="field", split=split, label=rows["class_index"].map("class {}".format))
    answers = {name: random.dirichlet(np.ones(classes), images).astype(np.float32) for name in models}
    return Scored.of(rows, answers, keep_all=keeps_all(Evaluate(probabilities=asked), classes)), answers


def written(path, classes, *, asked="auto", images=300):
    """Write validation images with both models' answers, test images with the winner's; return the probabilities."""
    val, of_val = scored("val", images, classes, "head", "finetuned", asked=asked)
    test, of_test = scored("test", images, classes, "finetuned", asked=asked)
    predictions.write(path, [val, test], [f"class {index}" for index in range(classes)])
    return of_val, of_test, val.labels


@pytest.mark.parametrize(("classes", "asked"), [(7, "auto"), (150, "all")])
def test_all_probabilities_are_there(tmp_path, classes, asked):
    val, test, _ = written(tmp_path / "predictions.parquet", classes, asked=asked)
    table = pd.read_parquet(tmp_path / "predictions.parquet")
    assert (np.stack(table["head"].dropna()) == val["head"]).all()
    both = np.concatenate([val["finetuned"], test["finetuned"]])
    assert (np.stack(table["finetuned"]) == both).all()
    assert table.loc[table["split"] == "test", "head"].isna().all()


def test_of_many_classes_the_best_five_and_the_label_are_there(tmp_path, monkeypatch):
    monkeypatch.setattr(predictions, "ROWS", 128)
    val, _, labels = written(tmp_path / "predictions.parquet", 150)
    table = pd.read_parquet(tmp_path / "predictions.parquet")
    assert {"head", "finetuned"}.isdisjoint(table)
    own, rows = val["head"], table[table["split"] == "val"]
    best = np.sort(own)[:, ::-1][:, :5]
    assert (np.stack(rows["head_top_probability"]) == best).all()
    names = np.stack(rows["head_top"])
    assert (own[np.arange(300), [int(name.split()[1]) for name in names[:, 0]]] == best[:, 0]).all()
    assert (rows["head_predicted"] == names[:, 0]).all()
    assert (rows["head_label_probability"].to_numpy() == own[np.arange(300), labels]).all()
    assert table.loc[table["split"] == "test", "head_top"].isna().all()


@pytest.mark.parametrize("classes", [7, 150])
@pytest.mark.parametrize("model", ["head", "finetuned"])
def test_the_predicted_class_is_read_and_null_where_a_model_was_not_measured(tmp_path, classes, model):
    path = tmp_path / "predictions.parquet"
    *parts, _ = written(path, classes)
    expected = [
        f"class {index}" if model in part else None
        for part in parts
        for index in part.get(model, parts[0]["head"]).argmax(1)
    ]
    names = [f"class {index}" for index in range(classes)]
    table = read_predicted(path, model, names, ["split"])
    assert table["predicted"].to_pylist() == expected
    assert table["split"].to_pylist() == ["val"] * 300 + ["test"] * 300
    if classes == 7:  # as earlier versions wrote it
        old = pq.read_table(path).select(["image_id", "split", "head", "finetuned"])
        pq.write_table(old, path)
        assert read_predicted(path, model, names)["predicted"].to_pylist() == expected


def test_a_damaged_file_is_named(tmp_path):
    (tmp_path / "predictions.parquet").write_bytes(b"PAR1 no table")
    with pytest.raises(DamagedError, match=r"predictions\.parquet"):
        read_predicted(tmp_path / "predictions.parquet", "head", ["a"])

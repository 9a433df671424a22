"""Champion versus challenger: both models' answers on the same test images.

decision.py says what follows from them.
"""

from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from rootstock.dataset import label_sets, tables
from rootstock.evaluation.predictions import read_predicted
from rootstock.model import model, scoring
from rootstock.training import calibration


def predict_both(
    champion: Path,
    champion_predictions: Path,
    challenger_predictions: Path,
    dataset_dir: Path,
    images_dir: Path,
    features_dir: Path,
    challenger: Path,
) -> pd.DataFrame:
    """Classify every test image with both models, reusing stored predictions, then cached features.

    Args:
        champion: folder of the current model.
        champion_predictions: its predictions.parquet, for an earlier test split.
        challenger_predictions: the challenger's, for the current one.
        dataset_dir: the current dataset.
        images_dir: its shards; images are decoded only for a fine-tuned champion, or one of another backbone.
        features_dir: the cache of features.
        challenger: folder of the new model.

    Returns:
        One row per test image: image_id, domain, label, `group` (an integer), `known` (whether the champion knows the
        class), and whether `champion` and `challenger` are correct. Where images have any number of classes, correct is
        who has all labels right of the classes that the champion knows; there is one more row for each other label of
        an image, which is correct if it was found.
    """
    manifest = tables.load_manifest(dataset_dir)
    rows = tables.in_shard_order(manifest, "test")
    known = model.describe(champion)["classes"]
    table = rows[["image_id", "domain", "label"]].assign(group=tables.group_numbers(rows))
    models = {"champion": (champion, champion_predictions), "challenger": (challenger, challenger_predictions)}
    for name, (folder, predictions) in models.items():
        predicted = rows["image_id"].map(_stored_labels(folder, predictions)).astype(object)
        missing = predicted.isna()
        predicted[missing] = _predict(folder, rows[missing], images_dir, features_dir)
        table[name] = predicted
    if tables.is_multi_label(manifest):
        return _compare_sets(table, known)
    labels = table["label"].astype(object)
    table["known"] = labels.isin(known)
    return table.assign(**{name: table[name] == labels for name in models})


def possible_gains(champion: Path, champion_predictions: Path, rows: pd.DataFrame) -> NDArray[np.bool_]:
    """Return on which images (n,) a challenger could be better: the champion was wrong, or never measured there.

    Args:
        champion: folder of the current model.
        champion_predictions: its predictions.parquet.
        rows: of the manifest.
    """
    return (rows["image_id"].map(_stored_labels(champion, champion_predictions)) != rows["label"]).to_numpy(bool)


def _compare_sets(table: pd.DataFrame, known: list[str]) -> pd.DataFrame:
    """Compare labels and answers that are sets, on what the champion knows, and then on each label that it does not."""
    both = ["champion", "challenger"]
    has = label_sets.matrix(table["label"], known)
    right = {name: (label_sets.matrix(table[name], known) == has).all(axis=1) for name in both}
    more = label_sets.one_row_per_label(table)
    more = more[~more["label"].isin(known)]
    found = {
        name: [label in label_sets.split(answer) for label, answer in zip(more["label"], more[name], strict=True)]
        for name in both
    }
    return pd.concat([table.assign(known=True, **right), more.assign(known=False, **found)], ignore_index=True)


def _stored_labels(folder: Path, predictions: Path) -> dict[str, str]:
    """Return the class that a model predicted for each image of its own evaluation, by image_id."""
    described = model.describe(folder)
    table = read_predicted(predictions, described["kind"], described["classes"]).drop_null()
    return dict(zip(table["image_id"].to_pylist(), table["predicted"].to_pylist(), strict=True))


def _predict(folder: Path, rows: pd.DataFrame, images_dir: Path, features_dir: Path) -> list[str]:
    if rows.empty:
        return []
    loaded = model.load(folder)
    scores = scoring.score(loaded, rows, images_dir, features_dir, "compare").logits
    if loaded.multi_label:
        chances = calibration.probabilities(scores, loaded.temperature, multi_label=True)
        names = np.asarray(loaded.classes, dtype=object)
        return [label_sets.join(names[answer]) for answer in loaded.answers(chances)]
    return [loaded.classes[index] for index in scores.argmax(1)]

"""Images for the report: those that the winner misclassifies, and those whose label is probably wrong."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd

from rootstock.dataset import tables
from rootstock.evaluation import thumbnails
from rootstock.evaluation.model_pair import ModelPair
from rootstock.evaluation.plots import confusion_names
from rootstock.evaluation.scored import Scored

BUDGET = 400_000  # bytes of thumbnails of the mistakes, and as many of the suspects: some hundred of photos
OF_CLASS, SMALL = 3, 44  # mistakes shown beside a class, and pixels of their thumbnails
GROUPS, OF_GROUP, GROUP_PX = 8, 5, 72  # near duplicates: groups shown, images of each, pixels of a thumbnail
CONFUSIONS = 50  # pairs of classes
CLASSES_SHOWN = 50  # classes with thumbnails of their mistakes, at most


@dataclass(frozen=True)
class Mistake:
    """A test image that the winner misclassified."""

    thumbnail: bytes  # WebP, JPEG, PNG or GIF
    actual: str
    predicted: str
    confidence: float  # in the wrong class
    domain: str
    path: str


@dataclass(frozen=True)
class Suspect:
    """An image whose label is probably wrong."""

    thumbnail: bytes
    label: str
    suggested: str
    probability: float  # of the suggested class
    split: str
    domain: str
    path: str


@dataclass(frozen=True)
class Confusion:
    """How many test images of a class the winner takes for another one, and their share of the class."""

    actual: str
    predicted: str
    images: int
    share: float


def worst_mistakes(pair: ModelPair, test: Scored, winner: str, count: int) -> list[Mistake]:
    """Return the misclassified test images, most confident first, as many as the page has room for."""
    own = test.predictions[winner]
    worst = test.mistakes(winner)[:count]
    rows = test.rows.iloc[worst]
    pictures = thumbnails.within(thumbnails.of_images(pair.inputs.images, rows), BUDGET)
    return [
        Mistake(
            thumbnail=thumbnail,
            actual=pair.shown(row["label"]),
            predicted=pair.shown(predicted),
            confidence=float(own.confidence[index]),
            domain=row["domain"],
            path=f"{row['source']}/{row['path']}",
        )
        for index, predicted, (_, row), thumbnail in zip(
            worst, own.texts(pair.classes, worst), rows.iterrows(), pictures, strict=False
        )
    ]


def confusions(test: Scored, winner: str, classes: list[str]) -> list[Confusion]:
    """Return which class was taken for which other one, the most frequent confusion first, at most CONFUSIONS."""
    actual, predicted = (part.tolist() for part in test.predictions[winner].confused(test.labels))
    names, images = confusion_names(test.labels, classes), Counter(actual)
    wrong = Counter((a, b) for a, b in zip(actual, predicted, strict=True) if a != b)
    order = sorted(wrong, key=lambda pair: (-wrong[pair], images[pair[0]], pair))
    return [Confusion(names[a], names[b], wrong[a, b], wrong[a, b] / images[a]) for a, b in order[:CONFUSIONS]]


def near_duplicates(pair: ModelPair) -> list[list[bytes]]:
    """Return small thumbnails of the largest groups of near duplicates; none where images are grouped by name, too."""
    if "groups" in pair.summary:
        return []
    sizes = pair.manifest["group_id"].value_counts()
    groups = list(sizes[sizes > 1].sort_index().sort_values(ascending=False, kind="stable").index[:GROUPS])
    rows = pair.manifest[pair.manifest["group_id"].isin(groups)].groupby("group_id").head(OF_GROUP)
    found: dict[str, list[bytes]] = {group: [] for group in groups}
    for group, picture in zip(rows["group_id"], thumbnails.of_images(pair.inputs.images, rows, GROUP_PX), strict=True):
        found[group].append(picture)
    return list(found.values())


def worst_of_classes(
    pair: ModelPair, test: Scored, winner: str, figures: Mapping[str, Mapping[str, Any]]
) -> dict[str, list[bytes]]:
    """Return small thumbnails of the most confident mistakes of each of the classes with the lowest recall.

    Args:
        pair: the models and their dataset.
        test: the test images, scored.
        winner: the model.
        figures: of each class on these images, by name.
    """
    scored = [name for name in figures if figures[name]["images"]]
    worst = set(sorted(scored, key=lambda name: figures[name]["recall"]["value"])[:CLASSES_SHOWN])
    rows = tables.one_row_per_label(test.rows.iloc[test.mistakes(winner)])
    rows = rows[rows["label"].isin(worst)].groupby("label").head(OF_CLASS)
    found: dict[str, list[bytes]] = {}
    for label, picture in zip(rows["label"], thumbnails.of_images(pair.inputs.images, rows, SMALL), strict=True):
        found.setdefault(label, []).append(picture)
    return found


def worst_labels(pair: ModelPair, issues: pd.DataFrame, count: int) -> list[Suspect]:
    """Return the images whose label is most probably wrong, of those that `label_issues.find` has found."""
    shown = issues.head(count)
    rows = pair.manifest.set_index("image_id").loc[shown["image_id"]].reset_index()
    pictures = thumbnails.within(thumbnails.of_images(pair.inputs.images, rows), BUDGET)
    return [
        Suspect(
            thumbnail=thumbnail,
            label=pair.shown(row["label"]),
            suggested=pair.shown(row["suggested"]),
            probability=row["suggested_probability"],
            split=row["split"],
            domain=row["domain"],
            path=f"{row['source']}/{row['path']}",
        )
        for (_, row), thumbnail in zip(shown.iterrows(), pictures, strict=False)
    ]

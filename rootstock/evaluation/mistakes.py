"""Images for the report: those that the winner misclassifies, and those whose label is probably wrong."""

import io
from collections.abc import Iterator

import numpy as np
import pandas as pd
from PIL import Image

from rootstock.dataset.shards import Reader
from rootstock.evaluation.model_pair import ModelPair, Scored
from rootstock.evaluation.report import Mistake, Suspect
from rootstock.images import pixels

THUMBNAIL_PX = 160


def worst_mistakes(pair: ModelPair, test: Scored, winner: str, count: int) -> list[Mistake]:
    """Return the misclassified test images, most confident first."""
    probabilities = test.probabilities[winner]
    predicted = probabilities.argmax(1)
    confidence = probabilities.max(1)
    wrong = np.flatnonzero(predicted != test.labels)
    worst = wrong[np.argsort(-confidence[wrong], kind="stable")][:count]
    rows = test.rows.iloc[worst]
    return [
        Mistake(
            thumbnail=thumbnail,
            actual=row["label"],
            predicted=pair.classes[predicted[index]],
            confidence=float(confidence[index]),
            domain=row["domain"],
            path=f"{row['source']}/{row['path']}",
        )
        for index, (_, row), thumbnail in zip(worst, rows.iterrows(), _thumbnails(pair, rows), strict=True)
    ]


def worst_labels(pair: ModelPair, issues: pd.DataFrame, count: int) -> list[Suspect]:
    """Return the images whose label is most probably wrong, of those that `label_issues.find` has found."""
    shown = issues.head(count)
    rows = pair.manifest.set_index("image_id").loc[shown["image_id"]].reset_index()
    return [
        Suspect(
            thumbnail=thumbnail,
            label=row["label"],
            suggested=row["suggested"],
            probability=row["suggested_probability"],
            split=row["split"],
            domain=row["domain"],
            path=f"{row['source']}/{row['path']}",
        )
        for (_, row), thumbnail in zip(shown.iterrows(), _thumbnails(pair, rows), strict=True)
    ]


def _thumbnails(pair: ModelPair, rows: pd.DataFrame) -> Iterator[bytes]:
    """Yield a thumbnail of each image, as PNG."""
    with Reader(pair.inputs.images) as reader:
        for _, row in rows.iterrows():
            image = reader.image(row["shard"], int(row["offset"]), int(row["size"]), row["image_id"])
            yield _thumbnail(pixels.decode(image))


def _thumbnail(image: Image.Image) -> bytes:
    """Return a thumbnail as PNG; tiny images are enlarged."""
    times = THUMBNAIL_PX // max(image.size)
    if times > 1:
        image = image.resize((image.width * times, image.height * times), Image.Resampling.NEAREST)
    image.thumbnail((THUMBNAIL_PX, THUMBNAIL_PX), Image.Resampling.LANCZOS)
    drawn = io.BytesIO()
    image.save(drawn, "PNG")
    return drawn.getvalue()

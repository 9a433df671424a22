"""The images that a model misclassifies, for the report."""

import io

import numpy as np
from PIL import Image

from rootstock.dataset.shards import Reader
from rootstock.evaluation.model_pair import ModelPair, Scored
from rootstock.evaluation.report import Mistake
from rootstock.images import pixels

THUMBNAIL_PX = 160


def worst_mistakes(pair: ModelPair, test: Scored, winner: str, count: int) -> list[Mistake]:
    """Return the misclassified test images, most confident first."""
    probabilities = test.probabilities[winner]
    predicted = probabilities.argmax(1)
    confidence = probabilities.max(1)
    wrong = np.flatnonzero(predicted != test.labels)
    worst = wrong[np.argsort(-confidence[wrong], kind="stable")][:count]
    mistakes = []
    with Reader(pair.inputs.images) as reader:
        for index in worst:
            row = test.rows.iloc[index]
            picture = pixels.decode(reader.image(row["shard"], int(row["offset"]), int(row["size"]), row["image_id"]))
            mistakes.append(
                Mistake(
                    thumbnail=_thumbnail(picture),
                    actual=row["label"],
                    predicted=pair.classes[predicted[index]],
                    confidence=float(confidence[index]),
                    domain=row["domain"],
                    path=f"{row['source']}/{row['path']}",
                )
            )
    return mistakes


def _thumbnail(image: Image.Image) -> bytes:
    """Return a thumbnail as PNG; tiny images are enlarged."""
    times = THUMBNAIL_PX // max(image.size)
    if times > 1:
        image = image.resize((image.width * times, image.height * times), Image.Resampling.NEAREST)
    image.thumbnail((THUMBNAIL_PX, THUMBNAIL_PX), Image.Resampling.LANCZOS)
    drawn = io.BytesIO()
    image.save(drawn, "PNG")
    return drawn.getvalue()

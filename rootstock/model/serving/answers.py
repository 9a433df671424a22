"""What a server answers, as the OpenAPI page describes it."""

import heapq
import math
from operator import itemgetter

from pydantic import BaseModel, Field

from rootstock.model.model import Prediction
from rootstock.system import escape

DIGITS = 6  # of a number


class Ranked(BaseModel):
    """A class and its probability."""

    label: str
    probability: float | None


class ImageAnswer(BaseModel):
    """The prediction for an image, or why it was rejected: then `label` and all after it but the reason are empty."""

    name: str = Field(description="Name of the uploaded file, or `image 0` without one")
    label: str | None = Field(description="The most probable class")
    labels: list[str] | None = Field(
        description="The classes predicted: the most probable one; or, of a model for any number of classes per image, "
        "all whose probability reaches their threshold"
    )
    probability: float | None = Field(description="Its calibrated probability")
    top: list[Ranked] = Field(description="The most probable classes, best first")
    unknown: bool | None = Field(description="Whether the image is probably of none of the classes")
    novelty: float | None = Field(description="How unlike the classes it is, 0 to 2; empty if the model cannot tell")
    reason: str | None = Field(description="Why the image was rejected")
    detail: str | None = Field(description="What explains the reason")


class Answer(BaseModel):
    """The predictions of a request, one per image, in the order of the uploads."""

    model: str = Field(description="Which model answers: champion@v3, or model@ and a digest")
    images: list[ImageAnswer]


class Problem(BaseModel):
    """Why a request was not answered."""

    detail: str


class Health(BaseModel):
    """Whether the server can predict, and by which model."""

    status: str
    model: str


def answer(model: str, predictions: list[Prediction], top: int) -> Answer:
    """Return the answer to a request, with the `top` most probable classes of each image."""
    return Answer(model=model, images=[_image(prediction, top) for prediction in predictions])


def _image(prediction: Prediction, top: int) -> ImageAnswer:
    ranked = heapq.nlargest(top, prediction.probabilities.items(), key=itemgetter(1))
    best = [Ranked(label=label, probability=_number(value)) for label, value in ranked]
    return ImageAnswer(
        name=escape.printable(prediction.name),
        label=best[0].label if best else None,
        labels=None if prediction.reason else list(prediction.labels),
        probability=best[0].probability if best else None,
        top=best,
        unknown=None if prediction.reason else prediction.unknown,
        novelty=_number(prediction.novelty),
        reason=prediction.reason.value if prediction.reason else None,
        detail=escape.printable(prediction.detail) or None,
    )


def _number(value: float | None) -> float | None:
    """Round a number; None for what JSON cannot hold."""
    return round(value, DIGITS) if value is not None and math.isfinite(value) else None

"""The trained model as one folder: load it anywhere and classify images.

import rootstock
rootstock.load_model("data/model").predict(["photo.jpg"])
"""

import json
import math
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from rootstock.backbones import depths, networks
from rootstock.config.architectures import PENULTIMATE, Transform, check_name
from rootstock.dataset import tables
from rootstock.images import inspection, value_ranges
from rootstock.images.deep import Range
from rootstock.images.inspection import Checks, Reason, Rejected
from rootstock.images.loader import device, prepare
from rootstock.system import files
from rootstock.system.escape import markdown
from rootstock.system.files import read_json, reading, replacing_folder, sha256, verify, write
from rootstock.training import classifier
from rootstock.training.calibration import softmax
from rootstock.training.classifier import Classifier
from rootstock.training.head import Head

Content = bytes | bytearray | memoryview
Image = str | os.PathLike[str] | Content  # a path, or the bytes of a file

DESCRIPTION, CARD = "model.json", "README.md"
BATCH_SIZE = 64
CHECKS = Checks(min_side=1, max_megapixels=100, max_side=None, accept_wrong_extension=True)


@dataclass(frozen=True)
class Prediction:
    """The predicted class and the calibrated probability of each class, by name; or why an image was rejected.

    `name` is the given path, or the image's position. For a rejected image, `label` and `probabilities` are empty,
    `reason` is one of ingest's (images/reasons.py), and `detail` explains it.
    """

    label: str
    probabilities: dict[str, float]
    name: str = ""
    reason: Reason | None = None
    detail: str = ""


@dataclass(frozen=True)
class Model:
    """A trained classifier with its classes, transform and temperature.

    `value_range` holds black and white for images of more than 8 bits, if all training images had the same range.
    """

    network: Classifier
    transform: Transform
    classes: list[str]
    temperature: float
    value_range: Range | None = None

    def predict(
        self,
        images: Image | Iterable[Image],
        checks: Checks = CHECKS,
        value_range: Range | None = None,
    ) -> list[Prediction]:
        """Classify image files, or their bytes, in order; untrusted files pass the checks of ingest.

        Args:
            images: paths, or the bytes of files.
            checks: limits for accepted files; extensions are ignored by default.
            value_range: black and white for images of more than 8 bits or of floats; overrides the model's.

        Returns:
            One prediction per image; a rejected image does not affect the others.

        Raises:
            TypeError: an image is neither a path nor bytes.
            ValueError: black is not below white in the value range.
        """
        if value_range is not None and not -math.inf < value_range[0] < value_range[1] < math.inf:
            raise ValueError(f"value_range is {value_range}; expected two numbers, black below white")
        checks = replace(checks, value_range=value_range or checks.value_range or self.value_range)
        given = [images] if isinstance(images, (str, os.PathLike, Content)) else images
        numbered = enumerate(given)
        predictions: list[Prediction] = []
        while batch := list(islice(numbered, BATCH_SIZE)):
            predictions += self._predict([(_name(image, number), image) for number, image in batch], checks)
        return predictions

    def _predict(self, named: Sequence[tuple[str, Image]], checks: Checks) -> list[Prediction]:
        prepared = [_prepare(name, image, self.transform, checks) for name, image in named]
        accepted = [pixels for pixels in prepared if not isinstance(pixels, Rejected)]
        predictions = iter(self._classify(accepted))
        return [
            Prediction("", {}, name, pixels.reason, pixels.detail)
            if isinstance(pixels, Rejected)
            else replace(next(predictions), name=name)
            for (name, _), pixels in zip(named, prepared, strict=True)
        ]

    def classify(self, contents: Sequence[bytes]) -> list[Prediction]:
        """Classify the bytes of files that ingest has checked and packed."""
        predictions: list[Prediction] = []
        for start in range(0, len(contents), BATCH_SIZE):
            batch = contents[start : start + BATCH_SIZE]
            predictions += self._classify([prepare(content, self.transform) for content in batch])
        return predictions

    def _classify(self, pixels: Sequence[NDArray[np.uint8]]) -> Iterator[Prediction]:
        if not len(pixels):
            return
        where = device()
        batch = torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2)
        [logits] = classifier.predict(self.network.to(where), iter([batch]), where)
        for row in softmax(logits, self.temperature):
            probabilities = dict(zip(self.classes, map(float, row), strict=True))
            yield Prediction(max(probabilities, key=probabilities.__getitem__), probabilities)


def _name(image: Image, number: int) -> str:
    if isinstance(image, (str, os.PathLike)):
        return os.fspath(image)
    if isinstance(image, Content):
        return f"image {number}"
    raise TypeError(f"image {number} is of type {type(image).__name__}; expected a path, or the bytes of a file")


def _prepare(name: str, image: Image, transform: Transform, checks: Checks) -> NDArray[np.uint8] | Rejected:
    """Read, check, decode and transform an image to the network's input."""
    try:
        data = bytes(image) if isinstance(image, Content) else _read(image)
        if len(data) > inspection.MAX_FILE_BYTES:
            raise Rejected(Reason.TOO_LARGE)
        new = inspection.check(data, name, checks)
        if new.deep and new.deep.unclear and not checks.value_range:
            raise inspection.RangeUnknown(new.deep)
        return prepare(new.data, transform)
    except Rejected as rejected:
        return Rejected(rejected.reason, rejected.detail)


def _read(path: str | os.PathLike[str]) -> bytes:
    try:
        return files.read(Path(path), inspection.MAX_FILE_BYTES)
    except OSError as error:
        raise Rejected(Reason.UNREADABLE, error.strerror or str(error)) from None
    except ValueError as error:  # not a valid file name
        raise Rejected(Reason.UNREADABLE, str(error)) from None


def save(folder: Path, network: Classifier, described: dict[str, Any], readme: str) -> None:
    """Save a model: `model.safetensors`, `model.json` (classes, temperature, backbone) and a model card, README.md."""
    with replacing_folder(folder) as temporary:
        classifier.save(network, temporary / classifier.WEIGHTS)
        described = {**described, "digest": sha256(temporary / classifier.WEIGHTS)}
        write(temporary / DESCRIPTION, json.dumps(described, indent=2, ensure_ascii=False) + "\n")
        write(temporary / CARD, readme)


def load(folder: Path | str) -> Model:
    """Load a model that `save` wrote.

    Raises:
        DamagedError: a file is damaged or does not match its digest.
    """
    folder = Path(folder)
    described = describe(folder)
    with reading(folder / DESCRIPTION):
        backbone, temperature = described["backbone"], float(described["temperature"])
        check_name(backbone["name"])
        values_of = value_ranges.range_in(described)
        transform = Transform.from_dict(backbone["transform"])
        default = {"layer": PENULTIMATE, "pooling": "avg", "width": backbone["feature_width"]}
        features = {**default, **described.get("features", {})}
        shape = (len(described["classes"]), features["width"])
        empty = Head(np.zeros(shape, np.float32), np.zeros(shape[0], np.float32), described["classes"], 0.0)
        uncut = networks.build(backbone["name"], transform.size, backbone.get("variant"))
    cut = depths.cut(uncut, backbone["name"], features["layer"], features["pooling"])
    network = Classifier(cut, transform, empty)
    if digest := described.get("digest"):  # earlier versions wrote no digest
        verify(folder / classifier.WEIGHTS, digest)
    classifier.load(network, folder / classifier.WEIGHTS)
    return Model(network.eval(), transform, described["classes"], temperature, values_of)


def describe(folder: Path) -> dict[str, Any]:
    """Read a model's description: kind, classes, backbone, temperature.

    Raises:
        DamagedError: model.json is damaged or incomplete.
    """
    described = read_json(folder / DESCRIPTION)
    with reading(folder / DESCRIPTION):
        for name in ("kind", "classes", "backbone", "temperature"):
            described[name]
    return described


def card(described: dict[str, Any], why: str, scores: dict[str, Any], summary: dict[str, Any]) -> str:
    """Format the model card: what the model is, its training data, test figures, limits (Mitchell et al. 2019)."""
    backbone, own = described["backbone"], scores[described["kind"]]
    splits = summary["splits"]
    figures = "\n".join(
        f"| {name} | {own[key]['value']:.4f} | {own[key]['low']:.4f} to {own[key]['high']:.4f} |"
        for name, key in (
            ("accuracy", "accuracy"), ("macro F1", "macro_f1"), ("top-5 accuracy", "top5"),
            ("log loss", "log_loss"), ("expected calibration error", "ece"),
        )
    )  # fmt: skip
    domains = "\n".join(
        f"| {markdown(name)} | {score['images']} | {score['accuracy']['value']:.4f} | "
        f"{score['accuracy']['low']:.4f} to {score['accuracy']['high']:.4f} |"
        for name, score in own["domains"].items()
    )
    without = tables.describe_missing_classes(summary)
    note = f"\n**Note: {markdown(without)}.** The figures below do not cover them.\n" if without else ""
    return f"""# {markdown(backbone["name"])}: {len(described["classes"])} classes

{markdown(why)}
{note}
- **Backbone**: {markdown(backbone["name"])}, {backbone["parameters"]:,} parameters, {markdown(backbone["origin"])}
- **Licence of its weights**: {markdown(backbone["licence"])}
- **Images**: {splits["train"]:,} for training, {splits["val"]:,} for validation, {splits["test"]:,} for testing
- **Classes**: {", ".join(map(markdown, described["classes"]))}
- **Probabilities** are calibrated on the validation split (temperature {described["temperature"]:.3f})

| metric on the test split | value | 95 % interval |
|---|---|---|
{figures}

| domain | test images | accuracy | 95 % interval |
|---|---|---|---|
{domains}

Expect lower accuracy on images of other domains. To use the model:

```python
import rootstock

rootstock.load_model("data/model").predict(["photo.jpg"])
```
"""

"""The model that won, as one folder: load it anywhere and ask it about images.

from rootstock.model.model import load
load(Path("data/model")).predict([Path("photo.jpg")])
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
AT_ONCE = 64  # images a forward pass
CHECKS = Checks(min_side=1, max_megapixels=100, max_side=None, accept_wrong_extension=True)


@dataclass(frozen=True)
class Prediction:
    """A class and the calibrated probabilities of all of them, by name; or why there is no answer.

    `name` is the path that was given, or which of the images it was. Of a file that cannot be used, `label` is empty,
    there are no probabilities, and `reason` is one of ingest's (images/reasons.py), with what was `said` of it.
    """

    label: str
    probabilities: dict[str, float]
    name: str = ""
    reason: Reason | None = None
    said: str = ""


@dataclass(frozen=True)
class Model:
    """A trained classifier with everything it needs: classes, transform, temperature.

    `value_range` is black and white of deep images, where those that it was trained on had one range.
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
        """Classify image files, or their bytes, in order; whoever sent them, each is held to what ingest checks.

        Args:
            images: paths, or the bytes of files.
            checks: what they are held to; a name is no matter here.
            value_range: black and white of images of more than 8 bits or of floats, where the model does not say.

        Returns:
            One for each image. One that cannot be used costs its own answer only, and says why.

        Raises:
            TypeError: something is neither a path nor bytes.
            ValueError: the value range has no black below its white.
        """
        if value_range is not None and not -math.inf < value_range[0] < value_range[1] < math.inf:
            raise ValueError(f"value_range is {value_range}; expected two numbers, black and, above it, white")
        checks = replace(checks, value_range=value_range or checks.value_range or self.value_range)
        given = [images] if isinstance(images, (str, os.PathLike, Content)) else images
        numbered = enumerate(given)
        predictions: list[Prediction] = []
        while some := list(islice(numbered, AT_ONCE)):
            predictions += self._predict([(_name(image, number), image) for number, image in some], checks)
        return predictions

    def _predict(self, named: Sequence[tuple[str, Image]], checks: Checks) -> list[Prediction]:
        seen = [_seen(name, image, self.transform, checks) for name, image in named]
        views = [view for view in seen if not isinstance(view, Rejected)]
        answers = iter(self._answers(views))
        return [
            Prediction("", {}, name, view.reason, view.said)
            if isinstance(view, Rejected)
            else replace(next(answers), name=name)
            for (name, _), view in zip(named, seen, strict=True)
        ]

    def classify(self, contents: Sequence[bytes]) -> list[Prediction]:
        """Classify files that ingest has packed: they have been checked."""
        predictions: list[Prediction] = []
        for start in range(0, len(contents), AT_ONCE):
            some = contents[start : start + AT_ONCE]
            predictions += self._answers([prepare(content, self.transform) for content in some])
        return predictions

    def _answers(self, views: Sequence[NDArray[np.uint8]]) -> Iterator[Prediction]:
        if not len(views):
            return
        where = device()
        batch = torch.from_numpy(np.stack(views)).permute(0, 3, 1, 2)
        [logits] = classifier.predict(self.network.to(where), iter([batch]), where)
        for row in softmax(logits, self.temperature):
            named = dict(zip(self.classes, map(float, row), strict=True))
            yield Prediction(max(named, key=named.__getitem__), named)


def _name(image: Image, number: int) -> str:
    if isinstance(image, (str, os.PathLike)):
        return os.fspath(image)
    if isinstance(image, Content):
        return f"image {number}"
    raise TypeError(f"image {number} is of type {type(image).__name__}; expected a path, or the bytes of a file")


def _seen(name: str, image: Image, transform: Transform, checks: Checks) -> NDArray[np.uint8] | Rejected:
    """Read a file, check it, and bring it to what the network sees."""
    try:
        data = bytes(image) if isinstance(image, Content) else _read(image)
        if len(data) > inspection.MAX_FILE_BYTES:
            raise Rejected(Reason.TOO_LARGE)
        new = inspection.check(data, name, checks)
        if new.deep and new.deep.unclear and not checks.value_range:
            raise inspection.RangeUnknown(new.deep)
        return prepare(new.data, transform)
    except Rejected as rejected:
        return Rejected(rejected.reason, rejected.said)


def _read(path: str | os.PathLike[str]) -> bytes:
    try:
        return files.read(Path(path), inspection.MAX_FILE_BYTES)
    except OSError as error:
        raise Rejected(Reason.UNREADABLE, error.strerror or str(error)) from None
    except ValueError as error:  # a name that no file can have
        raise Rejected(Reason.UNREADABLE, str(error)) from None


def save(folder: Path, network: Classifier, described: dict[str, Any], readme: str) -> None:
    """Write a model: `model.safetensors`, `model.json` (classes, temperature, backbone) and a card, README.md."""
    with replacing_folder(folder) as temporary:
        classifier.save(network, temporary / classifier.WEIGHTS)
        described = {**described, "digest": sha256(temporary / classifier.WEIGHTS)}
        write(temporary / DESCRIPTION, json.dumps(described, indent=2, ensure_ascii=False) + "\n")
        write(temporary / CARD, readme)


def load(folder: Path | str) -> Model:
    """Read a model that `save` wrote.

    Raises:
        DamagedError: it is not as it was written.
    """
    folder = Path(folder)
    described = describe(folder)
    with reading(folder / DESCRIPTION):
        backbone, temperature = described["backbone"], float(described["temperature"])
        check_name(backbone["name"])
        values_of = value_ranges.range_in(described)
        transform = Transform.from_dict(backbone["transform"])
        own = {"layer": PENULTIMATE, "pooling": "avg", "width": backbone["feature_width"]}
        at = {**own, **described.get("features", {})}
        shape = (len(described["classes"]), at["width"])
        empty = Head(np.zeros(shape, np.float32), np.zeros(shape[0], np.float32), described["classes"], 0.0)
        whole = networks.build(backbone["name"], transform.size, backbone.get("variant"))
    cut = depths.cut(whole, backbone["name"], at["layer"], at["pooling"])
    network = Classifier(cut, transform, empty)
    if digest := described.get("digest"):  # earlier versions wrote none
        verify(folder / classifier.WEIGHTS, digest)
    classifier.load(network, folder / classifier.WEIGHTS)
    return Model(network.eval(), transform, described["classes"], temperature, values_of)


def describe(folder: Path) -> dict[str, Any]:
    """Read what a model is: kind, classes, backbone, temperature.

    Raises:
        DamagedError: it is not as it was written.
    """
    described = read_json(folder / DESCRIPTION)
    with reading(folder / DESCRIPTION):
        for name in ("kind", "classes", "backbone", "temperature"):
            described[name]
    return described


def card(described: dict[str, Any], why: str, scores: dict[str, Any], summary: dict[str, Any]) -> str:
    """Write the model card: what it is, what it was trained on, how good it is, what to mind (Mitchell et al. 2019)."""
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
    mind = f"\n**Mind: {markdown(without)}.** What follows says nothing of them.\n" if without else ""
    return f"""# {markdown(backbone["name"])}: {len(described["classes"])} classes

{markdown(why)}
{mind}
- **Backbone**: {markdown(backbone["name"])}, {backbone["parameters"]:,} parameters, {markdown(backbone["origin"])}
- **Licence of its weights**: {markdown(backbone["licence"])}
- **Trained on** {splits["train"]:,} images, chosen on {splits["val"]:,}, tested on {splits["test"]:,}
- **Classes**: {", ".join(map(markdown, described["classes"]))}
- **Probabilities** are calibrated on the validation split (temperature {described["temperature"]:.3f})

| on the test split | | 95 % interval |
|---|---|---|
{figures}

| domain | test images | accuracy | 95 % interval |
|---|---|---|---|
{domains}

Expect less on images of another domain than these. Use it:

```python
from pathlib import Path
from rootstock.model.model import load

load(Path("data/model")).predict([Path("photo.jpg")])
```
"""

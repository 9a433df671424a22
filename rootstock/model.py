"""The model that won, as one folder: load it anywhere and ask it about images.

from rootstock.model import load
load(Path("data/model")).predict([Path("photo.jpg")])
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from rootstock import classifier, dataset, depths, networks
from rootstock.architectures import PENULTIMATE, Transform
from rootstock.classifier import Classifier
from rootstock.escape import markdown
from rootstock.files import hold, read_json, reading, replacing_folder, sha256, write
from rootstock.head import Head
from rootstock.metrics import softmax
from rootstock.pixels import device, prepare

DESCRIPTION, CARD = "model.json", "README.md"
AT_ONCE = 64  # images a forward pass


@dataclass(frozen=True)
class Prediction:
    """A class and the calibrated probabilities of all of them, by name."""

    label: str
    probabilities: dict[str, float]


@dataclass(frozen=True)
class Model:
    """A trained classifier with everything it needs: classes, transform, temperature."""

    network: Classifier
    transform: Transform
    classes: list[str]
    temperature: float

    def predict(self, images: Sequence[Path | bytes]) -> list[Prediction]:
        """Classify image files, or their bytes, in order."""
        predictions: list[Prediction] = []
        for start in range(0, len(images), AT_ONCE):
            for row in self._probabilities(images[start : start + AT_ONCE]):
                named = dict(zip(self.classes, map(float, row), strict=True))
                predictions.append(Prediction(max(named, key=named.__getitem__), named))
        return predictions

    def _probabilities(self, images: Sequence[Path | bytes]) -> NDArray[np.float32]:
        where = device()
        contents = (image if isinstance(image, bytes) else image.read_bytes() for image in images)
        pixels = np.stack([prepare(content, self.transform) for content in contents])
        batch = torch.from_numpy(pixels).permute(0, 3, 1, 2)
        [logits] = classifier.predict(self.network.to(where), iter([batch]), where)
        return softmax(logits, self.temperature)


def save(folder: Path, network: Classifier, described: dict[str, Any], readme: str) -> None:
    """Write a model: `model.safetensors`, `model.json` (classes, temperature, backbone) and a card, README.md."""
    with replacing_folder(folder) as temporary:
        classifier.save(network, temporary / classifier.WEIGHTS)
        described = {**described, "digest": sha256(temporary / classifier.WEIGHTS)}
        write(temporary / DESCRIPTION, json.dumps(described, indent=2, ensure_ascii=False) + "\n")
        write(temporary / CARD, readme)


def load(folder: Path) -> Model:
    """Read a model that `save` wrote.

    Raises:
        DamagedError: it is not as it was written.
    """
    described = describe(folder)
    with reading(folder / DESCRIPTION):
        backbone, temperature = described["backbone"], float(described["temperature"])
        transform = Transform.from_dict(backbone["transform"])
        own = {"layer": PENULTIMATE, "pooling": "avg", "width": backbone["feature_width"]}
        at = {**own, **described.get("features", {})}
        shape = (len(described["classes"]), at["width"])
        empty = Head(np.zeros(shape, np.float32), np.zeros(shape[0], np.float32), described["classes"], 0.0)
        whole = networks.build(backbone["name"], transform.size, backbone.get("variant"))
    cut = depths.cut(whole, backbone["name"], at["layer"], at["pooling"])
    network = Classifier(cut, transform, empty)
    if digest := described.get("digest"):  # earlier versions wrote none
        hold(folder / classifier.WEIGHTS, digest)
    classifier.load(network, folder / classifier.WEIGHTS)
    return Model(network.eval(), transform, described["classes"], temperature)


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
    without = dataset.say_without(summary)
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
from rootstock.model import load

load(Path("data/model")).predict([Path("photo.jpg")])
```
"""

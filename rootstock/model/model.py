"""The trained model as one folder: load it anywhere and classify images.

import rootstock
rootstock.load_model("data/model").predict(["photo.jpg"])
"""

import json
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rootstock.backbones import depths, networks
from rootstock.backbones.backbones import Backbone
from rootstock.config.architectures import Transform, check_name
from rootstock.features import feature_extractor, feature_keys
from rootstock.features.feature_extractor import FeatureExtractor
from rootstock.features.feature_spec import FeatureSpec
from rootstock.features.preparing import Prepared
from rootstock.images import value_ranges
from rootstock.images.deep import Range
from rootstock.images.inspection import Checks, Rejected
from rootstock.model import given, novelty
from rootstock.model.given import Image
from rootstock.model.novelty import Novelty
from rootstock.model.predicted import Prediction as Prediction, predicted
from rootstock.system.errors import SourceError
from rootstock.system.files import read_json, reading, replacing_folder, sha256, verify, write
from rootstock.system.parallel import grouped
from rootstock.training import calibration, classifier, head_layer
from rootstock.training.classifier import Classifier
from rootstock.training.head import MULTI_LABEL, Head

DESCRIPTION, CARD, MAX_SIDE, THRESHOLDS = "model.json", "README.md", "max_side", "thresholds"
CHECKS = Checks(min_side=1, max_megapixels=100, max_side=None, accept_wrong_extension=True)


@dataclass(frozen=True)
class Model:
    """A trained classifier: a network and a head, its classes, temperature, and how its features are computed.

    It was measured by the path it predicts by: the extractor's features, the head's logits in float32, softmax at the
    temperature. `frozen` names the backbone of a head's features (backbone.json); None if the network was fine-tuned.
    `value_range` holds black and white for images of more than 8 bits, if all training images had the same range;
    `max_side` is the size to which ingest downscaled them. `thresholds` are those of the classes (k,), where an image
    may have any number of them; else None.
    """

    network: Classifier
    spec: FeatureSpec
    classes: list[str]
    temperature: float = 1.0
    value_range: Range | None = None
    max_side: int | None = None
    frozen: dict[str, Any] | None = None
    novelty: Novelty | None = None
    thresholds: NDArray[np.float32] | None = None

    @cached_property
    def extractor(self) -> FeatureExtractor:
        """Start what computes the features, as they were computed for training and evaluation if this machine can."""
        return feature_extractor.start_as_measured(self.spec, self._backbone)

    @cached_property
    def extractor_of_many(self) -> FeatureExtractor:
        """Start what computes the same features for many images, faster."""
        return feature_extractor.start_as_measured(self.spec, self._backbone, many=True)

    @property
    def _backbone(self) -> Backbone:
        width = self.network.head.in_features
        return Backbone(self.network.backbone.eval(), self.spec.transform, width, "", self.frozen or {})

    @cached_property
    def head(self) -> Head:
        """Return the head that maps features to logits."""
        return self.network.head.to_head(self.classes)

    @property
    def multi_label(self) -> bool:
        """Whether an image may have any number of the classes, each with a probability of its own."""
        return self.network.head.multi_label

    @property
    def feature_key(self) -> str | None:
        """Return the name of the folder that holds its features in a cache; None for a fine-tuned network."""
        return feature_keys.key_of(feature_keys.fields_of(self.frozen, self.spec)) if self.frozen else None

    def probabilities(self, features: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the calibrated probabilities (n, k) of features (n, width)."""
        logits = self.head.logits(features)
        return calibration.probabilities(logits, self.temperature, multi_label=self.multi_label)

    def answers(self, probabilities: NDArray[np.float32]) -> NDArray[np.bool_]:
        """Return which classes images with these probabilities (n, k) are said to have (n, k): one, or any number."""
        if self.thresholds is not None:
            return probabilities >= self.thresholds
        best: NDArray[np.bool_] = np.arange(len(self.classes)) == probabilities.argmax(axis=1)[:, None]
        return best

    def predict(
        self,
        images: Image | Iterable[Image],
        checks: Checks = CHECKS,
        value_range: Range | None = None,
    ) -> list[Prediction]:
        """Classify images, in order; untrusted files pass the checks of ingest.

            rootstock.load_model("data/model").predict(["a.jpg", uploaded_bytes, np.zeros((96, 96, 3), np.uint8)])

        Args:
            images: one, or many: paths, the bytes of files, PIL images, or arrays: uint8 of shape (height, width, 3),
                with alpha 4; grey ones (height, width) in bool, uint8, uint16 or float32.
            checks: limits for accepted files; extensions are ignored by default.
            value_range: black and white for images of more than 8 bits or of floats; overrides the model's.

        Returns:
            One prediction per image; a rejected image does not affect the others.

        Raises:
            TypeError: an argument is no image.
            ValueError: black is not below white in the value range.
        """
        groups = self._features(images, checks, value_range)
        return [prediction for found, features in groups for prediction in self.predictions(found, features)]

    def predictions(
        self, found: Sequence[tuple[str, Rejected | None]], features: NDArray[np.float32]
    ) -> list[Prediction]:
        """Return the predictions of images whose features are computed.

        Args:
            found: the name of each image, and why it was rejected, if so.
            features: (n, width) of the others, in their order.
        """
        novelty = self.novelty.score(features).tolist() if self.novelty else [None] * len(features)
        rows = zip(self.probabilities(features), novelty, strict=True)
        threshold = self.novelty.threshold if self.novelty else math.inf
        return [
            Prediction("", {}, name, rejected.reason, rejected.detail)
            if rejected
            else predicted(self.classes, *next(rows), name, self.thresholds, threshold)
            for name, rejected in found
        ]

    def embed(
        self,
        images: Image | Iterable[Image],
        checks: Checks = CHECKS,
        value_range: Range | None = None,
    ) -> NDArray[np.float32]:
        """Compute the features (n, width) of images, in order, which the head classifies.

            rootstock.load_model("data/model").embed(["a.jpg", "b.jpg"]).shape  # (2, 1280)

        Arguments and errors are those of `predict`. The row of an image that is rejected is NaN.
        """
        rows: list[NDArray[np.float32]] = [np.empty((0, self.network.head.in_features), np.float32)]
        for found, features in self._features(images, checks, value_range):
            kept = np.array([rejected is None for _, rejected in found], bool)
            rows.append(np.full((len(found), features.shape[1]), np.nan, np.float32))
            rows[-1][kept] = features
        return np.concatenate(rows)

    def _features(
        self, images: Image | Iterable[Image], checks: Checks, value_range: Range | None
    ) -> Iterator[tuple[list[tuple[str, Rejected | None]], NDArray[np.float32]]]:
        """Yield, a group at a time, each image's name with why it was rejected, if so, and the others' features."""
        if value_range is not None and not -math.inf < value_range[0] < value_range[1] < math.inf:
            raise ValueError(f"value_range is {value_range}; expected two numbers, black below white")
        checks = self.own_checks(replace(checks, value_range=value_range or checks.value_range))
        groups = grouped(given.named(images), self.extractor.engine.group_size)
        yield from self.extractor.features(groups, partial(self._prepare, checks=checks))

    def own_checks(self, checks: Checks = CHECKS) -> Checks:
        """Return the checks with what the model's training images had in common, where they leave it open."""
        value_range, max_side = checks.value_range or self.value_range, checks.max_side or self.max_side
        return replace(checks, value_range=value_range, max_side=max_side)

    def _prepare(
        self, named: Sequence[tuple[str, Image]], checks: Checks
    ) -> tuple[list[tuple[str, Rejected | None]], list[Prepared]]:
        """Read, check and decode images; return the name of each with why it was rejected, if so, and the others."""
        found: list[tuple[str, Rejected | None]] = []
        prepared = []
        for name, image in named:
            try:
                prepared.append(self.extractor.prepare_input(name, given.content(image), checks))
                found.append((name, None))
            except Rejected as rejected:
                found.append((name, Rejected(rejected.reason, rejected.detail)))
        return found, prepared


def save(
    folder: Path, network: Classifier, described: dict[str, Any], readme: str, known: Novelty | None = None
) -> None:
    """Save a model: `model.safetensors`, `model.json` (classes, temperature, backbone) and a model card, README.md.

    With `known`, what tells images that are of none of the classes, there is `novelty.safetensors`, too.
    """
    with replacing_folder(folder) as temporary:
        classifier.save(network, temporary / classifier.WEIGHTS)
        if known:
            novelty.save(known, temporary / novelty.FILE)
            digest = sha256(temporary / novelty.FILE)
            described = {**described, "novelty": {"threshold": known.threshold, "digest": digest}}
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
        values_of, max_side = value_ranges.range_in(described), described.get(MAX_SIDE)
        transform = Transform.from_dict(backbone["transform"])
        recorded = described.get("features", {})  # earlier versions recorded layer, pooling and width, or nothing
        spec = FeatureSpec.from_dict(recorded, transform)
        width = recorded.get("width", backbone["feature_width"])
        head = head_layer.empty(described.get("head", {}), described["classes"], width)
        uncut = networks.build(backbone["name"], transform.size, backbone.get("variant"))
    cut = depths.cut(uncut, backbone["name"], spec.layer, spec.pooling)
    network = Classifier(cut, transform, head)
    if digest := described.get("digest"):  # earlier versions wrote no digest
        verify(folder / classifier.WEIGHTS, digest)
    classifier.load(network, folder / classifier.WEIGHTS)
    frozen = backbone if described["kind"] == "head" else None
    known = _load_novelty(folder, described)
    classes = described["classes"]
    return Model(
        network.eval(), spec, classes, temperature, values_of, max_side, frozen, known, _thresholds(folder, described)
    )


def _thresholds(folder: Path, described: dict[str, Any]) -> NDArray[np.float32] | None:
    """Return the thresholds of the classes, if an image may have any number of them."""
    with reading(folder / DESCRIPTION):
        if not described.get("head", {}).get(MULTI_LABEL):
            return None
        return np.array([described[THRESHOLDS][label] for label in described["classes"]], np.float32)


def _load_novelty(folder: Path, described: dict[str, Any]) -> Novelty | None:
    with reading(folder / DESCRIPTION):
        recorded = described.get("novelty")  # earlier versions had none
        if recorded is None:
            return None
        threshold, digest = float(recorded["threshold"]), str(recorded["digest"])
    verify(folder / novelty.FILE, digest)
    return novelty.load(folder / novelty.FILE, threshold)


def check_folder(folder: Path) -> None:
    """Check that there is a model in a folder.

    Raises:
        SourceError: there is none.
    """
    if not (folder / DESCRIPTION).exists():
        raise SourceError(
            f"{folder} holds no model; expected a folder such as data/model, with a {DESCRIPTION}, as "
            "`python -m flows.pipeline` leaves it."
        )


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

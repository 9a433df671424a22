"""The head and the fine-tuned network side by side."""

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from rootstock.backbones import backbones
from rootstock.config.params import Params
from rootstock.dataset import label_sets, tables
from rootstock.evaluation.model_selection import MODELS
from rootstock.features import feature_keys
from rootstock.features.feature_spec import FeatureSpec
from rootstock.features.reader import KEPT_BYTES, Features
from rootstock.images.array_store import ArrayStore
from rootstock.model import novelty, scoring
from rootstock.model.model import Model
from rootstock.model.novelty import Novelty
from rootstock.model.scoring import Scores
from rootstock.system import memory
from rootstock.system.errors import SourceError
from rootstock.system.phrases import listed
from rootstock.training import classifier, head
from rootstock.training.classifier import Classifier
from rootstock.training.course import load_course
from rootstock.training.head import Head

NAMED = 10  # classes in an error
IMAGES_PER_MEAN = 50  # of a class, for the mean of its features, at least; no more of a fine-tuned network's


@dataclass(frozen=True)
class Inputs:
    """The outputs of the other stages."""

    images: Path
    dataset: Path
    backbone: Path
    features: Path
    head: Path
    finetuned: Path


class ModelPair:
    """The head and the fine-tuned network, if there is one, loaded with what is needed to score a split."""

    def __init__(
        self, inputs: Inputs, params: Params, store: ArrayStore | None = None, kept: ArrayStore | None = None
    ) -> None:
        self.inputs, self.max_side, self.store, self.kept = inputs, params.ingest.max_side, store, kept
        self.manifest = tables.load_manifest(inputs.dataset)
        self.summary = tables.load_verified_summary(inputs.dataset, self.manifest)
        self.classes, self.multi_label = tables.classes_of(self.manifest), tables.is_multi_label(self.manifest)
        self.head: Head = head.load(inputs.head)
        if (self.head.classes, self.head.multi_label) != (self.classes, self.multi_label):
            theirs, ours = (listed(classes, NAMED) for classes in (self.head.classes, self.classes))
            raise SourceError(
                f"{inputs.head} was trained on other classes ({theirs}) than those of {inputs.dataset} ({ours}); run "
                "train_head again"
            )
        self.backbone = backbones.load(inputs.backbone, self.head.layer, self.head.pooling)
        self.folders = feature_keys.find(self.backbone.description, params.extract, inputs.features)
        engine = feature_keys.engine_in_use(self.backbone.description, params.extract, inputs.features)
        self.mirror = params.evaluate.views == 2
        self.spec = replace(feature_keys.spec_of(self.backbone.description, params.extract, engine), mirror=self.mirror)
        self.course = load_course(inputs.finetuned)
        self.finetuned = self._load_finetuned() if self.course.history else None

    def _load_finetuned(self) -> Model:
        own = backbones.load(self.inputs.backbone, self.head.layer, self.head.pooling).network
        network = Classifier(own, self.backbone.transform, head.load_linear(self.inputs.head))
        classifier.load(network, self.inputs.finetuned / classifier.WEIGHTS)
        spec = FeatureSpec(self.backbone.transform, self.head.layer, self.head.pooling, mirror=self.mirror)
        return Model(network, spec, self.classes)

    @property
    def names(self) -> tuple[str, ...]:
        """Return the keys of the models: the head's alone if nothing was fine-tuned."""
        return MODELS if self.finetuned else MODELS[:1]

    def shown(self, label: str) -> str:
        """Return a label as a reader has it; of images with any number of classes it is a set of them."""
        return label_sets.shown(label) if self.multi_label else label

    def rows(self, split: str) -> pd.DataFrame:
        """Return a split's images in the order in which the models score them."""
        return tables.in_shard_order(self.manifest, split)

    def scores(self, split: str, *models: str, keep: NDArray[np.bool_] | None = None) -> dict[str, Scores]:
        """Return the scores of models, by default of each, for a split, with the features of the images to `keep`.

        The head's come from cached features, unless mirror images count, too.
        """
        rows = self.rows(split)
        keep = np.zeros(len(rows), bool) if keep is None else keep
        scores: dict[str, Scores] = {}
        for name in [name for name in self.names if name in (models or self.names)]:
            if name == "head" and not self.mirror:
                scores["head"] = Scores.of_cached(self._scorer(name), Features(self.folders[0], rows), keep)
            else:
                model, what = self._scorer(name), f"evaluate_{split}"
                kept = self.kept if name == "finetuned" else None
                scores[name] = scoring.score(
                    model, rows, self.inputs.images, what=what, store=self.store, keep=keep, kept=kept
                )
        return scores

    def _scorer(self, name: str) -> Model:
        return replace(self.whole(name), novelty=self.novelty[name])

    def whole(self, name: str) -> Model:
        """Return a model, without what tells unknown images."""
        if name == "finetuned" and self.finetuned:
            return self.finetuned
        network = Classifier(self.backbone.network, self.backbone.transform, self.head)
        return Model(network, self.spec, self.classes, frozen=self.backbone.description)

    @cached_property
    def novelty(self) -> dict[str, Novelty]:
        """Return what tells each model's training images from others, still without a threshold.

        Some images of each class are enough for its mean: of very many those that fit into memory, and a few for the
        fine-tuned network, whose features are in no cache.
        """
        k, rows = len(self.classes), self.rows("train")
        most = max(KEPT_BYTES // (4 * self.backbone.width * k), IMAGES_PER_MEAN)
        some = _some_of_each_class(rows, most)
        found = {"head": novelty.fit(Features(self.folders[0], some, self.classes), k)}
        memory.release_unused()
        if self.finetuned:
            some = _some_of_each_class(rows, IMAGES_PER_MEAN)
            stores = self.store, self.kept
            computed = list(scoring.features(self.finetuned, some, self.inputs.images, "evaluate_train", *stores))
            ends = np.cumsum([len(x) for x in computed])[:-1]
            labels = np.split(tables.labels_of_rows(some, self.classes), ends)
            found["finetuned"] = novelty.fit(list(zip(computed, labels, strict=True)), k)
        return found

    def model(self, name: str) -> tuple[Classifier, FeatureSpec]:
        """Return a model's network, and how its features were computed when it was measured."""
        model = self.whole(name)
        return model.network, model.spec


def _some_of_each_class(rows: pd.DataFrame, most: int) -> pd.DataFrame:
    """Return at most that many images of each class, drawn at random."""
    strata = pd.Series(tables.strata_of_rows(rows), rows.index)
    shuffled = strata.sample(frac=1, random_state=0)
    return rows.loc[shuffled.groupby(shuffled).head(most).index.sort_values()]

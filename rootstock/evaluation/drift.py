"""Drift of unlabelled images from the training images, and which images to label first.

Drift is measured by a domain classifier on frozen features: the classifier two-sample test of Lopez-Paz and Oquab
(2017), one of the detectors compared by Rabanser et al. (2019, Failing Loudly). Its cross-validated AUC is 0.5 without
drift. Images are listed for labelling by the champion's uncertainty.
"""

import math
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import special
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from rootstock.backbones import backbones
from rootstock.backbones.backbones import Backbone
from rootstock.config import params
from rootstock.dataset import tables
from rootstock.evaluation.metrics import Interval
from rootstock.evaluation.two_sample import tell_apart
from rootstock.features import engines, feature_files, feature_keys
from rootstock.features.engines import Engine
from rootstock.features.feature_keys import FORMER_ENGINES
from rootstock.features.reader import Features
from rootstock.images import inspection, loader
from rootstock.images.inspection import Checks, NewImage, Rejected
from rootstock.images.perceptual_hash import perceptual_hashes
from rootstock.ingest.layout import Item, Loader
from rootstock.ingest.near_duplicates import near_links
from rootstock.ingest.sources import Source
from rootstock.model import model
from rootstock.system import escape, files, progress
from rootstock.system.parallel import ordered_map

Array = NDArray[np.float32]
Usable = tuple[Item, NewImage, NDArray[np.uint8]]  # a file, its image, and the backbone's input
MIN_IMAGES = 20  # per side: with 20 new images an AUC of 0.86 is significantly above 0.7; with 5, not even 1 is
MAX_IMAGES = 2000  # per side: bounds memory; an AUC of 0.5 is then known to 0.025
COLUMNS = ("path", "domain", "predicted", "confidence", "entropy", "margin", "novelty", "like")


@dataclass(frozen=True)
class Drift:
    """The drift of one domain's unlabelled images.

    `rejected` counts files that ingest would reject, `known` those already in the dataset, `images` the others.
    `against` names the training images they are compared with: those of their domain, or of all domains if it has too
    few. `auc` is None with too few images to compare; near duplicates count once.
    """

    domain: str
    images: int
    rejected: int
    known: int
    against: str
    auc: Interval | None
    drifted: bool

    def describe(self) -> str:
        """Describe the result in a sentence."""
        others = ((self.rejected, "rejected"), (self.known, "already in the dataset"))
        also = ", ".join(f"{count} more {what}" for count, what in others if count)
        counts = f"{self.domain}: {self.images} unlabelled{f' ({also})' if also else ''}"
        if self.auc is None:
            return f"{counts}; too few distinct images to test for drift (at least {MIN_IMAGES})"
        return (
            f"{counts}; {'significant drift' if self.drifted else 'no significant drift'} from the training images of "
            f"{self.against}: domain classifier AUC {self.auc['value']:.2f} (95 % interval {self.auc['low']:.2f} to "
            f"{self.auc['high']:.2f}; 0.5: no drift)"
        )


def score(
    unlabelled: Source, backbone_dir: Path, features_dir: Path, dataset_dir: Path, model_dir: Path,
    settings: params.Params, to_label: Path,
) -> list[Drift]:  # fmt: skip
    """Test the unlabelled images of each domain for drift, and list them all for labelling.

    The list is a CSV file, most uncertain first: by the entropy of the champion's calibrated probabilities (uncertainty
    sampling; Settles 2009), in nats, then by path. `margin` is the probability gap between the two likeliest classes,
    `novelty` the domain classifier's probability that the image is not a training image, with balanced samples. Near
    duplicates of an earlier image (`like`) go to the end. Nothing else about unlabelled images is kept.

    Args:
        unlabelled: the files; those that fail the checks of ingest are rejected.
        backbone_dir: the frozen backbone.
        features_dir: cached features of the training images.
        dataset_dir: the champion's dataset.
        model_dir: the champion.
        settings: all parameters.
        to_label: the CSV file, replaced.

    Returns:
        One Drift per domain, by name.

    Raises:
        SourceError: features of training images are missing.
    """
    manifest = tables.load_manifest(dataset_dir)
    backbone = backbones.load(backbone_dir, settings.extract.layer, settings.extract.pooling)
    folder, *_ = feature_keys.find(backbone.description, settings.extract, features_dir)
    drifts: list[Drift] = []
    candidates: list[_Candidate] = []
    with progress.bar("drift", sum(not item.problem for item in unlabelled.items)) as advance:
        engine = _engine_of(folder, backbone, settings, len(unlabelled.items))
        ids = set(manifest["image_id"])
        scorer = _Scorer(unlabelled, backbone, engine, model.load(model_dir), ids, settings, advance)
        for domain in sorted({item.domain for item in unlabelled.items}):
            against, reference = _reference(manifest, domain, folder, settings.seed)
            auc, usable = _compare(domain, scorer, reference, settings)
            drifted = auc is not None and auc["low"] > settings.retrain.drift_auc
            rejected, known = (scorer.skipped[domain, reason] for reason in ("rejected", "known"))
            drifts.append(Drift(domain, len(usable), rejected, known, against, auc, drifted))
            candidates += usable
    table = pd.DataFrame(_sorted(candidates, settings.ingest.near_duplicate_bits), columns=list(COLUMNS))
    files.write(to_label, escape.as_csv(table))
    return drifts


def _engine_of(folder: Path, backbone: Backbone, settings: params.Params, images: int) -> Engine:
    """Start the engine that computed the training images' features; for a discontinued one, that of `auto`."""
    name = feature_files.read_metadata(next(folder.glob("*.parquet")))["engine"]
    if name in FORMER_ENGINES:
        return engines.start_auto(backbone, settings.extract, images)
    return engines.start_named(name, backbone, settings.extract)


def _reference(manifest: pd.DataFrame, domain: str, folder: Path, seed: int) -> tuple[str, Array]:
    """Sample training images to compare a domain with, one per group of near duplicates: name, features (n, d).

    They are of the same domain if it has enough: images of one of two different domains are told from a mixture of both
    with an AUC of 0.75 even without drift.
    """
    train = manifest[manifest["split"] == "train"].drop_duplicates("group_id")
    own = train[train["domain"] == domain]
    against, rows = (domain, own) if len(own) >= MIN_IMAGES else ("all domains", train)
    sample = rows.sample(min(len(rows), MAX_IMAGES), random_state=seed)
    return against, np.concatenate([features for features, _ in Features(folder, sample)])


def _compare(
    domain: str, scorer: "_Scorer", reference: Array, settings: params.Params
) -> tuple[Interval | None, list["_Candidate"]]:
    """Score all images of a domain; the AUC is computed from a random sample of them."""
    paths = [item.path for item in scorer.source.items if item.domain == domain and not item.problem]
    order = np.random.default_rng(settings.seed).permutation(len(paths))
    scored = list(scorer.score({paths[index] for index in order[:MAX_IMAGES]}))
    candidates = [candidate for batch, _ in scored for candidate in batch]
    if not candidates:
        return None, []
    # Near duplicates, such as frames of one scene, count once and must not be on both sides of a fold.
    groups = _groups(candidates, settings.ingest.near_duplicate_bits)
    _, first, group = np.unique(groups, return_index=True, return_inverse=True)
    if min(len(first), len(reference)) < MIN_IMAGES:
        return None, candidates
    features = np.concatenate([features for _, features in scored])[first]
    auc, novelties, classifier = tell_apart(features, reference, settings.seed)
    for candidate, novelty in zip(candidates, novelties[group], strict=True):
        candidate.novelty = novelty
    for batch, features in scorer.score({paths[index] for index in order[MAX_IMAGES:]}):
        for candidate, novelty in zip(batch, classifier.predict_proba(features)[:, 1], strict=True):
            candidate.novelty = novelty
        candidates += batch
    return auc, candidates


@dataclass(slots=True)
class _Candidate:
    """A row of the list for labelling, and the image's perceptual hash."""

    path: str
    domain: str
    predicted: str
    confidence: float
    entropy: float
    margin: float
    phash: int
    novelty: float = math.nan
    like: str = ""


def _groups(candidates: Sequence[_Candidate], bits: int) -> NDArray[np.int32]:
    """Return the near-duplicate group of each image: (n,)."""
    links = near_links(np.array([candidate.phash for candidate in candidates], np.uint64), bits)
    graph = coo_array((np.ones(len(links), np.int8), (links[:, 0], links[:, 1])), shape=(len(candidates),) * 2)
    groups: NDArray[np.int32] = connected_components(graph, directed=False)[1]
    return groups


def _sorted(candidates: Sequence[_Candidate], bits: int) -> list[_Candidate]:
    """Sort by uncertainty, near duplicates of an earlier image last."""
    # By the digits written to the file: further ones differ between machines.
    ranked = sorted(candidates, key=lambda candidate: (-float(f"{candidate.entropy:.6g}"), candidate.path))
    first: dict[int, str] = {}
    for candidate, group in zip(ranked, _groups(ranked, bits), strict=True):
        candidate.like = first.get(group, "")
        first.setdefault(group, candidate.path)
    return sorted(ranked, key=lambda candidate: bool(candidate.like))


class _Scorer:
    """Computes features and predictions of usable files; counts skipped ones by domain and reason."""

    def __init__(
        self, source: Source, backbone: backbones.Backbone, engine: Engine, champion: model.Model, ids: set[str],
        settings: params.Params, advance: progress.Advance,
    ) -> None:  # fmt: skip
        self.source, self.champion, self.ids, self.advance = source, champion, ids, advance
        self.transform, self.settings, self.engine = backbone.transform, settings.extract, engine
        own = settings.ingest
        self.checks = Checks(
            own.min_side,
            own.max_megapixels,
            own.max_side,
            own.accept_wrong_extension,
            own.damaged,
            own.seconds_a_file,
            champion.value_range,
        )
        self.skipped = Counter((item.domain, "rejected") for item in source.items if item.problem)

    def score(self, paths: Collection[str]) -> Iterator[tuple[list[_Candidate], Array]]:
        """Yield usable images and their features (n, d) in batches, in the order of the source."""
        usable = self._usable(paths)
        while batch := list(islice(usable, self.engine.batch_size)):
            yield self._predict(batch), self._features(np.stack([view for *_, view in batch]))

    def _usable(self, paths: Collection[str]) -> Iterator[Usable]:
        for checked in ordered_map(self._check, self.source.read(paths)):
            self.advance(1)
            if len(checked) == 3:
                yield checked
            else:
                self.skipped[checked] += 1

    def _check(self, entry: tuple[Item, Loader]) -> Usable | tuple[str, str]:
        """Check and convert a file as ingest does, so that it is comparable with the training images."""
        item, load = entry
        try:
            data = load()
            if inspection.image_id(data) in self.ids:
                return item.domain, "known"
            image = inspection.check(data, item.path, self.checks)
            return item, image, loader.view(image.data, self.transform, decode=self.settings.decode).numpy()
        except Rejected:
            return item.domain, "rejected"

    def _predict(self, batch: list[Usable]) -> list[_Candidate]:
        """Classify a batch with the champion."""
        candidates = []
        predictions = self.champion.classify([image.data for _, image, _ in batch])
        hashes = perceptual_hashes([image.thumbnail for _, image, _ in batch])
        for (item, *_), prediction, phash in zip(batch, predictions, hashes, strict=True):
            best, second, *_ = sorted(prediction.probabilities.values(), reverse=True)
            entropy = float(special.entr(list(prediction.probabilities.values())).sum())
            margin = best - second
            candidates.append(_Candidate(item.path, item.domain, prediction.label, best, entropy, margin, phash))
        return candidates

    def _features(self, views: NDArray[np.uint8]) -> Array:
        """Compute features (n, d), rounded as the cached ones are, so that rounding cannot tell them apart."""
        features = self.engine.forward(views)
        limit = np.finfo(self.settings.dtype).max
        return np.clip(features, -limit, limit).astype(self.settings.dtype).astype(np.float32)

"""Drift of unlabelled images from the training images, and which images to label first.

Drift is measured by a domain classifier on frozen features: the classifier two-sample test of Lopez-Paz and Oquab
(2017), one of the detectors compared by Rabanser et al. (2019, Failing Loudly). Its cross-validated AUC is 0.5 without
drift. labelling.py decides which images to label first.
"""

from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import special

from rootstock.backbones import backbones
from rootstock.backbones.backbones import Backbone
from rootstock.config import params
from rootstock.dataset import label_sets, tables
from rootstock.evaluation import label_batch, labelling
from rootstock.evaluation.intervals import Interval
from rootstock.evaluation.labelling import Candidate, LeastCertain
from rootstock.evaluation.two_sample import tell_apart
from rootstock.features import engines, feature_files, feature_keys
from rootstock.features.feature_extractor import FeatureExtractor
from rootstock.features.feature_keys import FORMER_ENGINES
from rootstock.features.preparing import Prepared
from rootstock.features.reader import Features
from rootstock.images import inspection
from rootstock.images.inspection import Checks, NewImage, Rejected
from rootstock.images.perceptual_hash import perceptual_hashes
from rootstock.ingest.layout import Item, Loader
from rootstock.ingest.sources import Source
from rootstock.model import model
from rootstock.model.model import Model
from rootstock.system import escape, files, progress
from rootstock.system.parallel import grouped

Array = NDArray[np.float32]
Usable = tuple[Item, NewImage]
Skipped = tuple[str, str]  # a domain and the reason
MIN_IMAGES = 20  # per side: with 20 new images an AUC of 0.86 is significantly above 0.7; with 5, not even 1 is
MAX_IMAGES = 2000  # per side: bounds memory; an AUC of 0.5 is then known to 0.025


@dataclass(frozen=True)
class Drift:
    """The drift of one domain's unlabelled images.

    `rejected` counts files that ingest would reject, `known` those already in the dataset, `images` the others.
    `against` names the training images they are compared with: those of their domain, or of all domains if it has too
    few. `auc` is None with too few images to compare; images of a group count once.
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
        also = ", ".join(f"{count:,} more {what}" for count, what in others if count)
        counts = f"{self.domain}: {self.images:,} unlabelled{f' ({also})' if also else ''}"
        if self.auc is None:
            return f"{counts}; too few distinct images or groups to test for drift (at least {MIN_IMAGES})"
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

    The list is a CSV file in the order of `labelling.order`. `margin` is the gap between the champion's calibrated
    probabilities of the two likeliest classes, `entropy` theirs in nats, `novelty` the domain classifier's probability
    that the image is not a training image, with balanced samples. Beside it are a page with thumbnails of the first
    batch and the same batch for Label Studio (label_batch.py). Nothing else about unlabelled images is kept.

    Args:
        unlabelled: the files; those that fail the checks of ingest are rejected.
        backbone_dir: the frozen backbone.
        features_dir: cached features of the training images.
        dataset_dir: the champion's dataset.
        model_dir: the champion.
        settings: all parameters.
        to_label: the CSV file, replaced; the others have its name and .html, .json and .xml.

    Returns:
        One Drift per domain, by name.

    Raises:
        SourceError: features of training images are missing.
    """
    manifest = tables.load_manifest(dataset_dir)
    backbone = backbones.load(backbone_dir, settings.extract.layer, settings.extract.pooling)
    folder, *_ = feature_keys.find(backbone.description, settings.extract, features_dir)
    drifts: list[Drift] = []
    candidates: list[Candidate] = []
    with progress.bar("drift", sum(not item.problem for item in unlabelled.items)) as advance:
        extractor = _extractor_of(folder, backbone, settings, len(unlabelled.items))
        ids = set(manifest["image_id"])
        scorer = _Scorer(unlabelled, extractor, folder.name, model.load(model_dir), ids, settings, advance)
        for domain in sorted({item.domain for item in unlabelled.items}):
            against, reference = _reference(manifest, domain, folder, settings.seed)
            auc, usable = _compare(domain, scorer, reference, settings)
            drifted = auc is not None and auc["low"] > settings.retrain.drift_auc
            rejected, known = (scorer.skipped[domain, reason] for reason in ("rejected", "known"))
            drifts.append(Drift(domain, len(usable), rejected, known, against, auc, drifted))
            candidates += usable
    ordered = labelling.order(
        candidates, scorer.least_certain.features(), settings.ingest.near_duplicate_bits, settings.seed
    )
    files.write(to_label, escape.as_csv(pd.DataFrame(ordered, columns=list(labelling.COLUMNS))))
    batch = [one for one in ordered if not one.like][: labelling.BATCH]
    label_batch.write_batch(
        to_label, batch, unlabelled, scorer.champion.classes, scorer.checks, multi_label=scorer.champion.multi_label
    )
    return drifts


def _extractor_of(folder: Path, backbone: Backbone, settings: params.Params, images: int) -> FeatureExtractor:
    """Start what computed the training images' features; for a discontinued engine, that of `auto`."""
    name = feature_files.read_metadata(next(folder.glob("*.parquet")))["engine"]
    if name in FORMER_ENGINES:
        engine = engines.start_auto(backbone, settings.extract, images)
    else:
        engine = engines.start_named(name, backbone, settings.extract)
    spec = feature_keys.spec_of(backbone.description, settings.extract, engine.name)
    return FeatureExtractor(spec, engine, backbone.width)


def _reference(manifest: pd.DataFrame, domain: str, folder: Path, seed: int) -> tuple[str, Array]:
    """Sample training images to compare a domain with, one per group: name, features (n, d).

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
) -> tuple[Interval | None, list["Candidate"]]:
    """Score all images of a domain; the AUC is computed from a random sample of them."""
    paths = [item.path for item in scorer.source.items if item.domain == domain and not item.problem]
    order = np.random.default_rng(settings.seed).permutation(len(paths))
    scored = list(scorer.score({paths[index] for index in order[:MAX_IMAGES]}))
    candidates = [candidate for batch, _ in scored for candidate in batch]
    if not candidates:
        return None, []
    # Images of a group, such as frames of one scene, count once and must not be on both sides of a fold.
    groups = labelling.groups_of(candidates, settings.ingest.near_duplicate_bits, named=True)
    first = np.unique(groups, return_index=True)[1]
    if min(len(first), len(reference)) < MIN_IMAGES:
        return None, candidates
    features = np.concatenate([features for _, features in scored])
    auc, out_of_fold, classifier = tell_apart(features[first], reference, settings.seed)
    novelties = classifier.predict_proba(features)[:, 1]
    novelties[first] = out_of_fold
    for candidate, novelty in zip(candidates, novelties, strict=True):
        candidate.novelty = novelty
    for batch, features in scorer.score({paths[index] for index in order[MAX_IMAGES:]}):
        for candidate, novelty in zip(batch, classifier.predict_proba(features)[:, 1], strict=True):
            candidate.novelty = novelty
        candidates += batch
    return auc, candidates


class _Scorer:
    """Computes features and predictions of usable files; counts skipped ones by domain and reason.

    An image is computed once: a champion that is a head on the very features that drift is measured on classifies
    those. Any other champion computes its own, from the same decoded images if it takes them as they are.
    """

    def __init__(
        self, source: Source, extractor: FeatureExtractor, key: str, champion: Model, ids: set[str],
        settings: params.Params, advance: progress.Advance,
    ) -> None:  # fmt: skip
        self.source, self.extractor, self.champion, self.ids, self.advance = source, extractor, champion, ids, advance
        self.shares_features = champion.feature_key == key
        self.shares_images = not self.shares_features and champion.extractor.spec.prepares_like(extractor.spec)
        own = settings.ingest
        self.checks = Checks(
            own.min_side,
            own.max_megapixels,
            own.max_side,
            own.accept_wrong_extension,
            own.damaged,
            own.max_decode_seconds,
            champion.value_range,
        )
        self.least_certain = LeastCertain()
        self.skipped = Counter((item.domain, "rejected") for item in source.items if item.problem)

    def score(self, paths: Collection[str]) -> Iterator[tuple[list[Candidate], Array]]:
        """Yield usable images and their features (n, d) in batches, in the order of the source."""
        groups = grouped(self.source.read(paths), self.extractor.engine.group_size)
        for (usable, skipped, own), features in self.extractor.features(groups, self._prepare):
            self.skipped.update(skipped)
            self.advance(len(usable) + len(skipped))
            if usable:
                candidates = self._classified(usable, features if own is None else own)
                self.least_certain.add(candidates, features)
                yield candidates, features

    def _prepare(
        self, entries: Sequence[tuple[Item, Loader]]
    ) -> tuple[tuple[list[Usable], list[Skipped], Array | None], list[Prepared]]:
        """Check and decode files as ingest and extraction do, so that they are comparable with the training images.

        Returns:
            What can be used, what was skipped, and features of the champion's own, if it needs any; the images.
        """
        usable: list[Usable] = []
        skipped: list[Skipped] = []
        images: list[Prepared] = []
        for item, load in entries:
            try:
                data = load()
                if inspection.image_id(data) in self.ids:
                    skipped.append((item.domain, "known"))
                    continue
                image = inspection.check(data, item.path, self.checks)
                images.append(self.extractor.prepare(image.data))
                usable.append((item, image))
            except Rejected:
                skipped.append((item.domain, "rejected"))
        return (usable, skipped, None if self.shares_features else self._own(usable, images)), images

    def _own(self, usable: list[Usable], images: list[Prepared]) -> Array:
        """Compute the champion's own features (n, d)."""
        extractor = self.champion.extractor
        if self.shares_images:
            return extractor.features_of(images)
        return extractor.features_of([extractor.prepare(image.data) for _, image in usable])

    def _classified(self, usable: list[Usable], features: Array) -> list[Candidate]:
        """Classify images by the champion's features."""
        candidates = []
        hashes = perceptual_hashes([image.thumbnail for _, image in usable])
        probabilities = self.champion.probabilities(features)
        names, answers = np.asarray(self.champion.classes, dtype=object), self.champion.answers(probabilities)
        for (item, _), row, answer, phash in zip(usable, probabilities, answers, hashes, strict=True):
            label = label_sets.join(names[answer])
            certainty = _certainty(row.astype(float), multi_label=self.champion.multi_label)
            candidates.append(Candidate(item.path, item.domain, label, *certainty, phash, item.group))
        return candidates


def _certainty(row: NDArray[np.float64], *, multi_label: bool) -> tuple[float, float, float]:
    """Return confidence, entropy and margin of an image's probabilities (k,).

    Where it may have any number of classes, entropies are added up, and the others are those of its least sure class.
    """
    if not multi_label:
        best, second = np.sort(row)[:-3:-1]
        return float(best), float(special.entr(row).sum()), float(best - second)
    least = float(np.maximum(row, 1 - row).min())
    return least, float((special.entr(row) + special.entr(1 - row)).sum()), 2 * least - 1

"""Unlabelled images: how far they are from the training images, and which of them to label first.

A domain classifier tries to tell the two apart by their frozen features: the classifier two-sample test of Lopez-Paz
and Oquab (2017), one of the detectors that Rabanser et al. (2019, Failing Loudly) compare. What it reaches out of fold,
an AUC, says how far they are apart; 0.5 is not at all. The list for labelling goes by the champion's uncertainty.
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
Usable = tuple[Item, NewImage, NDArray[np.uint8]]  # a file, its image, and what the backbone sees of it
FEWEST = 20  # images, on either side: of 20 new ones an AUC of 0.86 is surely above 0.7; of 5, not even one of 1
MOST = 2000  # images compared, on either side: an AUC of 0.5 is known to 0.025 then, and no more need be in memory
COLUMNS = ("path", "domain", "predicted", "confidence", "entropy", "margin", "novelty", "like")


@dataclass(frozen=True)
class Drift:
    """What is known of the unlabelled images of one domain.

    `rejected` files would not be taken in with a label either, `known` ones are in the data set already; `images` are
    the others. They are compared with training images `against`: those of their domain, or of all domains where there
    are too few of that. `auc` is None where there are too few to compare; of images that look alike one counts.
    """

    domain: str
    images: int
    rejected: int
    known: int
    against: str
    auc: Interval | None
    drifted: bool

    def say(self) -> str:
        """Say it in words."""
        more = ((self.rejected, "cannot be used"), (self.known, "in the data set already"))
        also = ", ".join(f"{count} more {what}" for count, what in more if count)
        counted = f"{self.domain}: {self.images} unlabelled{f' ({also})' if also else ''}"
        if self.auc is None:
            return f"{counted}; too few that differ to say whether they have drifted (it takes {FEWEST})"
        return (
            f"{counted}; {'drifted' if self.drifted else 'not surely drifted'}: told from the training images of "
            f"{self.against} with an AUC of {self.auc['value']:.2f} (95 % interval {self.auc['low']:.2f} to "
            f"{self.auc['high']:.2f}; 0.5 is no difference)"
        )


def score(
    unlabelled: Source, backbone_dir: Path, features_dir: Path, dataset_dir: Path, model_dir: Path,
    settings: params.Params, to_label: Path,
) -> list[Drift]:  # fmt: skip
    """Compare the unlabelled images of each domain with the training images, and list them all for labelling.

    The list is a CSV file, the image about which the champion is least sure first: by the entropy of its calibrated
    probabilities (uncertainty sampling; Settles 2009), in nats, then by path. `margin` is how far the likeliest class
    is ahead of the second, `novelty` the domain classifier's probability that the image is no training image, were
    there as many of both. An image that looks like one further up (`like`) follows behind all that look like none.
    Nothing else of an unlabelled image is kept.

    Args:
        unlabelled: the files; they have to pass the checks of ingest.
        backbone_dir: the frozen backbone.
        features_dir: its cached features, of the training images.
        dataset_dir: what the champion was trained on.
        model_dir: the champion.
        settings: all parameters.
        to_label: the list, replaced.

    Returns:
        A Drift a domain, by name.

    Raises:
        SourceError: features of training images are missing.
    """
    manifest = tables.load_manifest(dataset_dir)
    backbone = backbones.load(backbone_dir, settings.extract.layer, settings.extract.pooling)
    folder, *_ = feature_keys.find(backbone.description, settings.extract, features_dir)
    drifts, lines = [], []
    with progress.bar("drift", sum(not item.problem for item in unlabelled.items)) as advance:
        engine = _engine_of(folder, backbone, settings, len(unlabelled.items))
        ids = set(manifest["image_id"])
        viewer = _Viewer(unlabelled, backbone, engine, model.load(model_dir), ids, settings, advance)
        for domain in sorted({item.domain for item in unlabelled.items}):
            against, reference = _reference(manifest, domain, folder, settings.seed)
            auc, seen = _compare(domain, viewer, reference, settings)
            drifted = auc is not None and auc["low"] > settings.retrain.drift_auc
            rejected, known = (viewer.passed_over[domain, why] for why in ("rejected", "known"))
            drifts.append(Drift(domain, len(seen), rejected, known, against, auc, drifted))
            lines += seen
    table = pd.DataFrame(_in_order(lines, settings.ingest.near_duplicate_bits), columns=list(COLUMNS))
    files.write(to_label, escape.as_csv(table))
    return drifts


def _engine_of(folder: Path, backbone: Backbone, settings: params.Params, images: int) -> Engine:
    """Start the engine that computed the training images' features, or, of an earlier version's, what `auto` means."""
    name = feature_files.read_metadata(next(folder.glob("*.parquet")))["engine"]
    if name in FORMER_ENGINES:
        return engines.start_auto(backbone, settings.extract, images)
    return engines.start_named(name, backbone, settings.extract)


def _reference(manifest: pd.DataFrame, domain: str, folder: Path, seed: int) -> tuple[str, Array]:
    """Draw training images to compare a domain with, one of each group of near duplicates: features (n, d).

    They are those of the same domain, if there are enough. A mixture would not do: images just like those of one of
    two domains are told from the two with an AUC of 0.75, where these differ.
    """
    train = manifest[manifest["split"] == "train"].drop_duplicates("group_id")
    own = train[train["domain"] == domain]
    against, rows = (domain, own) if len(own) >= FEWEST else ("all domains", train)
    drawn = rows.sample(min(len(rows), MOST), random_state=seed)
    return against, np.concatenate([features for features, _ in Features(folder, drawn)])


def _compare(
    domain: str, viewer: "_Viewer", reference: Array, settings: params.Params
) -> tuple[Interval | None, list["_Line"]]:
    """Look at all images of a domain; a random sample of them is compared, the others are only scored."""
    paths = [item.path for item in viewer.source.items if item.domain == domain and not item.problem]
    order = np.random.default_rng(settings.seed).permutation(len(paths))
    seen = list(viewer.look({paths[index] for index in order[:MOST]}))
    lines = [line for some, _ in seen for line in some]
    if not lines:
        return None, []
    # A hundred frames of one scene say no more of a domain than one, and must not be on both sides of a fold.
    groups = _groups(lines, settings.ingest.near_duplicate_bits)
    _, first, group = np.unique(groups, return_index=True, return_inverse=True)
    if min(len(first), len(reference)) < FEWEST:
        return None, lines
    features = np.concatenate([features for _, features in seen])[first]
    auc, novelties, classifier = tell_apart(features, reference, settings.seed)
    for line, novelty in zip(lines, novelties[group], strict=True):
        line.novelty = novelty
    for some, features in viewer.look({paths[index] for index in order[MOST:]}):
        for line, novelty in zip(some, classifier.predict_proba(features)[:, 1], strict=True):
            line.novelty = novelty
        lines += some
    return auc, lines


@dataclass(slots=True)
class _Line:
    """A line of the list, and how the image looks."""

    path: str
    domain: str
    predicted: str
    confidence: float
    entropy: float
    margin: float
    phash: int
    novelty: float = math.nan
    like: str = ""


def _groups(lines: Sequence[_Line], bits: int) -> NDArray[np.int32]:
    """Number the groups of images that look alike: (n,)."""
    links = near_links(np.array([line.phash for line in lines], np.uint64), bits)
    graph = coo_array((np.ones(len(links), np.int8), (links[:, 0], links[:, 1])), shape=(len(lines), len(lines)))
    groups: NDArray[np.int32] = connected_components(graph, directed=False)[1]
    return groups


def _in_order(lines: Sequence[_Line], bits: int) -> list[_Line]:
    """Sort for labelling; what looks like an image before it goes behind all that look like none."""
    # By the digits that are shown: those behind them differ between machines.
    lines = sorted(lines, key=lambda line: (-float(f"{line.entropy:.6g}"), line.path))
    first: dict[int, str] = {}
    for line, group in zip(lines, _groups(lines, bits), strict=True):
        line.like = first.get(group, "")
        first.setdefault(group, line.path)
    return sorted(lines, key=lambda line: bool(line.like))


class _Viewer:
    """Shows files to the backbone and to the champion; counts those that it passes over, by domain and reason."""

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
        self.passed_over = Counter((item.domain, "rejected") for item in source.items if item.problem)

    def look(self, paths: Collection[str]) -> Iterator[tuple[list[_Line], Array]]:
        """Yield a line for each usable image, and their features (n, d), in batches and in the order of the source."""
        usable = self._usable(paths)
        while batch := list(islice(usable, self.engine.batch_size)):
            yield self._ask(batch), self._features(np.stack([view for *_, view in batch]))

    def _usable(self, paths: Collection[str]) -> Iterator[Usable]:
        for found in ordered_map(self._examine, self.source.read(paths)):
            self.advance(1)
            if len(found) == 3:
                yield found
            else:
                self.passed_over[found] += 1

    def _examine(self, entry: tuple[Item, Loader]) -> Usable | tuple[str, str]:
        """Check a file as ingest does, and see what it would store: the training images went the same way."""
        item, load = entry
        try:
            data = load()
            if inspection.image_id(data) in self.ids:
                return item.domain, "known"
            image = inspection.check(data, item.path, self.checks)
            return item, image, loader.view(image.data, self.transform, decode=self.settings.decode).numpy()
        except Rejected:
            return item.domain, "rejected"

    def _ask(self, batch: list[Usable]) -> list[_Line]:
        """Put what the champion says into lines."""
        lines = []
        predictions = self.champion.classify([image.data for _, image, _ in batch])
        hashes = perceptual_hashes([image.thumbnail for _, image, _ in batch])
        for (item, *_), said, phash in zip(batch, predictions, hashes, strict=True):
            best, second, *_ = sorted(said.probabilities.values(), reverse=True)
            entropy = float(special.entr(list(said.probabilities.values())).sum())
            lines.append(_Line(item.path, item.domain, said.label, best, entropy, best - second, phash))
        return lines

    def _features(self, views: NDArray[np.uint8]) -> Array:
        """Compute features (n, d), no finer than the cached ones: a rounding could tell the two apart."""
        seen = self.engine.forward(views)
        limit = np.finfo(self.settings.dtype).max
        return np.clip(seen, -limit, limit).astype(self.settings.dtype).astype(np.float32)

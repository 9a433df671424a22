"""A model as it is served: loaded from a folder that was not written meanwhile, its engines started."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from rootstock.features.feature_extractor import FeatureExtractor
from rootstock.features.preparing import Prepared
from rootstock.images.inspection import Checks
from rootstock.images.reasons import Rejected
from rootstock.model import given, model as models
from rootstock.model.model import CHECKS, Model, Prediction
from rootstock.system.files import damaged, reading

SHOWN_DIGITS = 12  # of a digest, in a name
Stamp = tuple[tuple[str, int, int, int], ...]


@dataclass(frozen=True)
class Found:
    """A model to serve: where it is, what answers call it, and its digest, which is another one for another model.

    `stamp` is the state of its files from before the digest was computed.
    """

    folder: Path
    name: str
    digest: str
    stamp: Stamp


Find = Callable[[], Found]  # raises RootstockError where there is none to serve at the moment


@dataclass(frozen=True)
class Served:
    """A model that is ready to predict; any thread may call it that has called `parallel.limit_to_one_core`.

    Only full batches go to `extractor_of_batches`. An engine that is compiled for one size computes a batch that is not
    full as if it were, so images that are fewer go to `extractor`, which is that of `Model.predict`.
    """

    name: str
    digest: str
    model: Model
    checks: Checks
    extractor: FeatureExtractor
    extractor_of_batches: FeatureExtractor

    @property
    def batch_size(self) -> int:
        """Return how many images are best computed together."""
        return self.extractor_of_batches.engine.batch_size

    def prepare(self, name: str, data: bytes) -> Prepared:
        """Check an uploaded file as `Model.predict` does, and decode it.

        Raises:
            Rejected: it fails a check, or cannot be decoded.
        """
        return self.extractor.prepare_input(name, given.content(data), self.checks)

    def predict(self, names: Sequence[str], images: Sequence[Prepared]) -> list[Prediction]:
        """Classify prepared images, at most `batch_size`."""
        extractor = self.extractor_of_batches if len(images) == self.batch_size else self.extractor
        return self.model.predictions([(name, None) for name in names], extractor.features_of(images))


def rejected(name: str, why: Rejected) -> Prediction:
    """Return the prediction of an image that was rejected."""
    return Prediction("", {}, name, why.reason, why.detail)


def load(found: Found, megapixels: float = CHECKS.max_megapixels) -> Served:
    """Load a model and start its engines, which takes seconds.

    Raises:
        DamagedError: a file is damaged, does not match its digest, or was written meanwhile.
    """
    model = models.load(found.folder)
    extractor = model.extractor
    of_batches = model.extractor_of_many if extractor.engine.batch_size == 1 else extractor
    size = model.spec.transform.size
    for each in {id(one): one for one in (extractor, of_batches)}.values():  # the first call is slow, or fails
        each.features_of([np.zeros((3, size, size), np.uint8)] * each.engine.batch_size)
    if stamp(found.folder) != found.stamp:
        raise damaged(found.folder, "was written while it was loaded")
    checks = model.own_checks(replace(CHECKS, max_megapixels=megapixels))
    return Served(found.name, found.digest, model, checks, extractor, of_batches)


def in_folder(folder: Path) -> Found:
    """Find the model of a folder; its name is a digest of model.json, which has those of the other files.

    Raises:
        SourceError: the folder holds no model.
        DamagedError: model.json cannot be read.
    """
    models.check_folder(folder)
    before = stamp(folder)
    with reading(folder / models.DESCRIPTION):
        digest = hashlib.sha256((folder / models.DESCRIPTION).read_bytes()).hexdigest()
    return Found(folder, f"model@{digest[:SHOWN_DIGITS]}", digest, before)


def stamp(folder: Path) -> Stamp:
    """Return the state of a folder's files: another one after each of them was written; empty without a folder."""
    try:
        states = [(path.name, path.stat()) for path in sorted(folder.iterdir())]
    except FileNotFoundError:
        return ()
    return tuple((name, state.st_ino, state.st_size, state.st_mtime_ns) for name, state in states)

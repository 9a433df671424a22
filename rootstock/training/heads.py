"""Fit the head that params.yaml names; with `auto`, every kind, of which validation chooses one."""

import logging
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rootstock.config import params
from rootstock.dataset.tables import Labels
from rootstock.features.reader import Features
from rootstock.system import progress
from rootstock.system.errors import ParamsError, SourceError
from rootstock.system.phrases import listed
from rootstock.training import closed_form, head, logistic, pass_progress
from rootstock.training.class_weights import class_weights
from rootstock.training.head import Head, Kind
from rootstock.training.kept_passes import AXES, RESULTS, KeptPasses
from rootstock.training.paired_losses import calibrated_losses, standard_error
from rootstock.training.principal_axes import PrincipalAxes, find_principal_axes

log = logging.getLogger(__name__)
NAMES: dict[Kind, str] = {  # the simplest first
    "prototype": "class prototypes",
    "ridge": "ridge regression",
    "logistic": "logistic regression",
    "knn": "nearest neighbours",
}
NAMED = 10  # classes in an error


@dataclass(frozen=True)
class Fitted:
    """The head, and the linear one from which fine-tuning starts; the same unless nearest neighbours were chosen."""

    head: Head
    fit_linear: Callable[[], Head]

    @cached_property
    def linear(self) -> Head:
        """Return the linear head; where it must be fitted, that is done when it is asked for."""
        return self.fit_linear()


def fit(
    train: Features, val: Features, classes: list[str], settings: params.Head, groups: NDArray[np.int64],
    stage: str | None = None, axes: PrincipalAxes | None = None, passes: Path | None = None,
) -> Fitted:  # fmt: skip
    """Fit a head on cached features.

    Args:
        train: features and labels.
        val: chooses strengths, and the kind if that is left to us.
        classes: names in index order.
        settings: the section `head` of params.yaml.
        groups: of the validation images (n,), as any integers.
        stage: name for progress and log lines; None for neither.
        axes: for logistic regression alone, of images among which the training images are; by default of these.
        passes: folder that keeps what long passes over the features find, for a fit that is stopped; None for none.

    Raises:
        SourceError: a class does not occur in `train`.
        ParamsError: too many images for nearest neighbours; or images of any number of classes, for which there is
            logistic regression alone.
    """
    check_classes(train.labels, classes)
    kinds = tuple(NAMES) if settings.kind == "auto" else (settings.kind,)
    if train.labels.ndim == 2:
        _check_multi_label(settings)
        kinds = ("logistic",)
    if "knn" in kinds and not closed_form.fits_into_memory(train):
        if settings.kind == "knn":
            raise ParamsError(
                "params.yaml: head.kind is knn, which keeps the features of all training images in the model; those of "
                f"{len(train):,} images, {train.width:,} each, are too many; expected logistic, ridge or auto"
            )
        kinds = tuple(kind for kind in kinds if kind != "knn")
    weights = class_weights(train.labels, len(classes), settings.class_weight)
    kept = KeptPasses(passes, train, weights, stage) if passes else None
    trial = _Trial(train, val, classes, settings, weights, stage, axes, kept)
    heads = {kind: trial.fit(kind) for kind in kinds}
    if settings.kind != "auto" or len(kinds) == 1:
        only = heads[kinds[0]]
        return Fitted(only, lambda: trial.fit("logistic") if settings.kind == "knn" else only)
    chosen, tried, why = choose({kind: trial.losses(found) for kind, found in heads.items()}, groups)
    if stage:
        log.info("%s: %s", stage, why)
    for entry in tried:
        entry["val_accuracy"] = heads[entry["kind"]].val_accuracy
    linear = min((entry for entry in tried if entry["kind"] != "knn"), key=lambda entry: entry["val_log_loss"])
    best = replace(heads[chosen], tried=tried, why=why)
    return Fitted(best, lambda: best if chosen != "knn" else heads[linear["kind"]])


def choose(
    losses: Mapping[Kind, NDArray[np.float64]], groups: NDArray[np.int64]
) -> tuple[Kind, list[dict[str, Any]], str]:
    """Choose the simplest kind whose log loss is within one standard error of the best.

    The standard error is that of the difference to the best, image by image and with groups of images as a whole: the
    rule of Breiman et al. (1984), but for models that were measured on the same images.

    Args:
        losses: of the validation images (n,), for each kind, from simple to complex.
        groups: of the images (n,), as any integers.

    Returns:
        The kind, what was tried (kind, val_log_loss, standard_error of the difference to the best), and the reason.
    """
    means = {kind: float(values.mean()) for kind, values in losses.items()}
    best = min(means, key=lambda kind: means[kind])
    errors = {kind: standard_error(values - losses[best], groups) for kind, values in losses.items()}
    chosen = next(kind for kind in losses if means[kind] - means[best] <= errors[kind])
    tried = [{"kind": kind, "val_log_loss": means[kind], "standard_error": errors[kind]} for kind in losses]
    why = f"{NAMES[chosen]} chosen: validation log loss {means[chosen]:.3f}"
    if chosen == best:
        return chosen, tried, f"{why}, the lowest of {len(losses)} kinds"
    less = f"{means[best]:.3f} of {NAMES[best]}"
    return chosen, tried, f"{why}, within one standard error ({errors[chosen]:.3f}) of {less}, and simpler"


def _check_multi_label(settings: params.Head) -> None:
    """Check that the settings are for a multi-label dataset.

    Raises:
        ParamsError: they are not.
    """
    of_labels = "the dataset is multi-label (a column labels)"
    if settings.kind not in ("logistic", "auto"):
        raise ParamsError(f"params.yaml: head.kind is {settings.kind}, but {of_labels}; expected logistic or auto")
    if settings.class_weight != "none":
        raise ParamsError(
            f"params.yaml: head.class_weight is {settings.class_weight}, but {of_labels}; expected none: "
            "validation chooses a threshold for each class"
        )


def check_classes(labels: Labels, classes: list[str]) -> None:
    """Check that every class has a training image.

    Raises:
        SourceError: one has none.
    """
    seen = labels.tolist() if labels.ndim == 1 else np.flatnonzero(labels.any(axis=0)).tolist()
    if unseen := sorted(set(range(len(classes))) - set(seen)):
        named = listed([repr(classes[index]) for index in unseen], NAMED)
        raise SourceError(
            f"no image of {named} is in the train split; expected images of every class. Add images or remove "
            "the class, then run ingest again."
        )


class _Trial:
    """Fits kinds of heads on the same features, of which the principal axes are found once."""

    def __init__(
        self, train: Features, val: Features, classes: list[str], settings: params.Head,
        weights: NDArray[np.float32] | None, stage: str | None, given_axes: PrincipalAxes | None,
        passes: KeptPasses | None,
    ) -> None:  # fmt: skip
        self.train, self.val, self.classes, self.settings, self.weights = train, val, classes, settings, weights
        self.stage, self.given_axes, self.passes = stage, given_axes, passes

    @cached_property
    def axes(self) -> PrincipalAxes:
        """Find the principal axes, of which prototypes and neighbours need none."""
        if self.passes is None:
            return self._find_axes()
        return PrincipalAxes(**self.passes.recall(AXES, lambda: vars(self._find_axes()), RESULTS))

    def _find_axes(self) -> PrincipalAxes:
        is_long = self.stage and not self.train.fits_into_memory
        stage = f"{self.stage}, principal axes" if is_long else None
        with _bar(stage, 2 * len(self.train), "images") as advance:
            return find_principal_axes(self.train, self.weights, advance)

    def fit(self, kind: Kind) -> Head:
        """Fit a kind of head."""
        given = (self.train, self.val, self.classes)
        if kind == "prototype":
            return closed_form.fit_prototypes(*given, self.weights, self.mean_loss)
        if kind == "knn":
            return closed_form.fit_neighbours(*given, self.weights, self.mean_loss)
        if kind == "ridge":
            return closed_form.fit_ridge(*given, self.axes, self.weights, self.mean_loss)
        l2, iterations, axes = self.settings.l2, self.settings.max_iterations, self.given_axes or self.axes
        with _bar(self.stage, pass_progress.expected(len(set(l2)), iterations), "passes") as advance:
            fitted = logistic.fit_logistic_path(*given, l2, iterations, axes, self.weights, self.passes, advance)
        for warning in fitted.warnings if self.stage else []:
            log.warning("%s", warning)
        return fitted

    def logits(self, fitted: Head) -> NDArray[np.float32]:
        """Return a head's logits of the validation images (n, k)."""
        return head.scores(fitted, self.val)

    def losses(self, fitted: Head) -> NDArray[np.float64]:
        """Return the log loss of each validation image (n,) after calibration, times the weight of its class."""
        return self._losses(self.logits(fitted))

    def mean_loss(self, logits: NDArray[np.float32]) -> float:
        """Return the mean of `losses` for given logits (n, k)."""
        return float(self._losses(logits).mean())

    def _losses(self, logits: NDArray[np.float32]) -> NDArray[np.float64]:
        return calibrated_losses(logits, self.val.labels, self.weights)


def _bar(stage: str | None, total: int, unit: str) -> AbstractContextManager[progress.Advance]:
    return progress.bar(stage, total, unit) if stage else progress.silent()

"""Labels that are probably wrong, by confident learning on out-of-fold probabilities (Northcutt et al. 2021, JAIR 70).

All images are divided into folds, groups whole. A head that was trained on the other folds gives each image its
probabilities, so that no image is judged by a model that has seen its label. cleanlab estimates how many labels are
wrong; suspected are as many, those with the lowest probability. (Which of them the confident joint names finds fewer of
the labels that were turned on purpose: docs/benchmarks.md.)

Of a dataset so large that five heads would take hours, validation and test images alone are judged, by the model, which
was not trained on their labels either.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from cleanlab.filter import find_label_issues
from cleanlab.multilabel_classification.filter import find_label_issues as multi_label_issues
from cleanlab.rank import get_label_quality_scores
from numpy.typing import NDArray

from rootstock.dataset import label_sets, tables
from rootstock.dataset.tables import Labels
from rootstock.evaluation.kept_heads import NONE_KEPT, KeptHeads
from rootstock.evaluation.repeated_splits import FOLDS, draw_folds, known_from
from rootstock.features.reader import Features
from rootstock.system import progress
from rootstock.system.parallel import map_on_one_core_each
from rootstock.training import calibration, head, logistic
from rootstock.training.kept_passes import KeptPasses, Tensors
from rootstock.training.principal_axes import PrincipalAxes, find_principal_axes

Array = NDArray[np.float32]
IMAGE = ["image_id", "source", "path", "domain", "split", "label"]
ITERATIONS = 20  # of L-BFGS: more change no suspect (docs/benchmarks.md)
L2 = 10.0  # strength of these heads where the model's is of another kind
MOST_PROBABILITIES = 5 * 10**7  # images times classes: 200 MB, and minutes of training
MOST_SUSPECTS = 0.5  # share of the images: of more, the heads know too little to tell
MOST_HELD_OUT = 10**7  # the same of validation images, and of test images, where these alone are judged
UNKNOWN = np.finfo(np.float32).min / 4  # the logit of a class that a head did not know
COLUMNS = [*IMAGE, "suggested", "label_probability", "suggested_probability"]


def find(
    folder: Path, manifest: pd.DataFrame, classes: Sequence[str], l2: float, seed: int, kept: KeptHeads = NONE_KEPT
) -> pd.DataFrame:
    """Find images of all splits whose label is probably wrong, by heads that are trained on all splits.

    Args:
        folder: cached features.
        manifest: of the dataset.
        classes: names in index order.
        l2: strength of these heads.
        seed: of the folds.
        kept: of an evaluation that was stopped.

    Returns:
        The suspects with COLUMNS, worst first: those with the lowest probability of their label. Empty if there are
        fewer groups than folds. Of a class that is in one fold alone, as its images are a single group, none is judged.
    """
    rows = manifest.sort_values(["shard", "offset"], ignore_index=True)
    groups = tables.group_numbers(rows)
    if len(np.unique(groups)) < FOLDS or (len(classes) < 2 and not tables.is_multi_label(rows)):
        return pd.DataFrame(columns=COLUMNS)
    fold = draw_folds(tables.strata_of_rows(rows), groups, seed)
    judged = _judged(tables.labels_of_rows(rows, classes), fold)
    if not judged.any():
        return pd.DataFrame(columns=COLUMNS)
    probabilities = predict_out_of_fold(folder, rows, fold, classes, l2, kept)
    return _suspects(rows[judged].reset_index(drop=True), probabilities[judged], classes)


def _judged(labels: Labels, fold: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Return which images (n,) have only labels that are in other folds, too: the others' heads know of no other."""
    has = labels if labels.ndim == 2 else labels[:, None] == np.arange(labels.max() + 1)
    judged = np.ones(len(labels), bool)
    for number in np.unique(fold):
        known = has[fold != number].any(axis=0)
        judged[fold == number] = ~(has[fold == number] & ~known).any(axis=1)
    return judged


def draw(images: int, all_images: int, classes: int, seed: int) -> NDArray[np.int64]:
    """Draw images of a held-out split that `find_held_out` judges (m,), in order; none where all images can be judged.

    Args:
        images: of the split.
        all_images: of the dataset.
        classes: how many.
        seed: of the draw.
    """
    if can_judge_all(all_images, classes):
        return np.empty(0, np.int64)
    drawn: NDArray[np.int64] = np.random.default_rng(seed).permutation(images)[: MOST_HELD_OUT // classes]
    return np.sort(drawn)


def find_held_out(answers: Sequence[tuple[pd.DataFrame, Array]], classes: Sequence[str]) -> pd.DataFrame:
    """Find images whose label is probably wrong, by what a model answered that was not trained on them.

    Args:
        answers: of each split, rows of the manifest (n of them) and calibrated probabilities (n, k).
        classes: names in index order, two or more.

    Returns:
        As `find`.
    """
    rows = pd.concat([rows for rows, _ in answers], ignore_index=True)
    return _suspects(rows, np.concatenate([probabilities for _, probabilities in answers]), classes)


def _suspects(rows: pd.DataFrame, probabilities: Array, classes: Sequence[str]) -> pd.DataFrame:
    labels = tables.labels_of_rows(rows, classes)
    if labels.ndim == 2:
        return _suspect_sets(rows, labels, probabilities, classes)
    if len(np.unique(labels)) < 2:
        return pd.DataFrame(columns=COLUMNS)
    suspects = find_label_issues(labels, probabilities, filter_by="low_self_confidence", n_jobs=1)
    if suspects.mean() > MOST_SUSPECTS:
        return pd.DataFrame(columns=COLUMNS)
    quality = get_label_quality_scores(labels, probabilities)
    worst = np.flatnonzero(suspects)[np.argsort(quality[suspects], kind="stable")]
    suggested = probabilities[worst].argmax(1)
    found = rows.loc[worst, IMAGE].reset_index(drop=True)
    found["suggested"] = np.asarray(classes)[suggested]
    found["label_probability"] = probabilities[worst, labels[worst]]
    found["suggested_probability"] = probabilities[worst, suggested]
    return found


def _suspect_sets(
    rows: pd.DataFrame, labels: NDArray[np.bool_], probabilities: Array, classes: Sequence[str]
) -> pd.DataFrame:
    """Suspect images of any number of classes; suggested is what is left when the least probable answer is turned."""
    lists = [np.flatnonzero(own).tolist() for own in labels]
    suspects = np.asarray(multi_label_issues(lists, probabilities, n_jobs=1), bool)
    of_labels = np.where(labels, probabilities, 1 - probabilities)
    least = of_labels.argmin(axis=1)
    quality = np.take_along_axis(of_labels, least[:, None], axis=1)[:, 0]
    worst = np.flatnonzero(suspects)[np.argsort(quality[suspects], kind="stable")]
    turned = labels[worst]
    turned[np.arange(len(worst)), least[worst]] ^= True
    names = np.asarray(classes, dtype=object)
    found = rows.loc[worst, IMAGE].reset_index(drop=True)
    found["suggested"] = [label_sets.join(names[own]) for own in turned]
    found["label_probability"] = quality[worst]
    found["suggested_probability"] = 1 - quality[worst]
    return found


def can_judge_all(images: int, classes: int) -> bool:
    """Return whether there are so few images and classes that heads can be trained on all of them."""
    return images * classes <= MOST_PROBABILITIES


def describe_judged(images: int, classes: int) -> str:
    """Describe which images are judged by an evaluation."""
    if can_judge_all(images, classes):
        return "images, of all splits,"
    return f"of up to {MOST_HELD_OUT // classes:,} validation and as many test images"


def predict_out_of_fold(
    folder: Path, rows: pd.DataFrame, fold: NDArray[np.int64], classes: Sequence[str], l2: float,
    kept: KeptHeads = NONE_KEPT,
) -> Array:  # fmt: skip
    """Return calibrated probabilities (n, classes) of images, each by a head that was trained on the other folds.

    Args:
        folder: cached features.
        rows: of the manifest, in shard order.
        fold: of each image (n,).
        classes: names in index order; one that does not occur in the other folds has a probability of nearly zero.
        l2: strength of the heads.
        kept: of an evaluation that was stopped.
    """
    features = Features(folder, rows, classes).keep()
    # They say nothing of labels: the same for all folds.
    axes = PrincipalAxes(**kept.recall("fold-axes", lambda: vars(find_principal_axes(features))))
    logits = np.full((len(rows), len(classes)), UNKNOWN, np.float32)
    labels = tables.labels_of_rows(rows, classes)

    def score(number: int) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]:
        training, held_out = rows[fold != number], rows[fold == number]
        seen = labels[fold != number]
        known = np.unique(seen) if labels.ndim == 1 else np.flatnonzero(seen.any(axis=0))
        names, usable = known_from(training, training)
        scores = kept.recall(f"fold-{number}", lambda: fit(number, features.subset(usable, names), names, held_out))
        return held_out.index.to_numpy(), known, scores["logits"].numpy()

    def fit(number: int, train: Features, names: list[str], held_out: pd.DataFrame) -> Tensors:
        place = kept.passes(f"fold-{number}")
        passes = KeptPasses(place, train, None) if place else None
        fitted, _ = next(logistic.fit_each(train, names, [l2], ITERATIONS, axes, passes=passes))
        return {"logits": torch.from_numpy(head.scores(fitted, features.subset(held_out)))}

    found = map_on_one_core_each(score, np.unique(fold))
    for indices, known, scores in progress.track(found, "evaluate", FOLDS, "folds for label issues"):
        logits[np.ix_(indices, known)] = scores
    temperature = _temperature(logits, labels)
    return calibration.probabilities(logits, temperature, multi_label=labels.ndim == 2)


def _temperature(logits: Array, labels: Labels) -> float:
    """Fit the temperature on the images that are judged, with classes that a head did not know as unlikely as any."""
    is_known = logits > UNKNOWN / 2
    if not is_known.all():
        has = labels if labels.ndim == 2 else labels[:, None] == np.arange(logits.shape[1])
        judged = ~(has & ~is_known).any(axis=1)
        logits, labels, is_known = logits[judged], labels[judged], is_known[judged]
        logits = np.where(is_known, logits, logits.min(axis=1, where=is_known, initial=np.inf, keepdims=True))
    return calibration.fit_temperature(logits, labels)

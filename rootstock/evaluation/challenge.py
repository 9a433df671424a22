"""Champion versus challenger: compare both models on the same test images and decide on promotion.

Images that both models classify correctly, or both wrongly, say nothing about which is better. McNemar's exact test
checks whether the others could be split as they are by chance (McNemar 1947; Dietterich 1998 recommends it for two
classifiers and one test set). The interval of the gain is a paired bootstrap.
"""

import json
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
from scipy import stats

from rootstock.config import params
from rootstock.dataset import tables
from rootstock.evaluation import plots
from rootstock.evaluation.metrics import CONFIDENCE, Interval
from rootstock.model import model, scoring
from rootstock.system import escape
from rootstock.system.files import reading

OVERALL, DOMAIN, NEW_CLASSES = "overall", "domain", "new classes"  # what a comparison is about


@dataclass(frozen=True)
class PairedComparison:
    """Both models' accuracy on a subset of the test images, the gain (95 % intervals) and McNemar's p.

    `about` says which subset: all images of classes that both models know, those of one domain (`what`), or those of
    classes unknown to the champion, where `champion`, `gain` and `p` are None.
    """

    about: str
    what: str
    images: int
    challenger: Interval
    champion: Interval | None = None
    gain: Interval | None = None
    p: float | None = None

    def is_better(self, settings: params.Retrain) -> bool:
        """Check whether the challenger is significantly better."""
        return self.is_significant(settings) and self._gain > 0

    def gains_enough(self, settings: params.Retrain) -> bool:
        """Check whether the gain is at least `retrain.min_gain`."""
        return self._gain >= settings.min_gain

    def is_worse(self, settings: params.Retrain) -> bool:
        """Check whether the challenger is significantly worse."""
        return self.is_significant(settings) and self._gain < 0

    def is_significant(self, settings: params.Retrain) -> bool:
        """Check whether the models differ significantly."""
        return self.p is not None and self.p < settings.alpha

    @property
    def _gain(self) -> float:
        return self.gain["value"] if self.gain else 0.0

    def describe(self) -> str:
        """Describe the comparison in a phrase."""
        where = "overall" if self.about == OVERALL else f"on {self.what}"
        accuracy, images = f"{self.challenger['value']:.1%} test accuracy", f"{self.images:,} images"
        if self.champion is None or self.p is None:
            return f"{accuracy} {where} ({images})"
        p = "p < 0.001" if self.p < 0.001 else f"p = {self.p:.3f}"
        return f"{accuracy} {where}, champion {self.champion['value']:.1%} ({images}, {p})"


@dataclass(frozen=True)
class Decision:
    """Whether to promote the challenger, the reason, and the comparisons behind it."""

    promote: bool
    reason: str
    comparisons: tuple[PairedComparison, ...] = ()

    def to_json(self) -> str:
        """Return the comparisons as JSON."""
        return json.dumps([asdict(comparison) for comparison in self.comparisons], ensure_ascii=False)


def predict_both(
    champion: Path,
    champion_predictions: Path,
    challenger_predictions: Path,
    dataset_dir: Path,
    images_dir: Path,
    features_dir: Path,
    challenger: Path,
) -> pd.DataFrame:
    """Classify every test image with both models, reusing stored predictions, then cached features.

    Args:
        champion: folder of the current model.
        champion_predictions: its predictions.parquet, for an earlier test split.
        challenger_predictions: the challenger's, for the current one.
        dataset_dir: the current dataset.
        images_dir: its shards; images are decoded only for a fine-tuned champion, or one of another backbone.
        features_dir: the cache of features.
        challenger: folder of the new model.

    Returns:
        One row per test image: image_id, domain, label, `known` (whether the champion knows the class), and whether
        `champion` and `challenger` are correct.
    """
    manifest = tables.load_manifest(dataset_dir)
    rows = manifest[manifest["split"] == "test"].sort_values(["shard", "offset"], ignore_index=True)
    labels = rows["label"].astype(object)
    table = rows[["image_id", "domain", "label"]].assign(known=labels.isin(model.describe(champion)["classes"]))
    models = {"champion": (champion, champion_predictions), "challenger": (challenger, challenger_predictions)}
    for name, (folder, predictions) in models.items():
        predicted = rows["image_id"].map(_stored_labels(folder, predictions)).astype(object)
        missing = predicted.isna()
        predicted[missing] = _predict(folder, rows[missing], images_dir, features_dir)
        table[name] = predicted == labels
    return table


def _stored_labels(folder: Path, predictions: Path) -> dict[str, str]:
    """Return the class that a model predicted for each image of its own evaluation, by image_id."""
    described = model.describe(folder)
    with reading(predictions):
        table = pq.read_table(predictions, columns=["image_id", described["kind"]])
        classes = np.asarray(described["classes"], dtype=object)
        probabilities = table[described["kind"]].combine_chunks().flatten().to_numpy().reshape(-1, len(classes))
        return dict(zip(table["image_id"].to_pylist(), classes[probabilities.argmax(1)], strict=True))


def _predict(folder: Path, rows: pd.DataFrame, images_dir: Path, features_dir: Path) -> list[str]:
    if rows.empty:
        return []
    loaded = model.load(folder)
    scores = scoring.logits(loaded, rows, images_dir, features_dir, "compare")
    return [loaded.classes[index] for index in scores.argmax(1)]


def decide(
    table: pd.DataFrame, new_domains: Collection[str], settings: params.Retrain, *, resamples: int, seed: int
) -> Decision:
    """Decide whether to promote the challenger.

    It is promoted if it is significantly better overall or on a new domain, by `min_gain` or more, or has learnt
    classes that the champion does not know; and if it is significantly worse neither overall nor on an older domain.
    The champion is compared on the classes it knows.

    Args:
        table: returned by `predict_both`.
        new_domains: domains that the champion was not trained on.
        settings: the section `retrain` of params.yaml.
        resamples: bootstrap resamples per interval.
        seed: of the resamples.
    """
    known, unknown = table[table["known"]], table[~table["known"]]
    parts = [(OVERALL, OVERALL, known)] if len(known) else []
    parts += [(DOMAIN, str(domain), rows) for domain, rows in known.groupby("domain", sort=True)]
    comparisons = [compare(*part, resamples=resamples, seed=seed) for part in parts]
    if len(unknown):
        share = _share(int(unknown["challenger"].sum()), len(unknown))
        comparisons.append(PairedComparison(NEW_CLASSES, NEW_CLASSES, len(unknown), share))
    return Decision(*_verdict(comparisons, new_domains, settings), tuple(comparisons))


def compare(about: str, what: str, rows: pd.DataFrame, *, resamples: int, seed: int) -> PairedComparison:
    """Compare the models on one or more images, all of classes that both know."""
    champion, challenger = rows["champion"].to_numpy(bool), rows["challenger"].to_numpy(bool)
    n, won, lost = len(rows), int((challenger & ~champion).sum()), int((champion & ~challenger).sum())
    p = float(stats.binomtest(won, won + lost, 0.5).pvalue) if won + lost else 1.0
    before, after = _share(int(champion.sum()), n), _share(int(challenger.sum()), n)
    return PairedComparison(about, what, n, after, before, _gain(won, lost, n, resamples, seed), p)


def _share(hits: int, n: int) -> Interval:
    wilson = stats.binomtest(hits, n).proportion_ci(CONFIDENCE, method="wilson")
    value = hits / n
    return {"value": value, "low": min(float(wilson.low), value), "high": max(float(wilson.high), value)}


def _gain(won: int, lost: int, n: int, resamples: int, seed: int) -> Interval:
    """Bootstrap the gain: each image is won, lost or neither, so a resample is one multinomial draw."""
    value = (won - lost) / n
    if won + lost == 0 or n in (won, lost):  # all resamples are equal; a zero-width interval would claim certainty
        margin = _share(0, n)["high"]
        return {"value": value, "low": max(value - margin, -1.0), "high": min(value + margin, 1.0)}
    draws = np.random.default_rng(seed).multinomial(n, [won / n, lost / n, (n - won - lost) / n], resamples)
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile((draws[:, 0] - draws[:, 1]) / n, [tail, 1 - tail])
    return {"value": value, "low": min(float(low), value), "high": max(float(high), value)}


def _verdict(
    comparisons: list[PairedComparison], new_domains: Collection[str], settings: params.Retrain
) -> tuple[bool, str]:
    overall = [one for one in comparisons if one.about == OVERALL]
    domains = [one for one in comparisons if one.about == DOMAIN]
    new = [*overall, *(one for one in domains if one.what in new_domains)]
    older = [*overall, *(one for one in domains if one.what not in new_domains)]
    new_classes = [one for one in comparisons if one.about == NEW_CLASSES]
    learnt = [one for one in new_classes if one.challenger["value"] >= settings.new_class_accuracy]
    better = [one for one in new if one.is_better(settings)]
    if worse := [one for one in older if one.is_worse(settings)]:
        return False, f"The challenger is significantly worse: {_describe(worse)}."
    not_worse = "significantly worse on no older domain"
    if enough := [one for one in better if one.gains_enough(settings)]:
        return True, f"The challenger is better: {_describe(enough, not_worse)}."
    if learnt:
        return True, f"The challenger has learnt classes unknown to the champion: {_describe(learnt, not_worse)}."
    threshold = [f"retrain.new_class_accuracy is {settings.new_class_accuracy:.1%}"] if new_classes else []
    if better:
        below = f"better, but by less than retrain.min_gain ({settings.min_gain:.1%})"
        return False, f"The challenger is {below}: {_describe(better + new_classes, *threshold)}."
    figures = _describe(new + new_classes, *threshold) or "there are no test images"
    return False, f"The challenger is not significantly better: {figures}."


def _describe(comparisons: Sequence[PairedComparison], *more: str) -> str:
    return "; ".join([*map(PairedComparison.describe, comparisons), *more])


def table(comparisons: Sequence[PairedComparison]) -> str:
    """Format comparisons as a Markdown table."""
    head = ["| test images | count | champion | challenger | gain (points) | p |", "|---|--:|--:|--:|--:|--:|"]
    return "\n".join([*head, *map(_row, comparisons)])


def _row(comparison: PairedComparison) -> str:
    what, images = escape.markdown(comparison.what), f"{comparison.images:,}"
    champion, gain, p = "", "", ""
    if comparison.champion and comparison.gain and comparison.p is not None:
        champion = f"{comparison.champion['value']:.1%}"
        points = {end: f"{100 * share:+.1f}" for end, share in comparison.gain.items()}
        gain = f"{points['value']} ({points['low']} to {points['high']})"
        p = "< 0.001" if comparison.p < 0.001 else f"{comparison.p:.3f}"
    return f"| {what} | {images} | {champion} | {comparison.challenger['value']:.1%} | {gain} | {p} |"


def draw(comparisons: Sequence[PairedComparison], theme: plots.Theme = plots.LIGHT) -> bytes:
    """Draw both models' test accuracy with 95 % intervals, one row per comparison, as a PNG."""
    names = [f"{one.what} ({one.images:,})" for one in comparisons]
    accuracies: dict[str, list[Interval | None]] = {
        "champion": [one.champion for one in comparisons],
        "challenger": [one.challenger for one in comparisons],
    }
    return plots.draw_shares(names, accuracies, "test accuracy, 95% interval", theme)

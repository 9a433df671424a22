"""Champion against challenger, on the same test images: who is right where, and whether that is more than chance.

Both models answer for the same images, so the images on which both are right, or both wrong, say nothing of which is
better. McNemar's exact test asks of the others whether a fair coin would have split them so (McNemar 1947; Dietterich
1998 recommends it for two classifiers and one test set); the interval of the gain is a paired bootstrap.
"""

import json
from collections.abc import Collection, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
from scipy import stats

from rootstock.config import params
from rootstock.dataset import tables
from rootstock.dataset.shards import Reader
from rootstock.evaluation import plots
from rootstock.evaluation.metrics import CONFIDENCE, Interval
from rootstock.model import model
from rootstock.system import escape, progress
from rootstock.system.files import reading

OVERALL, DOMAIN, NEW_CLASSES = "overall", "domain", "new classes"  # what a line is about
AT_ONCE = 256  # images read and answered for


@dataclass(frozen=True)
class PairedComparison:
    """Both models on some of the test images: shares with 95 % intervals, the gain, McNemar's p.

    `about` is all images of classes that both know, those of one domain, or, of the challenger alone, those of classes
    that the champion does not know: `champion`, `gain` and `p` are None there.
    """

    about: str
    what: str
    images: int
    challenger: Interval
    champion: Interval | None = None
    gain: Interval | None = None
    p: float | None = None

    def is_better(self, settings: params.Retrain) -> bool:
        """Whether the challenger is significantly better."""
        return self.is_significant(settings) and self._gain > 0

    def gains_enough(self, settings: params.Retrain) -> bool:
        """Whether the challenger is better by as much as is asked for."""
        return self._gain >= settings.min_gain

    def is_worse(self, settings: params.Retrain) -> bool:
        """Whether the challenger is significantly worse."""
        return self.is_significant(settings) and self._gain < 0

    def is_significant(self, settings: params.Retrain) -> bool:
        """Whether the two models differ by more than chance."""
        return self.p is not None and self.p < settings.alpha

    @property
    def _gain(self) -> float:
        return self.gain["value"] if self.gain else 0.0

    def say(self) -> str:
        """Say it in words."""
        where = "overall" if self.about == OVERALL else f"on {self.what}"
        now, of = f"{self.challenger['value']:.1%}", f"of {self.images:,} test images right"
        if self.champion is None or self.p is None:
            return f"{where} {now} {of}"
        p = "p < 0.001" if self.p < 0.001 else f"p = {self.p:.3f}"
        return f"{where} {now} instead of {self.champion['value']:.1%} {of} ({p})"


@dataclass(frozen=True)
class Decision:
    """Whether the challenger takes the champion's place, why, and the figures behind it."""

    promote: bool
    reason: str
    lines: tuple[PairedComparison, ...] = ()

    def to_json(self) -> str:
        """Spell the figures out."""
        return json.dumps([asdict(line) for line in self.lines], ensure_ascii=False)


def answers(
    champion: Path,
    champions_predictions: Path,
    challengers_predictions: Path,
    dataset_dir: Path,
    images_dir: Path,
    challenger: Path,
) -> pd.DataFrame:
    """Ask both models about every test image; what one has answered before is not asked again.

    Args:
        champion: folder of the model that is in use.
        champions_predictions: its predictions.parquet, of an earlier test split.
        challengers_predictions: the challenger's, of this one.
        dataset_dir: the data set as it is now.
        images_dir: its shards.
        challenger: folder of the model that wants its place.

    Returns:
        A row a test image: image_id, domain, label, `known` (whether the champion knows that class), and whether
        `champion` and `challenger` are right.
    """
    manifest = tables.load_manifest(dataset_dir)
    rows = manifest[manifest["split"] == "test"].sort_values(["shard", "offset"], ignore_index=True)
    labels = rows["label"].astype(object)
    table = rows[["image_id", "domain", "label"]].assign(known=labels.isin(model.describe(champion)["classes"]))
    models = {"champion": (champion, champions_predictions), "challenger": (challenger, challengers_predictions)}
    for name, (folder, predictions) in models.items():
        answer = rows["image_id"].map(_recalled(folder, predictions)).astype(object)
        unasked = answer.isna()
        answer[unasked] = list(_ask(folder, rows[unasked], images_dir))
        table[name] = answer == labels
    return table


def _recalled(folder: Path, predictions: Path) -> dict[str, str]:
    """Recall which class a model gave each image of its own evaluation."""
    described = model.describe(folder)
    with reading(predictions):
        table = pq.read_table(predictions, columns=["image_id", described["kind"]])
        return {
            image_id: described["classes"][int(np.argmax(probabilities.values))]
            for image_id, probabilities in zip(*table.columns, strict=True)
        }


def _ask(folder: Path, rows: pd.DataFrame, images_dir: Path) -> Iterator[str]:
    if rows.empty:
        return
    asked = model.load(folder)
    with Reader(images_dir) as reader, progress.bar("compare", len(rows)) as advance:
        for start in range(0, len(rows), AT_ONCE):
            some = rows.iloc[start : start + AT_ONCE]
            places = zip(*(some[name] for name in ("shard", "offset", "size", "image_id")), strict=True)
            images = [reader.image(shard, int(offset), int(size), name) for shard, offset, size, name in places]
            yield from (prediction.label for prediction in asked.classify(images))
            advance(len(some))


def decide(
    table: pd.DataFrame, new_domains: Collection[str], settings: params.Retrain, *, resamples: int, seed: int
) -> Decision:
    """Decide whether the challenger is truly better.

    It is promoted if it is significantly better overall or on a new domain, by `min_gain` or more, or has learnt
    classes that the champion does not know; and if it is significantly worse neither overall nor on an older domain.
    The champion is compared on the classes it knows.

    Args:
        table: what `answers` gave.
        new_domains: domains that the champion was not trained on.
        settings: the section `retrain` of params.yaml.
        resamples: bootstrap draws behind the interval of a gain.
        seed: of the draws.
    """
    known, unknown = table[table["known"]], table[~table["known"]]
    parts = [(OVERALL, OVERALL, known)] if len(known) else []
    parts += [(DOMAIN, str(domain), rows) for domain, rows in known.groupby("domain", sort=True)]
    lines = [compare(*part, resamples=resamples, seed=seed) for part in parts]
    if len(unknown):
        share = _share(int(unknown["challenger"].sum()), len(unknown))
        lines.append(PairedComparison(NEW_CLASSES, NEW_CLASSES, len(unknown), share))
    return Decision(*_verdict(lines, new_domains, settings), tuple(lines))


def compare(about: str, what: str, rows: pd.DataFrame, *, resamples: int, seed: int) -> PairedComparison:
    """Compare the two models on some images, at least one, all of classes that both know."""
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
    """Resample the images: each is won, lost or neither, so that a resample is one draw of three counts."""
    value = (won - lost) / n
    if won + lost == 0 or n in (won, lost):  # no resample differs, and an interval of no width would claim certainty
        doubt = _share(0, n)["high"]
        return {"value": value, "low": max(value - doubt, -1.0), "high": min(value + doubt, 1.0)}
    draws = np.random.default_rng(seed).multinomial(n, [won / n, lost / n, (n - won - lost) / n], resamples)
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile((draws[:, 0] - draws[:, 1]) / n, [tail, 1 - tail])
    return {"value": value, "low": min(float(low), value), "high": max(float(high), value)}


def _verdict(lines: list[PairedComparison], new_domains: Collection[str], settings: params.Retrain) -> tuple[bool, str]:
    overall = [line for line in lines if line.about == OVERALL]
    new = [*overall, *(line for line in lines if line.about == DOMAIN and line.what in new_domains)]
    older = [*overall, *(line for line in lines if line.about == DOMAIN and line.what not in new_domains)]
    unknown = [line for line in lines if line.about == NEW_CLASSES]
    learnt = [line for line in unknown if line.challenger["value"] >= settings.new_class_accuracy]
    better = [line for line in new if line.is_better(settings)]
    if worse := [line for line in older if line.is_worse(settings)]:
        return False, f"The challenger is significantly worse: {_say(worse)}."
    if enough := [line for line in better if line.gains_enough(settings)]:
        return True, f"The challenger is better: {_say(enough)}; on no older domain is it significantly worse."
    if learnt:
        more = "knows classes that the champion does not"
        return True, f"The challenger {more}: {_say(learnt)}; on no older domain is it significantly worse."
    little = [f"retrain.new_class_accuracy is {settings.new_class_accuracy:.1%}"] if unknown else []
    if better:
        too_little = f"better, but by less than retrain.min_gain ({settings.min_gain:.1%})"
        return False, f"The challenger is {too_little}: {_say(better + unknown, *little)}."
    figures = _say(new + unknown, *little) or "there are no test images"
    return False, f"The challenger is not significantly better: {figures}."


def _say(lines: Sequence[PairedComparison], *more: str) -> str:
    return "; ".join([*map(PairedComparison.say, lines), *more])


def table(lines: Sequence[PairedComparison]) -> str:
    """Lay lines out as a table in Markdown."""
    rows = ["| test images | number | champion | challenger | gain, in points | p |", "|---|--:|--:|--:|--:|--:|"]
    return "\n".join([*rows, *map(_row, lines)])


def _row(line: PairedComparison) -> str:
    what = escape.markdown(line.what)
    champion, gain, p = "", "", ""
    if line.champion and line.gain and line.p is not None:
        champion = f"{line.champion['value']:.1%}"
        points = {end: f"{100 * share:+.1f}" for end, share in line.gain.items()}
        gain = f"{points['value']} ({points['low']} to {points['high']})"
        p = "< 0.001" if line.p < 0.001 else f"{line.p:.3f}"
    return f"| {what} | {line.images:,} | {champion} | {line.challenger['value']:.1%} | {gain} | {p} |"


def draw(lines: Sequence[PairedComparison], theme: plots.Theme = plots.LIGHT) -> bytes:
    """Draw both models' shares of right answers, with 95 % intervals, a row a line, as a PNG."""
    names = [f"{line.what} ({line.images:,})" for line in lines]
    shares: dict[str, list[Interval | None]] = {
        "champion": [line.champion for line in lines],
        "challenger": [line.challenger for line in lines],
    }
    return plots.draw_shares(names, shares, "test images right, with 95% interval", theme)

"""The gain of one classifier over another on the same test images: an exact test, and an interval.

    gain = paired.gain(correct_new - correct_old, groups)
    gain.p_better, gain.interval

Images of a group are not independent, so the test flips the signs of groups' sums, and the interval's variance is
that of groups. Where every group is one image the test is McNemar's exact test (McNemar 1947; Dietterich 1998
recommends it for two classifiers and one test set), and the interval is Tango's (1998), which keeps a width where the
models never differ. docs/retraining.md has error rates and coverage.
"""

import math
from dataclasses import dataclass

import numpy as np
from scipy import optimize, stats

from rootstock.evaluation import intervals
from rootstock.evaluation.intervals import CONFIDENCE, Floats, Integers, Interval, SampleSize

MIN_GROUPS = 40  # for an interval; of fewer images or groups so few differ that it would hold the true gain in 98 %
MAX_FLOATS = 2**21  # 16 MB at a time
FLIPS = 9_999  # random sign flips where sums are not whole numbers and too many to try all
MANY_SUMS = 1000  # of equal size, or as good as that many, whose total is taken to be normal
TOTAL_DECIMALS = 12  # of a total from -1 to 1: far more than a weight of one image in a million needs


@dataclass(frozen=True)
class Gain:
    """The weighted mean difference between two models on n images.

    Args:
        value: the gain, from -1 to 1.
        won: weighted share of images that only the new model classifies correctly.
        lost: the same of the old one.
        size: effective sample size.
        p_better: one-sided p of the sign-flip test: how often a gain as large as this would be chance; 1 if no image
            differs, or all that do are lost.
    """

    value: float
    won: float
    lost: float
    size: SampleSize
    p_better: float

    def score(self, hypothesis: float) -> float:
        """Return the score statistic against a hypothetical gain: about standard normal if that is the true one.

        The variance is that under the hypothesis (Tango 1998, Statistics in Medicine 17:891): with q the share of
        images that the new model loses, and q + gain the share that it wins, the likelihood is largest at the root of

            2 q² + b q + c = 0,    b = (2 - won + lost) gain - won - lost,    c = -lost gain (1 - gain)
        """
        b = (2 - self.won + self.lost) * hypothesis - self.won - self.lost
        c = -self.lost * hypothesis * (1 - hypothesis)
        q = (math.sqrt(max(b * b - 8 * c, 0.0)) - b) / 4
        variance = max(2 * q + hypothesis - hypothesis**2, 0.0) / self.size.images
        distance = self.value - hypothesis
        if variance == 0:
            return math.copysign(math.inf, distance) if distance else 0.0
        return distance / math.sqrt(variance)

    def bound(self, tail: float, *, upper: bool) -> float:
        """Return one end of the interval that leaves out `tail` on that side: where the score is the quantile."""
        quantile = self.size.quantile(tail)
        end = 1 - 1e-9 if upper else -1 + 1e-9
        near = self.value + math.copysign(1e-12, end)
        if (abs(near) >= abs(end) and near * end > 0) or abs(self.score(end)) < quantile:
            return round(end)
        return float(optimize.brentq(lambda hypothesis: abs(self.score(hypothesis)) - quantile, near, end))

    @property
    def interval(self) -> Interval:
        """Return the two-sided 95 % interval; the value alone where images, or those of rare classes, are too few."""
        if self.size.groups < MIN_GROUPS * (1 - 1e-9) or self.size.few_heavy:
            return intervals.no_interval(self.value)
        tail = (1 - CONFIDENCE) / 2
        return intervals.interval(self.value, self.bound(tail, upper=False), self.bound(tail, upper=True))

    def exceeds(self, hypothesis: float) -> bool:
        """Whether the lower end of the one-sided 95 % interval lies above a hypothetical gain."""
        return self.score(hypothesis) > self.size.quantile(1 - CONFIDENCE)

    def is_below(self, hypothesis: float) -> bool:
        """Whether the upper end of the one-sided 95 % interval lies below a hypothetical gain."""
        return self.score(hypothesis) < -self.size.quantile(1 - CONFIDENCE)

    def growth_to_exceed(self, hypothesis: float, tail: float, *, below: bool = False) -> float:
        """Return of how many times as many images the interval would exclude a hypothesis; infinity: of none.

        Args:
            hypothesis: a hypothetical gain.
            tail: what the one-sided interval leaves out.
            below: whether the interval is to lie below it, not above.
        """
        score = -self.score(hypothesis) if below else self.score(hypothesis)
        return (self.size.quantile(tail) / score) ** 2 if score > 0 else math.inf

    def growth_to_be_better(self, alpha: float) -> float:
        """Return of how many times as many images the exact test would show a gain; infinity: of none.

        With d images on which the models differ, w more of them won than lost, and the correction for continuity
        (Edwards 1948), f times as many have (f w - 1) / root(f d) = z.
        """
        if self.value <= 0:
            return math.inf
        more_won, differ = self.size.images * self.value, self.size.images * (self.won + self.lost)
        spread = self.size.quantile(alpha) * math.sqrt(differ)
        return ((spread + math.sqrt(spread**2 + 4 * more_won)) / (2 * more_won)) ** 2


def gain(differences: Integers, groups: Integers, weights: Floats | None = None, seed: int = 0) -> Gain:
    """Return the gain of a new model over an old one.

    Args:
        differences: of each image (n,), n > 0: 1 where only the new model is correct, -1 where only the old one is, 0.
        groups: the group of each image (n,), as any integers.
        weights: of each image (n,), summing to 1; None for equal ones.
        seed: of random sign flips, needed with weights and many groups.
    """
    own: Floats = np.full(len(differences), 1 / len(differences)) if weights is None else weights
    codes = np.unique(groups, return_inverse=True)[1]
    if weights is None:
        p_better = sign_flip_p(np.bincount(codes, differences).astype(np.int64))
    else:
        p_better = _weighted_sign_flip_p(np.bincount(codes, own * differences).astype(np.float64), seed)
    won, lost = (float(own[differences == side].sum()) for side in (1, -1))
    value = float(differences.mean()) if weights is None else won - lost
    return Gain(value, won, lost, intervals.sample_size(differences.astype(float), groups, weights), p_better)


def sign_flip_p(sums: Integers) -> float:
    """Return the exact one-sided p of a sign-flip test of whole sums (g,): how often their total would be as large.

    If the models are equally good, each group's sum could as well have the other sign. The total of n signs and sizes
    has the characteristic function cos(s₁ t) ... cos(sₙ t), whose inverse Fourier transform is its distribution.
    """
    sizes, counts = np.unique(np.abs(sums[sums != 0]), return_counts=True)
    furthest = int(sizes @ counts)
    if not furthest:
        return 1.0
    angles = 2 * np.pi * np.arange(2 * furthest + 1) / (2 * furthest + 1)
    characteristic = np.ones(len(angles))
    for size, count in zip(sizes, counts, strict=True):
        characteristic *= np.cos(size * angles) ** count
    probability = np.fft.ifft(characteristic).real  # of each total, modulo the length: 0, 1, ..., -2, -1
    total = np.concatenate([np.arange(furthest + 1), np.arange(-furthest, 0)])
    return float(np.clip(probability[total >= int(sums.sum())].sum(), 0.0, 1.0))


def _weighted_sign_flip_p(sums: Floats, seed: int) -> float:
    """Return the one-sided p of a sign-flip test of any sums (g,): exact for up to 13 of them, else by random flips.

    The total of many is normal: its excess kurtosis is -2 Σ s⁴ / (Σ s²)². As sums of one size make steps of twice that
    size, half a step is subtracted.
    """
    sums = sums[sums != 0]
    if len(sums) < 2:  # too few for scipy
        return 0.5 if sums.sum() > 0 else 1.0
    squares = np.square(sums)
    if squares.sum() ** 2 >= MANY_SUMS * np.square(squares).sum():
        return float(stats.norm.sf((sums.sum() - np.abs(sums).min()) / np.sqrt(squares.sum())))
    test = stats.permutation_test(
        (sums,), _rounded_total, permutation_type="samples", alternative="greater", n_resamples=FLIPS,
        batch=MAX_FLOATS // len(sums) + 1, vectorized=True, random_state=np.random.default_rng(seed),
    )  # fmt: skip
    return float(test.pvalue)


def _rounded_total(sums: Floats, axis: int) -> Floats:
    """Return totals of which those that differ by the order of summation alone are equal."""
    total: Floats = sums.sum(axis).round(TOTAL_DECIMALS)
    return total

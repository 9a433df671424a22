"""The classifier two-sample test: how well two samples of features can be told apart, with a calibrated interval."""

import math

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, stats
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import StratifiedKFold, cross_val_predict
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits

from rootstock.evaluation.intervals import CONFIDENCE, DECIMALS, Interval

Array = NDArray[np.float32]
FOLDS = 5
L2 = 100.0  # 1/C in scikit-learn's terms; measured in docs/benchmarks.md


def tell_apart(new: Array, reference: Array, seed: int) -> tuple[Interval, NDArray[np.float64], Pipeline]:
    """Cross-validate a domain classifier that separates new features from reference features.

    Args:
        new: features (m, d).
        reference: features (n, d); m and n are at least FOLDS.
        seed: of the folds.

    Returns:
        The mean AUC over folds (scores of different folds are not comparable: Airola et al. 2011) with its interval,
        the out-of-fold probabilities (m,) of being new, and a classifier fitted to all features.
    """
    x, is_new = np.concatenate([new, reference]), np.repeat([1, 0], [len(new), len(reference)])
    folds = StratifiedKFold(FOLDS, shuffle=True, random_state=seed)
    classifier = make_pipeline(StandardScaler(), LogisticRegression(C=1 / L2, class_weight="balanced", max_iter=1000))
    with threadpool_limits(1, user_api="blas"):  # as in training/logistic.py
        scores = cross_val_predict(classifier, x, is_new, cv=folds, method="predict_proba")[:, 1]
        classifier.fit(x, is_new)
    aucs = [roc_auc_score(is_new[fold], scores[fold]) for _, fold in folds.split(x, is_new)]
    return interval(float(np.mean(aucs)), len(new), len(reference)), scores[: len(new)], classifier


def interval(auc: float, m: int, n: int) -> Interval:
    """Return the 95 % interval of a cross-validated AUC of m images against n.

    Method 5 of Newcombe (2006, Statistics in Medicine 25:559): all θ with (auc - θ)² <= z² V(θ), where

        V(θ) = θ (1-θ) (1 + N (1-θ)/(2-θ) + N θ/(1+θ)) / (m n),    N = (m+n)/2 - 1

    It keeps a width at an AUC of 1, where DeLong's interval has none. V(½) = (m+n+1) / (12 m n) is the variance of the
    Mann-Whitney statistic: the interval contains ½ exactly where that test finds no difference.

    m and n are halved: the test images of one fold are training images of the others, so without drift the mean AUC
    of a linear classifier varies twice as much as with independent folds. docs/benchmarks.md has the coverage.
    """
    m_, n_, z = m / 2, n / 2, stats.norm.ppf((1 + CONFIDENCE) / 2)
    more = (m_ + n_) / 2 - 1

    def lowest(at: float) -> float:
        def excess(t: float) -> float:
            variance = t * (1 - t) * (1 + more * (1 - t) / (2 - t) + more * t / (1 + t)) / (m_ * n_)
            return float(at - t - z * math.sqrt(variance))

        nearly = at - 1e-9  # at 1 itself, 1 is a second root
        return float(optimize.brentq(excess, 0, nearly)) if nearly > 0 else 0.0

    ends = {"value": auc, "low": lowest(auc), "high": 1 - lowest(1 - auc)}  # V(θ) = V(1-θ)
    return {name: round(end, DECIMALS) for name, end in ends.items()}

"""Predictions of a calibrated model, drawn from a seed."""

import numpy as np

from rootstock.training.calibration import probabilities


def simulated(n: int, k: int, *, skill: float = 2.0, seed: int = 0):
    """Labels, logits and domains; calibrated by construction: a label is drawn from its own softmax."""
    draw = np.random.default_rng(seed)
    logits = skill * draw.normal(size=(n, k)).astype(np.float32)
    cumulated = probabilities(logits).cumsum(axis=1)
    labels = (draw.random((n, 1)) * cumulated[:, -1:] > cumulated).sum(axis=1).astype(np.int64)
    return labels, logits, np.array(["field", "studio"])[draw.integers(0, 2, n)]

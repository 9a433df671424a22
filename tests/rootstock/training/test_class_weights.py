"""Class weights: each class counts the same, and the average weight of an image is 1."""

import numpy as np
import pytest
from hypothesis import given, strategies as st
from sklearn.utils.class_weight import compute_class_weight

from rootstock.training.class_weights import class_weights, image_weights

labels_of = st.lists(st.integers(0, 4), min_size=1, max_size=60).map(np.array)


@given(labels_of)
def test_balanced_weights_equal_those_of_scikit_learn_and_give_each_class_the_same_total(labels):
    weights = class_weights(labels, 5, "balanced")
    present = np.unique(labels)
    expected = compute_class_weight("balanced", classes=present, y=labels)
    assert weights[present] == pytest.approx(expected, rel=1e-6)
    totals = np.bincount(labels, weights[labels], 5)[present]
    assert totals == pytest.approx(np.full(len(present), totals[0]))
    assert weights[labels].mean() == pytest.approx(1)
    assert not weights[np.setdiff1d(np.arange(5), present)].any()


@given(labels_of, labels_of)
def test_weights_of_other_images_average_to_1_too(labels, others):
    weights = class_weights(labels, 5, "balanced")
    assert image_weights(weights, others).mean() == pytest.approx(1)


def test_without_class_weights_every_image_counts_the_same():
    labels = np.array([0, 0, 1])
    assert class_weights(labels, 2, "none") is None
    assert image_weights(None, labels).tolist() == [1, 1, 1]

"""Repeated splits: every image is a test image once per repeat, groups stay whole, and nothing leaks into training."""

import json

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, strategies as st

from rootstock.config.params import Head
from rootstock.evaluation import repeated_splits
from rootstock.evaluation.repeated_splits import FOLDS, draw_folds
from tests.simulated_features import dataset, separable

SETTINGS = Head(l2=(10.0, 1.0))


@given(
    labels=st.lists(st.integers(0, 3), min_size=30, max_size=120).map(np.array),
    per_group=st.integers(1, 4),
    grouped=st.integers(0, 120),
    seed=st.integers(0, 99),
)
def test_a_group_is_never_in_two_folds_and_images_alone_in_theirs_are_stratified(labels, per_group, grouped, seed):
    number = np.arange(len(labels))
    groups = np.where(number < grouped, number // per_group, 1000 + number)
    fold = draw_folds(labels, groups, seed)
    assert pd.Series(fold).groupby(groups).nunique().max() == 1
    assert set(fold) <= set(range(FOLDS))
    alone = ~pd.Series(groups).duplicated(keep=False).to_numpy()
    counts = pd.crosstab(labels[alone], fold[alone]).reindex(columns=range(FOLDS), fill_value=0)
    assert (counts.max(axis=1) - counts.min(axis=1) <= 1).all()


def test_each_repeat_measures_every_image_with_a_different_split(tmp_path):
    labels = np.arange(150) % 3
    folders, manifest = dataset(tmp_path, labels, separable(labels, 3), np.arange(150))
    found = repeated_splits.measure(folders, manifest, SETTINGS, 3, seed=0)
    assert found == repeated_splits.measure(folders, manifest, SETTINGS, 3, seed=0)
    assert (found.images, found.groups, len(found.accuracies)) == (150, 150, 3)
    assert all(accuracy > 0.97 for accuracy in found.accuracies)
    assert not np.array_equal(draw_folds(labels, np.arange(150), 0), draw_folds(labels, np.arange(150), 1))
    assert "all 150 images were split anew into 5 folds" in found.describe()


def test_uninformative_features_are_no_better_than_chance_even_where_groups_repeat_an_image(tmp_path):
    rng = np.random.default_rng(0)
    groups = np.arange(200) // 4
    labels = rng.integers(0, 2, 50)[groups]
    noise = rng.normal(size=(50, 30))[groups]  # a random split would know each test image from training
    folders, manifest = dataset(tmp_path, labels, noise, groups)
    found = repeated_splits.measure(folders, manifest, SETTINGS, 3, seed=0)
    assert 0.3 < np.mean(found.accuracies) < 0.7
    assert "in 50 groups," in found.describe()


def test_images_of_a_class_that_is_held_out_as_a_whole_count_as_mistakes(tmp_path):
    labels = np.array([0, 1] * 45 + [2] * 10)
    groups = np.array([*range(90), *[90] * 10])  # the third class is one group
    folders, manifest = dataset(tmp_path, labels, separable(labels, 3), groups)
    found = repeated_splits.measure(folders, manifest, SETTINGS, 1, seed=0)
    assert found.accuracies[0] == pytest.approx(0.9, abs=0.03)


@pytest.mark.parametrize("classes", [1, 2])
def test_fewer_groups_than_folds_are_not_split_and_one_class_is_not_an_error(tmp_path, classes):
    labels = np.arange(40) % classes
    folders, manifest = dataset(tmp_path, labels, separable(labels, 2), np.arange(40) // 10)
    assert repeated_splits.measure(folders, manifest, SETTINGS, 1, seed=0) is None
    folders, manifest = dataset(tmp_path, labels, separable(labels, 2), np.arange(40))
    assert repeated_splits.measure(folders, manifest, SETTINGS, 1, seed=0).accuracies[0] == 1.0
    assert repeated_splits.measure(folders, manifest, SETTINGS, 0, seed=0) is None
    assert json.dumps(repeated_splits.measure(folders, manifest, SETTINGS, 1, 0).accuracies)

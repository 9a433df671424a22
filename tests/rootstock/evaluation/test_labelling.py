"""Which images to label first: uncertain ones, unlike each other, each once."""

import numpy as np
from hypothesis import given, strategies as st

from rootstock.evaluation import labelling
from rootstock.evaluation.labelling import BATCH, OUT_OF, Candidate, LeastCertain


def candidate(number: int, margin: float, phash: int | None = None) -> Candidate:
    rng = np.random.default_rng(number)
    own = int(rng.integers(0, 2**63)) if phash is None else phash
    return Candidate(f"d/_unlabelled/{number:05d}.png", "d", "ants", 0.6, 0.5, margin, own)


def ordered(candidates: list[Candidate], features: np.ndarray, seed: int = 0) -> list[Candidate]:
    kept = LeastCertain()
    for start in range(0, len(candidates), 100):
        kept.add(candidates[start : start + 100], features[start : start + 100])
    return labelling.order(candidates, kept.features(), 4, seed)


def test_the_first_batch_is_uncertain_and_comes_from_all_parts_of_the_feature_space():
    rng = np.random.default_rng(0)
    groups = 20  # of images that look alike; the least certain ones are nearly all of the first group
    group = np.r_[np.zeros(200, int), rng.integers(1, groups, 1000)]
    margins = np.r_[rng.uniform(0, 0.1, 200), rng.uniform(0.05, 1, 1000)]
    features = (10 * np.eye(groups)[group] + rng.normal(0, 0.3, (1200, groups))).astype(np.float32)
    listed = ordered([candidate(number, margin) for number, margin in enumerate(margins)], features)
    chosen = [int(one.path[-9:-4]) for one in listed[:BATCH]]
    alone = np.argsort(margins)[:BATCH]
    assert len(set(group[chosen])) > 2 * len(set(group[alone]))
    assert max(margins[chosen]) <= np.sort(margins)[OUT_OF * BATCH - 1]
    assert [one.margin for one in listed[BATCH:]] == sorted(one.margin for one in listed[BATCH:])


@given(st.lists(st.tuples(st.floats(0, 1), st.integers(0, 3)), max_size=120), st.integers(0, 5))
def test_every_image_is_listed_once_and_near_duplicates_of_an_earlier_one_last(drawn, seed):
    hashes = [0, 2**20 - 1, 2**40 - 2**20, 2**60 - 2**40]
    candidates = [candidate(number, margin, hashes[kind]) for number, (margin, kind) in enumerate(drawn)]
    features = np.random.default_rng(0).normal(size=(len(drawn), 4)).astype(np.float32)
    listed = ordered(candidates, features, seed)
    assert sorted(one.path for one in listed) == [one.path for one in candidates]
    alone = [one for one in listed if not one.like]
    assert len(alone) == len({kind for _, kind in drawn}) and listed[: len(alone)] == alone
    assert {one.like for one in listed[len(alone) :]} <= {one.path for one in alone}


def test_the_same_images_give_the_same_order_however_they_came(tmp_path):
    rng = np.random.default_rng(1)
    margins, features = rng.uniform(size=600), rng.normal(size=(600, 8)).astype(np.float32)
    candidates = [candidate(number, margin) for number, margin in enumerate(margins)]
    first = [one.path for one in ordered(candidates, features)]
    turned = rng.permutation(600)
    again = [one.path for one in ordered([candidates[index] for index in turned], features[turned])]
    assert first == again


def test_features_are_kept_of_the_least_certain_images_only(monkeypatch):
    monkeypatch.setattr(labelling, "KEPT", 10)
    kept = LeastCertain()
    margins = np.random.default_rng(2).permutation(100) / 100
    for number, margin in enumerate(margins):
        kept.add([candidate(number, margin)], np.full((1, 3), number, np.float32))
    found = kept.features()
    assert len(found) == 10
    assert {int(row[0]) for row in found.values()} == set(np.argsort(margins)[:10])

"""Images that are in no group with others are drawn in columns as they are one by one."""

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from rootstock.dataset import image_ids
from rootstock.ingest import drawing
from rootstock.ingest.drawing import Candidate, Singles, draw
from rootstock.ingest.layout import SPLITS

SHARES = {"train": 0.7, "val": 0.15, "test": 0.15}
STRATA = st.sampled_from([("garden", "ants"), ("garden", "bees"), ("meadow", "ants"), ("garden", "ants", "bees")])
KINDS = st.lists(st.tuples(STRATA, st.sampled_from([SPLITS, ("train", "val"), ("test",)])), min_size=1, max_size=5)


@given(KINDS, st.integers(0, 40), st.integers(0, 9), st.booleans(), st.data())
@settings(deadline=None)
def test_images_without_a_group_get_the_same_splits_in_columns(kinds, alone, together, alike, data):
    keys = drawing._random_key
    kind = data.draw(st.lists(st.integers(0, len(kinds) - 1), min_size=alone, max_size=alone))
    names = [f"{number:064x}" for number in range(alone + together)]

    def candidates(numbers: range) -> list[Candidate]:
        return [Candidate(names[number], *kinds[kind[number] if number < alone else 0]) for number in numbers]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(drawing, "AT_ONCE", 7)
        if alike:  # keys that begin alike are told apart by the rest
            patch.setattr(drawing, "_random_key", lambda seed, name: b"\0" * 8 + keys(seed, name)[:4])
        one_by_one, pairs = candidates(range(alone)), candidates(range(alone, alone + together))
        grouped = [pairs[at : at + 2] for at in range(0, together, 2)]
        draw([*([image] for image in one_by_one), *grouped], [*one_by_one, *pairs], SHARES, 1)
        expected = [image.split for image in [*one_by_one, *pairs]]

        pairs = candidates(range(alone, alone + together))
        grouped = [pairs[at : at + 2] for at in range(0, together, 2)]
        rows = np.arange(alone, dtype=np.int32)
        singles = Singles(image_ids.digests(names), rows, np.array(kind, np.int32), kinds)
        found = draw(grouped, pairs, SHARES, 1, singles=singles)
    assert [SPLITS[code] for code in found] + [image.split for image in pairs] == expected

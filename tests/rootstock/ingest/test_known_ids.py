"""The ids of known images: a set, in memory or in a file, of which each takes 32 bytes."""

import pytest
from hypothesis import given, settings, strategies as st

from rootstock.ingest import known_ids
from rootstock.ingest.known_ids import KnownIds

IDS = st.binary(min_size=32, max_size=32).map(bytes.hex)
ZEROS = {"00" * 32, "ab" * 31 + "00"}  # zeros at the end are bytes like any other


@given(first=st.lists(st.lists(IDS, max_size=5), max_size=4), added=st.lists(IDS, max_size=20), others=st.sets(IDS))
@settings(deadline=None)
def test_what_was_given_and_added_is_known_and_nothing_else(first, added, others):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(known_ids, "MOST_AS_TEXT", 7)
        found = KnownIds([*first, sorted(ZEROS)])
        for name in added:
            found.add(name)
    known = {name for some in first for name in some} | set(added) | ZEROS
    asked = sorted(known | others)
    expected = [name in known for name in asked]
    assert [name in found for name in asked] == found.are_known(asked) == expected
    with known_ids.in_file(found) as listed:
        assert [name in listed for name in asked] == expected
    gone = set(asked[::2])
    assert found.without(gone).are_known(asked) == [name in known - gone for name in asked]


def test_an_empty_set_knows_nothing():
    assert "ab" * 32 not in KnownIds() and KnownIds().are_known(["ab" * 32]) == [False]
    with known_ids.in_file(KnownIds()) as listed:
        assert "ab" * 32 not in listed

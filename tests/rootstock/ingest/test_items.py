"""The files of a source in columns: what comes out is what went in, in order, and it takes little memory."""

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from rootstock.images.inspection import Reason
from rootstock.ingest import items as columns
from rootstock.ingest.items import Chosen, Item, Items, Stamps, among, as_items, with_problem
from rootstock.ingest.layout import SPLITS

TEXT = st.text(st.characters(codec="utf-8"), max_size=4)
ITEMS = st.lists(
    st.builds(
        Item,
        path=TEXT,
        label=st.sampled_from(["", "ants", "bees"]),
        domain=st.sampled_from(["garden", "meadow"]),
        splits=st.sampled_from([SPLITS, ("train",)]),
        stamp=st.sampled_from(["12:34", "7:", "x"]),
        problem=st.sampled_from([None, None, Reason.NO_LABEL]),
        group=st.sampled_from(["", "", "p1"]),
    ),
    max_size=9,
    unique_by=lambda item: item.path,
).map(lambda items: sorted(items, key=lambda item: item.path))


@pytest.fixture(autouse=True, scope="module")
def few_at_a_time():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(columns, "ROWS", 2)
        yield


@given(ITEMS, st.data())
@settings(deadline=None)
def test_items_come_out_as_they_went_in(items, data):
    found = Items.of(items)
    assert list(found) == items == found and len(found) == len(items)
    assert [found[at] for at in range(len(items))] == items and found[1:] == items[1:]
    assert as_items(found) is found and as_items(items[::-1]) == items
    rows = data.draw(st.lists(st.booleans(), min_size=len(items), max_size=len(items)))
    wanted = [item for item, is_wanted in zip(items, rows, strict=True) if is_wanted]
    chosen = Chosen(found, np.array(rows, bool))
    assert list(chosen) == [item.path for item in wanted] and len(chosen) == len(wanted)
    assert [item for item in items if item.path in chosen] == wanted
    assert list(among(found, chosen)) == list(among(found, set(chosen))) == list(among(items, chosen)) == wanted
    assert "not there" not in chosen


@given(ITEMS)
def test_the_first_file_of_each_kind_is_found(items):
    firsts = {(item.label, item.domain, item.splits, item.problem): item.path for item in reversed(items)}
    assert list(Items.of(items).firsts()) == sorted(firsts.items(), key=lambda first: first[1])


@given(ITEMS)
def test_files_are_marked_as_rejected(items):
    gone = {item.path for item in items[::2]}
    expected = [item._replace(problem=Reason.UNSAFE_PATH) if item.path in gone else item for item in items]
    assert with_problem(Items.of(items), gone, Reason.UNSAFE_PATH) == expected
    assert with_problem(items, gone, Reason.UNSAFE_PATH) == expected


@given(st.lists(st.tuples(TEXT, TEXT)))
def test_stamps_are_in_the_order_of_text_and_of_the_same_path_the_last_one_counts(pairs):
    found = Stamps.of(pairs)
    assert list(found.items()) == sorted(dict(pairs).items()) and list(found) == sorted(dict(pairs))
    assert all(found[path] == stamp for path, stamp in dict(pairs).items())
    with pytest.raises(KeyError):
        found["not there"]


def test_an_item_takes_its_text_and_twenty_bytes():
    pairs = ((f"class-{number % 100:04d}/{number:08d}.jpg", f"2000:{number}") for number in range(20_000))
    stamps = Stamps.of(pairs)
    assert stamps.paths.nbytes + stamps.stamps.nbytes <= 20_001 * (23 + 10 + 16)
    found = Items.of(Item(path, path[:10], "garden", SPLITS, stamp) for path, stamp in stamps.items())
    assert found.codes.nbytes <= 4 * 20_000 and len(found.kinds) == 100 and found.groups is None

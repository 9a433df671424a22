"""Groups are the images that group names and near duplicates connect; the group id is that of the first image."""

import numpy as np
import pandas as pd
from hypothesis import given, settings, strategies as st

from rootstock.ingest.group_notes import describe_chain
from rootstock.ingest.groups import components, group_ids, links_by_name
from rootstock.ingest.near_duplicates import near_links

IDS = [f"{number:04x}" for number in range(12)]


def table(ids, batches) -> pd.DataFrame:
    return pd.DataFrame({"image_id": ids, "batch": batches})


@st.composite
def grouped(draw):
    """Draw images in batches, and links between some."""
    batches = draw(st.lists(st.integers(1, 3), min_size=len(IDS), max_size=len(IDS)))
    index = st.integers(0, len(IDS) - 1)
    return table(IDS, batches), np.array(draw(st.lists(st.tuples(index, index), max_size=12)), np.int64).reshape(-1, 2)


@given(grouped())
@settings(deadline=None)
def test_two_images_have_the_same_group_id_if_and_only_if_links_connect_them(images_and_links):
    images, links = images_and_links
    ids, component = group_ids(images, links), components(len(images), links)
    assert [[a == b for a in ids] for b in ids] == [[a == b for a in component] for b in component]


@given(grouped())
@settings(deadline=None)
def test_a_group_id_is_the_id_of_its_first_image_and_stays_when_later_images_join(images_and_links):
    images, links = images_and_links
    known = (images["batch"] < 3).to_numpy()
    position = np.cumsum(known) - 1
    within = links[known[links].all(axis=1)]
    before = dict(zip(images["image_id"][known], group_ids(images[known], position[within]), strict=True))
    after = dict(zip(images["image_id"], group_ids(images, links), strict=True))
    assert set(after.values()) <= set(IDS)
    for image, was in before.items():
        merged = {before[other] for other in before if after[other] == after[image]}
        assert after[image] in merged, "the id of one of the groups that are now one"
        assert len(merged) > 1 or after[image] == was


@given(grouped(), st.permutations(range(len(IDS))))
@settings(deadline=None)
def test_group_ids_do_not_depend_on_the_order_of_images(images_and_links, order):
    images, links = images_and_links
    shuffled = group_ids(images.iloc[order], np.argsort(order)[links])
    assert dict(zip(images["image_id"].iloc[order], shuffled, strict=True)) == dict(
        zip(images["image_id"], group_ids(images, links), strict=True)
    )


def test_images_with_the_same_group_name_are_linked_and_an_image_may_have_two_names():
    named = pd.DataFrame({"image_id": ["0003", "0001", "0005", "0005", "0007", "gone"], "group": [*"aaabbb"]})
    assert links_by_name(table(IDS, 1), named).tolist() == [[1, 3], [1, 5], [5, 7]]
    assert links_by_name(table(IDS, 1), named.head(0)).tolist() == []


def grouped_by_hash(hashes: np.ndarray, bits: int) -> tuple[pd.Series, pd.DataFrame]:
    """Return the group of each image by near duplicates, and the ledger."""
    ledger = table([f"{number:06x}" for number in range(len(hashes))], 1).assign(phash=hashes)
    return pd.Series(components(len(hashes), near_links(hashes, bits)[0]), index=ledger["image_id"]), ledger


def test_a_note_tells_when_near_duplicates_chain_images_that_are_not_alike():
    random = np.random.default_rng(0)
    alike = np.uint64(7) ^ (np.uint64(1) << random.integers(0, 64, 500, dtype=np.uint64))
    assert describe_chain(*grouped_by_hash(alike, 4), 4) == ""
    far = random.integers(0, 2**64, 500, dtype=np.uint64)
    assert describe_chain(*grouped_by_hash(far, 4), 4) == ""
    chained = grouped_by_hash(np.arange(3000, dtype=np.uint64) * np.uint64(2**20 + 1), 4)
    note = describe_chain(*chained, 4)
    assert note.startswith("Near duplicates chain 3,000 of 3,000 images into one group")
    assert "lower ingest.near_duplicate_bits, now 4" in note
    assert describe_chain(*grouped_by_hash(np.array([], np.uint64), 4), 4) == ""

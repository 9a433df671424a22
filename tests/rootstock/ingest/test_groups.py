"""Groups are the images that group names and near duplicates connect; the group id is that of the first image."""

import numpy as np
from hypothesis import given, settings, strategies as st

from rootstock.dataset import image_ids
from rootstock.ingest.group_notes import describe_chain
from rootstock.ingest.groups import components, first_of_groups, links_by_name
from rootstock.ingest.near_duplicates import near_links

IDS = image_ids.digests([f"{number:064x}" for number in range(1, 13)])


def firsts(batches, rows, links) -> np.ndarray:
    return first_of_groups(IDS, np.array(batches, np.int32), np.array(rows), links)


@st.composite
def grouped(draw):
    """Draw images in batches, and links between some."""
    batches = draw(st.lists(st.integers(1, 3), min_size=len(IDS), max_size=len(IDS)))
    index = st.integers(0, len(IDS) - 1)
    return batches, np.array(draw(st.lists(st.tuples(index, index), max_size=12)), np.int64).reshape(-1, 2)


@given(grouped())
@settings(deadline=None)
def test_two_images_have_the_same_group_id_if_and_only_if_links_connect_them(images_and_links):
    batches, links = images_and_links
    first, component = firsts(batches, range(len(IDS)), links), components(len(IDS), links)
    assert [[a == b for a in first] for b in first] == [[a == b for a in component] for b in component]


@given(grouped())
@settings(deadline=None)
def test_a_group_id_is_the_id_of_its_first_image_and_stays_when_later_images_join(images_and_links):
    batches, links = images_and_links
    known = np.array(batches) < 3
    position = np.cumsum(known) - 1
    within = links[known[links].all(axis=1)]
    old = np.flatnonzero(known)
    before = dict(zip(old, firsts(batches, old, position[within]), strict=True))
    after = dict(enumerate(firsts(batches, range(len(IDS)), links)))
    for image, was in before.items():
        merged = {before[other] for other in before if after[other] == after[image]}
        assert after[image] in merged, "the id of one of the groups that are now one"
        assert len(merged) > 1 or after[image] == was


@given(grouped(), st.permutations(range(len(IDS))))
@settings(deadline=None)
def test_group_ids_do_not_depend_on_the_order_of_images(images_and_links, order):
    batches, links = images_and_links
    shuffled = firsts(batches, order, np.argsort(order)[links])
    assert dict(zip(order, shuffled, strict=True)) == dict(enumerate(firsts(batches, range(len(IDS)), links)))


def test_images_with_the_same_group_name_are_linked_and_an_image_may_have_two_names():
    images, names = np.array([3, 1, 5, 5, 7]), np.array([0, 0, 0, 1, 1])
    assert links_by_name(images, names).tolist() == [[1, 3], [1, 5], [5, 7]]
    assert links_by_name(images[:0], names[:0]).tolist() == []


def grouped_by_hash(hashes: np.ndarray, bits: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the group of each image by near duplicates, and its hash."""
    return components(len(hashes), near_links(hashes, bits)[0]), hashes


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

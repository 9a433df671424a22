"""Perceptual hashes, and links between those that differ in few bits."""

import io

import imagehash
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from rootstock.images.perceptual_hash import perceptual_hashes, thumbnail
from rootstock.ingest import near_duplicates
from rootstock.ingest.near_duplicates import near_links
from tests.images import encoded, nearly, picture


def hashes_of(*images: Image.Image) -> list[int]:
    return perceptual_hashes([thumbnail(image) for image in images])


def groups(n: int, links: np.ndarray) -> set[frozenset[int]]:
    """Return the connected components."""
    graph = coo_array((np.ones(len(links)), (links[:, 0], links[:, 1])), shape=(n, n))
    component = connected_components(graph, directed=False)[1]
    return {frozenset(np.flatnonzero(component == number).tolist()) for number in set(component)}


def all_pairs(hashes: list[int], bits: int) -> np.ndarray:
    pairs = [
        (i, j)
        for i in range(len(hashes))
        for j in range(i + 1, len(hashes))
        if (hashes[i] ^ hashes[j]).bit_count() <= bits
    ]
    return np.array(pairs, np.int64).reshape(-1, 2)


@st.composite
def clustered_hashes(draw):
    """Draw hashes around a few centres, so that many are near each other and chains form."""
    centres = draw(st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=3))
    flips = st.lists(st.integers(0, 63), max_size=9)
    return [
        centre ^ sum(1 << bit for bit in set(bits))
        for centre, bits in draw(st.lists(st.tuples(st.sampled_from(centres), flips), min_size=1, max_size=30))
    ]


@given(clustered_hashes().map(lambda hashes: list(dict.fromkeys(hashes))), st.integers(0, 8), st.data())
@settings(deadline=None, max_examples=300)
def test_every_pair_of_near_hashes_is_linked_whether_they_come_at_once_or_in_two_deliveries(hashes, bits, data):
    expected = all_pairs(hashes, bits).tolist()
    links, _ = near_links(np.array(hashes, np.uint64), bits)
    assert links.tolist() == expected
    earlier = data.draw(st.lists(st.sampled_from(hashes), unique=True))
    _, known = near_links(np.array(earlier, np.uint64), bits)
    links, _ = near_links(np.array(hashes, np.uint64), bits, known)
    assert links.tolist() == expected


@given(clustered_hashes(), st.integers(0, 8))
@settings(deadline=None, max_examples=300)
def test_near_links_form_the_same_groups_as_comparing_all_pairs(hashes, bits):
    links, _ = near_links(np.array(hashes, np.uint64), bits)
    assert groups(len(hashes), links) == groups(len(hashes), all_pairs(hashes, bits))
    assert all((hashes[i] ^ hashes[j]).bit_count() <= bits for i, j in links.tolist())
    assert (links[:, 0] < links[:, 1]).all()


@given(clustered_hashes(), st.integers(0, 8), st.integers(2, 6), st.integers(0, 3))
@settings(deadline=None, max_examples=300)
def test_near_links_form_the_same_groups_where_many_hashes_share_a_band(hashes, bits, large, depth):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(near_duplicates, "LARGE_BUCKET", large)
        patch.setattr(near_duplicates, "MAX_DEPTH", depth)
        patch.setattr(near_duplicates, "BLOCK", 4)
        patch.setattr(near_duplicates, "MAX_LINKS_PER_HASH", 0)
        patch.setattr(near_duplicates, "MAX_EXTRA_LINKS", 0)
        links, _ = near_links(np.array(hashes, np.uint64), bits)
    assert groups(len(hashes), links) == groups(len(hashes), all_pairs(hashes, bits))
    assert all((hashes[i] ^ hashes[j]).bit_count() <= bits for i, j in links.tolist())


@given(clustered_hashes(), st.integers(0, 8), st.integers(0, 8), st.data())
@settings(deadline=None, max_examples=300)
def test_a_delivery_joins_the_same_groups_as_if_all_had_come_at_once(hashes, bits, earlier_bits, data):
    earlier = data.draw(st.lists(st.sampled_from(hashes)))  # perhaps one that is no longer here
    _, known = near_links(np.array(earlier, np.uint64), earlier_bits)
    here = np.array(data.draw(st.lists(st.sampled_from(hashes))) + earlier[1:], np.uint64)
    links, _ = near_links(here, bits, known)
    assert groups(len(here), links) == groups(len(here), all_pairs(here.tolist(), bits))


def test_of_a_second_delivery_only_new_hashes_are_compared(monkeypatch):
    hashes = np.random.default_rng(0).integers(0, 2**64, 1000, dtype=np.uint64)
    _, known = near_links(hashes, 4)
    monkeypatch.setattr(near_duplicates, "_all_links", lambda *_: pytest.fail("all hashes are compared again"))
    links, known = near_links(np.append(hashes, hashes[7] ^ np.uint64(1)), 4, known)
    assert links.tolist() == [[7, 1000]]
    links, _ = near_links(np.append(hashes, [hashes[7] ^ np.uint64(1), hashes[7] ^ np.uint64(3)]), 4, known)
    assert {7, 1000, 1001} in groups(1002, links)


def flipped(n: int, flips: int) -> np.ndarray:
    """Draw hashes that are one hash with some bits flipped."""
    random = np.random.default_rng(flips)
    hashes = np.full(n, 2**63 + 12345, np.uint64)
    for _ in range(flips):
        hashes ^= np.uint64(1) << random.integers(0, 64, n, dtype=np.uint64)
    return hashes


@pytest.mark.timeout(120)  # 2 to 6 s each; all pairs took minutes, and gigabytes for the links
@pytest.mark.parametrize(
    "hashes",
    [
        flipped(100_000, 4),
        pytest.param(flipped(100_000, 10), marks=pytest.mark.slow),
        pytest.param(np.arange(100_000, dtype=np.uint64), marks=pytest.mark.slow),
        np.random.default_rng(0).integers(0, 2**52, 100_000, dtype=np.uint64),
        pytest.param(np.random.default_rng(0).integers(0, 2**32, 100_000, dtype=np.uint64), marks=pytest.mark.slow),
    ],
    ids=["four flips", "ten flips", "consecutive", "one band in common", "half of the bits are constant"],
)
def test_100_000_near_duplicates_are_linked_in_seconds_with_few_links(hashes):
    links, _ = near_links(hashes, 4)
    assert len(links) < 20 * len(hashes)
    assert (np.bitwise_count(hashes[links[:, 0]] ^ hashes[links[:, 1]]) <= 4).all()
    some = np.random.default_rng(1).integers(0, len(hashes), 50)
    component = connected_components(
        coo_array((np.ones(len(links)), (links[:, 0], links[:, 1])), shape=(len(hashes),) * 2), directed=False
    )[1]
    for at in some:
        near = np.bitwise_count(hashes ^ hashes[at]) <= 4
        assert (component[near] == component[at]).all()


def test_no_hashes_have_no_links():
    assert near_links(np.array([], np.uint64), 4)[0].shape == (0, 2)
    assert near_links(np.array([7], np.uint64), 4)[0].shape == (0, 2)


def test_a_thousand_equal_hashes_make_a_thousand_links():
    assert len(near_links(np.full(1000, 2**63 + 5, np.uint64), 4)[0]) == 999


@pytest.mark.timeout(60)  # a second or two; all pairs would be 20 billion
def test_200_000_random_hashes_are_linked_in_seconds():
    hashes = np.random.default_rng(0).integers(0, 2**64, 200_000, dtype=np.uint64)
    hashes[1::1000] = hashes[::1000] ^ np.uint64(0b1001)
    links, _ = near_links(hashes, 4)
    assert links.tolist() == [[at, at + 1] for at in range(0, 200_000, 1000)]


def test_batched_hashes_equal_those_of_imagehash():
    blank, ruled = Image.new("RGB", (40, 30), "white"), Image.new("L", (64, 64))
    ruled.paste(255, (0, 0, 64, 32))
    shown = [*(picture(number, 30 + number, 90 - number) for number in range(60)), blank, ruled, blank.convert("1")]
    expected = [int(str(imagehash.phash(image)), 16) for image in shown]
    assert perceptual_hashes([thumbnail(image) for image in shown]) == expected
    assert [perceptual_hashes([thumbnail(image)])[0] for image in shown] == expected
    assert perceptual_hashes([]) == []


@given(arrays(np.uint8, (7, 32, 32)))
def test_a_hash_does_not_depend_on_the_rest_of_its_batch(thumbnails):
    assert perceptual_hashes(thumbnails) == [perceptual_hashes([one])[0] for one in thumbnails]


def test_a_lightly_edited_photo_stays_a_near_duplicate():
    photo = picture(1, 320, 240)
    was, *hashes = hashes_of(
        photo,
        nearly(photo),
        photo.resize((160, 120), Image.Resampling.LANCZOS),
        photo.point(lambda value: min(255, value + 8)),
        Image.open(io.BytesIO(encoded(photo, "JPEG", quality=60))),
    )
    assert max((was ^ phash).bit_count() for phash in hashes) <= 4


def test_different_photos_are_far_apart():
    hashes = np.array(hashes_of(*(picture(number) for number in range(100))), np.uint64)
    assert len(near_links(hashes, 8)[0]) == 0

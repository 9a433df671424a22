"""Splits: near duplicates stay together, every class has its shares, and assigned images never move."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from rootstock.ingest.layout import SPLITS
from rootstock.ingest.splits import Candidate, assign_splits

SHARES = {"train": 0.7, "val": 0.15, "test": 0.15}
NO_LINKS = np.empty((0, 2), np.int64)


def name(number: int) -> str:
    return f"{number:064x}"


def new(numbers, label="ants", domain="garden", allowed=SPLITS) -> list[Candidate]:
    return [Candidate(name(number), (domain, label), allowed) for number in numbers]


def settled(images: list[Candidate], links=NO_LINKS, seed=0) -> dict[str, str | None]:
    assign_splits(images, np.array(links, np.int64).reshape(-1, 2), SHARES, seed)
    return {image.image_id: image.split for image in images}


def old(split: str, number: int, label="ants") -> Candidate:
    return Candidate(name(number), ("garden", label), SPLITS, split, name(number))


@st.composite
def arrivals(draw):
    """Draw images of a few classes and domains in two batches, links among all, and the allowed splits of each."""
    n = draw(st.integers(1, 25))
    labels, domains = st.sampled_from(["ants", "bees"]), st.sampled_from(["garden", "meadow"])
    allowed = st.sampled_from([SPLITS, SPLITS, ("train",), ("val",), ("test",), ("train", "val")])
    images = [Candidate(name(number), (draw(domains), draw(labels)), draw(allowed)) for number in range(n)]
    pairs = st.tuples(st.integers(0, n - 1), st.integers(0, n - 1)).filter(lambda pair: pair[0] < pair[1])
    links = draw(st.lists(pairs, max_size=n, unique=True)) if n > 1 else []
    return images, links, draw(st.integers(0, n))


@given(arrivals(), st.integers(0, 3))
@settings(deadline=None, max_examples=400)
def test_near_duplicates_never_straddle_and_nobody_moves(arrived, seed):
    images, links, first = arrived
    before = settled(images[:first], [(i, j) for i, j in links if j < first], seed)
    after = settled(images, links, seed)
    assert {image: after[image] for image in before} == before
    for i, j in links:
        one, other = images[i], images[j]
        assert not (one.split and other.split) or one.split == other.split
    for image in images:
        assert (image.split is None) == (image.group_id is None)


@given(arrivals(), st.integers(0, 3))
@settings(deadline=None, max_examples=200)
def test_images_that_arrive_together_all_get_a_place(arrived, seed):
    images, links, _ = arrived
    assert None not in settled(images, links, seed).values()
    for i, j in links:
        assert images[i].group_id == images[j].group_id


@given(arrivals(), st.randoms(use_true_random=False), st.integers(0, 3))
@settings(deadline=None, max_examples=200)
def test_the_order_in_which_new_images_come_makes_no_difference(arrived, random, seed):
    images, links, first = arrived
    settled(images[:first], [(i, j) for i, j in links if j < first], seed)
    copies = [Candidate(i.image_id, i.stratum, i.allowed, i.split, i.group_id) for i in images]
    order = list(range(first)) + random.sample(range(first, len(images)), len(images) - first)
    position = {number: at for at, number in enumerate(order)}
    shuffled = [copies[number] for number in order]
    moved = sorted(tuple(sorted((position[i], position[j]))) for i, j in links)
    assert settled(images, links, seed) == settled(shuffled, moved, seed)
    assert {image.image_id: image.group_id for image in images} == {
        image.image_id: image.group_id for image in shuffled
    }


@given(
    st.lists(st.tuples(st.sampled_from(["garden", "meadow"]), st.sampled_from(["ants", "bees"])), max_size=150),
    st.integers(0, 99),
)
@settings(deadline=None, max_examples=100)
def test_every_stratum_and_every_class_keeps_the_shares(strata, seed):
    images = [Candidate(name(number), stratum) for number, stratum in enumerate(strata)]
    settled(images, seed=seed)
    for level, tolerance in ((lambda image: image.stratum, 3), (lambda image: image.stratum[1], 2)):
        counts = Counter((level(image), image.split) for image in images)
        totals = Counter(level(image) for image in images)
        for key, total in totals.items():
            for split in SPLITS:
                assert abs(counts[key, split] - total * SHARES[split]) <= tolerance


def test_a_hundred_images_are_cut_exactly():
    assert Counter(settled(new(range(100))).values()) == {"train": 70, "val": 15, "test": 15}


def test_what_comes_later_is_cut_so_that_the_whole_keeps_the_shares():
    images = new(range(20))
    settled(images)
    images += new(range(20, 200))
    assert Counter(settled(images).values()) == {"train": 140, "val": 30, "test": 30}


def test_a_class_of_three_has_one_in_each_split():
    images = [image for number in range(50) for image in new(range(3 * number, 3 * number + 3), f"class {number}")]
    settled(images)
    for label in {image.stratum[1] for image in images}:
        assert {image.split for image in images if image.stratum[1] == label} == set(SPLITS)


def test_a_class_of_three_domains_with_one_image_each_has_one_in_each_split():
    images = [image for domain in "abc" for image in new([ord(domain)], domain=domain)]
    assert set(settled(images).values()) == set(SPLITS)


def test_a_class_of_two_groups_is_trained_and_tested_on():
    assert sorted(settled(new(range(4)), [(0, 1), (2, 3)]).values()) == ["test", "test", "train", "train"]


def test_a_large_group_goes_where_there_is_room_for_it():
    chain = [(number, number + 1) for number in range(39)] + [(number, number + 1) for number in range(40, 59)]
    for seed in range(10):
        counts = Counter(settled(images := new(range(100)), chain, seed).values())
        assert counts == {"train": 70, "val": 15, "test": 15}
        assert {image.split for image in images[:60]} == {"train"}


def test_the_same_seed_gives_the_same_splits_and_another_gives_others():
    assert settled(new(range(50)), seed=1) == settled(new(range(50)), seed=1)
    assert settled(new(range(50)), seed=1) != settled(new(range(50)), seed=2)


def test_a_new_near_duplicate_joins_the_split_and_the_group_of_the_one_that_is_there():
    for split in SPLITS:
        images = [old(split, 1), *new([2, 3])]
        assert settled(images, [(0, 1), (1, 2)])[name(3)] == split
        assert images[2].group_id == name(1)


def test_a_new_near_duplicate_joins_even_against_its_folder():
    assert settled([old("test", 1), *new([2], allowed=("train",))], [(0, 1)])[name(2)] == "test"


def test_an_image_near_to_two_splits_has_no_place_and_its_neighbours_have():
    images = [old("train", 1), old("test", 2), *new([3, 4, 5])]
    after = settled(images, [(0, 2), (1, 2), (0, 3), (1, 4)])
    assert after == {name(1): "train", name(2): "test", name(3): None, name(4): "train", name(5): "test"}


def test_what_hangs_on_an_image_without_a_place_stands_for_itself():
    images = [old("train", 1), old("test", 2), *new([3, 4, 5])]
    after = settled(images, [(0, 2), (1, 2), (2, 3), (3, 4)])
    assert after[name(3)] is None
    assert after[name(4)] == after[name(5)] is not None


def test_an_image_without_a_place_gets_one_when_it_comes_again_without_its_neighbours():
    assert settled([old("train", 1), *new([3])], [(0, 1)])[name(3)] == "train"


@pytest.mark.parametrize(
    ("folders", "together"),
    [
        ([("train",), ("test",)], "test"),
        ([("train",), ("val",)], "val"),
        ([("val",), ("test",), ("train",)], "test"),
        ([("train", "val"), ("test",)], "test"),
        ([("train", "val"), ("train",)], "train"),
        ([SPLITS, ("val",)], "val"),
    ],
)
def test_a_group_that_folders_tear_apart_is_held_out_together(folders, together):
    images = [image for number, allowed in enumerate(folders) for image in new([number], allowed=allowed)]
    chain = [(number, number + 1) for number in range(len(folders) - 1)]
    assert set(settled(images, chain).values()) == {together}


def test_what_a_folder_says_is_done():
    images = new(range(10), allowed=("train", "val")) + new(range(10, 20), allowed=("test",))
    after = settled(images)
    assert {after[name(number)] for number in range(10, 20)} == {"test"}
    assert Counter(after[name(number)] for number in range(10)) == {"train": 8, "val": 2}


def test_small_classes_in_a_train_folder_still_have_one_to_validate_by():
    images = new(range(2), allowed=("train", "val")) + new(range(10, 30), allowed=("test",))
    after = settled(images)
    assert {after[name(0)], after[name(1)]} == {"train", "val"}


@pytest.mark.timeout(60)
def test_a_hundred_thousand_images_with_a_thousand_bridges_are_settled_in_seconds():
    n = 100_000
    images = [old("train" if number % 2 else "test", number) for number in range(n // 2)] + new(range(n // 2, n))
    bridges = [
        (at + side, n // 2 + at) for at in range(0, 2000, 2) for side in (0, 1)
    ]  # a new image between two existing ones
    after = settled(images, sorted(bridges))
    assert [image for image, split in after.items() if split is None] == [name(n // 2 + at) for at in range(0, 2000, 2)]

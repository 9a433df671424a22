"""Splits: images that belong together share one, every class has its shares, and assigned images never move."""

import time
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from rootstock.ingest.drawing import Candidate
from rootstock.ingest.layout import SPLITS
from rootstock.ingest.splits import assign_splits

SHARES = {"train": 0.7, "val": 0.15, "test": 0.15}
NO_LINKS = np.empty((0, 2), np.int64)


def name(number: int) -> str:
    return f"{number:064x}"


def new(numbers, label="ants", domain="garden", allowed=SPLITS) -> list[Candidate]:
    return [Candidate(name(number), (domain, label), allowed) for number in numbers]


def settled(images: list[Candidate], near=NO_LINKS, seed=0, named=NO_LINKS) -> dict[str, str | None]:
    near, named = (np.array(links, np.int64).reshape(-1, 2) for links in (near, named))
    assign_splits(images, near, named, SHARES, seed)
    return {image.image_id: image.split for image in images}


def old(split: str, number: int, label="ants") -> Candidate:
    return Candidate(name(number), ("garden", label), SPLITS, split)


@st.composite
def arrivals(draw):
    """Draw images of a few classes and domains in two batches, allowed splits, near duplicates and names."""
    n = draw(st.integers(1, 25))
    labels, domains = st.sampled_from(["ants", "bees"]), st.sampled_from(["garden", "meadow"])
    allowed = st.sampled_from([SPLITS, SPLITS, ("train",), ("val",), ("test",), ("train", "val")])
    images = [Candidate(name(number), (draw(domains), draw(labels)), draw(allowed)) for number in range(n)]
    pairs = st.tuples(st.integers(0, n - 1), st.integers(0, n - 1)).filter(lambda pair: pair[0] < pair[1])
    near = draw(st.lists(pairs, max_size=n, unique=True)) if n > 1 else []
    names = draw(st.lists(st.sampled_from(["", "", "p1", "p2", "p3", "p4"]), min_size=n, max_size=n))
    return images, near, names, draw(st.integers(0, n))


def same_name(names: list[str]) -> list[tuple[int, int]]:
    return [(names.index(name), at) for at, name in enumerate(names) if name and names.index(name) < at]


def among(links: list[tuple[int, int]], first: int) -> list[tuple[int, int]]:
    return [(i, j) for i, j in links if j < first]


@given(arrivals(), st.integers(0, 3))
@settings(deadline=None, max_examples=400)
def test_images_that_belong_together_share_a_split_and_assigned_images_never_move(arrived, seed):
    images, near, names, first = arrived
    named = same_name(names)
    before = settled(images[:first], among(near, first), seed, among(named, first))
    after = settled(images, near, seed, named)
    assert {image: after[image] for image in before if before[image]} == {i: s for i, s in before.items() if s}
    for i, j in [*near, *named]:
        one, other = images[i], images[j]
        assert not (one.split and other.split) or one.split == other.split


@given(arrivals(), st.lists(st.sampled_from([None, *SPLITS]), min_size=25, max_size=25), st.integers(0, 3))
@settings(deadline=None, max_examples=400)
def test_new_images_with_the_same_group_name_share_a_split_even_if_older_ones_do_not(arrived, assigned, seed):
    images, near, names, first = arrived
    for image, split in zip(images[:first], assigned, strict=False):
        image.split = split
    new = {at for at, image in enumerate(images) if not image.split}
    before = {image.image_id: image.split for image in images if image.split}
    after = settled(images, near, seed, same_name(names))
    assert {image: after[image] for image in before} == before
    for group in {*names} - {""}:
        assert len({images[at].split for at in new if names[at] == group} - {None}) <= 1
    for i, j in near:
        if (i in new or j in new) and images[i].split and images[j].split:
            assert images[i].split == images[j].split


@given(arrivals(), st.integers(0, 3))
@settings(deadline=None, max_examples=200)
def test_images_that_arrive_together_are_all_assigned(arrived, seed):
    images, near, names, _ = arrived
    assert None not in settled(images, near, seed, same_name(names)).values()


@given(arrivals(), st.randoms(use_true_random=False), st.integers(0, 3))
@settings(deadline=None, max_examples=200)
def test_the_order_of_images_makes_no_difference(arrived, random, seed):
    images, near, names, first = arrived
    named = same_name(names)
    settled(images[:first], among(near, first), seed, among(named, first))
    copies = [Candidate(image.image_id, image.stratum, image.allowed, image.split) for image in images]
    order = random.sample(range(len(images)), len(images))
    position = {number: at for at, number in enumerate(order)}
    moved = sorted(tuple(sorted((position[i], position[j]))) for i, j in near)
    shuffled = settled(
        [copies[number] for number in order], moved, seed, same_name([names[number] for number in order])
    )
    assert settled(images, near, seed, named) == shuffled


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


def test_a_hundred_images_are_split_exactly_by_the_shares():
    assert Counter(settled(new(range(100))).values()) == {"train": 70, "val": 15, "test": 15}


def test_later_images_are_split_so_that_the_whole_keeps_the_shares():
    images = new(range(20))
    settled(images)
    images += new(range(20, 200))
    assert Counter(settled(images).values()) == {"train": 140, "val": 30, "test": 30}


def test_a_class_of_three_images_has_one_in_each_split():
    images = [image for number in range(50) for image in new(range(3 * number, 3 * number + 3), f"class {number}")]
    settled(images)
    for label in {image.stratum[1] for image in images}:
        assert {image.split for image in images if image.stratum[1] == label} == set(SPLITS)


def test_a_class_with_one_image_in_each_of_three_domains_has_one_in_each_split():
    images = [image for domain in "abc" for image in new([ord(domain)], domain=domain)]
    assert set(settled(images).values()) == set(SPLITS)


def test_a_class_of_two_groups_is_in_train_and_test():
    assert sorted(settled(new(range(4)), [(0, 1), (2, 3)]).values()) == ["test", "test", "train", "train"]


def test_a_large_group_goes_to_the_split_with_room_for_it():
    chain = [(number, number + 1) for number in range(39)] + [(number, number + 1) for number in range(40, 59)]
    for seed in range(10):
        counts = Counter(settled(images := new(range(100)), chain, seed).values())
        assert counts == {"train": 70, "val": 15, "test": 15}
        assert {image.split for image in images[:60]} == {"train"}


def test_the_same_seed_gives_the_same_splits_and_another_gives_others():
    assert settled(new(range(50)), seed=1) == settled(new(range(50)), seed=1)
    assert settled(new(range(50)), seed=1) != settled(new(range(50)), seed=2)


def test_a_new_near_duplicate_joins_the_split_of_the_known_image():
    for split in SPLITS:
        assert settled([old(split, 1), *new([2, 3])], [(0, 1), (1, 2)])[name(3)] == split


def test_a_new_near_duplicate_joins_that_split_even_if_its_folder_says_otherwise():
    assert settled([old("test", 1), *new([2], allowed=("train",))], [(0, 1)])[name(2)] == "test"


def test_a_near_duplicate_of_images_in_two_splits_is_not_assigned_but_its_neighbours_are():
    images = [old("train", 1), old("test", 2), *new([3, 4, 5])]
    after = settled(images, [(0, 2), (1, 2), (0, 3), (1, 4)])
    assert after == {name(1): "train", name(2): "test", name(3): None, name(4): "train", name(5): "test"}


def test_near_duplicates_of_an_unassigned_image_are_assigned_on_their_own():
    images = [old("train", 1), old("test", 2), *new([3, 4, 5])]
    after = settled(images, [(0, 2), (1, 2), (2, 3), (3, 4)])
    assert after[name(3)] is None
    assert after[name(4)] == after[name(5)] is not None


def test_an_unassigned_image_is_assigned_once_its_conflict_is_gone():
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
        ([("train",), ("test",), ("train",)], "train"),
        ([("train",), ("val",), ("val",), ("test",)], "val"),
        ([("train", "val"), ("val",), ("test",)], "val"),
    ],
)
def test_a_group_in_several_split_folders_follows_most_of_its_images_and_ties_prefer_held_out_splits(folders, together):
    images = [image for number, allowed in enumerate(folders) for image in new([number], allowed=allowed)]
    chain = [(number, number + 1) for number in range(len(folders) - 1)]
    for near, named in ((chain, NO_LINKS), (NO_LINKS, chain)):
        for image in images:
            image.split = None
        assert set(settled(images, near, named=named).values()) == {together}


def test_a_new_image_with_a_known_group_name_joins_its_split():
    images = [old("test", 1), *new([2, 3], allowed=("train",)), *new([4])]
    after = settled(images, [(2, 3)], named=[(0, 1), (0, 2)])
    assert set(after.values()) == {"test"}


def test_new_images_of_a_group_in_two_splits_join_the_split_of_most_of_its_images():
    images = [old("train", 1), old("test", 2), old("test", 3), *new([4, 5])]
    assert settled(images, named=[(0, number) for number in range(1, 5)])[name(5)] == "test"


def test_a_new_group_near_two_splits_stays_whole_and_its_images_near_the_other_split_are_not_assigned():
    images = [old("train", 1), old("train", 2), old("test", 3), *new([4, 5, 6, 7])]
    together = [(3, number) for number in range(4, 7)]
    after = settled(images, [(0, 3), (1, 4), (2, 5)], named=together)
    assert [after[name(number)] for number in range(4, 8)] == ["train", "train", None, "train"]


def test_a_group_of_several_classes_counts_towards_the_shares_of_each():
    images, named = [], []
    for group in range(40):  # 7 ants and 3 bees each: only whole groups
        named += [(10 * group, 10 * group + more) for more in range(1, 10)]
        images += [
            *new(range(10 * group, 10 * group + 7), "ants"),
            *new(range(10 * group + 7, 10 * group + 10), "bees"),
        ]
    settled(images, named=named)
    counts = Counter((image.stratum[1], image.split) for image in images)
    assert counts == {
        ("ants", "train"): 196, ("ants", "val"): 42, ("ants", "test"): 42,
        ("bees", "train"): 84, ("bees", "val"): 18, ("bees", "test"): 18,
    }  # fmt: skip


def test_a_rare_class_in_groups_of_a_frequent_one_is_in_every_split():
    images, named = new(range(400), "ants"), []
    for group in range(4):
        bee = len(images)
        images += new([bee], "bees")
        named += [(100 * group, 100 * group + more) for more in range(1, 30)] + [(100 * group, bee)]
    settled(images, named=named)
    assert {image.split for image in images if image.stratum[1] == "bees"} == set(SPLITS)


@pytest.mark.parametrize("mixture", [0.5, 10])
def test_with_groups_of_very_different_sizes_every_class_is_within_one_point_of_its_shares(mixture):
    rng = np.random.default_rng(0)
    classes = np.array([0.4, 0.3, 0.2, 0.08, 0.02])
    images, named = [], []
    for size in np.maximum(rng.lognormal(2.3, 1.2, 1000).astype(int), 1):
        first = len(images)
        for label in rng.choice(5, size, p=rng.dirichlet(classes * mixture * 5)):
            images += new([len(images)], f"class {label}")
        named += [(first, first + more) for more in range(1, size)]
    settled(images, named=named)
    counts = Counter((image.stratum[1], image.split) for image in images)
    totals = Counter(image.stratum[1] for image in images)
    for label, total in totals.items():
        for split in SPLITS:
            assert abs(counts[label, split] / total - SHARES[split]) < 0.01


def test_split_folders_are_followed():
    images = new(range(10), allowed=("train", "val")) + new(range(10, 20), allowed=("test",))
    after = settled(images)
    assert {after[name(number)] for number in range(10, 20)} == {"test"}
    assert Counter(after[name(number)] for number in range(10)) == {"train": 8, "val": 2}


def test_a_class_of_two_training_images_has_one_for_validation():
    images = new(range(2), allowed=("train", "val")) + new(range(10, 30), allowed=("test",))
    after = settled(images)
    assert {after[name(0)], after[name(1)]} == {"train", "val"}


@pytest.mark.timeout(60)
def test_100_000_images_with_a_thousand_conflicts_are_assigned_in_seconds():
    n = 100_000
    images = [old("train" if number % 2 else "test", number) for number in range(n // 2)] + new(range(n // 2, n))
    bridges = [
        (at + side, n // 2 + at) for at in range(0, 2000, 2) for side in (0, 1)
    ]  # a new image between two existing ones
    after = settled(images, sorted(bridges))
    assert [image for image, split in after.items() if split is None] == [name(n // 2 + at) for at in range(0, 2000, 2)]


def test_a_long_video_between_two_splits_is_joined_from_both_ends_in_seconds():
    """As many rounds as there are frames between them: each may look only at what is next to the round before."""
    frames = 30_000
    images = [Candidate(f"{number:08d}", ("camera", "frame"), SPLITS) for number in range(frames)]
    images[0].split, images[-1].split = "train", "test"
    near = np.concatenate([np.stack([np.arange(frames - step), np.arange(step, frames)], 1) for step in (1, 2, 3)])
    start = time.process_time()
    assign_splits(images, near, np.empty((0, 2), np.int64), {"train": 0.7, "val": 0.15, "test": 0.15}, 0)
    assert time.process_time() - start < 10  # a search through all that wait took 86 s
    splits = [image.split for image in images]
    left = [at for at, split in enumerate(splits) if split is None]
    assert len(left) <= 3 and set(splits[: left[0]]) == {"train"} and set(splits[left[-1] + 1 :]) == {"test"}

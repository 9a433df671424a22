"""The ledger in memory: images are found by their ids, those packed since are added, and each takes some 60 bytes."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from rootstock.dataset import image_ids, tables
from rootstock.ingest import ledger as ledgers
from rootstock.ingest.layout import SPLITS
from rootstock.ingest.ledger import COLUMNS, NONE, Ledger, load, rows_of_shards, with_packed
from rootstock.ingest.scan import Packed, Scan

IDS = st.binary(min_size=32, max_size=32).map(bytes.hex)
NAMES = [f"{number:02x}" * 32 for number in range(6)]


@given(st.lists(IDS, unique=True, max_size=20), st.lists(st.none() | IDS, max_size=20))
@settings(deadline=None)
def test_ids_are_found_among_digests_and_unknown_ones_get_further_numbers(known, others):
    digests = image_ids.digests(known)
    assert image_ids.texts(digests).to_pylist() == known
    order = image_ids.in_order(digests)
    assert [known[at] for at in order] == sorted(known)
    numbers = ledgers.Numbers(digests, order)
    asked = [*known[::-2], *others, *known]
    found = numbers.of(asked).tolist()
    assert [name and (known.index(name) if name in known else name) for name in asked] == [
        number if 0 <= number < len(known) else None if number == NONE else asked[at] for at, number in enumerate(found)
    ]
    unknown = {name: number for name, number in zip(asked, found, strict=True) if name and name not in known}
    assert sorted(unknown.values()) == list(range(len(known), numbers.count))


@given(st.lists(st.sampled_from(NAMES), max_size=12))
def test_equal_ids_follow_each_other_in_their_order(names):
    digests = image_ids.digests(names)
    again = image_ids.are_again(digests, image_ids.in_order(digests))
    assert np.count_nonzero(~again) == len(set(names))


def ledger(*rows: tuple[str, str, str | None]) -> Ledger:
    """Make a ledger of images, each with its id, shard and split."""
    n, shards = len(rows), sorted({shard for _, shard, _ in rows})
    return Ledger(
        image_ids.digests([name for name, _, _ in rows]),
        np.arange(n, dtype=np.uint64),
        np.array([SPLITS.index(split) if split else NONE for _, _, split in rows], np.int8),
        np.ones(n, np.int32),
        np.array([shards.index(shard) for _, shard, _ in rows], np.int32),
        np.full(n, NONE, np.int32),
        shards,
    )


def listed(found: Ledger) -> list[tuple[str, str, str | None, int]]:
    names = image_ids.texts(found.ids).to_pylist()
    splits = [SPLITS[code] if code != NONE else None for code in found.split]
    return list(zip(names, [found.shards[code] for code in found.shard], splits, found.batch.tolist(), strict=True))


@pytest.fixture
def packed(tmp_path):
    """Return a function that adds images packed since to a ledger: shards, and the images that each has."""

    def add(before: Ledger, **shards: list[str]) -> list[tuple[str, str, str | None, int]]:
        with Scan(Path(":memory:")) as scan, pytest.MonkeyPatch.context() as patch:
            patch.setattr(ledgers.shards, "names", lambda folder: list(shards))
            for shard, names in shards.items():
                images = [Packed(name, 8, 8, "PNG", 7, shard, 512 * at, 99) for at, name in enumerate(names)]
                scan.record("photos", [], images)
            return listed(with_packed(before, tmp_path, scan))

    return add


def test_new_images_are_added_without_a_split_as_the_next_batch(packed):
    before = ledger((NAMES[0], "a", "train"))
    assert packed(before, a=NAMES[:1]) == listed(before)
    assert packed(before, a=NAMES[:1], b=NAMES[1:3]) == [
        (NAMES[0], "a", "train", 1), (NAMES[1], "b", None, 2), (NAMES[2], "b", None, 2),
    ]  # fmt: skip


def test_an_image_that_is_packed_a_second_time_keeps_its_split_and_batch(packed):
    before = ledger((NAMES[0], tables.UNPACKED, "test"), (NAMES[1], "a", "train"))
    assert packed(before, a=NAMES[1:2], b=[NAMES[2], NAMES[0]]) == [
        (NAMES[1], "a", "train", 1), (NAMES[2], "b", None, 2), (NAMES[0], "b", "test", 1),
    ]  # fmt: skip


def test_an_image_that_is_here_already_keeps_its_place(packed):
    before = ledger((NAMES[0], "a", "train"))
    assert packed(before, a=NAMES[:1], b=NAMES[:2]) == [(NAMES[0], "a", "train", 1), (NAMES[1], "b", None, 2)]


def test_images_are_listed_shard_by_shard():
    found = ledger((NAMES[0], "b", "val"), (NAMES[1], "a", "val"), (NAMES[2], "b", None))
    assert [(shard, rows.tolist()) for shard, rows in rows_of_shards(found)] == [("a", [1]), ("b", [0, 2])]
    assert found.counts() == {"a": 1, "b": 2} and found.in_shards(["a", "c"]).tolist() == [False, True, False]


def test_an_image_takes_some_sixty_bytes(store, photos):
    store.ingest(photos)
    found = load(store.dataset)
    assert len(found) == 15 and sum(getattr(found, name).nbytes for name in COLUMNS) + found.order.nbytes <= 15 * 60

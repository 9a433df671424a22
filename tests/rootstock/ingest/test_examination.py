"""Many local files are checked in processes: the dataset is the same to the byte, whatever is found in the files."""

import pickle
import shutil

import numpy as np
import pytest
from hypothesis import strategies as st
from PIL import Image

from rootstock.images.deep import ObservedRange
from rootstock.images.inspection import RangeUnknown, Reason, Rejected
from rootstock.ingest import examination
from rootstock.ingest.items import Item
from rootstock.system import processes
from rootstock.system.errors import SourceError
from tests.deliveries import delivery_in
from tests.images import encoded, picture, put, put_classes
from tests.store import Store

IDS = st.binary(min_size=32, max_size=32).map(bytes.hex)


@pytest.fixture
def in_processes(monkeypatch):
    """As with many cores and images; returns a function that says so or the opposite."""

    def decide(yes: bool) -> None:
        monkeypatch.setattr(examination, "_processes_pay", lambda items, count: yes)

    decide(True)
    return decide


@pytest.fixture
def mixed(photos):
    """Photos of every kind, and files of every kind that is rejected."""
    whole = encoded(picture(999, 200, 200), "JPEG", quality=95)
    put(photos / "ants" / "hurt.jpg", whole[: len(whole) // 2] + b"\xff\xd9")
    put(photos / "ants" / "cut.jpg", whole[: len(whole) // 2])
    put(photos / "ants" / "text.jpg", b"no image at all")
    put(photos / "bees" / "png.jpg", encoded(picture(77)))
    put(photos / "bees" / "large.jpg", picture(78, 400, 300), quality=90)
    put(photos / "bees" / "again.jpg", picture(78, 400, 300), quality=90)
    put(photos / "bees" / "small.png", picture(79, 3, 3))
    put(photos / "wasps" / "noise.bmp", Image.effect_noise((1000, 900), 90).convert("RGB"))  # larger than a slot
    whole_range = np.arange(64 * 64, dtype=np.uint16).reshape(64, 64) * 16
    put(photos / "wasps" / "deep.png", Image.fromarray(whole_range))
    return photos


@pytest.mark.parametrize(
    ("files", "size", "cores", "pays"),
    [(10_000, 5000, 2, True), (10_000, 200_000, 2, False), (10_000, 200_000, 4, True), (9_999, 5000, 64, False),
     (100_000, 5000, 1, False)],
)  # fmt: skip
def test_processes_are_for_many_files_and_of_large_ones_for_many_cores(monkeypatch, files, size, cores, pays):
    monkeypatch.setattr(examination, "cores", lambda: cores)
    items = (Item("", "", "", (), f"{size}:") for _ in range(files))
    assert examination._processes_pay(items, files) == pays


def test_the_dataset_is_that_of_threads(mixed, tmp_path, in_processes, caplog):
    caplog.set_level("INFO")
    stores = {yes: Store(tmp_path / f"processes-{yes}") for yes in (True, False)}
    for yes, store in stores.items():
        in_processes(yes)
        caplog.clear()
        store.ingest(mixed, max_side=200, min_side=8)
        assert ("checking files in" in caplog.text) == yes
    assert stores[True].bytes() == stores[False].bytes()
    assert set(stores[True].rejected.values()) == {
        "damaged", "truncated", "undecodable", "wrong_extension", "duplicate", "too_small",
    }  # fmt: skip


def test_where_shared_memory_is_missing_threads_give_the_same(mixed, tmp_path, in_processes, monkeypatch, caplog):
    caplog.set_level("INFO")
    monkeypatch.setattr(processes, "SHARED_MEMORY", str(tmp_path / "missing"))
    stores = {yes: Store(tmp_path / f"processes-{yes}") for yes in (True, False)}
    for yes, store in stores.items():
        in_processes(yes)
        store.ingest(mixed)
    assert "falling back to threads" in caplog.text
    assert stores[True].bytes() == stores[False].bytes()


def test_of_known_images_only_the_header_is_checked(mixed, store, in_processes, monkeypatch):
    assert store.ingest(mixed, damaged="keep").images > 15
    before = store.bytes()
    shutil.rmtree(store.scratch)  # as in another clone, which only has the ledger
    assert store.ingest(mixed, damaged="keep").new == 0
    assert store.bytes() == before
    in_processes(False)
    shutil.rmtree(store.scratch)
    assert store.ingest(mixed, damaged="keep").new == 0
    assert store.bytes() == before


def test_damaged_images_that_were_kept_are_rejected_once_they_should_be(mixed, store, in_processes):
    kept = store.ingest(mixed, damaged="keep").images
    assert store.ingest(mixed).images == kept - 1
    assert store.rejected["ants/hurt.jpg"] == "damaged"


def test_a_delivery_is_read_in_processes_too_and_links_are_not_followed(photos, store, tmp_path, in_processes):
    store.ingest(photos)
    put_classes(tmp_path / "inbox" / "shed", {"ants": 3, "bees": 3}, first=500)
    (tmp_path / "inbox" / "shed" / "ants" / "link.png").symlink_to(photos / "ants" / "00.png")
    assert store.ingest(photos, delivery=delivery_in(tmp_path / "inbox").labelled).new == 6
    assert store.rejected == {"shed/ants/link.png": "unsafe_path"}


def test_an_unknown_value_range_is_the_same_error(photos, store, in_processes):
    put(photos / "ants" / "deep.png", Image.fromarray(np.arange(4096, dtype=np.uint16).reshape(64, 64)))
    with pytest.raises(SourceError, match=r"have values \(uint16\) from 0 to 4095; .*Set value_range"):
        store.ingest(photos)


@pytest.mark.parametrize(
    "rejected",
    [Rejected(Reason.DAMAGED, "why"), Rejected(Reason.TOO_LARGE), RangeUnknown(ObservedRange("uint16", 0, 9))],
)
def test_a_rejection_survives_the_way_from_another_process(rejected):
    arrived = pickle.loads(pickle.dumps(rejected))
    assert (type(arrived), str(arrived), vars(arrived)) == (type(rejected), str(rejected), vars(rejected))

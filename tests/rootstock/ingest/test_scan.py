"""The scan cache: which files are up to date; a damaged one costs a second reading of the sources, and nothing else."""

import sqlite3
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, strategies as st

from rootstock.images.reasons import Reason
from rootstock.ingest.ingest import IngestResult
from rootstock.ingest.layout import SPLITS, Item
from rootstock.ingest.scan import DamagedScanError, Packed, Scan, ScanRecord
from tests.images import put

PATHS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=3)
FILES = st.lists(st.tuples(PATHS, st.sampled_from("ab")), max_size=12)


def page_of(number: int):
    """Fill a page of an SQLite file with noise; pages are numbered from the end."""

    def damage(path: Path) -> None:
        with path.open("r+b") as file:
            size = file.seek(0, 2)
            file.seek(size - 4096 * number)
            file.write(np.random.default_rng(number).bytes(4096))

    return damage


def foreign_tables(path: Path) -> None:
    path.unlink()
    with closing(sqlite3.connect(path)) as db, db:
        db.executescript("create table notes (what text); create table looked (one int, two int)")


def changed_by(statement: str):
    def change(path: Path) -> None:
        with closing(sqlite3.connect(path)) as db, db:
            db.execute(statement)

    return change


DAMAGES = {
    "not a database": lambda path: path.write_bytes(b"no database" * 1000),
    "empty": lambda path: path.write_bytes(b""),
    "zeros": lambda path: path.write_bytes(bytes(path.stat().st_size)),
    "cut in half": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "without its last page": lambda path: path.write_bytes(path.read_bytes()[:-4096]),
    **{f"noise in page {number} from the end": page_of(number) for number in range(1, 13)},
    "another program's tables": foreign_tables,
    "unknown reason": changed_by("update looked set reason = 'because', image_id = null"),
    "invalid hash": changed_by("update packed set phash = 'half'"),
    "invalid UTF-8": changed_by("update looked set stamp = cast(x'ff' as text)"),
    "empty column": changed_by("update packed set phash = null"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_scan_cache_only_costs_a_second_reading_of_the_source(store, photos, damage):
    store.ingest(photos)
    put(next(photos.iterdir()) / "new.png", 777)  # otherwise little of it is read
    kept = store.bytes()
    DAMAGES[damage](store.scratch / "scan.sqlite")
    assert store.ingest(photos) == IngestResult(images=16, new=1, rejected=0, changed=True)
    now = store.bytes()
    assert {name: now[name] for name in kept if name.endswith(".tar")} == {
        name: data for name, data in kept.items() if name.endswith(".tar")
    }
    assert store.ingest(photos) == IngestResult(images=16, new=0, rejected=0, changed=False)


@given(listed=FILES, scanned=FILES, other=FILES)
def test_a_file_is_up_to_date_if_its_record_has_the_same_stamp(listed, scanned, other):
    records = {path: ScanRecord(path, stamp, None, Reason.UNREADABLE) for path, stamp in scanned}
    items = [Item(path, "ants", "garden", SPLITS, stamp) for path, stamp in sorted(listed)]
    with Scan(Path(":memory:")) as scan:
        scan.record("photos", records.values())
        scan.record("more", [ScanRecord(path, stamp, "id", None) for path, stamp in other])
        expected = [records.get(item.path) for item in items]
        assert list(scan.up_to_date("photos", items)) == [
            (item, record if record and record.stamp == item.stamp else None)
            for item, record in zip(items, expected, strict=True)
        ]


@pytest.mark.parametrize("name", ["ab" * 31, "ab" * 31 + "zz", "ab" * 33])
def test_an_image_id_that_is_no_digest_is_damage(tmp_path, name):
    with Scan(tmp_path / "scan.sqlite") as scan:
        scan.record("photos", [ScanRecord("a.png", "1:1", name, None)], [Packed(name, 8, 8, "png", 0, "000000")])
        with pytest.raises(DamagedScanError):
            list(scan.records("photos"))
        with pytest.raises(DamagedScanError):
            list(scan.packed_ids(["000000"]))

"""An ingest that was killed is completed by the next run, with the same bytes; files that change during it, and files
of another dataset, do no harm."""

import hashlib
import random
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from rootstock.dataset import shards
from rootstock.ingest import folders
from rootstock.ingest.ingest import IngestResult
from rootstock.system.errors import DamagedError, SourceError
from tests.images import encoded, picture, put, put_classes
from tests.store import CLASSES, Store

# Killed


@pytest.mark.slow
def test_an_ingest_that_is_killed_repeatedly_ends_in_the_same_bytes_as_an_undisturbed_one(tmp_path):
    photos = put_classes(tmp_path / "photos", {"ants": 150, "bees": 150})
    for number in range(40):  # rejected and duplicate files must not shift anything either
        put(
            photos / "ants" / f"{4 * number:02d}x.png",
            b"x" if number % 2 else (photos / "bees" / "07.png").read_bytes(),
        )
    undisturbed, killed = Store(tmp_path / "undisturbed"), Store(tmp_path / "killed")
    undisturbed.ingest(photos, shard_mb=0.03)
    total = len(shards.names(undisturbed.images))
    assert total > 20
    chance = random.Random(0)
    for share in (0.1, 0.3, 0.5, 0.8, 1.0):
        process = killed.start_ingest(photos, 0.03)
        while process.poll() is None and len(shards.names(killed.images)) < share * total:
            time.sleep(0.001)
        time.sleep(chance.uniform(0, 0.01 if share < 1 else 0.3))
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert len(shards.names(killed.images)) > total / 2  # the kills came late enough to mean something
    killed.ingest(photos, shard_mb=0.03)
    assert killed.bytes() == undisturbed.bytes()


def test_a_shard_that_was_written_but_not_recorded_before_a_kill_is_written_again(store, tmp_path, photos):
    whole = Store(tmp_path / "whole")
    whole.ingest(photos, shard_mb=0.01)
    store.images.mkdir(parents=True)
    for shard in shards.names(whole.images)[:1]:  # written but not recorded
        shutil.copy(shards.path_of(whole.images, shard), store.images)
    put(store.images / "next.tar.tmp", b"an open shard")
    put(store.dataset / "manifest.parquet.tmp", b"half a manifest")
    store.ingest(photos, shard_mb=0.01)
    assert store.bytes() == whole.bytes()


@pytest.mark.parametrize("moved", [0, 1, 3])
def test_splits_are_drawn_once_even_if_ingest_is_killed_while_it_replaces_the_ledger(
    moved, store, tmp_path, photos, monkeypatch
):
    whole = Store(tmp_path / "whole")
    whole.ingest(photos, shard_mb=0.01)
    assert len(list((whole.dataset / "ledger.parquet").iterdir())) > 3
    move, done = Path.replace, []

    def killed(path: Path, target: Path) -> Path:
        if target.parent.name == "ledger.parquet":
            done.append(path)
            if len(done) > moved:
                raise KeyboardInterrupt
        return move(path, target)

    with monkeypatch.context() as until_killed, pytest.raises(KeyboardInterrupt):
        until_killed.setattr(Path, "replace", killed)
        store.ingest(photos, shard_mb=0.01)
    store.ingest(photos, shard_mb=0.01)
    assert store.bytes() == whole.bytes()


def test_an_ingest_killed_between_two_files_of_the_dataset_is_completed_by_the_next(store, photos):
    store.ingest(photos)
    before = store.bytes()
    put_classes(photos, {"ants": 9}, first=300)
    store.ingest(photos)
    after = store.bytes()
    new = after.keys() - before.keys()
    assert sorted(name.rpartition("/")[0] for name in new) == [
        "dataset/ledger.parquet", "dataset/manifest.parquet", "images"
    ]  # fmt: skip
    for name in [name for name in after if name.startswith("dataset/")]:
        (store.dataset.parent / name).unlink()
        if name in before:
            (store.dataset.parent / name).write_bytes(before[name])
        store.ingest(photos)
        assert store.bytes() == after


# Changed meanwhile


@pytest.mark.parametrize("torn", [False, True])
def test_a_file_that_changes_while_it_is_read_is_stored_as_read_and_read_again_by_the_next_ingest(
    torn, store, photos, monkeypatch
):
    changing, new = photos / "ants" / "00.png", encoded(picture(900))
    was = changing.read_bytes()
    read = folders._load

    def written_to_meanwhile(read_here: Callable[[str], bytes], path: str) -> bytes:
        data = read(read_here, path)
        if not path.endswith("ants/00.png"):
            return data
        changing.write_bytes(new)
        return data[: len(data) // 2] if torn else data

    with monkeypatch.context() as meanwhile:
        meanwhile.setattr(folders, "_load", written_to_meanwhile)
        store.ingest(photos)
    ids = {hashlib.sha256(data).hexdigest() for data in (was, new)}
    assert store.rejected == ({"ants/00.png": "truncated"} if torn else {})
    assert len(ids & set(store.manifest["image_id"])) == (0 if torn else 1)
    store.ingest(photos)
    assert store.rejected == {} and hashlib.sha256(new).hexdigest() in set(store.manifest["image_id"])
    with shards.Reader(store.images) as reader:
        for row in store.manifest.itertuples():
            assert hashlib.sha256(reader.read(row.shard, row.offset, row.size)).hexdigest() == row.image_id


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("table", ["ledger.parquet", "manifest.parquet"])
def test_a_table_of_another_dataset_is_refused_or_rewritten(store, photos, tmp_path, seed, table):
    """A table of other images, or of the same ones with another seed, so that splits differ."""
    store.ingest(photos)
    before = store.bytes()
    other, theirs = Store(tmp_path / "other"), photos
    if not seed:
        theirs = put_classes(tmp_path / "theirs", CLASSES, first=500)
    other.ingest(theirs, seed=seed)
    [mine], [foreign] = ((one.dataset / table).iterdir() for one in (store, other))
    mine.write_bytes(foreign.read_bytes())
    try:
        store.ingest(photos)
    except DamagedError as error:
        assert f"{store.dataset}" in str(error)
    else:
        assert store.bytes() == before


def test_a_changed_shard_is_an_error_and_an_intact_one_is_verified_only_once(store, photos, monkeypatch):
    store.ingest(photos)
    read = []
    real = shards.is_intact
    monkeypatch.setattr(shards, "is_intact", lambda folder, shard: read.append(shard) or real(folder, shard))
    store.ingest(photos)
    assert not read
    [shard] = store.images.iterdir()
    kept = shard.read_bytes()
    shard.write_bytes(kept[:1000] + bytes([kept[1000] ^ 1]) + kept[1001:])
    with pytest.raises(SourceError, match=rf"{shard.name}: its content differs from what was packed.*dvc checkout"):
        store.ingest(photos)
    shard.write_bytes(kept)
    real.cache_clear()
    for _ in range(2):
        assert store.ingest(photos) == IngestResult(images=15, new=0, rejected=0, changed=False)
    assert len(read) == 2

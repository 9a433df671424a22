"""An ingest that is stopped goes on within the open shard, and packs the same bytes as one that was not."""

import random
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from rootstock.ingest import open_shard, packing
from rootstock.ingest.scan import Scan
from tests.images import encoded, picture, put, put_classes
from tests.store import Store

EACH = 12  # images of a class
STOPPED = 15  # files are examined before the stop


@pytest.fixture
def photos(tmp_path) -> Path:
    return put_classes(tmp_path / "photos", {"ants": EACH, "bees": EACH})


@pytest.fixture
def undisturbed(tmp_path, photos) -> Store:
    store = Store(tmp_path / "undisturbed")
    store.ingest(photos)
    return store


@pytest.fixture
def counted(monkeypatch) -> Callable[[int], list[str]]:
    """Count the files that are examined; stop after some."""
    examine = packing.examine

    def start(most: int = 10**9) -> list[str]:
        seen: list[str] = []

        def counting(*given: object) -> Iterator[object]:
            for found in examine(*given):
                if len(seen) == most:
                    raise KeyboardInterrupt
                seen.append(found[0].path)
                yield found

        monkeypatch.setattr(packing, "examine", counting)
        return seen

    return start


def stop(store: Store, *photos: Path, counted, monkeypatch, every_s: float = 0, most: int = STOPPED) -> None:
    monkeypatch.setattr(open_shard, "EVERY_S", every_s)
    counted(most)
    with pytest.raises(KeyboardInterrupt):
        store.ingest(*photos)


def copies(store: Store) -> list[Path]:
    return sorted((store.scratch / open_shard.FOLDER).glob("*.tar"))


def test_what_was_packed_is_not_read_again(store, photos, undisturbed, counted, monkeypatch):
    stop(store, photos, counted=counted, monkeypatch=monkeypatch)
    seen = counted()
    assert store.ingest(photos).images == 2 * EACH
    assert len(seen) == 2 * EACH - STOPPED + 1  # the last one was added after the last copy
    assert store.bytes() == undisturbed.bytes()
    assert copies(store) == []


def test_it_may_be_stopped_any_number_of_times(store, photos, undisturbed, counted, monkeypatch):
    for _ in range(8):
        stop(store, photos, counted=counted, monkeypatch=monkeypatch, most=3)
    seen = counted()
    store.ingest(photos)
    assert len(seen) == 2 * EACH - 8 * 2
    assert store.bytes() == undisturbed.bytes()


def test_of_a_shard_that_is_soon_full_nothing_is_kept(store, photos, counted, monkeypatch):
    stop(store, photos, counted=counted, monkeypatch=monkeypatch, every_s=open_shard.EVERY_S)
    assert copies(store) == []


@pytest.mark.parametrize("damage", ["cut", "changed", "removed", "not recorded"])
def test_images_of_a_damaged_copy_are_packed_again(store, photos, undisturbed, counted, monkeypatch, damage):
    stop(store, photos, counted=counted, monkeypatch=monkeypatch)
    copy = copies(store)[6]
    data = copy.read_bytes()
    if damage == "removed":
        copy.unlink()
    elif damage == "not recorded":
        with Scan(store.scratch / "scan.sqlite") as scan:
            scan.forget_packed_except(
                [name for name in open_shard.recorded_names(store.scratch) if copy.stem not in name]
            )
    else:
        copy.write_bytes(data[:700] if damage == "cut" else data[:600] + bytes([data[600] ^ 1]) + data[601:])
    seen = counted()
    store.ingest(photos)
    assert len(seen) == 2 * EACH - 6
    assert {path.name for path in store.images.iterdir()} == {path.name for path in undisturbed.images.iterdir()}
    assert store.bytes() == undisturbed.bytes()


def test_a_shard_ends_with_its_source_wherever_the_stop_was(tmp_path, store, photos, counted, monkeypatch):
    others = put_classes(tmp_path / "others", {"ants": 5, "wasps": 5}, first=100)
    whole = Store(tmp_path / "whole")
    whole.ingest(photos, others)
    for most in (2 * EACH, 2):  # in the first source's last file, and in the second source
        stop(store, photos, others, counted=counted, monkeypatch=monkeypatch, most=most)
    counted()
    store.ingest(photos, others)
    assert store.bytes() == whole.bytes()


def test_images_of_a_source_that_is_no_longer_listed_are_packed_but_not_used(
    tmp_path, store, photos, counted, monkeypatch
):
    stop(store, photos, counted=counted, monkeypatch=monkeypatch)
    others = put_classes(tmp_path / "others", {"ants": 9, "wasps": 9}, first=100)
    counted()
    assert store.ingest(others).images == 18
    assert set(store.manifest["path"]) == {str(path.relative_to(others)) for path in others.rglob("*.png")}
    assert copies(store) == []


def test_rejected_files_are_not_read_again_either(store, photos, counted, monkeypatch):
    for number in range(20):
        put(photos / "ants" / f"00{number:02d}x.png", b"no image")
    stop(store, photos, counted=counted, monkeypatch=monkeypatch, most=25)
    seen = counted()
    store.ingest(photos)
    assert len(seen) == 2 * EACH + 20 - 24
    assert len(store.rejected) == 20


def test_the_defects_of_damaged_images_that_are_kept_are_remembered(store, photos, counted, monkeypatch):
    harmed = bytearray(encoded(picture(500, 120, 90), "JPEG"))
    harmed[-400:-300] = bytes(100)
    put(photos / "ants" / "00.jpg", bytes(harmed))
    monkeypatch.setattr(open_shard, "EVERY_S", 0)
    counted(10)
    with pytest.raises(KeyboardInterrupt):
        store.ingest(photos, damaged="keep")
    counted()
    store.ingest(photos, damaged="keep")
    assert store.summary["damaged"] == 1


@pytest.mark.slow
def test_an_ingest_that_is_killed_repeatedly_loses_less_than_a_shard(tmp_path):
    photos = put_classes(tmp_path / "photos", {"ants": 1500, "bees": 1500})
    undisturbed, killed = Store(tmp_path / "undisturbed"), Store(tmp_path / "killed")
    undisturbed.ingest(photos)
    chance = random.Random(0)
    for _ in range(3):
        wanted = len(copies(killed)) + 2
        process = killed.start_ingest(photos, kept_every_s=0.002)
        while process.poll() is None and len(copies(killed)) < wanted:
            time.sleep(0.001)
        time.sleep(chance.uniform(0, 0.01))
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert len(copies(killed)) >= 6  # it was never finished
    killed.ingest(photos)
    assert killed.bytes() == undisturbed.bytes()

"""Decoded images on disk: each image is decoded once and read back unchanged, and memory and disk space are bounded."""

import errno
import json
import os
import pickle
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from rootstock.config.architectures import Transform
from rootstock.dataset import shards
from rootstock.dataset.shards import Reader
from rootstock.images import array_store, loader
from rootstock.images.array_store import ArrayStore
from rootstock.images.loader import Ref
from rootstock.images.pixel_store import key_of, opened
from tests.slow import slow
from tests.small_dataset import Small

TRANSFORM = Transform(32, 36, "bilinear", (0.5,) * 3, (0.25,) * 3)
ENOUGH = 1.0  # GB


def refs(small: Small) -> list[Ref]:
    rows = small.manifest
    columns = (rows[name] for name in ("shard", "offset", "size", "image_id"))
    return [Ref(shard, int(offset), int(size), None, name) for shard, offset, size, name in zip(*columns, strict=True)]


def read(small: Small, store: ArrayStore | None, augment: str = "none", seed: int | None = None) -> np.ndarray:
    seeded = [Ref(one.shard, one.offset, one.size, seed, one.image_id) for one in refs(small)]
    sizes = loader.batch_sizes(len(seeded), 16)
    with Reader(small.images) as reader:
        return np.concatenate(
            [b.numpy() for b in loader.batches(reader, seeded, TRANSFORM, sizes, augment, store=store)]
        )


def store_of(small: Small, root: Path, most_gb: float = ENOUGH, transform: Transform = TRANSFORM):
    return opened(root, transform, small.images, shards.names(small.images), most_gb)


def test_every_image_is_decoded_once_and_read_back_unchanged(small, work, tmp_path):
    expected = read(small, None)
    for _ in range(2):  # filled, closed and opened again
        with store_of(small, tmp_path) as store:
            for _ in range(2):
                assert np.array_equal(read(small, store), expected)
    assert len(work.decoded) == 2 * len(expected)  # once without the store, and once for it


def test_augmented_images_are_decoded_every_time_and_not_stored(small, work, tmp_path):
    expected = read(small, None, "crop", seed=3)
    with store_of(small, tmp_path) as store:
        assert np.array_equal(read(small, store, "crop", seed=3), expected)
        assert store.get(refs(small)[0].shard, refs(small)[0].offset) is None


def test_the_key_depends_only_on_what_determines_the_pixels():
    assert key_of(Transform(32, 36, "bilinear", (0.1,) * 3, (1.0,) * 3)) == key_of(TRANSFORM)
    others = [(32, 36, "bicubic"), (32, 40, "bilinear"), (30, 36, "bilinear")]
    assert len({key_of(Transform(*other, (0.5,) * 3, (0.25,) * 3)) for other in others} | {key_of(TRANSFORM)}) == 4


def test_a_store_that_exceeds_the_limit_is_not_kept_and_the_oldest_stores_make_room(small, tmp_path, caplog):
    own = len(small.manifest) * (3 * 32 * 32 + 1) / array_store.GB
    with caplog.at_level("INFO"), store_of(small, tmp_path, own * 0.9) as store:
        assert store is None
    assert "more than cache.pixels_gb: not kept" in caplog.text
    with store_of(small, tmp_path, 0) as store:
        assert store is None
    transforms = [Transform(32, resize, "bilinear", (0.5,) * 3, (0.5,) * 3) for resize in (36, 40, 44)]
    for age, transform in enumerate(transforms):
        with store_of(small, tmp_path, 2.5 * own, transform):
            pass
        os.utime(tmp_path / key_of(transform), (age, age))
    kept = {path.name for path in tmp_path.iterdir()} - {array_store.OFFSETS}
    assert kept == {key_of(transform) for transform in transforms[1:]}


def test_a_lower_limit_frees_the_disk(small, tmp_path):
    names = shards.names(small.images)
    each = {name: int((small.manifest["shard"] == name).sum()) * (3 * 32 * 32 + 1) for name in names}
    for most, left in ((ENOUGH, names), (each[names[0]] / array_store.GB, names[:1]), (1e-9, []), (0, [])):
        with opened(tmp_path, TRANSFORM, small.images, left or names, most) as store:
            assert (store is None) == (not left)
        assert sorted(path.stem for path in tmp_path.rglob("*.values")) == left
        assert sum(path.stat().st_size for path in tmp_path.rglob("*.[vt]*")) == sum(map(each.__getitem__, left))


@pytest.mark.parametrize("seed", range(12))
def test_whatever_is_removed_or_cut_off_no_image_is_read_that_was_not_decoded(small, work, tmp_path, seed):
    expected = read(small, None)
    with store_of(small, tmp_path) as store:
        read(small, store)
    chosen = random.Random(seed)
    for path in sorted(tmp_path.rglob("*")):  # as a removal that was killed leaves it
        if path.is_file() and chosen.random() < 0.4:
            path.unlink() if chosen.random() < 0.5 else os.truncate(path, path.stat().st_size // 2)
    with store_of(small, tmp_path) as store:
        assert np.array_equal(read(small, store), expected)


def test_another_process_is_handed_a_store_in_a_few_bytes_and_an_image_without_a_copy(small, tmp_path):
    with store_of(small, tmp_path) as store:
        expected = read(small, store)
        handed = pickle.dumps(store)
        again = pickle.loads(handed)
        assert len(handed) < 1000 and again is pickle.loads(handed)  # mapped once
        buffers: list[pickle.PickleBuffer] = []
        for ref, image in zip(refs(small), expected, strict=True):
            found = again.get(ref.shard, ref.offset)
            assert np.array_equal(found.transpose(2, 0, 1), image)
            assert len(pickle.dumps(found, protocol=5, buffer_callback=buffers.append)) < 200
        assert len(buffers) == len(expected)


def test_a_store_keeps_no_file_open(small, tmp_path):
    before = len(list(Path("/proc/self/fd").iterdir()))
    with store_of(small, tmp_path) as store:
        read(small, store)
        assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_on_a_full_disk_images_are_decoded_with_a_warning(small, tmp_path, monkeypatch, caplog):
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with store_of(small, tmp_path) as store:
        assert store is None
    assert "decoded images are not kept: No space left on device" in caplog.text
    assert not any(tmp_path.rglob("*.values"))


KILLED = """
import os, sys
from pathlib import Path
from tests.rootstock.images.test_pixel_store import TRANSFORM, read, store_of
from tests.small_dataset import Small
from rootstock.images.array_store import ArrayStore
small = Small(*map(Path, sys.argv[1:4]))
put, done = ArrayStore.put, []
def put_or_die(self, *given):
    if len(done) == 30:
        os.kill(os.getpid(), 9)
    put(self, *given); done.append(None)
ArrayStore.put = put_or_die
with store_of(small, Path(sys.argv[4])) as store:
    read(small, store)
"""


@pytest.mark.parametrize("power_cut", [True, *slow(False)])
def test_a_store_survives_a_killed_process_and_is_rebuilt_after_a_power_cut(small, work, tmp_path, power_cut):
    given = [str(path) for path in (small.source, small.images, small.dataset, tmp_path)]
    assert subprocess.run([sys.executable, "-c", KILLED, *given], check=False).returncode == -9
    if power_cut:
        state = next(tmp_path.rglob("state.json"))
        state.write_text(json.dumps({"boot": "another", "closed": False}))
    expected = read(small, None)
    work.decoded.clear()
    with store_of(small, tmp_path) as store:
        assert np.array_equal(read(small, store), expected)
    there = 0 if power_cut else 29  # the others are decoded by another thread meanwhile
    assert len(work.decoded) <= len(expected) - there
    assert power_cut == (len(work.decoded) == len(expected))


def test_pixels_of_deleted_shards_are_deleted(small, tmp_path):
    with store_of(small, tmp_path):
        pass
    folder = tmp_path / key_of(TRANSFORM)
    (folder / "gone.values").write_bytes(b"1"), (folder / "gone.there").write_bytes(b"1")
    with store_of(small, tmp_path):
        pass
    assert not list(folder.glob("gone.*"))
    assert len(list(folder.glob("*.values"))) == len(shards.names(small.images))

"""Arrays of the images of shards on disk, computed once: decoded images, activations of frozen layers.

    <root>/<key>/<shard>.values    (n, *shape), in the order of the shard
    <root>/<key>/<shard>.there     (n,) uint8: 1 where the array of an image has been computed
    <root>/<key>/state.json        the boot of the machine that is writing, and whether it has come to its end
    <root>/offsets/<shard>.npy     (2 + n,) int64: size and time of a shard, and where its images begin

The key stands for all that determines the values. Files are memory-mapped. An image is marked after its values are
written, so a killed process leaves nothing wrong; after a power cut, when the disk may have marks without values, the
store is begun anew.
"""

import json
import logging
import os
import shutil
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rootstock.dataset import shards
from rootstock.system.files import last_used, replacing, write

log = logging.getLogger(__name__)
BOOT = Path("/proc/sys/kernel/random/boot_id")
STATE, VALUES, THERE = "state.json", ".values", ".there"
OFFSETS = "offsets"
GB = 10**9
Array = NDArray[Any]
Offsets = dict[str, NDArray[np.int64]]  # of the images of each shard, ascending


@dataclass(frozen=True)
class Item:
    """What a store holds of each image, and how messages speak of it and of the parameter that limits it."""

    shape: tuple[int, ...]
    dtype: str
    what: str
    setting: str

    @property
    def bytes(self) -> int:
        """Return the bytes per image, with its mark."""
        return int(np.prod(self.shape, dtype=np.int64)) * np.dtype(self.dtype).itemsize + 1


@dataclass(frozen=True)
class _Shard:
    offsets: NDArray[np.int64]
    values: Array
    there: NDArray[np.uint8]

    def place(self, offset: int) -> int:
        return int(np.searchsorted(self.offsets, offset))


class ArrayStore:
    """One array for each image of some shards; may be used from several threads and processes."""

    def __init__(self, folder: Path, item: Item, offsets: Offsets) -> None:
        """Open the files of a store, which `opened` has allocated."""
        self.folder, self.item = folder, item
        self._offsets = offsets
        # No lock: every image has a place of its own, and is marked once its values are there.
        self._shards = {
            shard: _Shard(
                places,
                np.memmap(folder / f"{shard}{VALUES}", item.dtype, "r+", shape=(len(places), *item.shape)),
                np.memmap(folder / f"{shard}{THERE}", np.uint8, "r+", shape=(len(places),)),
            )
            for shard, places in offsets.items()
        }

    def __reduce__(self) -> tuple[type["ArrayStore"], tuple[Path, Item, Offsets]]:
        """Let another process open the same files."""
        return ArrayStore, (self.folder, self.item, self._offsets)

    def get(self, shard: str, offset: int) -> Array | None:
        """Return the array of an image, or None if nobody has computed it."""
        there = self._shards[shard]
        place = there.place(offset)
        return there.values[place] if there.there[place] else None

    def put(self, shard: str, offset: int, values: Array) -> None:
        """Keep the array of an image."""
        there = self._shards[shard]
        place = there.place(offset)
        there.values[place] = values
        there.there[place] = 1

    def flush(self) -> None:
        """Write everything to disk."""
        for shard in self._shards.values():
            for mapped in (shard.values, shard.there):
                if isinstance(mapped, np.memmap):
                    mapped.flush()


@contextmanager
def opened(
    root: Path, key: str, item: Item, images_dir: Path, names: Collection[str], most_gb: float,
    beside: Collection[ArrayStore] = (),
) -> Iterator[ArrayStore | None]:  # fmt: skip
    """Open the store of a key for the shards named.

    Args:
        root: the folder of all stores; those of other keys make room, the least recently used first.
        key: equal for equal values.
        item: what there is of each image.
        images_dir: the shards.
        names: of the shards.
        most_gb: most bytes of all stores, in units of 10**9.
        beside: open stores that must not be evicted.

    Yields:
        None if the images are too many for that, or for the disk: then they are computed every time.
    """
    if not most_gb:  # nothing to look up in the shards' headers
        yield None
        return
    folder = root / key
    offsets = {name: _offsets(root / OFFSETS, images_dir, name) for name in sorted(names)}
    needed = sum(map(len, offsets.values())) * item.bytes
    left = int(most_gb * GB) - needed - sum(_size(store.folder) for store in beside)
    if not needed or left < 0:
        log.info("%s would take %.1f GB, more than %s: not kept", item.what.capitalize(), needed / GB, item.setting)
        yield None
        return
    _discard_after_power_cut(folder)
    _make_room(root, {folder, *(store.folder for store in beside)}, left, shards.names(images_dir))
    try:
        for name, places in offsets.items():
            _allocate(folder / f"{name}{VALUES}", len(places) * (item.bytes - 1))
            _allocate(folder / f"{name}{THERE}", len(places))
    except OSError as error:  # a full disk: writing to a mapped file would end the process
        log.warning("%s: %s are not kept: %s", folder, item.what, error.strerror)
        shutil.rmtree(folder, ignore_errors=True)
        yield None
        return
    write(folder / STATE, json.dumps({"boot": _boot(), "closed": False}))
    store = ArrayStore(folder, item, offsets)
    try:
        yield store
    finally:
        store.flush()
        write(folder / STATE, json.dumps({"boot": _boot(), "closed": True}))


def _offsets(folder: Path, images_dir: Path, shard: str) -> NDArray[np.int64]:
    """Return where the images of a shard begin; its headers are read once, unless the file is another one since.

    Raises:
        SourceError: it is not a tar file, or is truncated.
    """
    path, state = folder / f"{shard}.npy", shards.path_of(images_dir, shard).stat()
    stamp = [state.st_size, state.st_mtime_ns]
    try:
        kept = np.load(path)
        if kept[: len(stamp)].tolist() == stamp:
            return kept[len(stamp) :]  # type: ignore[no-any-return]
    except (OSError, ValueError, EOFError, IndexError):  # not there yet, or damaged
        pass
    found = np.sort(np.array([member.offset for member in shards.iter_members(images_dir, shard)], np.int64))
    try:
        with replacing(path) as temporary, temporary.open("wb") as file:
            np.save(file, np.concatenate([stamp, found]))
    except OSError as error:  # a full disk
        log.debug("%s: %s", path, error)
    return found


def _allocate(path: Path, size: int) -> None:
    """Create a file of zeros for which the disk has room, unless it is there."""
    if path.exists() and path.stat().st_size == size:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, size)


def _discard_after_power_cut(folder: Path) -> None:
    try:
        state = json.loads((folder / STATE).read_bytes())
        trusted = state["closed"] or state["boot"] == _boot()
    except (OSError, ValueError, KeyError, TypeError):
        trusted = False
    if not trusted:
        shutil.rmtree(folder, ignore_errors=True)


def _make_room(root: Path, own: Collection[Path], left: int, names: Collection[str]) -> None:
    """Remove files of shards that are gone, and stores other than `own` until those take `left` bytes at most."""
    for path in (*root.glob(f"*/*{VALUES}"), *root.glob(f"*/*{THERE}"), *root.glob(f"{OFFSETS}/*.npy")):
        if path.stem not in names:
            path.unlink()
    others = sorted(
        (path for path in root.glob("*") if path.is_dir() and path not in own and path.name != OFFSETS), key=last_used
    )
    taken = {folder: _size(folder) for folder in others}
    for folder in others:
        if sum(taken.values()) <= left:
            break
        shutil.rmtree(folder, ignore_errors=True)
        del taken[folder]


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir())


def _boot() -> str:
    return BOOT.read_text().strip() if BOOT.exists() else ""

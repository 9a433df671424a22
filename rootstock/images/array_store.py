"""Arrays of the images of shards on disk, computed once: decoded images, activations of frozen layers.

    <root>/<key>/<shard>.values    (n, *shape), in the order of the shard
    <root>/<key>/<shard>.there     (n,) uint8: 1 where the array of an image has been computed
    <root>/<key>/state.json        the boot of the machine that is writing, and whether it has come to its end
    <root>/offsets/<shard>.npy     (2 + n,) int64: size and time of a shard, and where its images begin

The key stands for all that determines the values. Files are memory-mapped. An image is marked after its values are
written, and marks are removed before values are made anew, so that a process killed anywhere leaves nothing wrong;
after a power cut, when the disk may have marks without values, the store is begun anew.
"""

import json
import logging
import os
import shutil
import uuid
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from rootstock.dataset import shards
from rootstock.system.files import last_used, replacing, sync, write

log = logging.getLogger(__name__)
BOOT = Path("/proc/sys/kernel/random/boot_id")
STATE, VALUES, THERE = "state.json", ".values", ".there"
OFFSETS = "offsets"
GB = 10**9
Array = NDArray[Any]
Offsets = Mapping[str, NDArray[np.int64]]  # of the images of each shard, ascending


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

    def __init__(
        self, folder: Path, item: Item, images_dir: Path, opening: str, offsets: Offsets = MappingProxyType({})
    ) -> None:
        """Map the files of some shards, which `opened` has allocated, and those of others when they are asked for.

        `opening` is another text each time that `opened` is called.
        """
        self.folder, self.item = folder, item
        self._images_dir, self._opening = images_dir, opening
        # No lock: every image has a place of its own, and is marked once its values are there.
        self._shards = {shard: self._mapped(shard, places) for shard, places in offsets.items()}

    def __reduce__(self) -> tuple[Callable[..., "ArrayStore"], tuple[Path, Item, Path, str]]:
        """In another process there is one for each opening, which maps the same files."""
        return _store_here, (self.folder, self.item, self._images_dir, self._opening)

    def get(self, shard: str, offset: int) -> Array | None:
        """Return the array of an image, or None if nobody has computed it."""
        there = self._of(shard)
        place = there.place(offset)
        return there.values[place] if there.there[place] else None

    def put(self, shard: str, offset: int, values: Array) -> None:
        """Keep the array of an image."""
        there = self._of(shard)
        place = there.place(offset)
        there.values[place] = values
        there.there[place] = 1

    def flush(self) -> None:
        """Write everything to disk, what other processes have put there too."""
        for path in (*self.folder.glob(f"*{VALUES}"), *self.folder.glob(f"*{THERE}")):
            with suppress(FileNotFoundError):  # removed by a person meanwhile
                sync(path)

    def _of(self, shard: str) -> _Shard:
        if (found := self._shards.get(shard)) is None:
            places = _offsets(self.folder.parent / OFFSETS, self._images_dir, shard)
            found = self._shards.setdefault(shard, self._mapped(shard, places))
        return found

    def _mapped(self, shard: str, places: NDArray[np.int64]) -> _Shard:
        values = _mapped(self.folder / f"{shard}{VALUES}", self.item.dtype, (len(places), *self.item.shape))
        return _Shard(places, values, _mapped(self.folder / f"{shard}{THERE}", "uint8", (len(places),)))


@lru_cache(maxsize=4)
def _store_here(folder: Path, item: Item, images_dir: Path, opening: str) -> ArrayStore:
    return ArrayStore(folder, item, images_dir, opening)


def _mapped(path: Path, dtype: str, shape: tuple[int, ...]) -> Array:
    """Map a file into memory; NumPy's memmap would keep a file descriptor, of which there may be 1,024."""
    size = int(np.prod(shape, dtype=np.int64))
    mapped: Array = torch.from_file(str(path), shared=True, size=size, dtype=getattr(torch, dtype)).numpy()
    return mapped.reshape(shape)


@contextmanager
def opened(
    root: Path, key: str, item: Item, images_dir: Path, names: Collection[str], most_gb: float | None,
    beside: Collection[ArrayStore] = (),
) -> Iterator[ArrayStore | None]:  # fmt: skip
    """Open the store of a key for the shards named.

    Args:
        root: the folder of all stores; those of other keys make room, the least recently used first.
        key: equal for equal values.
        item: what there is of each image.
        images_dir: the shards.
        names: of the shards.
        most_gb: most bytes of all stores, in units of 10**9; None to leave them as they are, and use none.
        beside: open stores that must not be evicted.

    Yields:
        None if the images are too many for that, or for the disk: then they are computed every time.
    """
    if most_gb is None:
        yield None
        return
    folder, kept = root / key, {store.folder for store in beside}
    most = int(most_gb * GB) - sum(map(_size, kept))
    if not most_gb:  # nothing to look up in the shards' headers
        _make_room(root, kept, 0)
        yield None
        return
    offsets = {name: _offsets(root / OFFSETS, images_dir, name) for name in sorted(names)}
    needed = sum(map(len, offsets.values())) * item.bytes
    if not needed or needed > most:
        log.info("%s would take %.1f GB, more than %s: not kept", item.what.capitalize(), needed / GB, item.setting)
        _make_room(root, kept, max(most, 0))
        yield None
        return
    _discard_after_power_cut(folder)
    _remove_shards_except(root, shards.names(images_dir))
    _make_room(root, kept | {folder}, most - needed - _size_of_others(folder, names))
    if needed + _size_of_others(folder, names) > most:
        _remove_shards_except(folder, names)
    try:
        for name, places in offsets.items():
            _allocate(folder / name, len(places), item)
    except OSError as error:  # a full disk: writing to a mapped file would end the process
        log.warning("%s: %s are not kept: %s", folder, item.what, error.strerror)
        shutil.rmtree(folder, ignore_errors=True)
        yield None
        return
    write(folder / STATE, json.dumps({"boot": _boot(), "closed": False}))
    store = ArrayStore(folder, item, images_dir, uuid.uuid4().hex, offsets)
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


def _allocate(stem: Path, images: int, item: Item) -> None:
    """Create the files of a shard, for which the disk has room, unless they are there."""
    values, there = (stem.with_name(f"{stem.name}{suffix}") for suffix in (VALUES, THERE))
    sizes = {values: images * (item.bytes - 1), there: images}
    missing = [path for path, size in sizes.items() if not path.exists() or path.stat().st_size != size]
    if values in missing:
        there.unlink(missing_ok=True)  # or it would mark values that are no longer there
    for path in (values, there) if values in missing else missing:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, sizes[path])


def _discard_after_power_cut(folder: Path) -> None:
    try:
        state = json.loads((folder / STATE).read_bytes())
        trusted = state["closed"] or state["boot"] == _boot()
    except (OSError, ValueError, KeyError, TypeError):
        trusted = False
    if not trusted:
        shutil.rmtree(folder, ignore_errors=True)


def _remove_shards_except(folder: Path, names: Collection[str]) -> None:
    """Remove the files of other shards, in a folder or those below it."""
    for suffix in (THERE, VALUES, ".npy"):  # marks first
        for path in folder.rglob(f"*{suffix}"):
            if path.stem not in names:
                path.unlink(missing_ok=True)


def _make_room(root: Path, own: Collection[Path], left: int) -> None:
    """Remove stores other than `own`, the least recently used first, until they take `left` bytes at most."""
    others = sorted(
        (path for path in root.glob("*") if path.is_dir() and path not in own and path.name != OFFSETS), key=last_used
    )
    taken = {folder: _size(folder) for folder in others}
    for folder in others:
        if sum(taken.values()) <= left:
            break
        shutil.rmtree(folder, ignore_errors=True)
        del taken[folder]


def _size_of_others(folder: Path, names: Collection[str]) -> int:
    """Return the bytes of the files of shards other than those named."""
    suffixes = (VALUES, THERE)
    return sum(p.stat().st_size for p in folder.glob("*") if p.suffix in suffixes and p.stem not in names)


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir())


def _boot() -> str:
    return BOOT.read_text().strip() if BOOT.exists() else ""

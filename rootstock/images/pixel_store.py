"""Decoded images on disk: uint8 pixels as the network takes them, which the first pass that decodes leaves for others.

    <root>/<key>/<shard>.pixels    (n, size, size, 3) uint8, in the order of the shard
    <root>/<key>/<shard>.there     (n,) uint8: 1 where the image has been decoded
    <root>/<key>/state.json        the boot of the machine that is writing, and whether it has come to its end

The key stands for all that determines the pixels: the transform without its normalisation, and the libraries that
decode and resize. Files are memory-mapped. An image is marked after its pixels are written, so a killed process leaves
nothing wrong; after a power cut, when the disk may have marks without pixels, the store is begun anew.
"""

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from rootstock.config.architectures import Transform
from rootstock.dataset import shards
from rootstock.system.files import last_used, write
from rootstock.system.packages import installed_versions

log = logging.getLogger(__name__)
BOOT = Path("/proc/sys/kernel/random/boot_id")
STATE, PIXELS, THERE = "state.json", ".pixels", ".there"
GB = 10**9
Image = NDArray[np.uint8]


@dataclass(frozen=True)
class _Shard:
    offsets: NDArray[np.int64]  # of the images in the shard, ascending
    pixels: NDArray[np.uint8]
    there: NDArray[np.uint8]

    def place(self, offset: int) -> int:
        return int(np.searchsorted(self.offsets, offset))


class PixelStore:
    """The decoded images of some shards; may be used from several threads and processes."""

    def __init__(self, folder: Path, size: int, offsets: dict[str, NDArray[np.int64]]) -> None:
        """Open the files of a store, which `opened` has allocated."""
        self._files = folder, size, offsets
        # No lock: every image has a place of its own, and is marked once its pixels are there.
        self._shards = {
            shard: _Shard(
                places,
                np.memmap(folder / f"{shard}{PIXELS}", np.uint8, "r+", shape=(len(places), size, size, 3)),
                np.memmap(folder / f"{shard}{THERE}", np.uint8, "r+", shape=(len(places),)),
            )
            for shard, places in offsets.items()
        }

    def __reduce__(self) -> tuple[type["PixelStore"], tuple[Path, int, dict[str, NDArray[np.int64]]]]:
        """Let another process open the same files."""
        return PixelStore, self._files

    def get(self, shard: str, offset: int) -> Image | None:
        """Return an image (size, size, 3), or None if nobody has decoded it."""
        there = self._shards[shard]
        place = there.place(offset)
        return there.pixels[place] if there.there[place] else None

    def put(self, shard: str, offset: int, image: Image) -> None:
        """Keep a decoded image."""
        there = self._shards[shard]
        place = there.place(offset)
        there.pixels[place] = image
        there.there[place] = 1

    def flush(self) -> None:
        """Write everything to disk."""
        for shard in self._shards.values():
            for mapped in (shard.pixels, shard.there):
                if isinstance(mapped, np.memmap):
                    mapped.flush()


def key_of(transform: Transform) -> str:
    """Return the key of decoded images: equal for equal pixels."""
    whole = replace(transform, mean=(0.0,) * 3, std=(1.0,) * 3).as_dict()
    libraries = installed_versions("torch", "torchvision", "pillow")
    return hashlib.sha256(json.dumps([whole, libraries], sort_keys=True).encode()).hexdigest()[:12]


@contextmanager
def opened(
    root: Path, transform: Transform, images_dir: Path, names: Collection[str], most_gb: float
) -> Iterator[PixelStore | None]:
    """Open the store of decoded images for the shards named.

    Args:
        root: the folder of all stores; those of other transforms make room, the least recently used first.
        transform: what the backbone expects.
        images_dir: the shards.
        names: of the shards.
        most_gb: most bytes of all stores, in units of 10**9.

    Yields:
        None if the images are too many for that, or for the disk: then they are decoded every time.
    """
    if not most_gb:  # nothing to look up in the shards' headers
        yield None
        return
    folder, size = root / key_of(transform), transform.size
    offsets = {name: _offsets(images_dir, name) for name in sorted(names)}
    needed = sum(len(places) for places in offsets.values()) * (3 * size * size + 1)
    if not needed or needed > most_gb * GB:
        log.info("Decoded images would take %.1f GB, more than cache.pixels_gb: not kept", needed / GB)
        yield None
        return
    _discard_after_power_cut(folder)
    _make_room(root, folder, int(most_gb * GB) - needed, shards.names(images_dir))
    try:
        for name, places in offsets.items():
            _allocate(folder / f"{name}{PIXELS}", len(places) * 3 * size * size)
            _allocate(folder / f"{name}{THERE}", len(places))
    except OSError as error:  # a full disk: writing to a mapped file would end the process
        log.warning("%s: decoded images are not kept: %s", folder, error.strerror)
        shutil.rmtree(folder, ignore_errors=True)
        yield None
        return
    write(folder / STATE, json.dumps({"boot": _boot(), "closed": False}))
    store = PixelStore(folder, size, offsets)
    try:
        yield store
    finally:
        store.flush()
        write(folder / STATE, json.dumps({"boot": _boot(), "closed": True}))


def _offsets(images_dir: Path, shard: str) -> NDArray[np.int64]:
    return np.sort(np.array([member.offset for member in shards.iter_members(images_dir, shard)], np.int64))


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


def _make_room(root: Path, own: Path, left: int, names: Collection[str]) -> None:
    """Remove shards of this store that are gone, and other stores until the rest takes `left` bytes at most."""
    for path in own.glob("*.*"):
        if path.suffix in (PIXELS, THERE) and path.stem not in names:
            path.unlink()
    others = sorted((folder for folder in root.glob("*") if folder.is_dir() and folder != own), key=last_used)
    taken = {folder: sum(path.stat().st_size for path in folder.iterdir()) for folder in others}
    for folder in others:
        if sum(taken.values()) <= left:
            break
        shutil.rmtree(folder, ignore_errors=True)
        del taken[folder]


def _boot() -> str:
    return BOOT.read_text().strip() if BOOT.exists() else ""

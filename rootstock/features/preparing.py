"""Prepares images for an engine: read, checked and decoded, on a thread or in a process of its own."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rootstock.config import params
from rootstock.config.section import Augment
from rootstock.dataset import shards
from rootstock.dataset.shards import Member
from rootstock.features.feature_spec import FeatureSpec
from rootstock.images import gpu_decoding, loader, pixels
from rootstock.images.array_store import ArrayStore
from rootstock.images.pixels import OpenedFile

Prepared = NDArray[np.uint8] | OpenedFile  # an image as the engine takes it; a file if the GPU decodes it


@dataclass(frozen=True)
class File:
    """A feature file: one shard's images as they are (view 0), or one augmented view of each."""

    path: Path
    shard: str
    view: int


@dataclass(frozen=True)
class Group:
    """A few images of a shard in flight: ids and tar records (for the digest); `last` marks the end of the shard."""

    file: File
    last: bool
    ids: list[str]
    records: list[bytes]


@dataclass(frozen=True)
class Preparation:
    """Reads images from a shard and decodes them to the backbone's input, here or in another process.

    `pixels` has images that have been decoded before, and keeps the others; None keeps none. Only fully decoded ones.
    """

    reader: shards.Reader
    spec: FeatureSpec
    settings: params.Extract
    pixels: ArrayStore | None = None

    def __call__(self, part: tuple[File, list[Member], bool]) -> tuple[Group, list[Prepared]]:
        """Read and decode a group: its file, its members, and whether it is the last of the shard."""
        file, members, last = part
        try:
            contents = [self.reader.read(file.shard, member.offset, member.size) for member in members]
        except OSError as error:  # truncated, or a disk error
            raise shards.damaged_error(self.reader.folder, file.shard, str(error)) from error
        records = [shards.record(member.name, data) for member, data in zip(members, contents, strict=True)]
        images = [self._image(*entry, file) for entry in zip(contents, members, strict=True)]
        return Group(file, last, [member.image_id for member in members], records), images

    def _image(self, data: bytes, member: Member, file: File) -> Prepared:
        augment = self.settings.view_augment if file.view else "none"
        seed = seed_of(member.image_id, file.view) if file.view else None
        store = self.pixels if self.spec.decode == "full" and not file.view else None
        try:
            return kept_or_prepared(store, file.shard, member.offset, lambda: prepare(self.spec, data, augment, seed))
        except Exception as error:  # Pillow's plug-ins raise anything; ingest has decoded this image once
            why = f"its image {member.name} cannot be decoded ({error})"
            raise shards.damaged_error(self.reader.folder, file.shard, why) from error


@dataclass(frozen=True)
class InMemoryOrder:
    """Another preparation, with each image as (size, size, 3), which is handed over as it lies in memory."""

    prepare: Callable[[Any], tuple[Any, list[Prepared]]]

    def __call__(self, group: object) -> tuple[Any, list[NDArray[np.uint8]]]:
        """Prepare a group of images, none of which is left to the GPU."""
        kept, images = self.prepare(group)
        return kept, [image.transpose(1, 2, 0) for image in images if not isinstance(image, OpenedFile)]


def seed_of(image_id: str, view: int) -> int:
    """Return the seed of an augmented view; it depends on the image alone, so a view is the same in any shard."""
    return int.from_bytes(hashlib.sha256(f"{image_id} {view}".encode()).digest()[:8], "big")


def kept_or_prepared(
    store: ArrayStore | None, shard: str, offset: int, prepare_image: Callable[[], Prepared]
) -> Prepared:
    """Return an image that a store has; else prepare it, and leave it there unless the GPU decodes it."""
    found = store.get(shard, offset) if store else None
    if found is not None:
        return found.transpose(2, 0, 1)
    image = prepare_image()
    if store and not isinstance(image, OpenedFile):
        store.put(shard, offset, image.transpose(1, 2, 0))
    return image


def prepare(
    spec: FeatureSpec, image: bytes | OpenedFile, augment: Augment = "none", seed: int | None = None
) -> Prepared:
    """Decode an accepted file and resize it to (3, size, size) uint8; only open it if the GPU decodes it.

    Augmented views (those with a seed) are always decoded in full, on the CPU.
    """
    file = pixels.open_file(image) if isinstance(image, bytes) else image
    if spec.decode == "gpu" and seed is None and gpu_decoding.can_decode(file):
        return file
    view: NDArray[np.uint8] = loader.view(file, spec.transform, augment, seed, spec.decode).numpy()
    return view

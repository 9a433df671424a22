"""One pass over shards: read and decode images, compute their features, write feature files.

Shards are read sequentially. Each core reads, decodes and computes a few images at a time (engines.py says why);
results come back in order and are written as they arrive, under a temporary name until the file is complete.
"""

import hashlib
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from rootstock.backbones.backbones import Backbone
from rootstock.config import params
from rootstock.dataset import shards
from rootstock.dataset.shards import Member
from rootstock.features import engines, feature_files, feature_keys
from rootstock.features.engines import Engine
from rootstock.features.feature_extractor import FeatureExtractor, Prepared
from rootstock.features.feature_spec import FeatureSpec
from rootstock.system import progress
from rootstock.system.parallel import grouped


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


def compute(
    files: Sequence[File], engine: Engine, backbone: Backbone, settings: params.Extract, images_dir: Path,
    advance: progress.Advance, threads: int | None = None,
) -> None:  # fmt: skip
    """Compute feature files one after the other.

    Args:
        files: to compute.
        engine: computes the features.
        backbone: with its weights.
        settings: the section `extract` of params.yaml.
        images_dir: the shards.
        advance: called with the number of images done.
        threads: to decode and compute with; None is one per core.

    Raises:
        ParamsError: float16 is too small for the features of this backbone.
        SourceError: a shard is damaged.
    """
    libraries = engines.libraries(engine.name)
    with closing(groups_of(files, engine, backbone, settings, images_dir, threads)) as groups:
        for file in files:
            fields = feature_keys.cache_key_fields(backbone.description, settings, engine.name, file.view)
            rows = _checked(groups, images_dir, file.shard, advance)
            feature_files.write(file.path, rows, backbone.width, settings.dtype, fields, libraries)


def groups_of(
    files: Iterable[File], engine: Engine, backbone: Backbone, settings: params.Extract, images_dir: Path,
    threads: int | None = None,
) -> Generator[tuple[Group, NDArray[np.float32]]]:  # fmt: skip
    """Yield all images of the files with their features (n, width), in order, a few images at a time."""
    spec = FeatureSpec.of(backbone.transform, settings, engine.name)
    extractor = FeatureExtractor(spec, engine, backbone.width)
    parts = (part for file in files for part in _parts(file, images_dir, engine.group_size))
    with shards.Reader(images_dir) as reader:
        yield from extractor.unrounded(parts, _Decoder(reader, extractor, settings), threads)


def _parts(file: File, images_dir: Path, size: int) -> Iterator[tuple[File, list[Member], bool]]:
    """Split a shard into groups; the flag marks its last."""
    parts = list(grouped(shards.iter_members(images_dir, file.shard), size))
    if not parts:
        raise shards.damaged_error(images_dir, file.shard, "it holds no images")
    *most, last = parts
    yield from ((file, members, False) for members in most)
    yield file, last, True


class _Decoder:
    """Reads images from a shard and decodes them to the backbone's input."""

    def __init__(self, reader: shards.Reader, extractor: FeatureExtractor, settings: params.Extract) -> None:
        self.reader, self.extractor, self.settings = reader, extractor, settings

    def __call__(self, part: tuple[File, list[Member], bool]) -> tuple[Group, list[Prepared]]:
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
        try:
            return self.extractor.prepare(data, augment, seed)
        except Exception as error:  # Pillow's plug-ins raise anything; ingest has decoded this image once
            why = f"its image {member.name} cannot be decoded ({error})"
            raise shards.damaged_error(self.reader.folder, file.shard, why) from error


def seed_of(image_id: str, view: int) -> int:
    """Return the seed of an augmented view; it depends on the image alone, so a view is the same in any shard."""
    return int.from_bytes(hashlib.sha256(f"{image_id} {view}".encode()).digest()[:8], "big")


def _checked(
    groups: Iterator[tuple[Group, NDArray[np.float32]]], images_dir: Path, shard: str, advance: progress.Advance
) -> Iterator[tuple[list[str], NDArray[np.float32]]]:
    """Yield one file's ids and features, then check the bytes read against the digest in the shard's name.

    No group of the next file is requested: an error there must not cost this file.
    """
    content = hashlib.sha256()
    for group, features in groups:
        for record in group.records:
            content.update(record)
        yield group.ids, features
        advance(len(group.ids))
        if group.last:
            break
    shards.verify(images_dir, shard, content.hexdigest())

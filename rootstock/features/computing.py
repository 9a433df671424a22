"""One pass over shards: read and decode images, compute their features, write feature files.

Shards are read sequentially. Each core reads, decodes and computes a few images at a time (engines.py says why);
results come back in order and are written as they arrive, under a temporary name until the file is complete.
"""

import hashlib
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from rootstock.backbones.backbones import Backbone
from rootstock.config import params
from rootstock.config.architectures import Transform
from rootstock.dataset import shards
from rootstock.dataset.shards import Member
from rootstock.features import engines, feature_files, feature_keys
from rootstock.features.engines import Engine
from rootstock.images import gpu_decoding, loader
from rootstock.system import progress
from rootstock.system.parallel import cores, grouped, ordered_map

GPU_BATCHES = 2  # in flight on the GPU: one is copied while the other is computed


@dataclass(frozen=True)
class File:
    """A feature file: one shard's images as they are (view 0), or one augmented view of each."""

    path: Path
    shard: str
    view: int


@dataclass(frozen=True)
class Group:
    """A few images of a shard in flight: ids, tar records (for the digest), and pixels or features.

    `values` holds pixels (n, 3, size, size) uint8, later features (n, width) float32. With `decode: gpu`, `contents`
    holds the encoded images and `values` is empty until the GPU has decoded them. `last` marks the end of the shard.
    """

    file: File
    last: bool
    ids: list[str]
    records: list[bytes]
    values: NDArray[Any]
    contents: tuple[bytes, ...] = ()


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
) -> Generator[Group]:  # fmt: skip
    """Yield the features of all images of the files, in order, a few images at a time."""
    with shards.Reader(images_dir) as reader:
        decoded = _Decoder(reader, backbone, settings)

        def on_one_core(work: tuple[File, list[Member], bool]) -> Group:
            group = decoded(*work)
            return replace(group, values=engine.forward(group.values))

        work = (entry for file in files for entry in _parts(file, images_dir, engine.batch_size))
        if engine.on_each_core:
            yield from ordered_map(on_one_core, work, threads, first=engines.limit_to_one_core)
        else:
            pixels_of = ordered_map(lambda entry: decoded(*entry), work, threads, (threads or cores()) + GPU_BATCHES)
            yield from _on_gpu(engine, pixels_of, backbone.transform, loader.device())


def _on_gpu(engine: Engine, groups: Iterable[Group], transform: Transform, device: torch.device) -> Iterator[Group]:
    """Compute the features of groups in order, two at a time, decoding on the GPU where needed.

    With f32, convolutions do not use TF32, which is torch's default.
    """

    def compute(group: Group) -> Group:
        if not group.contents:
            return replace(group, values=engine.forward(group.values))
        seen = gpu_decoding.views(group.contents, transform, device)
        if seen.is_cuda:
            torch.cuda.synchronize(device)  # the network runs on another stream
        return replace(group, values=engine.forward(seen), contents=())

    with torch.backends.cudnn.flags(enabled=True, benchmark=True, allow_tf32=False):
        yield from ordered_map(compute, groups, threads=GPU_BATCHES, window=GPU_BATCHES)


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

    def __init__(self, reader: shards.Reader, backbone: Backbone, settings: params.Extract) -> None:
        self.reader, self.transform, self.settings = reader, backbone.transform, settings

    def __call__(self, file: File, members: list[Member], last: bool) -> Group:
        try:
            contents = [self.reader.read(file.shard, member.offset, member.size) for member in members]
        except OSError as error:  # truncated, or a disk error
            raise shards.damaged_error(self.reader.folder, file.shard, str(error)) from error
        records = [shards.record(member.name, data) for member, data in zip(members, contents, strict=True)]
        ids = [member.image_id for member in members]
        if self.settings.decode == "gpu" and not file.view:
            return Group(file, last, ids, records, np.empty(0, np.uint8), tuple(contents))
        seen = np.stack([self._view(*entry, file) for entry in zip(contents, members, strict=True)])
        return Group(file, last, ids, records, seen)

    def _view(self, data: bytes, member: Member, file: File) -> NDArray[np.uint8]:
        augment = self.settings.view_augment if file.view else "none"
        seed = seed_of(member.image_id, file.view) if file.view else None
        try:
            seen = loader.view(data, self.transform, augment, seed, self.settings.decode)
        except Exception as error:  # Pillow's plug-ins raise anything; ingest has decoded this image once
            why = f"its image {member.name} cannot be decoded ({error})"
            raise shards.damaged_error(self.reader.folder, file.shard, why) from error
        pixels_of: NDArray[np.uint8] = seen.numpy()
        return pixels_of


def seed_of(image_id: str, view: int) -> int:
    """Return the seed of an augmented view; it depends on the image alone, so a view is the same in any shard."""
    return int.from_bytes(hashlib.sha256(f"{image_id} {view}".encode()).digest()[:8], "big")


def _checked(
    groups: Iterator[Group], images_dir: Path, shard: str, advance: progress.Advance
) -> Iterator[tuple[list[str], NDArray[np.float32]]]:
    """Yield one file's ids and features, then check the bytes read against the digest in the shard's name.

    No group of the next file is requested: an error there must not cost this file.
    """
    content = hashlib.sha256()
    for group in groups:
        for record in group.records:
            content.update(record)
        yield group.ids, group.values
        advance(len(group.ids))
        if group.last:
            break
    shards.verify(images_dir, shard, content.hexdigest())

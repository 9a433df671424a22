"""One pass over shards: images are read, decoded and pushed through the network, and files of features written.

Shards are read from end to end. A few images at a time are read, decoded and computed on one core (engines.py says
why); they come back in order, and a file is written while they come, under a temporary name until it is whole.
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

GPU_BATCHES = 2  # on the GPU at once: one is copied while one is computed


@dataclass(frozen=True)
class File:
    """A file of features: of a shard's images themselves (view 0), or of an augmented view of each."""

    path: Path
    shard: str
    view: int


@dataclass(frozen=True)
class Group:
    """A few images of a file on their way: ids, their records in the shard's content, and what they have become.

    `values` is pixels (n, 3, size, size) uint8, then features (n, width) float32; where a GPU decodes, `contents` are
    the files and there are no pixels. `last` is the end of the file.
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
    """Compute files of features, one after the other, each on so many threads (all cores).

    Raises:
        ParamsError: float16 is too small for the features of this backbone.
        SourceError: a shard is damaged.
    """
    with closing(groups_of(files, engine, backbone, settings, images_dir, threads)) as groups:
        for file in files:
            meaning = feature_keys.cache_key_fields(backbone.description, settings, engine.name, file.view)
            rows = _checked(groups, images_dir, file.shard, advance)
            feature_files.write(file.path, rows, backbone.width, settings.dtype, meaning)


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
            yield from ordered_map(on_one_core, work, threads, first=engines.alone)
        else:
            pixels_of = ordered_map(lambda entry: decoded(*entry), work, threads, (threads or cores()) + GPU_BATCHES)
            yield from _on_gpu(engine, pixels_of, backbone.transform, loader.device())


def _on_gpu(engine: Engine, groups: Iterable[Group], transform: Transform, device: torch.device) -> Iterator[Group]:
    """Compute the features of groups, in order, two at a time; of undecoded ones, decode the files there.

    In f32 convolutions do not round to TF32, as torch has them do by default.
    """

    def compute(group: Group) -> Group:
        if not group.contents:
            return replace(group, values=engine.forward(group.values))
        seen = gpu_decoding.views(group.contents, transform, device)
        if seen.is_cuda:
            torch.cuda.synchronize(device)  # the network's stream is another one
        return replace(group, values=engine.forward(seen), contents=())

    with torch.backends.cudnn.flags(enabled=True, benchmark=True, allow_tf32=False):
        yield from ordered_map(compute, groups, threads=GPU_BATCHES, window=GPU_BATCHES)


def _parts(file: File, images_dir: Path, size: int) -> Iterator[tuple[File, list[Member], bool]]:
    """Divide a shard into groups, and say which is its last."""
    parts = list(grouped(shards.walk(images_dir, file.shard), size))
    if not parts:
        raise shards.damaged(images_dir, file.shard, "it holds no image")
    *most, last = parts
    yield from ((file, members, False) for members in most)
    yield file, last, True


class _Decoder:
    """Reads images from a shard and decodes them to what the backbone sees."""

    def __init__(self, reader: shards.Reader, backbone: Backbone, settings: params.Extract) -> None:
        self.reader, self.transform, self.settings = reader, backbone.transform, settings

    def __call__(self, file: File, members: list[Member], last: bool) -> Group:
        try:
            contents = [self.reader.read(file.shard, member.offset, member.size) for member in members]
        except OSError as error:  # it ends too early, or the disk does not give it
            raise shards.damaged(self.reader.folder, file.shard, str(error)) from error
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
        except Exception as error:  # Pillow's plug-ins raise whatever the parser met; ingest has decoded it once
            why = f"the image {member.name} in it cannot be decoded ({error})"
            raise shards.damaged(self.reader.folder, file.shard, why) from error
        pixels_of: NDArray[np.uint8] = seen.numpy()
        return pixels_of


def seed_of(image_id: str, view: int) -> int:
    """Give the seed of an image's augmented view: the image's own, so that a view is the same wherever it is."""
    return int.from_bytes(hashlib.sha256(f"{image_id} {view}".encode()).digest()[:8], "big")


def _checked(
    groups: Iterator[Group], images_dir: Path, shard: str, advance: progress.Advance
) -> Iterator[tuple[list[str], NDArray[np.float32]]]:
    """Pass a file's ids and features on, and hold the bytes that were read to the shard's name before it is finished.

    No group of the next file is asked for: what is wrong with that is no reason to lose this one.
    """
    content = hashlib.sha256()
    for group in groups:
        for record in group.records:
            content.update(record)
        yield group.ids, group.values
        advance(len(group.ids))
        if group.last:
            break
    shards.check(images_dir, shard, content.hexdigest())

"""One pass over shards: read and decode images, compute their features, write feature files.

Shards are read sequentially. Each core reads, decodes and computes a few images at a time (engines.py says why);
results come back in order and are written as they arrive, under a temporary name until the file is complete.
"""

import hashlib
import logging
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from rootstock.backbones.backbones import Backbone
from rootstock.config import params
from rootstock.dataset import shards
from rootstock.dataset.shards import Member
from rootstock.features import engines, feature_files, feature_keys
from rootstock.features.engines import Engine
from rootstock.features.feature_extractor import FeatureExtractor
from rootstock.features.feature_spec import FeatureSpec
from rootstock.features.preparing import File as File, Group, Preparation
from rootstock.features.unfinished import Part, Unfinished
from rootstock.images.array_store import ArrayStore
from rootstock.system import processes, progress
from rootstock.system.errors import SourceError
from rootstock.system.parallel import cores, grouped

log = logging.getLogger(__name__)


def compute(
    files: Sequence[File], engine: Engine, backbone: Backbone, settings: params.Extract, images_dir: Path,
    advance: progress.Advance, threads: int | None = None,
    begun: Mapping[File, Unfinished] = MappingProxyType({}), pixels: ArrayStore | None = None, in_all: int = 0,
) -> None:  # fmt: skip
    """Compute feature files one after the other.

    Args:
        files: to compute.
        engine: computes the features.
        backbone: with its weights.
        settings: the section `extract` of params.yaml.
        images_dir: the shards.
        advance: called with the number of images done.
        threads: to decode and compute with, or processes to decode for a GPU; None is one per core.
        begun: what is kept of files that are not finished; of others nothing is kept.
        pixels: has images that have been decoded before, and keeps the others.
        in_all: how many images this process computes, if it is called several times.

    Raises:
        ParamsError: float16 is too small for the features of this backbone.
        SourceError: a shard is damaged.
    """
    libraries = engines.libraries(engine.name)
    done = {file: kept.images for file, kept in begun.items()}
    with closing(groups_of(files, engine, backbone, settings, images_dir, threads, done, pixels, in_all)) as groups:
        for file in files:
            fields = feature_keys.cache_key_fields(backbone.description, settings, engine.name, file.view)
            kept = begun.get(file) or Unfinished(None)
            rows = _checked(groups, images_dir, file.shard, advance, kept)
            feature_files.write(file.path, rows, backbone.width, settings.dtype, fields, libraries)
            kept.remove()


def groups_of(
    files: Iterable[File], engine: Engine, backbone: Backbone, settings: params.Extract, images_dir: Path,
    threads: int | None = None, done: Mapping[File, int] = MappingProxyType({}), pixels: ArrayStore | None = None,
    in_all: int = 0,
) -> Generator[tuple[Group, NDArray[np.float32]]]:  # fmt: skip
    """Yield the images of the files with their features (n, width), in order, a few images at a time.

    Of each file, as many of the first images as `done` says are left out.
    """
    spec = FeatureSpec.of(backbone.transform, settings, engine.name)
    extractor = FeatureExtractor(spec, engine, backbone.width)
    parts = (part for file in files for part in _parts(file, images_dir, engine.group_size, done.get(file, 0)))
    with shards.Reader(images_dir) as reader:
        decode = Preparation(reader, spec, settings, pixels)
        in_processes = _in_processes(files, engine, spec, images_dir, threads or cores(), in_all)
        yield from extractor.unrounded(parts, decode, threads, in_processes)


def _in_processes(
    files: Iterable[File], engine: Engine, spec: FeatureSpec, images_dir: Path, count: int, in_all: int
) -> bool:
    """Whether images are decoded in processes: many of them, on many cores, for a GPU that decodes none itself."""
    if engine.stream is None or spec.decode == "gpu" or not isinstance(files, Sequence):
        return False
    images = sum(shards.count_images(images_dir, file.shard) for file in files)
    pays = processes.pay(max(images, in_all), count)
    log.info("extract: decoding in %d %s", count, "processes" if pays else "threads")
    return pays


def _parts(file: File, images_dir: Path, size: int, done: int = 0) -> Iterator[tuple[File, list[Member], bool]]:
    """Split a shard, but for its first images, which are done, into groups; the flag marks its last."""
    members = list(shards.iter_members(images_dir, file.shard))
    if not members:
        raise shards.damaged_error(images_dir, file.shard, "it holds no images")
    if len(members) == done:
        return
    *most, last = grouped(members[done:], size)
    yield from ((file, members, False) for members in most)
    yield file, last, True


def _checked(
    groups: Iterator[tuple[Group, NDArray[np.float32]]], images_dir: Path, shard: str, advance: progress.Advance,
    begun: Unfinished,
) -> Iterator[tuple[list[str], NDArray[np.float32]]]:  # fmt: skip
    """Yield one file's ids and features, then check the bytes read against the digest in the shard's name.

    What was begun comes first. No group of the next file is requested: an error there must not cost this file.
    """
    content = hashlib.sha256()
    left = shards.count_images(images_dir, shard) - begun.images
    for part in begun.parts():
        content.update(b"".join(part.records))
        yield part.ids, part.features
    for group, features in groups if left else ():
        content.update(b"".join(group.records))
        begun.add(Part(group.ids, group.records, features))
        yield group.ids, features
        advance(len(group.ids))
        if group.last:
            break
    try:
        shards.verify(images_dir, shard, content.hexdigest())
    except SourceError:
        begun.remove()
        raise

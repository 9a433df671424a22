"""Pushing images through the frozen backbone: each once, a file of features a shard, whatever happens on the way.

Shards are read from end to end. A few images at a time are read, decoded and computed on one core (engines.py says
why); they come back in order, and a file is written while they come, under a temporary name until it is whole.
"""

import hashlib
import logging
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rootstock.backbones.backbones import Backbone
from rootstock.config import params
from rootstock.dataset import shards
from rootstock.dataset.shards import Member
from rootstock.features import choice, engines, feature_files, feature_keys, gpu
from rootstock.features.engines import ENGINES, Engine, Name, Unavailable
from rootstock.features.feature_keys import AUTO
from rootstock.images import loader
from rootstock.system import progress
from rootstock.system.errors import ParamsError
from rootstock.system.files import mark_used, sweep
from rootstock.system.parallel import cores, grouped, ordered_map

log = logging.getLogger(__name__)
NAMED = 3  # files that a warning names
WARM_GROUPS, TIMED_IMAGES, TIMED_S = 4, 256, 5.0  # speed is measured after so many, on so many, or for so long


@dataclass(frozen=True)
class Extracted:
    """What an extraction did: images with features, views of them that were computed now, key and engine."""

    images: int
    computed: int
    key: str
    engine: Name


@dataclass(frozen=True)
class File:
    """A file of features: of a shard's images themselves (view 0), or of an augmented view of each."""

    path: Path
    shard: str
    view: int


@dataclass(frozen=True)
class Plan:
    """What computes, which files are missing, and how many rows the others have; `started` where it is running."""

    engine: Name
    key: str
    missing: list[File]
    there: int
    started: Engine | None


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


def extract(
    backbone: Backbone, settings: params.Extract, images_dir: Path, features_dir: Path, *, else_in: Path | None = None,
    elsewhere: Callable[[Plan, progress.Advance], None] | None = None,
) -> Extracted:  # fmt: skip
    """Compute the features of every shard that has none yet.

    Args:
        backbone: with its weights, in evaluation mode, cut at the layer of the settings.
        settings: the section `extract` of params.yaml.
        images_dir: the shards.
        features_dir: gets `<key>/<shard>.parquet`; what is there, and is what was written, stays as it is.
        else_in: a folder like that one; files that it has are copied from there.
        elsewhere: has the missing files computed by others; None computes them here.

    Raises:
        ParamsError: the engine cannot compute this, or float16 is too small for the features of this backbone.
        SourceError: a shard is damaged.
    """
    todo = plan(backbone, settings, images_dir, features_dir, else_in)
    total = sum(shards.count(images_dir, file.shard) for file in todo.missing)
    with progress.bar("extract", total) as advance:
        if todo.there:
            advance(0, cached=todo.there)
        if todo.missing and elsewhere:
            elsewhere(todo, advance)
        elif todo.missing:
            engine = todo.started or start(todo.engine, backbone, settings)
            compute(todo.missing, engine, backbone, settings, images_dir, advance)
    return Extracted((todo.there + total) // (1 + settings.views), total, todo.key, todo.engine)


def plan(
    backbone: Backbone, settings: params.Extract, images_dir: Path, features_dir: Path, else_in: Path | None = None
) -> Plan:
    """Find out what is missing, settle what computes it, and clear away what a killed run left.

    Raises:
        ParamsError: no engine can compute this.
    """
    features_dir.mkdir(parents=True, exist_ok=True)
    sweep(features_dir)
    names = shards.names(images_dir)
    described, started = backbone.description, None
    engine = settings.engine if settings.engine != AUTO else _earlier_engine(described, settings, features_dir, else_in)
    if engine is None:
        images = (1 + settings.views) * sum(shards.count(images_dir, name) for name in names)
        chosen = choice.choose(backbone, settings.precision, settings.batch_size, images, loader.device())
        engine, started = chosen.name, chosen.engine
        log.info("extract: %s", chosen.why)
    if settings.engine == AUTO:
        feature_keys.note_engine(described, settings, features_dir, engine)
    named = settings.model_copy(update={"engine": engine})
    folders = feature_keys.find(described, named, features_dir)
    for folder in folders:
        folder.mkdir(exist_ok=True)
        mark_used(folder)
        if _has_files(folder) and not feature_files.is_sealed(folder):
            log.warning("extract: %s has no digests, as earlier versions wrote it: taken as it is", folder)
            feature_files.seal(folder)
    if else_in:
        for folder in folders:
            _copy(else_in / folder.name, folder, names)
    wanted = [File(folder / f"{name}.parquet", name, view) for view, folder in enumerate(folders) for name in names]
    whole = dict(zip(wanted, ordered_map(lambda file: feature_files.is_whole(file.path), wanted), strict=True))
    missing = [file for file in wanted if not whole[file]]
    if foreign := [file.path for file in missing if file.path.exists()]:
        log.warning(
            "extract: %d files of features are not what was written, and are computed again: %s",
            len(foreign), ", ".join(map(str, foreign[:NAMED])) + (", ..." if foreign[NAMED:] else ""),
        )  # fmt: skip
    there = sum(feature_files.rows_of(file.path) for file in wanted if whole[file])
    return Plan(engine, folders[0].name, missing, there, started)


def _earlier_engine(
    described: dict[str, Any], settings: params.Extract, features_dir: Path, else_in: Path | None
) -> Name | None:
    """Say which engine computed such features before, as `auto` or by its name, here or in a comparison."""
    for folder in filter(None, (features_dir, else_in)):
        if noted := feature_keys.engine_of(described, settings, folder):
            return noted
        for name in ENGINES:
            if _has_files(folder / feature_keys.key_of(feature_keys.meaning_of(described, settings, name))):
                return name
    return None


def _has_files(folder: Path) -> bool:
    return next(folder.glob("*.parquet"), None) is not None


def _copy(source: Path, target: Path, wanted: Iterable[str]) -> None:
    """Copy the features of shards that are here now; a comparison may have seen others, which are gone since."""
    for name in (f"{shard}.parquet" for shard in wanted):
        if not feature_files.is_whole(target / name) and feature_files.is_whole(source / name):
            feature_files.copy(source / name, target / name)


def start(name: Name, backbone: Backbone, settings: params.Extract, threads: int | None = None) -> Engine:
    """Start an engine by its name, for so many threads (all cores).

    Raises:
        ParamsError: it cannot do this here.
    """
    if settings.decode == "gpu" and loader.device().type == "cpu":
        raise ParamsError("params.yaml: extract.decode is 'gpu', and here is none; expected full or reduced.")
    try:
        return engines.start(name, backbone, settings.precision, settings.batch_size, loader.device(), threads)
    except Unavailable as why:
        raise ParamsError(
            f"params.yaml: extract.engine is {name!r} and extract.precision {settings.precision!r}, but {why}; "
            "expected another engine, or auto where nothing has been extracted yet"
        ) from None


def compute(
    files: Sequence[File], engine: Engine, backbone: Backbone, settings: params.Extract, images_dir: Path,
    advance: progress.Advance, threads: int | None = None,
) -> None:  # fmt: skip
    """Compute files of features, one after the other, each on so many threads (all cores).

    Raises:
        ParamsError: float16 is too small for the features of this backbone.
        SourceError: a shard is damaged.
    """
    with closing(_groups(files, engine, backbone, settings, images_dir, threads)) as groups:
        for file in files:
            meaning = feature_keys.meaning_of(backbone.description, settings, engine.name, file.view)
            rows = _checked(groups, images_dir, file.shard, advance)
            feature_files.write(file.path, rows, backbone.width, settings.dtype, meaning)


def speed(backbone: Backbone, settings: params.Extract, images_dir: Path) -> float:
    """Measure images a second through decoding and the backbone, on the first images there are, once it is warm.

    Where there are few, they go through it again and again.
    """
    name = settings.engine
    if name == AUTO:
        name = choice.choose(backbone, settings.precision, settings.batch_size, TIMED_IMAGES, loader.device()).name
    engine = start(name, backbone, settings)
    files = [File(Path(), shard, view=0) for shard in shards.names(images_dir)]
    seen, begin, seconds = -1, 0.0, float("nan")
    with closing(_groups(cycle(files), engine, backbone, settings, images_dir)) as groups:
        for number, group in enumerate(groups):
            if seen >= 0:
                seen += len(group.ids)
                seconds = time.perf_counter() - begin
            elif number + 1 >= WARM_GROUPS:
                seen, begin = 0, time.perf_counter()
            if seen >= TIMED_IMAGES or seconds > TIMED_S:
                break
    return seen / seconds


def _groups(
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
            pixels_of = ordered_map(lambda entry: decoded(*entry), work, threads, (threads or cores()) + gpu.AT_ONCE)
            yield from gpu.computed(engine, pixels_of, backbone.transform, loader.device())


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

"""Extraction by other processes and machines: what a worker does with a shard, and how files reach it and come back.

Workers read images and backbone from a store, and write features to it: the folders of the workspace, where they see
these, or a URL that fsspec reaches. A shard may be done twice: its file is the same, and is there whole or not at all.
"""

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TypeVar

from rootstock.backbones import backbones
from rootstock.backbones.backbones import Backbone
from rootstock.config import params
from rootstock.dataset import shards
from rootstock.features import computing, engines, feature_files, feature_keys
from rootstock.features.computing import File
from rootstock.features.engines import Engine
from rootstock.features.planning import Plan
from rootstock.system import stores
from rootstock.system.errors import SourceError
from rootstock.system.parallel import cores, ordered_map
from rootstock.system.redaction import redacted

T = TypeVar("T")
BACKBONE_FILES = (backbones.WEIGHTS, backbones.DESCRIPTION)
MOVING_AT_ONCE = 8  # files to or from a store


@dataclass(frozen=True)
class Job:
    """The same for every shard: where images and backbone are, where features go, and what computes.

    `images`, `backbone` and `features` are absolute paths or URLs; `settings` name the engine, too.
    """

    images: str
    backbone: str
    features: str
    engine: str
    settings: params.Extract


def job_of(todo: Plan, settings: params.Extract, images: Path, backbone: Path, features: Path) -> Job:
    """Say where workers find everything: in the workspace, or in the store, to which what it lacks is copied.

    Raises:
        SourceError: the store cannot be reached or written to.
    """
    named = settings.model_copy(update={"engine": todo.engine})
    if settings.store is None:
        return Job(str(images.absolute()), str(backbone.absolute()), str(features.absolute()), todo.engine, named)
    store = settings.store.rstrip("/")
    digest = backbones.describe(backbone)["digest"]
    job = Job(f"{store}/images", f"{store}/backbones/{digest}", f"{store}/features", todo.engine, named)
    wanted = {f"{file.shard}{shards.SUFFIX}" for file in todo.missing} - set(stores.names(job.images, shards.SUFFIX))
    _each(lambda name: stores.put(images / name, f"{job.images}/{name}"), sorted(wanted))
    missing = set(BACKBONE_FILES) - set(stores.names(job.backbone))
    _each(lambda name: stores.put(backbone / name, f"{job.backbone}/{name}"), sorted(missing))
    return job


def name_of(file: File) -> str:
    """Name a file of features for a worker, and for the person who watches it."""
    return f"{file.shard} view {file.view}" if file.view else file.shard


def extract_shard(job: Job, name: str) -> int:
    """Compute a file of features, unless it is there: what a worker is asked to do.

    Args:
        job: where everything is.
        name: as `name_of` gives it.

    Returns:
        How many images it holds.

    Raises:
        SourceError: a store cannot be reached, or the shard is damaged.
        ParamsError: float16 is too small for the features.
    """
    shard, _, view = name.partition(" view ")
    backbone, engine = _ready(job)
    folder = feature_keys.find(backbone.description, job.settings, Path())[int(view or 0)].name
    with tempfile.TemporaryDirectory(prefix="rootstock-") as scratch:
        if there := _fetched(job, folder, f"{shard}.parquet", Path(scratch) / "there"):
            return feature_files.rows_of(there)
        tar = stores.fetch(job.images, f"{shard}{shards.SUFFIX}", Path(scratch))
        made = File(Path(scratch) / folder / f"{shard}.parquet", shard, int(view or 0))
        done = 0

        def advance(n: int, **_: int) -> None:
            nonlocal done
            done += n

        # A cluster has a worker a core; a GPU's has its machine's to decode for it.
        computing.compute(
            [made], engine, backbone, job.settings, tar.parent, advance, 1 if engine.on_each_core else cores()
        )
        for path in (feature_files.seal_of(made.path), made.path):
            stores.put(path, f"{job.features}/{path.relative_to(scratch).as_posix()}")
        return done


def _fetched(job: Job, key: str, name: str, scratch: Path) -> Path | None:
    """Fetch a file of features with its digest; nothing where it is not there, or is not what was written."""
    wanted = (feature_files.seal_of(Path(key, name)).as_posix(), f"{key}/{name}")
    if not all(stores.exists(f"{job.features}/{one}") for one in wanted):
        return None
    _, path = [stores.fetch(job.features, one, scratch) for one in wanted]
    return path if feature_files.is_whole(path) else None


@lru_cache(maxsize=1)
def _ready(job: Job) -> tuple[Backbone, Engine]:
    """Load the backbone and start the engine, once a process."""
    with tempfile.TemporaryDirectory(prefix="rootstock-") as scratch:
        paths = [stores.fetch(job.backbone, name, Path(scratch)) for name in BACKBONE_FILES]
        backbone = backbones.load(paths[0].parent, job.settings.layer, job.settings.pooling)
    return backbone, engines.start_named(job.engine, backbone, job.settings, threads=1)


def bring_back(todo: Plan, job: Job) -> None:
    """Copy the features that workers wrote from the store into the workspace; nothing where they are there.

    Raises:
        SourceError: the store cannot be reached, or lacks one.
    """

    def bring(file: File) -> None:
        key, name = file.path.parent.name, file.path.name
        with tempfile.TemporaryDirectory(prefix="rootstock-") as scratch:
            there = _fetched(job, key, name, Path(scratch))
            if not there:
                where = redacted(f"{job.features}/{key}/{name}")
                raise SourceError(
                    f"{where} is not there, or is not what a worker wrote; remove it, and run extract again"
                )
            feature_files.copy(there, file.path)

    _each(bring, [file for file in todo.missing if not feature_files.is_whole(file.path)])


def _each(move: Callable[[T], None], items: Sequence[T]) -> None:
    for _ in ordered_map(move, items, threads=MOVING_AT_ONCE):
        pass

"""Distributed extraction: what a worker does with a shard, and how files reach it and come back.

Workers read images and backbone from a store and write features to it. The store is the workspace itself, if they
share its file system, or a URL that fsspec can open. Computing a shard twice is harmless: its file is the same and is
replaced atomically.
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
TRANSFERS = 8  # concurrent, to or from a store


@dataclass(frozen=True)
class Job:
    """What all shards share: where images and backbone are, where features go, and the engine.

    `images`, `backbone` and `features` are absolute paths or URLs; `settings.engine` is the engine, never auto. A
    worker computes some `images_each` images; one that was not started for this job, at most as many.
    """

    images: str
    backbone: str
    features: str
    engine: str
    settings: params.Extract
    images_each: int


def job_of(todo: Plan, settings: params.Extract, images: Path, backbone: Path, features: Path) -> Job:
    """Return the job for workers; missing shards and backbone files are copied to the store, if there is one.

    Raises:
        SourceError: the store cannot be reached or written to.
    """
    named = settings.model_copy(update={"engine": todo.engine})
    count = sum(shards.count_images(images, file.shard) for file in todo.missing)
    each = count if settings.cluster else count // settings.workers
    if settings.store is None:
        here = [str(folder.absolute()) for folder in (images, backbone, features)]
        return Job(here[0], here[1], here[2], todo.engine, named, each)
    store = settings.store.rstrip("/")
    digest = backbones.describe(backbone)["digest"]
    job = Job(f"{store}/images", f"{store}/backbones/{digest}", f"{store}/features", todo.engine, named, each)
    wanted = {f"{file.shard}{shards.SUFFIX}" for file in todo.missing} - set(stores.names(job.images, shards.SUFFIX))
    _each(lambda name: stores.put(images / name, f"{job.images}/{name}"), sorted(wanted))
    missing = set(BACKBONE_FILES) - set(stores.names(job.backbone))
    _each(lambda name: stores.put(backbone / name, f"{job.backbone}/{name}"), sorted(missing))
    return job


def name_of(file: File) -> str:
    """Return the display name of a feature file, which is also a worker's argument."""
    return f"{file.shard} view {file.view}" if file.view else file.shard


def extract_shard(job: Job, name: str) -> int:
    """Compute a feature file unless it exists: the work of one task.

    Args:
        job: where everything is.
        name: as returned by `name_of`.

    Returns:
        The number of images in it.

    Raises:
        SourceError: a store cannot be reached, or the shard is damaged.
        ParamsError: float16 is too small for the features.
    """
    shard, _, view = name.partition(" view ")
    backbone, engine = _ready(job)
    folder = feature_keys.find(backbone.description, job.settings, Path())[int(view or 0)].name
    with tempfile.TemporaryDirectory(prefix="rootstock-") as scratch:
        if existing := _fetched(job, folder, f"{shard}.parquet", Path(scratch) / "existing"):
            return feature_files.rows_of(existing)
        tar = stores.fetch(job.images, f"{shard}{shards.SUFFIX}", Path(scratch))
        made = File(Path(scratch) / folder / f"{shard}.parquet", shard, int(view or 0))
        done = 0

        def advance(n: int, **_: int) -> None:
            nonlocal done
            done += n

        threads = _threads(job, engine)
        computing.compute([made], engine, backbone, job.settings, tar.parent, advance, threads, in_all=job.images_each)
        for path in (feature_files.digest_path(made.path), made.path):
            stores.put(path, f"{job.features}/{path.relative_to(scratch).as_posix()}")
        return done


def _threads(job: Job, engine: Engine) -> int:
    """Return how many threads or processes a worker decodes with.

    That is one where there is a worker per core. A worker with a GPU has the cores that it may use (taskset), its share
    of them if the workers were started for this job, on this machine.
    """
    if engine.stream is None:
        return 1
    return cores() if job.settings.cluster else max(1, cores() // job.settings.workers)


def _fetched(job: Job, key: str, name: str, scratch: Path) -> Path | None:
    """Fetch a feature file with its digest; None if it is missing or does not match."""
    wanted = (feature_files.digest_path(Path(key, name)).as_posix(), f"{key}/{name}")
    if not all(stores.exists(f"{job.features}/{one}") for one in wanted):
        return None
    _, path = [stores.fetch(job.features, one, scratch) for one in wanted]
    return path if feature_files.is_intact(path) else None


@lru_cache(maxsize=1)
def _ready(job: Job) -> tuple[Backbone, Engine]:
    """Load the backbone and start the engine, once per process."""
    with tempfile.TemporaryDirectory(prefix="rootstock-") as scratch:
        paths = [stores.fetch(job.backbone, name, Path(scratch)) for name in BACKBONE_FILES]
        backbone = backbones.load(paths[0].parent, job.settings.layer, job.settings.pooling)
    return backbone, engines.start_named(job.engine, backbone, job.settings, threads=1)


def bring_back(todo: Plan, job: Job) -> None:
    """Copy the features that workers wrote from the store into the workspace, as far as they are missing there.

    Raises:
        SourceError: the store cannot be reached, or a file is missing in it.
    """

    def bring(file: File) -> None:
        key, name = file.path.parent.name, file.path.name
        with tempfile.TemporaryDirectory(prefix="rootstock-") as scratch:
            fetched = _fetched(job, key, name, Path(scratch))
            if not fetched:
                where = redacted(f"{job.features}/{key}/{name}")
                raise SourceError(f"{where} is missing or does not match its digest; remove it, and run extract again")
            feature_files.copy(fetched, file.path)

    _each(bring, [file for file in todo.missing if not feature_files.is_intact(file.path)])


def _each(move: Callable[[T], None], items: Sequence[T]) -> None:
    for _ in ordered_map(move, items, threads=TRANSFERS):
        pass

"""What an extraction has to do: which engine computes, which files of features are missing, which can be copied."""

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rootstock.backbones.backbones import Backbone
from rootstock.config import params
from rootstock.dataset import shards
from rootstock.features import engines, feature_files, feature_keys
from rootstock.features.computing import File
from rootstock.features.engines import ENGINES, Engine
from rootstock.features.feature_keys import AUTO, FORMER_ENGINES
from rootstock.system.files import mark_used, sweep
from rootstock.system.parallel import ordered_map

log = logging.getLogger(__name__)
NAMED = 3  # files that a warning names


@dataclass(frozen=True)
class Plan:
    """What computes, which files are missing, and how many rows the others have; `started` where it is running."""

    engine: str
    key: str
    missing: list[File]
    there: int
    started: Engine | None


def plan(
    backbone: Backbone,
    settings: params.Extract,
    images_dir: Path,
    features_dir: Path,
    fallback_cache: Path | None = None,
) -> Plan:
    """Find out what is missing, settle what computes it, and clear away what a killed run left.

    Raises:
        ParamsError: no engine can compute this.
    """
    features_dir.mkdir(parents=True, exist_ok=True)
    sweep(features_dir)
    names = shards.names(images_dir)
    described, started = backbone.description, None
    engine = (
        settings.engine
        if settings.engine != AUTO
        else _earlier_engine(described, settings, features_dir, fallback_cache)
    )
    if engine in FORMER_ENGINES and not _has_all(described, settings, engine, features_dir, names):
        log.info("extract: %s computed earlier features; this version has it no more, and computes all anew", engine)
        engine = None
    if engine is None:
        images = (1 + settings.views) * sum(shards.count(images_dir, name) for name in names)
        started = engines.start_auto(backbone, settings, images)
        engine = started.name
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
    if fallback_cache:
        for folder in folders:
            _copy(fallback_cache / folder.name, folder, names)
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
    described: dict[str, Any], settings: params.Extract, features_dir: Path, fallback_cache: Path | None
) -> str | None:
    """Say which engine computed such features before, as `auto` or by its name, here or in a comparison."""
    for folder in filter(None, (features_dir, fallback_cache)):
        if noted := feature_keys.engine_of(described, settings, folder):
            return noted
        for name in (*ENGINES, *FORMER_ENGINES):
            if _has_files(folder / feature_keys.key_of(feature_keys.cache_key_fields(described, settings, name))):
                return name
    return None


def _has_all(
    described: dict[str, Any], settings: params.Extract, engine: str, features_dir: Path, names: Sequence[str]
) -> bool:
    folders = feature_keys.find(described, settings.model_copy(update={"engine": engine}), features_dir)
    return all(feature_files.is_whole(folder / f"{name}.parquet") for folder in folders for name in names)


def _has_files(folder: Path) -> bool:
    return next(folder.glob("*.parquet"), None) is not None


def _copy(source: Path, target: Path, wanted: Iterable[str]) -> None:
    """Copy the features of shards that are here now; a comparison may have seen others, which are gone since."""
    for name in (f"{shard}.parquet" for shard in wanted):
        if not feature_files.is_whole(target / name) and feature_files.is_whole(source / name):
            feature_files.copy(source / name, target / name)

"""Plan an extraction: which engine to use, which feature files are missing, which can be copied."""

import logging
from collections import Counter
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
LISTED = 3  # files listed in a warning


@dataclass(frozen=True)
class Plan:
    """The engine, the missing files, and the number of rows in the others; `started` is set if the engine runs."""

    engine: str
    key: str
    missing: list[File]
    cached: int
    started: Engine | None


def plan(
    backbone: Backbone,
    settings: params.Extract,
    images_dir: Path,
    features_dir: Path,
    fallback_cache: Path | None = None,
) -> Plan:
    """Choose the engine, find the missing files, and remove what a killed run left.

    Args:
        backbone: with its weights.
        settings: the section `extract` of params.yaml.
        images_dir: the shards.
        features_dir: the cache of features; key folders are made there.
        fallback_cache: a second cache, from which missing files are copied.

    Raises:
        ParamsError: no engine supports this.
    """
    features_dir.mkdir(parents=True, exist_ok=True)
    sweep(features_dir)
    names = shards.names(images_dir)
    described, started = backbone.description, None
    engine = _existing_engine(described, settings, features_dir, fallback_cache, names)
    if engine is None:
        images = (1 + settings.views) * sum(shards.count_images(images_dir, name) for name in names)
        started = engines.start_auto(backbone, settings, images)
        engine = started.name
    if settings.engine == AUTO:
        feature_keys.note_engine(described, settings, features_dir, engine)
    folders = feature_keys.find(described, settings.model_copy(update={"engine": engine}), features_dir)
    for folder in folders:
        folder.mkdir(exist_ok=True)
        mark_used(folder)
        if _has_files(folder) and not feature_files.has_digests(folder):
            log.warning("extract: %s has no digests (written by an earlier version); using it unchecked", folder)
            feature_files.write_digests(folder)
    if fallback_cache:
        for folder in folders:
            _copy(fallback_cache / folder.name, folder, names)
    wanted = [File(folder / f"{name}.parquet", name, view) for view, folder in enumerate(folders) for name in names]
    intact = dict(zip(wanted, ordered_map(lambda file: feature_files.is_intact(file.path), wanted), strict=True))
    missing = [file for file in wanted if not intact[file]]
    if damaged := [file.path for file in missing if file.path.exists()]:
        log.warning(
            "extract: recomputing feature files that do not match their digests (%s): %s",
            f"{len(damaged):,}", ", ".join(map(str, damaged[:LISTED])) + (", ..." if damaged[LISTED:] else ""),
        )  # fmt: skip
    _report_mixed_libraries([file for file in wanted if intact[file]], missing, engine)
    cached = sum(feature_files.rows_of(file.path) for file in wanted if intact[file])
    return Plan(engine, folders[0].name, missing, cached, started)


def _report_mixed_libraries(cached: list[File], missing: list[File], engine: str) -> None:
    """Log which cached features other versions of the libraries computed, if new ones are to lie beside them."""
    here = engines.libraries(engine)
    found = (feature_files.read_libraries(file.path) for file in (cached if missing else []))
    others = Counter(_format_versions(libraries) for libraries in found if libraries not in ({}, here))
    if others:
        log.info(
            "extract: %s cached feature files were computed by %s, new ones by %s: the last digits may differ",
            f"{others.total():,}", " and ".join(others), _format_versions(here),
        )  # fmt: skip


def _format_versions(libraries: dict[str, str]) -> str:
    return ", ".join(f"{name} {version}" for name, version in sorted(libraries.items()))


def _existing_engine(
    described: dict[str, Any],
    settings: params.Extract,
    features_dir: Path,
    fallback_cache: Path | None,
    names: Sequence[str],
) -> str | None:
    """Return the engine to keep, or None if `auto` has to choose one."""
    if settings.engine != AUTO:
        return settings.engine
    engine = _earlier_engine(described, settings, features_dir, fallback_cache)
    if engine in FORMER_ENGINES and not _has_all(described, settings, engine, features_dir, names):
        log.info("extract: engine %s is no longer supported; recomputing all features", engine)
        return None
    return engine


def _earlier_engine(
    described: dict[str, Any], settings: params.Extract, features_dir: Path, fallback_cache: Path | None
) -> str | None:
    """Return the engine of earlier features with these settings, in the cache or the fallback cache."""
    for folder in filter(None, (features_dir, fallback_cache)):
        if recorded := feature_keys.engine_of(described, settings, folder):
            return recorded
        for name in (*ENGINES, *FORMER_ENGINES):
            if _has_files(folder / feature_keys.key_of(feature_keys.cache_key_fields(described, settings, name))):
                return name
    return None


def _has_all(
    described: dict[str, Any], settings: params.Extract, engine: str, features_dir: Path, names: Sequence[str]
) -> bool:
    folders = feature_keys.find(described, settings.model_copy(update={"engine": engine}), features_dir)
    return all(feature_files.is_intact(folder / f"{name}.parquet") for folder in folders for name in names)


def _has_files(folder: Path) -> bool:
    return next(folder.glob("*.parquet"), None) is not None


def _copy(source: Path, target: Path, wanted: Iterable[str]) -> None:
    """Copy the features of current shards; the fallback cache may hold others, since removed."""
    for name in (f"{shard}.parquet" for shard in wanted):
        if not feature_files.is_intact(target / name) and feature_files.is_intact(source / name):
            feature_files.copy(source / name, target / name)

"""Extraction: compute the frozen backbone's features of every image once, one Parquet file per shard."""

import shutil
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path

from rootstock.backbones.backbones import Backbone
from rootstock.config import params
from rootstock.dataset import shards
from rootstock.features import engines
from rootstock.features.computing import File, compute, groups_of
from rootstock.features.feature_keys import AUTO
from rootstock.features.planning import Plan, plan
from rootstock.features.unfinished import Unfinished
from rootstock.images.array_store import ArrayStore
from rootstock.system import progress

WARM_GROUPS, TIMED_IMAGES, TIMED_S = 4, 256, 5.0  # warm-up groups, then images or seconds timed


@dataclass(frozen=True)
class ExtractionResult:
    """What an extraction did: images with features, features computed now (all views), feature key and engine."""

    images: int
    computed: int
    key: str
    engine: str
    views: int = 0

    def describe(self) -> str:
        """Describe how much was computed, by what, and where it is."""
        of, what = (self.images * (1 + self.views), "views of images") if self.views else (self.images, "images")
        return f"{self.computed:,} of {of:,} {what} extracted with {self.engine}, features/{self.key}"


def extract(
    backbone: Backbone, settings: params.Extract, images_dir: Path, features_dir: Path, *,
    fallback_cache: Path | None = None, executor: Callable[[Plan, progress.Advance], None] | None = None,
    unfinished: Path | None = None, pixels: Callable[[], AbstractContextManager[ArrayStore | None]] = nullcontext,
) -> ExtractionResult:  # fmt: skip
    """Compute the features of every shard that has none yet.

    Args:
        backbone: with its weights, in evaluation mode, cut at the layer of the settings.
        settings: the section `extract` of params.yaml.
        images_dir: the shards.
        features_dir: receives `<key>/<shard>.parquet`; intact files are left as they are.
        fallback_cache: a second features folder, from which missing files are copied.
        executor: computes the missing files, for example on a cluster; None computes them in this process.
        unfinished: folder for features of shards that are not finished; a run that was stopped goes on from there.
        pixels: opens the store that has images decoded before, and keeps the others; called if this process computes.

    Raises:
        ParamsError: the engine cannot be used, or float16 is too small for the features of this backbone.
        SourceError: a shard is damaged.
    """
    todo = plan(backbone, settings, images_dir, features_dir, fallback_cache)
    total = sum(shards.count_images(images_dir, file.shard) for file in todo.missing)
    begun = (
        {file: Unfinished(unfinished / file.path.parent.name / file.shard) for file in todo.missing}
        if unfinished
        else {}
    )
    kept = sum(file.images for file in begun.values())
    with progress.bar("extract", total - kept) as advance:
        if todo.cached + kept:
            advance(0, cached=todo.cached + kept)
        if todo.missing and executor:
            executor(todo, advance)
        elif todo.missing:
            engine = todo.started or engines.start_named(todo.engine, backbone, settings)
            with pixels() as store:
                compute(todo.missing, engine, backbone, settings, images_dir, advance, begun=begun, pixels=store)
    if unfinished:  # of other settings, which were given up
        shutil.rmtree(unfinished, ignore_errors=True)
    images = (todo.cached + total) // (1 + settings.views)
    return ExtractionResult(images, total, todo.key, todo.engine, settings.views)


def speed(backbone: Backbone, settings: params.Extract, images_dir: Path) -> float:
    """Measure images/s through decoding and the backbone after a warm-up; the first images are repeated as needed."""
    if settings.engine == AUTO:
        engine = engines.start_auto(backbone, settings, TIMED_IMAGES)
    else:
        engine = engines.start_named(settings.engine, backbone, settings)
    files = [File(Path(), shard, view=0) for shard in shards.names(images_dir)]
    seen, begin, seconds = -1, 0.0, float("nan")
    with closing(groups_of(cycle(files), engine, backbone, settings, images_dir)) as groups:
        for number, (group, _) in enumerate(groups):
            if seen >= 0:
                seen += len(group.ids)
                seconds = time.perf_counter() - begin
            elif number + 1 >= WARM_GROUPS:
                seen, begin = 0, time.perf_counter()
            if seen >= TIMED_IMAGES or seconds > TIMED_S:
                break
    return seen / seconds

"""Images through the frozen backbone: each once, a file of features per shard, whatever happens on the way."""

import time
from collections.abc import Callable
from contextlib import closing
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
from rootstock.system import progress

WARM_GROUPS, TIMED_IMAGES, TIMED_S = 4, 256, 5.0  # speed is measured after so many, on so many, or for so long


@dataclass(frozen=True)
class Extracted:
    """What an extraction did: images with features, views of them that were computed now, key and engine."""

    images: int
    computed: int
    key: str
    engine: str


def extract(
    backbone: Backbone, settings: params.Extract, images_dir: Path, features_dir: Path, *,
    fallback_cache: Path | None = None, executor: Callable[[Plan, progress.Advance], None] | None = None,
) -> Extracted:  # fmt: skip
    """Compute the features of every shard that has none yet.

    Args:
        backbone: with its weights, in evaluation mode, cut at the layer of the settings.
        settings: the section `extract` of params.yaml.
        images_dir: the shards.
        features_dir: gets `<key>/<shard>.parquet`; what is there, and is what was written, stays as it is.
        fallback_cache: a folder like that one; files that it has are copied from there.
        executor: has the missing files computed by others; None computes them here.

    Raises:
        ParamsError: the engine cannot compute this, or float16 is too small for the features of this backbone.
        SourceError: a shard is damaged.
    """
    todo = plan(backbone, settings, images_dir, features_dir, fallback_cache)
    total = sum(shards.count(images_dir, file.shard) for file in todo.missing)
    with progress.bar("extract", total) as advance:
        if todo.there:
            advance(0, cached=todo.there)
        if todo.missing and executor:
            executor(todo, advance)
        elif todo.missing:
            engine = todo.started or engines.start_named(todo.engine, backbone, settings)
            compute(todo.missing, engine, backbone, settings, images_dir, advance)
    return Extracted((todo.there + total) // (1 + settings.views), total, todo.key, todo.engine)


def speed(backbone: Backbone, settings: params.Extract, images_dir: Path) -> float:
    """Measure images a second through decoding and the backbone, on the first images there are, once it is warm.

    Where there are few, they go through it again and again.
    """
    if settings.engine == AUTO:
        engine = engines.start_auto(backbone, settings, TIMED_IMAGES)
    else:
        engine = engines.start_named(settings.engine, backbone, settings)
    files = [File(Path(), shard, view=0) for shard in shards.names(images_dir)]
    seen, begin, seconds = -1, 0.0, float("nan")
    with closing(groups_of(cycle(files), engine, backbone, settings, images_dir)) as groups:
        for number, group in enumerate(groups):
            if seen >= 0:
                seen += len(group.ids)
                seconds = time.perf_counter() - begin
            elif number + 1 >= WARM_GROUPS:
                seen, begin = 0, time.perf_counter()
            if seen >= TIMED_IMAGES or seconds > TIMED_S:
                break
    return seen / seconds

"""extract: shards and a backbone in, one Parquet file of features per shard out.

python -m tasks.extract
"""

from typing import TYPE_CHECKING

from rootstock.config.params import Params
from tasks.bridge.stage import Summary, stage
from tasks.bridge.workspace import BACKBONE, FEATURES, IMAGES, PIXELS, TRIED, UNFINISHED

if TYPE_CHECKING:
    from rootstock.config import params
    from rootstock.features.planning import Plan
    from rootstock.system.progress import Advance


@stage
def extract(params: Params) -> Summary:
    """Extract the features that are not cached yet, with the frozen backbone.

    Where fine-tuning will read the images as they are, their pixels are kept for it.
    """
    from rootstock.backbones import backbones
    from rootstock.dataset import shards
    from rootstock.features import extraction
    from rootstock.images import pixel_store

    settings = params.extract

    def on_workers(todo: "Plan", advance: "Advance") -> None:
        _fan_out(todo, settings, advance)

    backbone = backbones.load(BACKBONE, settings.layer, settings.pooling)
    executor = None if settings.runner == "local" else on_workers
    reads_pixels = params.finetune.stages and params.finetune.augment == "none" and settings.decode == "full"
    most_gb = params.cache.pixels_gb if reads_pixels else None
    done = extraction.extract(
        backbone, settings, IMAGES, FEATURES, fallback_cache=TRIED, executor=executor, unfinished=UNFINISHED,
        pixels=lambda: pixel_store.opened(PIXELS, backbone.transform, IMAGES, shards.names(IMAGES), most_gb),
    )  # fmt: skip
    return Summary(done.images, done.describe())


def _fan_out(todo: "Plan", settings: "params.Extract", advance: "Advance") -> None:
    """Extract the missing files on the workers of a Dask or Ray cluster."""
    from rootstock.features import shard_jobs
    from tasks.bridge.fan_out import fan_out

    assert settings.runner != "local"
    job = shard_jobs.job_of(todo, settings, IMAGES, BACKBONE, FEATURES)
    names = [shard_jobs.name_of(file) for file in todo.missing]
    fan_out(shard_jobs.extract_shard, job, names, settings.runner, settings.cluster, settings.workers, advance)
    shard_jobs.bring_back(todo, job)


if __name__ == "__main__":
    extract.main()

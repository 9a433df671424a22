"""extract: shards and a backbone in, one Parquet file of features a shard out.

python -m tasks.extract
"""

from typing import TYPE_CHECKING

from rootstock.config.params import Params
from tasks.bridge.stage import Summary, stage
from tasks.bridge.workspace import BACKBONE, FEATURES, IMAGES, TRIED

if TYPE_CHECKING:
    from rootstock.config import params
    from rootstock.features.planning import Plan
    from rootstock.system.progress import Advance


@stage
def extract(params: Params) -> Summary:
    """Push through the frozen backbone what has not been pushed through it before."""
    from rootstock.backbones import backbones
    from rootstock.features import extraction

    settings = params.extract

    def on_workers(todo: "Plan", advance: "Advance") -> None:
        _fan_out(todo, settings, advance)

    backbone = backbones.load(BACKBONE, settings.layer, settings.pooling)
    elsewhere = None if settings.runner == "local" else on_workers
    done = extraction.extract(backbone, settings, IMAGES, FEATURES, fallback_cache=TRIED, executor=elsewhere)
    images = f"{done.computed} computed of {done.images} images"
    return Summary(done.images, f"{images}, by {done.engine}, features/{done.key}")


def _fan_out(todo: "Plan", settings: "params.Extract", advance: "Advance") -> None:
    """Have the workers of a Dask or a Ray make the files that are missing."""
    from rootstock.features import shard_jobs
    from tasks.bridge.fan_out import fan_out

    assert settings.runner != "local"
    job = shard_jobs.job_of(todo, settings, IMAGES, BACKBONE, FEATURES)
    names = [shard_jobs.name_of(file) for file in todo.missing]
    fan_out(shard_jobs.extract_shard, job, names, settings.runner, settings.cluster, settings.workers, advance)
    shard_jobs.bring_back(todo, job)


if __name__ == "__main__":
    extract.main()

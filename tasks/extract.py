"""extract: shards and a backbone in, one Parquet file of features a shard out.

python -m tasks.extract
"""

from importlib import import_module
from typing import TYPE_CHECKING

from rootstock.params import Params
from tasks.stage import Summary, stage
from tasks.workspace import BACKBONE, FEATURES, IMAGES, TRIED

if TYPE_CHECKING:
    from rootstock import params
    from rootstock.extraction import Plan
    from rootstock.progress import Advance


@stage
def extract(params: Params) -> Summary:
    """Push through the frozen backbone what has not been pushed through it before."""
    from rootstock import backbones, extraction

    settings = params.extract

    def on_workers(todo: "Plan", advance: "Advance") -> None:
        _fan_out(todo, settings, advance)

    backbone = backbones.load(BACKBONE, settings.layer, settings.pooling)
    elsewhere = None if settings.runner == "local" else on_workers
    done = extraction.extract(backbone, settings, IMAGES, FEATURES, else_in=TRIED, elsewhere=elsewhere)
    images = f"{done.computed} computed of {done.images} images"
    return Summary(done.images, f"{images}, by {done.engine}, features/{done.key}")


def _fan_out(todo: "Plan", settings: "params.Extract", advance: "Advance") -> None:
    """Have the workers of a Dask or a Ray make the files that are missing."""
    from rootstock import shard_jobs

    # By name: Prefect starts workers, and is no part of what they make (see tasks/stage.py).
    fan_out = import_module("tasks.fan_out")
    job = shard_jobs.job_of(todo, settings, IMAGES, BACKBONE, FEATURES)
    names = [shard_jobs.name_of(file) for file in todo.missing]
    fan_out.fan_out(shard_jobs.extract_shard, job, names, settings.runner, settings.cluster, settings.workers, advance)
    shard_jobs.bring_back(todo, job)


if __name__ == "__main__":
    extract.main()

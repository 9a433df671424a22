"""extract: shards and a backbone in, one Parquet file of features a shard out.

python -m tasks.extract
"""

from rootstock.params import Params
from tasks.stage import Summary, stage
from tasks.workspace import BACKBONE, FEATURES, IMAGES, TRIED


@stage
def extract(params: Params) -> Summary:
    """Push through the frozen backbone what has not been pushed through it before."""
    from rootstock import backbones, extraction

    backbone = backbones.load(BACKBONE, params.extract.layer, params.extract.pooling)
    done = extraction.extract(backbone, params.extract, IMAGES, FEATURES, else_in=TRIED)
    images = f"{done.computed} computed of {done.images} images"
    return Summary(done.images, f"{images}, by {done.engine}, features/{done.key}")


if __name__ == "__main__":
    extract.main()

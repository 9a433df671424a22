"""ingest: sources in, shards of images and a manifest out.

python -m tasks.ingest
"""

from rootstock.params import Params
from tasks.stage import Summary, stage
from tasks.workspace import DATASET, IMAGES, LOCAL


@stage
def ingest(params: Params) -> Summary:
    """Look at every source and take in what is new."""
    from rootstock.ingest import ingest as take_in

    taken = take_in(params.ingest, params.seed, IMAGES, DATASET, LOCAL)
    rejected = f", {taken.rejected} rejected (see {DATASET}/rejected.parquet)" if taken.rejected else ""
    note = f"{taken.new} new of {taken.images} images" if taken.changed else f"nothing new, {taken.images} images"
    return Summary(taken.images, note + rejected, taken.changed)


if __name__ == "__main__":
    ingest.main()

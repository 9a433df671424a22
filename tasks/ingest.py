"""ingest: sources in, shards of images and a manifest out.

python -m tasks.ingest
"""

from typing import TYPE_CHECKING

from rootstock.config.params import Params
from tasks.bridge.stage import Stage, Summary, stage
from tasks.bridge.workspace import DATASET, IMAGES, LOCAL

if TYPE_CHECKING:
    from rootstock.ingest.sources import Source


@stage
def ingest(params: Params) -> Summary:
    """Look at every source and take in what is new."""
    return _take_in(params)


def ingest_with(delivery: "Source") -> Stage:
    """Make the stage that takes in what lies in the inbox, too; without it, earlier deliveries stay as they are."""

    def ingest(params: Params) -> Summary:
        """Look at every source and into the inbox, and take in what is new."""
        return _take_in(params, delivery)

    return Stage(ingest)


def _take_in(params: Params, delivery: "Source | None" = None) -> Summary:
    from rootstock.dataset import tables
    from rootstock.ingest.ingest import ingest as take_in

    taken = take_in(params.ingest, params.seed, IMAGES, DATASET, LOCAL, delivery)
    rejected = f", {taken.rejected} rejected (see {DATASET}/rejected.parquet)" if taken.rejected else ""
    note = f"{taken.new} new of {taken.images} images" if taken.changed else f"nothing new, {taken.images} images"
    without = tables.say_without(tables.load_summary(DATASET))
    return Summary(taken.images, f"{note}{rejected}{'; ' if without else ''}{without}", taken.changed)


if __name__ == "__main__":
    ingest.main()

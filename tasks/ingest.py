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
    """Check every source and ingest what is new."""
    return _ingest(params)


def ingest_with(delivery: "Source") -> Stage:
    """Return the stage that also ingests a delivery; earlier deliveries stay as they are."""

    def ingest(params: Params) -> Summary:
        """Check every source and the inbox, and ingest what is new."""
        return _ingest(params, delivery)

    return Stage(ingest)


def _ingest(params: Params, delivery: "Source | None" = None) -> Summary:
    from rootstock.dataset import summaries, tables
    from rootstock.ingest.ingest import ingest as ingest_sources

    done = ingest_sources(params.ingest, params.seed, IMAGES, DATASET, LOCAL, delivery)
    rejected = f", {done.rejected:,} rejected (see {DATASET}/rejected.parquet)" if done.rejected else ""
    note = f"{done.new:,} new of {done.images:,} images" if done.changed else f"nothing new, {done.images:,} images"
    summary = tables.load_summary(DATASET)
    more = (summaries.describe_groups(summary), summaries.describe_missing_classes(summary))
    return Summary(done.images, "; ".join(filter(None, [f"{note}{rejected}", *more])), done.changed)


if __name__ == "__main__":
    ingest.main()

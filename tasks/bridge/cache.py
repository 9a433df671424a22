"""Show, prune and compact the cached features and images of this workspace, and update dvc.lock.

Nothing is removed from DVC's own cache, from which earlier versions are restored: `dvc gc` does that.
"""

import shutil
from dataclasses import dataclass

from rootstock.dataset import tables
from rootstock.features import cache, compaction, feature_keys
from rootstock.features.cache import Entry, Selection
from rootstock.features.feature_keys import AUTO
from rootstock.ingest.packing import MIB
from rootstock.system.files import read_json
from tasks.bridge import workspace
from tasks.bridge.workspace import ACTIVATIONS, BACKBONE, DATASET, FEATURES, IMAGES, LOCAL, PIXELS, TRIED

ROOTS = (FEATURES, TRIED)
COMPUTED_ONCE = {PIXELS: "decoded images", ACTIVATIONS: "activations of frozen layers"}


@dataclass(frozen=True)
class Tidied:
    """What was pruned, and a sentence on what was done."""

    pruned: tuple[Entry, ...] = ()
    summary: str = ""


def entries() -> list[Entry]:
    """List the cached features, including those of comparisons.

    Raises:
        RootstockError: params.yaml, which says which features are in use, is invalid.
    """
    return cache.list_entries(ROOTS, _in_use())


def _in_use() -> set[str]:
    """Return the keys of the features that the pipeline reads."""
    params = workspace.read_params()
    if not (BACKBONE / "backbone.json").exists():
        return set()

    described = read_json(BACKBONE / "backbone.json")
    return {
        folder.name
        for root in ROOTS
        if params.extract.engine != AUTO or feature_keys.engine_of(described, params.extract, root)
        for folder in feature_keys.find(described, params.extract, root)
    }


def show() -> str:
    """Return the contents and sizes of the cache as Markdown."""
    here = entries()
    sizes = {root: sum(entry.bytes for entry in here if entry.folder.parent == root) for root in ROOTS}
    lines = [cache.table(here), ""] if here else []
    lines += [
        f"{FEATURES}: {cache.format_bytes(sizes[FEATURES])}",
        f"{TRIED}: {cache.format_bytes(sizes[TRIED])}, from comparisons, on this machine only",
        *(
            f"{root}: {cache.format_bytes(cache.size_of(root))}, {what}, on this machine only"
            for root, what in COMPUTED_ONCE.items()
        ),
        f"{IMAGES}: {cache.format_bytes(cache.size_of(IMAGES))}",
    ]
    data = tables.load(DATASET) if DATASET.exists() else None
    if data and (waste := compaction.waste(data)).images:
        lines[-1] += f", of which {cache.format_bytes(waste.bytes)} belong to {waste.images:,} removed images"
        lines.append(
            f"--compact would free {cache.format_bytes(waste.freed)} of these, in {len(waste.shards):,} shards"
        )
    return "\n".join(lines)


def check(
    backbone: str | None = None, older_than: float | None = None, key: str | None = None, compact: float | None = None
) -> None:
    """Check the request before a flow starts.

    Raises:
        RootstockError: the features do not exist, or are in use.
    """
    _select(Selection(backbone, older_than, key), compact)


def _select(selection: Selection, share: float | None) -> list[Entry]:
    if share is not None:
        compaction.check(share)
    return cache.select(entries(), selection) if selection else []


def tidy(selection: Selection, share: float | None, *, pixels: bool = False, activations: bool = False) -> Tidied:
    """Prune features, decoded images and activations, compact shards, and record the result in dvc.lock.

    Args:
        selection: which features to prune.
        share: compact shards of which less than this share is left; None: compact none.
        pixels: remove all decoded images.
        activations: remove all activations of frozen layers.

    Raises:
        RootstockError: the features do not exist, or are in use.
    """
    from tasks.bridge import versions  # imports DVC, which `show` does not need

    done = []
    doomed = _select(selection, share)
    if doomed:
        with versions.changing(FEATURES, equivalent=True):  # stages read only the features in use
            cache.prune(doomed)
    if selection:
        freed = cache.format_bytes(sum(entry.bytes for entry in doomed))
        done.append(f"{len(doomed):,} pruned ({freed})" if doomed else "Nothing to prune")
    for root in [PIXELS] * pixels + [ACTIVATIONS] * activations:
        done.append(f"{cache.format_bytes(cache.size_of(root))} of {COMPUTED_ONCE[root]} removed")
        shutil.rmtree(root, ignore_errors=True)
    if share is not None:
        done.append(_compact(share))
    return Tidied(tuple(doomed), "; ".join(done) or "Nothing to do")


def _compact(share: float) -> str:
    from tasks.bridge import versions

    shard_bytes = int(workspace.read_params().ingest.shard_mb * MIB)
    # The order of images changes, and so do the digits of anything trained on them.
    with versions.changing(IMAGES, DATASET, FEATURES, equivalent=False):
        done = compaction.compact(IMAGES, DATASET, ROOTS, LOCAL, shard_bytes, share)
    if not done.removed:
        return "nothing to compact"
    return (
        f"{done.removed} shards compacted to {done.written}: {done.copied:,} images copied, {done.dropped:,} dropped, "
        f"{cache.format_bytes(done.freed)} freed"
    )

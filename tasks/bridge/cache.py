"""Show, prune and compact the cached features and images of this workspace, and update dvc.lock.

DVC's own cache, from which earlier versions are restored, loses only what nothing refers to, and only if asked.
"""

import shutil
from dataclasses import dataclass
from pathlib import Path

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
class Request:
    """What to remove.

    Args:
        backbone: features of this backbone;
        older_than: that were not used for this many days;
        key: under this key. Given several of these three, all have to match.
        compact: compact shards of which less than this share is left; None: compact none.
        pixels: all decoded images.
        activations: all activations of frozen layers.
        unused_versions: of the files in DVC's cache, those that nothing refers to.
    """

    backbone: str | None = None
    older_than: float | None = None
    key: str | None = None
    compact: float | None = None
    pixels: bool = False
    activations: bool = False
    unused_versions: bool = False

    def __bool__(self) -> bool:
        return self != Request()

    @property
    def selection(self) -> Selection:
        """Return which features to prune."""
        return Selection(self.backbone, self.older_than, self.key)

    @property
    def computed_once(self) -> list[Path]:
        """Return the folders of what is computed again where it is needed."""
        return [PIXELS] * self.pixels + [ACTIVATIONS] * self.activations


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


def check(asked: Request) -> None:
    """Check the request before a flow starts.

    Raises:
        RootstockError: the features do not exist, or are in use.
    """
    _select(asked)


def _select(asked: Request) -> list[Entry]:
    if asked.compact is not None:
        compaction.check(asked.compact)
    return cache.select(entries(), asked.selection) if asked.selection else []


def plan(asked: Request) -> str:
    """Describe what a request would remove, a line each.

    Raises:
        RootstockError: as `tidy`.
    """
    lines = [
        f"features {entry.key} of {entry.backbone}, {entry.images:,} images, {cache.format_bytes(entry.bytes)}"
        for entry in _select(asked)
    ]
    lines += [f"{cache.format_bytes(cache.size_of(root))} of {COMPUTED_ONCE[root]}" for root in asked.computed_once]
    if asked.compact is not None:
        waste = compaction.waste(tables.load(DATASET), asked.compact)
        freed = cache.format_bytes(waste.freed)
        lines.append(f"{freed} of removed images, in {len(waste.shards):,} shards, which are written anew")
    if asked.unused_versions:
        from tasks.bridge import unused_versions  # imports DVC

        found = unused_versions.find()
        lines.append(f"{found.describe()} in DVC's cache that no commit, tag, experiment or champion refers to")
    return "\n".join(["To be removed:", *(f"- {line}" for line in lines)] if lines else ["Nothing to remove"])


def tidy(asked: Request) -> Tidied:
    """Remove what is asked for, and record the result in dvc.lock.

    Raises:
        RootstockError: the features do not exist, or are in use; or DVC's cache may be used by others.
    """
    from tasks.bridge import versions  # imports DVC, which `show` does not need

    done = []
    doomed = _select(asked)
    if doomed:
        with versions.changing(FEATURES, equivalent=True):  # stages read only the features in use
            cache.prune(doomed)
    if asked.selection:
        freed = cache.format_bytes(sum(entry.bytes for entry in doomed))
        done.append(f"{len(doomed):,} pruned ({freed})" if doomed else "Nothing to prune")
    for root in asked.computed_once:
        done.append(f"{cache.format_bytes(cache.size_of(root))} of {COMPUTED_ONCE[root]} removed")
        shutil.rmtree(root, ignore_errors=True)
    if asked.compact is not None:
        done.append(_compact(asked.compact))
    if asked.unused_versions:
        from tasks.bridge import unused_versions

        done.append(f"{unused_versions.remove().describe()} of unused versions removed")
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

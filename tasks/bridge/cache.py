"""The cache of this workspace: what there is, and what of it goes; dvc.lock says what is left.

Nothing is removed from DVC's own cache, whence earlier versions come back: `dvc gc` does that.
"""

from dataclasses import dataclass

from rootstock.dataset import tables
from rootstock.features import cache, compaction, feature_keys
from rootstock.features.cache import Entry, Wanted
from rootstock.features.feature_keys import AUTO
from rootstock.ingest.packing import MIB
from rootstock.system.files import read_json
from tasks.bridge import workspace
from tasks.bridge.workspace import BACKBONE, DATASET, FEATURES, IMAGES, LOCAL, TRIED

ROOTS = (FEATURES, TRIED)


@dataclass(frozen=True)
class Tidied:
    """What went: features, and shards in whose place there are others, or none."""

    pruned: tuple[Entry, ...] = ()
    said: str = ""


def entries() -> list[Entry]:
    """Describe the features here, those of comparisons, too.

    Raises:
        RootstockError: params.yaml is at fault: it says which are in use.
    """
    return cache.look(ROOTS, _in_use())


def _in_use() -> set[str]:
    """Name the key of the features that the pipeline reads."""
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
    """Say what the cache holds and takes, in Markdown."""
    here = entries()
    sizes = {root: sum(entry.bytes for entry in here if entry.folder.parent == root) for root in ROOTS}
    lines = [cache.table(here), ""] if here else []
    lines += [
        f"{FEATURES}: {cache.say(sizes[FEATURES])}",
        f"{TRIED}: {cache.say(sizes[TRIED])}, of comparisons, on this machine alone",
        f"{IMAGES}: {cache.say(cache.size_of(IMAGES))}",
    ]
    data = tables.load(DATASET) if DATASET.exists() else None
    if data and (waste := compaction.waste(data)).images:
        lines[-1] += f", of which {cache.say(waste.bytes)} are {waste.images:,} images that are gone"
        lines.append(f"--compact would free {cache.say(waste.freed)} of these, in {len(waste.shards)} shards")
    return "\n".join(lines)


def check(
    backbone: str | None = None, older_than: float | None = None, key: str | None = None, compact: float | None = None
) -> None:
    """Check what is asked for, before a flow starts.

    Raises:
        RootstockError: it is not there, or is in use.
    """
    _chosen(Wanted(backbone, older_than, key), compact)


def _chosen(wanted: Wanted, share: float | None) -> list[Entry]:
    if share is not None:
        compaction.check(share)
    return cache.choose(entries(), wanted) if wanted else []


def tidy(wanted: Wanted, share: float | None) -> Tidied:
    """Prune features and compact shards, and record it.

    Args:
        wanted: which features are to go.
        share: shards of which less than this is left are compacted; None compacts none.

    Raises:
        RootstockError: what is asked for is not there, or is in use.
    """
    from tasks.bridge import versions  # DVC: to show, it is not needed

    said = []
    doomed = _chosen(wanted, share)
    if doomed:
        with versions.changing(FEATURES, alike=True):  # no stage reads features but those in use
            cache.prune(doomed)
    if wanted:
        freed = cache.say(sum(entry.bytes for entry in doomed))
        said.append(f"{len(doomed)} pruned ({freed})" if doomed else "Nothing to prune")
    if share is not None:
        said.append(_compact(share))
    return Tidied(tuple(doomed), "; ".join(said) or "Nothing was asked for")


def _compact(share: float) -> str:
    from tasks.bridge import versions

    shard_bytes = int(workspace.read_params().ingest.shard_mb * MIB)
    # Images come in another order now, and a training in another order ends in other digits.
    with versions.changing(IMAGES, DATASET, FEATURES, alike=False):
        done = compaction.compact(IMAGES, DATASET, ROOTS, LOCAL, shard_bytes, share)
    if not done.removed:
        return "nothing to compact"
    return (
        f"{done.removed} shards compacted to {done.written}: {done.copied:,} images copied, {done.dropped:,} gone, "
        f"{cache.say(done.freed)} freed"
    )

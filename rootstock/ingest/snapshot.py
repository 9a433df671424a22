"""Build the dataset from the records of every file: one row per image, its split, and summary counts."""

import logging
from collections.abc import Collection, Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from rootstock.config import params
from rootstock.dataset import image_ids, label_sets, shards, tables
from rootstock.images import value_ranges
from rootstock.images.deep import FULL, Range
from rootstock.images.inspection import Reason
from rootstock.ingest import assignment, group_notes, ledger as ledgers, listings, requirements
from rootstock.ingest.earlier import Earlier, category
from rootstock.ingest.known_ids import KnownIds
from rootstock.ingest.layout import SPLITS
from rootstock.ingest.ledger import NONE, Ledger, rows_of_shards
from rootstock.ingest.saving import Built
from rootstock.ingest.scan import Scan
from rootstock.ingest.sources import SourceListing
from rootstock.system import memory
from rootstock.system.errors import SourceError
from rootstock.system.phrases import counted

log = logging.getLogger(__name__)
Counted = Mapping[str, int] | pd.Series


def drop_unrecorded(recorded: Collection[str], images_dir: Path, scan: Scan) -> None:
    """Remove shards in neither ledger nor journal: a run was killed between writing and recording one.

    Args:
        recorded: the shards of the ledger.
        images_dir: of the shards.
        scan: the scan cache, which is the journal.
    """
    unknown = set(shards.names(images_dir)) - set(recorded)
    in_journal = {shard for shard in unknown if any(scan.packed_ids([shard]))}
    for shard in sorted(unknown - in_journal):
        path = shards.path_of(images_dir, shard)
        log.warning("%s: removed; a killed run left it unrecorded", path)
        path.unlink()


def known_images(ledger: Ledger, images_dir: Path, scan: Scan, unpacked: set[str]) -> KnownIds:
    """Return the ids of images in local shards, by the ledger and the journal of a killed run, and of unpacked ones."""
    here = shards.names(images_dir)
    in_journal = scan.packed_ids(ledgers.unrecorded(ledger, here, scan))
    return KnownIds(chain(in_journal, [list(unpacked)]), ledger.ids[ledger.in_shards(here)])


def unpacked_images(ledger: Ledger, images_dir: Path, scan: Scan) -> set[str]:
    """Return the ids of images whose bytes were dropped by compaction, and that were not packed again."""
    dropped = set(image_ids.texts(ledger.ids[ledger.in_shards([tables.UNPACKED])]).to_pylist())
    if dropped:
        for names in scan.packed_ids(shards.names(images_dir)):
            dropped.difference_update(names)
    return dropped


def reappeared(listed: list[SourceListing], before: Earlier, scan: Scan, unpacked: set[str]) -> set[str]:
    """Return the ids of unpacked images that reappear in the manifest, and have to be packed again."""
    files = listings.tabulate(listed, before, scan, before.ledger.numbers())
    listings.resolve_owners(files, before)
    listings.reject_ambiguous(files)
    images = files.loc[files["reason"].isna(), "image"].to_numpy()
    names = image_ids.texts(before.ledger.ids[images[images < len(before.ledger)]]).to_pylist()
    return unpacked & set(names)


def build(
    settings: params.Ingest,
    seed: int,
    listed: list[SourceListing],
    before: Earlier,
    images_dir: Path,
    scan: Scan,
    ranges: dict[str, Range],
    *,
    multi_label: bool = False,
) -> Built:
    """Build the dataset from its previous state, with a ledger of all that is packed, and the source listings.

    The items of the sources are gone afterwards, but for a delivery's.

    Raises:
        SourceError: a source lost more than half of its images, or too few are left to train on.
    """
    files = listings.tabulate(listed, before, scan, before.ledger.numbers())
    for source in [entry.source for entry in listed if entry.source and not entry.stays]:
        source.items = []  # they are in the table now; a delivery is its caller's
    requirements.check_shrink(settings, listed, before, files)
    requirements.check_relabelled(settings, listed, before, files)
    listings.resolve_owners(files, before)
    listings.reject_ambiguous(files)
    memory.release_unused()
    assigned, known = assignment.assign(
        before.ledger, files, settings, seed, scan.known_links(), multi_label=multi_label
    )
    scan.set_known_links(known)
    del known
    memory.release_unused()
    hashes = assigned.ledger.phash[assigned.placed]
    if chain := group_notes.describe_chain(assigned.near, hashes, settings.near_duplicate_bits):
        log.warning("%s", chain)
    _reject_unplaced(files, assigned.ledger)
    file_of = assignment.files_of_images(files, len(assigned.ledger))
    manifest = _manifest(files, file_of, assigned, before.ledger.order, multi_label=multi_label)
    requirements.check_labels(label_sets.one_row_per_label(files) if multi_label else files)
    requirements.check_enough(manifest, files, listed)
    _check_shards(assigned.ledger, file_of != NONE, images_dir)
    rejected = files.loc[files["reason"].notna(), ["source", "path", "domain", "label", "reason"]]
    if assigned.drawn and (reached := group_notes.describe_splits(manifest, files, settings.split)):
        log.info("%s", reached)
    if not assigned.drawn and (kept := group_notes.describe_kept_splits(manifest, files, settings.split)):
        log.warning("%s", kept)
    for gone in _describe_gone(before, manifest, listed):
        log.warning("%s", gone)
    summary = _summary(manifest, rejected, files, file_of, assigned, listed, before, images_dir)
    if damaged := _damaged(settings, manifest, before, scan):
        summary["damaged"] = damaged  # keep the count: another clone does not check the files again
    for entry, source in zip(listed, summary["sources"], strict=True):
        if scan.deep(entry.spec.path) or source["name"] in value_ranges.recorded(before.summary):
            source[value_ranges.KEY] = list(ranges.get(source["name"], FULL))
    classes = {} if multi_label else {label: index for index, label in enumerate(summary["classes"])}
    return Built(assigned.ledger, assigned.first, files, file_of, classes, rejected, summary)


def _describe_gone(before: Earlier, manifest: pd.DataFrame, listed: list[SourceListing]) -> Iterator[str]:
    """Describe how many images of each source have left the dataset."""
    titles = {entry.spec.title() for entry in listed}
    left = before.manifest[~np.isin(before.manifest["image"], manifest["image"], kind="table")]
    for source, count in left["source"].value_counts().items():
        if count:
            why = "" if source in titles else ": it is no longer in ingest.sources"
            yield f"{counted(count, 'image')} of {source} {'has' if count == 1 else 'have'} left the dataset{why}"


def _damaged(settings: params.Ingest, manifest: pd.DataFrame, before: Earlier, scan: Scan) -> int:
    """Count the damaged images that are kept."""
    if settings.damaged != "keep":
        return 0
    damaged = before.ledger.numbers().of(sorted(scan.damaged()))
    found = int(manifest["image"].isin(damaged).sum())
    return max(found, int(before.summary.get("damaged", 0)))


def _reject_unplaced(files: pd.DataFrame, ledger: Ledger) -> None:
    """Reject images that could not be assigned to a split, or packed again."""
    accepted = np.flatnonzero(files["reason"].isna().to_numpy())
    image = files["image"].to_numpy()[accepted]
    split = np.append(ledger.split, np.int8(NONE))[np.minimum(image, len(ledger))]
    is_unpacked = np.append(ledger.in_shards([tables.UNPACKED]), False)[np.minimum(image, len(ledger))]
    listings.reject(files, accepted[split == NONE], Reason.STRADDLES_SPLITS)
    listings.reject(files, accepted[is_unpacked], Reason.UNREADABLE)


def _manifest(
    files: pd.DataFrame,
    file_of: NDArray[np.int32],
    assigned: assignment.Assignment,
    order: NDArray[np.int32],
    *,
    multi_label: bool,
) -> pd.DataFrame:
    """Tabulate the images in use: what is counted of them.

    `group` is the same number for the images of a group; groups are ordered as their ids are, which `order` says.
    """
    ledger = assigned.ledger
    rank = np.empty(len(ledger), np.int32)
    rank[order] = np.arange(len(ledger), dtype=np.int32)
    parts = [rows[file_of[rows] != NONE].astype(np.int32) for _, rows in rows_of_shards(ledger)]
    images = np.concatenate([np.empty(0, np.int32), *parts])
    columns = {name: files[name].array.take(file_of[images]) for name in ("source", "label", "domain")}
    return pd.DataFrame(
        columns
        | {
            "image": images,
            "class_index": np.int8(tables.NO_INDEX if multi_label else 0),  # that is, whether it is one class
            "split": category(ledger.split[images], SPLITS),
            "group": rank[assigned.first[images]],
            "name": category(ledger.group[images], ledger.names),
        }
    )


def _check_shards(ledger: Ledger, in_use: NDArray[np.bool_], images_dir: Path) -> None:
    needed = {ledger.shards[code] for code in np.unique(ledger.shard[in_use])}
    if missing := needed - set(shards.names(images_dir)):
        path = shards.path_of(images_dir, min(missing))
        raise SourceError(
            f"{path} does not exist, nor do the source images: restore it with `dvc pull` or `dvc checkout`."
        )


def _summary(
    manifest: pd.DataFrame,
    rejected: pd.DataFrame,
    files: pd.DataFrame,
    file_of: NDArray[np.int32],
    assigned: assignment.Assignment,
    listed: list[SourceListing],
    before: Earlier,
    images_dir: Path,
) -> dict[str, Any]:
    """Return the summary counts; from the snapshot alone, so that another run writes the same."""
    group_remarks = group_notes.describe(manifest, lambda images: files["path"].iloc[file_of[images]].min())
    usable = files.loc[files["reason"].isna(), ["source", "group", "splits"]]
    if leak := group_notes.describe_leaks_between(usable):
        group_remarks.append(leak)
    for remark in group_remarks:
        log.warning("%s", remark)
    by_class = group_notes.by_class(manifest)
    previous = {source["name"]: source for source in before.summary.get("sources", [])}
    return {
        "images": len(manifest),
        **({"multi_label": True} if tables.is_multi_label(manifest) else {}),
        "classes": tables.classes_of(manifest),
        "splits": {split: int((manifest["split"] == split).sum()) for split in SPLITS},
        "domains": _counts(manifest["domain"]),
        "by_class": {str(label): {split: int(row[split]) for split in SPLITS} for label, row in by_class.iterrows()},
        "without": {split: [str(label) for label in by_class.index[by_class[split] == 0]] for split in SPLITS},
        "near_duplicates": _count_near(manifest, assigned),
        **group_notes.summarize(manifest, group_remarks),
        "batches": _counts(pd.Series(assigned.ledger.batch[manifest["image"]])),
        "rejected": _counts(rejected["reason"]),
        "sources": [
            {
                "name": (title := entry.spec.title()),
                "domain": entry.spec.domain,
                "images": int((manifest["source"] == title).sum()),
                "rejected": int((rejected["source"] == title).sum()),
                "notes": _notes(entry, files, assigned.ledger, previous.get(title, {})),
                **({"layout": layout} if (layout := _source_layout(entry, previous.get(title, {}))) else {}),
            }
            for entry in listed
        ],
        "shards": count_shards(assigned.ledger.counts(), images_dir, shards.names(images_dir)),
    }


def count_shards(packed: Counted, images_dir: Path, names: list[str]) -> list[dict[str, Any]]:
    """Return the number of images, which `packed` says, and bytes of each shard."""
    return [
        {"name": name, "images": int(packed.get(name, 0)), "bytes": shards.path_of(images_dir, name).stat().st_size}
        for name in names
    ]


def _count_near(manifest: pd.DataFrame, assigned: assignment.Assignment) -> dict[str, int]:
    """Count the groups of near duplicates in use, and their images."""
    is_used = np.zeros(len(assigned.ledger), bool)
    is_used[manifest["image"]] = True
    sizes = np.bincount(assigned.near[is_used[assigned.placed]])
    return {"groups": int((sizes > 1).sum()), "images": int(sizes[sizes > 1].sum())}


def _notes(entry: SourceListing, files: pd.DataFrame, ledger: Ledger, previous: dict[str, Any]) -> list[str]:
    """Return notes on a source: how its folders were read, and how many images are in another split."""
    if entry.source is None:
        return list(previous.get("notes", []))
    is_mine = (files["source"] == entry.spec.title()) & files["reason"].isna()
    mine = files.loc[is_mine, ["splits", "group", "image"]]
    split = ledger.split[mine["image"]]
    allowed = [[name in splits.split() for name in SPLITS] for splits in mine["splits"].cat.categories]
    moved = int((~np.array(allowed, bool)[mine["splits"].cat.codes, split]).sum()) if len(mine) else 0
    notes = list(entry.source.notes)
    if leak := group_notes.describe_leaks(mine):
        log.warning("%s: %s", entry.spec.title(), leak)
        notes.append(leak)
    if moved:
        notes.append(
            f"{moved:,} images are in another split than their folder: they keep the split first assigned, "
            "or share it with a near duplicate or their group"
        )
        if notes[-1] not in previous.get("notes", []):
            log.warning("%s: %s", entry.spec.title(), notes[-1])
    return notes


def _source_layout(entry: SourceListing, previous: dict[str, Any]) -> dict[str, Any]:
    """Return the layout of a source, or the recorded one if it is unreachable."""
    layout: dict[str, Any] = entry.source.layout if entry.source else previous.get("layout", {})
    return layout


def _counts(column: "pd.Series[Any]") -> dict[str, int]:
    counts = {str(key): int(count) for key, count in column.value_counts().items()}
    return {key: counts[key] for key in sorted(counts) if counts[key]}  # of categories, all are counted

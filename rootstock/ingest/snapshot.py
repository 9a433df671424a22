"""Build the dataset from the records of every file: one row per image, its split, and summary counts."""

import logging
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from rootstock.config import params
from rootstock.dataset import image_ids, label_sets, shards, tables
from rootstock.dataset.tables import Dataset
from rootstock.images import value_ranges
from rootstock.images.deep import FULL, Range
from rootstock.images.inspection import Reason
from rootstock.ingest import assignment, group_notes, listings, requirements
from rootstock.ingest.known_ids import KnownIds
from rootstock.ingest.layout import SPLITS
from rootstock.ingest.scan import Scan
from rootstock.ingest.sources import SourceListing
from rootstock.system import memory
from rootstock.system.errors import SourceError

log = logging.getLogger(__name__)

ROWS = 10_000  # at a time
EARLIER = ("image_id", "source", "path", "label", "domain")  # what is needed of the manifest that is to be replaced


def drop_unrecorded(ledger: pd.DataFrame, images_dir: Path, scan: Scan) -> None:
    """Remove shards in neither ledger nor journal: a run was killed between writing and recording one."""
    unknown = set(shards.names(images_dir)) - set(ledger["shard"])
    recorded = {shard for shard in unknown if any(scan.packed_ids([shard]))}
    for shard in sorted(unknown - recorded):
        path = shards.path_of(images_dir, shard)
        log.warning("%s: removed; a killed run left it unrecorded", path)
        path.unlink()


def known_images(ledger: pd.DataFrame, images_dir: Path, scan: Scan, unpacked: set[str]) -> KnownIds:
    """Return the ids of images in local shards, by the ledger and the journal of a killed run, and of unpacked ones."""
    here = shards.names(images_dir)
    of_ledger = ledger.loc[ledger["shard"].isin(here), "image_id"]
    parts = (of_ledger.iloc[start : start + ROWS].tolist() for start in range(0, len(of_ledger), ROWS))
    return KnownIds(chain(parts, scan.packed_ids(here), [list(unpacked)]))


def unpacked_images(ledger: pd.DataFrame, images_dir: Path, scan: Scan) -> set[str]:
    """Return the ids of images whose bytes were dropped by compaction, and that were not packed again."""
    dropped = set(ledger.loc[ledger["shard"] == tables.UNPACKED, "image_id"])
    if dropped:
        for names in scan.packed_ids(shards.names(images_dir)):
            dropped.difference_update(names)
    return dropped


def reappeared(listed: list[SourceListing], before: Dataset, scan: Scan, unpacked: set[str]) -> set[str]:
    """Return the ids of unpacked images that reappear in the manifest, and have to be packed again."""
    files = pd.concat([listings.tabulate(entry, before, scan) for entry in listed], ignore_index=True)
    files = listings.reject_ambiguous(listings.resolve_owners(files, before))
    return unpacked & set(files.loc[files["reason"].isna(), "image_id"])


def build(
    settings: params.Ingest,
    seed: int,
    listed: list[SourceListing],
    before: Dataset,
    images_dir: Path,
    scan: Scan,
    ranges: dict[str, Range],
    *,
    multi_label: bool = False,
) -> Dataset:
    """Build the dataset from its previous state, with a ledger of all that is packed, and the source listings.

    The items of the sources are gone afterwards, but for a delivery's. Of the previous manifest, the columns EARLIER
    are enough.

    Raises:
        SourceError: a source lost more than half of its images, or too few are left to train on.
    """
    files = pd.concat([listings.tabulate(entry, before, scan) for entry in listed], ignore_index=True)
    for source in [entry.source for entry in listed if entry.source and not entry.stays]:
        source.items = []  # they are in the table now, and a million take 300 MB; a delivery is its caller's
    requirements.check_shrink(settings, listed, before, files)
    requirements.check_relabelled(settings, listed, before, files)
    files = listings.reject_ambiguous(listings.resolve_owners(files, before))
    memory.release_unused()
    assigned = assignment.assign(before.ledger, files, settings, seed, scan.known_links(), multi_label=multi_label)
    scan.set_known_links(assigned.known)
    if chain := group_notes.describe_chain(assigned.near, assigned.ledger, settings.near_duplicate_bits):
        log.warning("%s", chain)
    ledger = assigned.ledger
    _reject_unplaced(files, ledger)
    manifest = _manifest(files[files["reason"].isna()], ledger, multi_label=multi_label)
    requirements.check_labels(label_sets.one_row_per_label(files) if multi_label else files)
    requirements.check_enough(manifest, files, listed)
    _check_shards(manifest, images_dir)
    rejected = files.loc[files["reason"].notna(), ["source", "path", "domain", "label", "reason"]]
    if assigned.drawn and (reached := group_notes.describe_splits(manifest, files, settings.split)):
        log.info("%s", reached)
    if not assigned.drawn and (kept := group_notes.describe_kept_splits(manifest, files, settings.split)):
        log.warning("%s", kept)
    summary = _summary(manifest, rejected, files, assigned, listed, before, images_dir)
    damaged = int(manifest["image_id"].isin(scan.damaged()).sum()) if settings.damaged == "keep" else 0
    if damaged := max(damaged, before.summary.get("damaged", 0) if settings.damaged == "keep" else 0):
        summary["damaged"] = damaged  # keep the count: another clone does not check the files again
    for entry, source in zip(listed, summary["sources"], strict=True):
        if scan.deep(entry.spec.path) or source["name"] in value_ranges.recorded(before.summary):
            source[value_ranges.KEY] = list(ranges.get(source["name"], FULL))
    return Dataset(manifest, rejected, ledger, summary)


def _reject_unplaced(files: pd.DataFrame, ledger: pd.DataFrame) -> None:
    """Reject images that could not be assigned to a split, or packed again."""
    accepted = files.loc[files["reason"].isna(), "image_id"]
    place = image_ids.places(accepted, ledger["image_id"])
    placed = ledger[["split", "shard"]].reset_index(drop=True).reindex(place)  # empty where it is -1
    files.loc[accepted.index[placed["split"].isna()], "reason"] = Reason.STRADDLES_SPLITS.value
    files.loc[accepted.index[placed["shard"] == tables.UNPACKED], "reason"] = Reason.UNREADABLE.value


def add_packed(ledger: pd.DataFrame, images_dir: Path, scan: Scan) -> pd.DataFrame:
    """Add images packed since the ledger was written; images packed a second time keep their split."""
    here = sorted(shards.names(images_dir))
    present = ledger.loc[ledger["shard"].isin(here), "image_id"]
    names = [pa.array(own, pa.large_string()) for own in scan.packed_ids(here)]
    is_new = ~image_ids.is_in(pa.chunked_array(names, pa.large_string()).to_pandas(), present)
    of_shards = np.repeat(np.arange(len(here)), [len(own) for own in names])
    if not is_new.any():
        return ledger
    with_new = [here[number] for number in np.unique(of_shards[is_new])]
    rows = pa.concat_tables(scan.packed_tables(with_new)).to_pandas()
    rows = rows[~image_ids.is_in(rows["image_id"], present)].drop_duplicates("image_id")
    old = ledger.set_index("image_id")[["split", "group_id", "batch", "group"]]
    rows = rows.join(old, on="image_id")
    batch = 0 if ledger.empty else int(ledger["batch"].max())
    rows["batch"] = rows["batch"].fillna(batch + 1).astype("int32")
    kept = ledger[~image_ids.is_in(ledger["image_id"], rows["image_id"])]
    merged: pd.DataFrame = rows[ledger.columns]
    if len(kept):
        merged = pd.concat([kept, merged], ignore_index=True)
    return merged.astype({"phash": "uint64", "width": "int32", "height": "int32"})


def _manifest(accepted: pd.DataFrame, ledger: pd.DataFrame, *, multi_label: bool) -> pd.DataFrame:
    """Join source and ledger columns of each image, in shard order."""
    manifest = place(accepted[["image_id", "source", "path", "label", "domain"]], ledger)
    if multi_label:
        return manifest.assign(class_index=np.int32(tables.NO_INDEX))
    classes = {label: index for index, label in enumerate(sorted(manifest["label"].unique()))}
    manifest["class_index"] = manifest["label"].map(classes).astype("int32")
    return manifest


def place(images: pd.DataFrame, ledger: pd.DataFrame) -> pd.DataFrame:
    """Add the ledger columns to images, in shard order."""
    own = [name for name in images.columns if name == "image_id" or name not in ledger.columns]
    at = image_ids.places(images["image_id"], ledger["image_id"])
    known = np.flatnonzero(at >= 0)
    places = ledger[["shard", "offset"]].iloc[at[known]].reset_index(drop=True)
    rows = known[places.sort_values(["shard", "offset"]).index]  # each table is copied once, in its final order
    there = images[own].iloc[rows].reset_index(drop=True)
    more = ledger[[name for name in ledger.columns if name not in own]].iloc[at[rows]].reset_index(drop=True)
    return pd.concat([there, more], axis=1).reindex(columns=tables.SCHEMAS[tables.MANIFEST].names)


def _check_shards(manifest: pd.DataFrame, images_dir: Path) -> None:
    missing = set(manifest["shard"]) - set(shards.names(images_dir))
    if missing:
        path = shards.path_of(images_dir, min(missing))
        raise SourceError(
            f"{path} does not exist, nor do the source images: restore it with `dvc pull` or `dvc checkout`."
        )


def _summary(
    manifest: pd.DataFrame,
    rejected: pd.DataFrame,
    files: pd.DataFrame,
    assigned: assignment.Assignment,
    listed: list[SourceListing],
    before: Dataset,
    images_dir: Path,
) -> dict[str, Any]:
    """Return the summary counts; from the snapshot alone, so that another run writes the same."""
    near = assigned.near.iloc[image_ids.places(manifest["image_id"], assigned.near.index)].value_counts()
    names = assigned.ledger["group"].iloc[image_ids.places(manifest["image_id"], assigned.ledger["image_id"])]
    group_remarks = group_notes.describe(manifest, names)
    for remark in group_remarks:
        log.warning("%s", remark)
    of_classes = tables.one_row_per_label(manifest)
    by_class = of_classes.groupby(["label", "split"]).size().unstack(fill_value=0).reindex(columns=SPLITS, fill_value=0)
    previous = {source["name"]: source for source in before.summary.get("sources", [])}
    return {
        "images": len(manifest),
        **({"multi_label": True} if tables.is_multi_label(manifest) else {}),
        "classes": tables.classes_of(manifest),
        "splits": {split: int((manifest["split"] == split).sum()) for split in SPLITS},
        "domains": _counts(manifest["domain"]),
        "by_class": {str(label): {split: int(row[split]) for split in SPLITS} for label, row in by_class.iterrows()},
        "without": {split: [str(label) for label in by_class.index[by_class[split] == 0]] for split in SPLITS},
        "near_duplicates": {"groups": int((near > 1).sum()), "images": int(near[near > 1].sum())},
        **group_notes.summarize(manifest, names, group_remarks),
        "batches": _counts(manifest["batch"].astype(str)),
        "rejected": _counts(rejected["reason"]),
        "sources": [
            {
                "name": (title := entry.spec.title()),
                "domain": entry.spec.domain,
                "images": int((manifest["source"] == title).sum()),
                "rejected": int((rejected["source"] == title).sum()),
                "notes": _notes(entry, files, manifest) if entry.source else previous.get(title, {}).get("notes", []),
                **({"layout": layout} if (layout := _source_layout(entry, previous.get(title, {}))) else {}),
            }
            for entry in listed
        ],
        "shards": count_shards(assigned.ledger, images_dir, shards.names(images_dir)),
    }


def count_shards(ledger: pd.DataFrame, images_dir: Path, names: list[str]) -> list[dict[str, Any]]:
    """Return the number of images and bytes of each shard."""
    packed = ledger.groupby("shard").size()
    return [
        {"name": name, "images": int(packed.get(name, 0)), "bytes": shards.path_of(images_dir, name).stat().st_size}
        for name in names
    ]


def _notes(entry: SourceListing, files: pd.DataFrame, manifest: pd.DataFrame) -> list[str]:
    """Return notes on a source: how its folders were read, and how many images are in another split."""
    assert entry.source is not None
    mine = files[(files["source"] == entry.spec.title()) & files["reason"].isna()]
    split = manifest.set_index("image_id")["split"].reindex(mine["image_id"])
    moved = sum(split not in allowed for split, allowed in zip(split, mine["splits"], strict=True))
    notes = list(entry.source.notes)
    if leak := group_notes.describe_leaks(mine):
        log.warning("%s: %s", entry.spec.title(), leak)
        notes.append(leak)
    if moved:
        notes.append(
            f"{moved:,} images are in another split than their folder: they keep the split first assigned, "
            "or share it with a near duplicate or their group"
        )
    return notes


def _source_layout(entry: SourceListing, previous: dict[str, Any]) -> dict[str, Any]:
    """Return the layout of a source, or the recorded one if it is unreachable."""
    layout: dict[str, Any] = entry.source.layout if entry.source else previous.get("layout", {})
    return layout


def _counts(column: "pd.Series[Any]") -> dict[str, int]:
    return {str(key): int(count) for key, count in sorted(column.value_counts().items())}

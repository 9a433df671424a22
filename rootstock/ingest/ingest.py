"""Ingest sources into shards and a manifest: list everything, read only new files, decode each once.

One streaming pass packs the new images; then the manifest is built from old and new records (snapshot.py). If nothing
is new, nothing is written, and neither pandas nor torch is imported.
"""

import hashlib
import logging
from collections.abc import Collection
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import pyarrow.parquet as pq

from rootstock.config import params
from rootstock.dataset import label_sets, shards, tables
from rootstock.images import value_ranges
from rootstock.images.deep import Range
from rootstock.ingest import inbox, labels, layout_choice, open_shard, packing, sources
from rootstock.ingest.items import as_items
from rootstock.ingest.layout_choice import Known
from rootstock.ingest.scan import Scan, with_scan
from rootstock.ingest.sources import Source, SourceListing, Unreachable
from rootstock.system import memory
from rootstock.system.files import digest, reading, sweep
from rootstock.system.parallel import ordered_map

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class IngestResult:
    """Counts of an ingest run, and whether it changed the dataset; `new` are those of the images that were packed."""

    images: int
    new: int
    rejected: int
    changed: bool


def ingest(
    settings: params.Ingest,
    seed: int,
    images_dir: Path,
    dataset_dir: Path,
    scratch: Path,
    delivery: Source | None = None,
) -> IngestResult:
    """Bring shards and manifest up to date with the sources.

    Args:
        settings: the section `ingest` of params.yaml.
        seed: for the split.
        images_dir: where shards are appended.
        dataset_dir: where the manifest and its companion tables are.
        scratch: an untracked local folder for the scan cache and generated samples.
        delivery: the contents of the inbox, if they are to be ingested; earlier deliveries stay in any case.

    Raises:
        SourceError: a source cannot be reached and never could, or lost more than half of its images; or there are
            too few images or classes to train on.
    """
    for folder in (images_dir, dataset_dir):
        folder.mkdir(parents=True, exist_ok=True)
        sweep(folder)
    return with_scan(scratch, partial(_ingest, settings, seed, images_dir, dataset_dir, scratch, delivery))


def _ingest(
    settings: params.Ingest, seed: int, images_dir: Path, dataset_dir: Path, scratch: Path, delivery: Source | None,
    scan: Scan,
) -> IngestResult:  # fmt: skip
    _verify_shards(images_dir, scan)
    rules = repr(replace(packing.checks_of(settings), max_side=None))  # which files are accepted
    if scan.value("rules") != rules:
        scan.forget_records()
        scan.set_value("rules", rules)
    earlier_counts = _earlier_counts(dataset_dir)
    with memory.given_back():
        listed = [
            _list_source(spec, earlier_counts.get(spec.title(), 0), dataset_dir, scratch, scan)
            for spec in settings.sources
        ]
    multi_label = sources.are_multi_label(listed, tables.load_summary(dataset_dir))
    if delivery and multi_label:
        delivery.items = inbox.with_label_sets(delivery.items)
    if delivery or inbox.SPEC.title() in earlier_counts:
        listed.append(SourceListing(inbox.SPEC, delivery, stays=True))
    layouts = _describe_layouts(listed)
    if layouts != (scan.value("layouts") or "").splitlines():
        for layout in layouts:
            log.info("%s", layout)
    listing = _listing_digest(settings, seed, listed)
    before = _outputs_digest(dataset_dir)
    if before and scan.value("look") == _fingerprint(listing, images_dir) + before:
        open_shard.forget(scratch)  # of a delivery that is gone
        return _unchanged(dataset_dir)

    labels.check_lookalikes(_offered_labels(listed, multi_label=multi_label))
    if delivery:
        known = tables.load_summary(dataset_dir).get("classes", [])
        inbox.check_classes(delivery.items, known, multi_label=multi_label)
    # With pandas: only if there is something to build.
    from rootstock.ingest import delivered_splits, earlier, ledger, saving, snapshot

    current = earlier.load(dataset_dir, [entry.spec.title() for entry in listed if not entry.source or entry.stays])
    ranges = value_ranges.of_sources(settings.sources, value_ranges.recorded(current.summary), heir=inbox.SPEC.title())
    scan.forget_packed_except([*shards.names(images_dir), *open_shard.recorded_names(scratch)])
    snapshot.drop_unrecorded(current.ledger.shards, images_dir, scan)
    unpacked = snapshot.unpacked_images(current.ledger, images_dir, scan)
    known = snapshot.known_images(current.ledger, images_dir, scan, unpacked)
    new, unreadable = packing.pack_new(listed, known, settings, images_dir, scan, ranges, scratch)
    if unpacked and (back := snapshot.reappeared(listed, current, scan, unpacked)):
        again, unreadable = packing.pack_new(listed, known.without(back), settings, images_dir, scan, ranges, scratch)
        new += again
    _check_ranges(listed, ranges, current.ledger.shards, scan)
    del known
    scan.set_value("layouts", "\n".join(layouts))
    scan.set_verified(_stamps(images_dir))  # the new ones have just been written
    with memory.given_back():
        batch = int(current.ledger.batch.max(initial=0))
        current = replace(current, ledger=ledger.with_packed(current.ledger, images_dir, scan))
        if delivery:
            current = replace(current, ledger=delivered_splits.with_remembered(current.ledger, scratch, settings, seed))
        built = snapshot.build(settings, seed, listed, current, images_dir, scan, ranges, multi_label=multi_label)
        new -= min(new, built.left_out(since=batch))
        del current
        if delivery:
            delivered_splits.remember(built.ledger, batch, scratch, settings, seed)
        memory.release_unused()
        saving.save(dataset_dir, built, scan)
    after = _outputs_digest(dataset_dir)
    if not unreadable:  # unreadable files are tried again next time
        scan.set_value("look", _fingerprint(listing, images_dir) + after)
    return IngestResult(built.summary["images"], new, len(built.rejected), before != after)


def _verify_shards(images_dir: Path, scan: Scan) -> None:
    """Verify shards against the content digest in their names; unchanged shards are not read again.

    Raises:
        SourceError: a shard is damaged; once DVC has recorded it, a checkout would restore the damaged file.
    """
    verified, stamps = scan.verified(), _stamps(images_dir)
    unknown = [shard for shard, stamp in stamps.items() if verified.get(shard) != stamp]
    intact = ordered_map(lambda shard: shards.is_intact(images_dir, shard), unknown)
    for shard, whole in zip(unknown, intact, strict=True):
        if not whole:
            raise shards.damaged_error(images_dir, shard, "its content differs from what was packed")
    if verified != stamps:
        scan.set_verified(stamps)


def _stamps(images_dir: Path) -> dict[str, str]:
    """Return a stamp per shard that changes with its file: size and modification time."""
    found = ((shard, shards.path_of(images_dir, shard).stat()) for shard in shards.names(images_dir))
    return {shard: f"{status.st_size} {status.st_mtime_ns}" for shard, status in found}


def _list_source(spec: params.Source, before: int, dataset_dir: Path, scratch: Path, scan: Scan) -> SourceListing:
    """List a source; if it is unreachable, warn and keep its earlier images."""
    folder = sources.generated(spec, scratch)
    if before and folder and not folder.exists():
        return SourceListing(spec, None)  # samples and downloads do not change
    try:
        return SourceListing(spec, sources.open_source(spec, scratch, scan, _recorded_layout(spec, dataset_dir)))
    except Unreachable as error:
        if not before:
            raise
        log.warning("%s Its %s earlier images are kept.", error, f"{before:,}")
        return SourceListing(spec, None)


def _describe_layouts(listed: list[SourceListing]) -> list[str]:
    """Describe the layout and classes of each source, with notes, in a line each."""
    found = []
    for entry in listed:
        title = entry.spec.title()
        if entry.source and entry.source.layout:
            found.append(layout_choice.describe(entry.source.layout, title))
        found += [f"{title}: {note}" for note in (entry.source.notes if entry.source else ())]
    return found


def _recorded_layout(spec: params.Source, dataset_dir: Path) -> Known:
    """Return a source's recorded layout, or, for older datasets without one, its labels by path."""
    entries = tables.load_summary(dataset_dir).get("sources", [])
    before = next((entry for entry in entries if entry["name"] == spec.title()), None)
    if before is None:
        return Known()
    if before.get("layout"):
        return Known(before["layout"])
    return Known(labels=lambda: tables.labels_of(dataset_dir, spec.title()))


def _offered_labels(listed: list[SourceListing], *, multi_label: bool) -> dict[str, str]:
    """Map every label that the sources offer now to its first file."""
    found: dict[str, str] = {}
    for entry in listed:
        for kind, path in as_items(entry.source.items).firsts() if entry.source else ():
            if kind.label and kind.label not in found:
                found[kind.label] = f"{entry.spec.title()}: {path}"
    if multi_label:
        return {label: file for text, file in reversed(found.items()) for label in label_sets.split(text)}
    return found


def _earlier_counts(dataset_dir: Path) -> dict[str, int]:
    """Count the images in the manifest by source; a source with only rejected files has zero."""
    summary = tables.load_summary(dataset_dir)
    with reading(dataset_dir / tables.SUMMARY):
        counts = dict.fromkeys((source["name"] for source in summary.get("sources", [])), 0)
    for path in tables.files_of(dataset_dir / tables.MANIFEST):
        with reading(path), pq.ParquetFile(path) as file:  # pq.read_table would import pandas
            for entry in file.read(columns=["source"])["source"].value_counts().to_pylist():
                counts[entry["values"]] = counts.get(entry["values"], 0) + entry["counts"]
    return counts


def _listing_digest(settings: params.Ingest, seed: int, listed: list[SourceListing]) -> str:
    """Hash the parameters, and what the sources list."""
    digest = hashlib.sha256(f"{seed} {settings.model_dump_json()}".encode())
    for entry in listed:
        digest.update(f"{entry.spec.path} {entry.source is None}\n".encode())
        if entry.source:
            digest.update(f"{entry.source.layout} {entry.source.empty}\n".encode())
        for item in entry.source.items if entry.source else ():
            digest.update(
                f"{item.path}\t{item.label}\t{item.domain}\t{item.splits}\t{item.stamp}\t{item.problem}\t"
                f"{item.group}\n".encode()
            )
    return digest.hexdigest()


def _fingerprint(listing: str, images_dir: Path) -> str:
    """Hash everything that decides the result: parameters and source listings, by their digest, and shards."""
    return hashlib.sha256(f"{listing} {shards.names(images_dir)}".encode()).hexdigest()


def _outputs_digest(dataset_dir: Path) -> str:
    """Hash the files of the dataset; "" if one is missing or a run was killed while writing."""
    paths = [path for name in tables.FILES for path in tables.files_of(dataset_dir / name)]
    return digest(paths, " ".join(path.name for path in paths)) if tables.is_complete(dataset_dir) else ""


def _unchanged(dataset_dir: Path) -> IngestResult:
    manifest, rejected = (
        sum(pq.read_metadata(path).num_rows for path in tables.files_of(dataset_dir / name))
        for name in (tables.MANIFEST, tables.REJECTED)
    )
    return IngestResult(manifest, 0, rejected, changed=False)


def _check_ranges(listed: list[SourceListing], ranges: dict[str, Range], known: Collection[str], scan: Scan) -> None:
    """Check that the 16-bit images of each source, taken together, use the full 16-bit range.

    For a source with a known range, values beyond it are logged.

    Raises:
        SourceError: they do not, so their range is unknown; the images just packed are dropped.
    """
    for entry in listed:
        found, title = scan.deep(entry.spec.path), entry.spec.title()
        if found and title in ranges and (warning := value_ranges.describe_clipping(title, found, ranges[title])):
            log.warning("%s", warning)
        if found and found.unclear and title not in ranges:
            scan.forget_packed_except(known)
            scan.forget_deep(entry.spec.path)
            raise value_ranges.unknown_range_error(entry.spec, found, [], heir=entry.stays)

"""Sources in, shards and a manifest out: look at everything, read only what is new, decode it once.

One streaming pass packs the new images; then all that is known, old and new, is put together into the manifest
(rootstock/ingest/snapshot.py). When nothing is new, nothing is written, and neither pandas nor torch is imported.
"""

import hashlib
import logging
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import pyarrow.parquet as pq

from rootstock.config import params
from rootstock.dataset import shards, tables
from rootstock.dataset.tables import Dataset
from rootstock.images import value_ranges
from rootstock.images.deep import Range
from rootstock.ingest import inbox, labels, layouts, packing, sources
from rootstock.ingest.layouts import Known
from rootstock.ingest.scan import Scan, use
from rootstock.ingest.sources import Source, SourceListing, Unreachable
from rootstock.system.files import digest, reading, sweep
from rootstock.system.parallel import ordered_map

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class IngestResult:
    """What an ingest did."""

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
        seed: of the split.
        images_dir: where shards are appended.
        dataset_dir: where the manifest and its companions are.
        scratch: an untracked folder of this machine, for the scan cache and generated samples.
        delivery: what lies in the inbox, if that is to be taken in; earlier deliveries stay in any case.

    Raises:
        SourceError: a source cannot be reached and never was, or lost more than half of its images; too few images
            or classes to train on.
    """
    for folder in (images_dir, dataset_dir):
        folder.mkdir(parents=True, exist_ok=True)
        sweep(folder)
    return use(scratch, partial(_ingest, settings, seed, images_dir, dataset_dir, scratch, delivery))


def _ingest(
    settings: params.Ingest, seed: int, images_dir: Path, dataset_dir: Path, scratch: Path, delivery: Source | None,
    scan: Scan,
) -> IngestResult:  # fmt: skip
    _hold_shards(images_dir, scan)
    brought = _images_before(dataset_dir)
    listed = [_list(spec, brought.get(spec.title(), 0), dataset_dir, scratch, scan) for spec in settings.sources]
    if delivery or inbox.SPEC.title() in brought:
        listed.append(SourceListing(inbox.SPEC, delivery, stays=True))
    _say_layouts(listed)
    seen = _fingerprint(settings, seed, listed, images_dir)
    before = _outs(dataset_dir)
    if before and scan.note("look") == seen + before:
        return _unchanged(dataset_dir)

    labels.check_alike(_labels(listed))
    if delivery:
        inbox.check_classes(delivery.items, tables.load_summary(dataset_dir).get("classes", []))
    from rootstock.ingest import snapshot  # pandas: only when there is something to put together

    rules = repr(replace(packing.checks_of(settings), max_side=None))  # which files are taken in
    if scan.note("rules") != rules:
        scan.forget_looks()
        scan.remember("rules", rules)
    current = tables.load(dataset_dir)
    ranges = value_ranges.of_sources(settings.sources, value_ranges.recorded(current.summary), heir=inbox.SPEC.title())
    scan.forget_packed_but_in(shards.names(images_dir))
    snapshot.drop_unrecorded(current.ledger, images_dir, scan)
    packed = snapshot.known_images(current.ledger, images_dir, scan)
    unpacked = snapshot.unpacked_images(current.ledger) - packed
    known = packed | unpacked
    new, unreadable = packing.pack_new(listed, known, settings, images_dir, scan, ranges)
    if unpacked and (back := snapshot.returned(listed, current, scan, unpacked)):
        again, unreadable = packing.pack_new(listed, known - back, settings, images_dir, scan, ranges)
        new += again
    _ask_for_ranges(listed, ranges, current, scan)
    scan.hold(_stamps(images_dir))  # the new ones have just been written
    settled = snapshot.settle(settings, seed, listed, current, images_dir, scan, ranges)
    tables.save(dataset_dir, settled)
    after = _outs(dataset_dir)
    if not unreadable:  # what could not be read now is tried again next time
        scan.remember("look", _fingerprint(settings, seed, listed, images_dir) + after)
    return IngestResult(len(settled.manifest), new, len(settled.rejected), before != after)


def _hold_shards(images_dir: Path, scan: Scan) -> None:
    """Hold shards to their names, which digest what was packed; one that has not changed since is not read again.

    Raises:
        SourceError: one is another: once DVC has recorded that, it brings back the damaged one.
    """
    held, stamps = scan.held(), _stamps(images_dir)
    unknown = [shard for shard, stamp in stamps.items() if held.get(shard) != stamp]
    intact = ordered_map(lambda shard: shards.is_intact(images_dir, shard), unknown)
    for shard, whole in zip(unknown, intact, strict=True):
        if not whole:
            raise shards.damaged_error(images_dir, shard, "it does not hold what was packed")
    if held != stamps:
        scan.hold(stamps)


def _stamps(images_dir: Path) -> dict[str, str]:
    """Give what of each shard's file changes with the content."""
    found = ((shard, shards.path_of(images_dir, shard).stat()) for shard in shards.names(images_dir))
    return {shard: f"{status.st_size} {status.st_mtime_ns}" for shard, status in found}


def _list(spec: params.Source, before: int, dataset_dir: Path, scratch: Path, scan: Scan) -> SourceListing:
    """List a source; one that is away keeps the images it brought before, with a warning."""
    folder = sources.generated(spec, scratch)
    if before and folder and not folder.exists():
        return SourceListing(spec, None)  # what Rootstock generates or downloads itself does not change
    try:
        return SourceListing(spec, sources.open_source(spec, scratch, scan, _known(spec, dataset_dir)))
    except Unreachable as error:
        if not before:
            raise
        log.warning("%s Its %d earlier images stay.", error, before)
        return SourceListing(spec, None)


def _say_layouts(listed: list[SourceListing]) -> None:
    """Log how each source is read: what its classes are, and what a person should know of that."""
    for entry in listed:
        if entry.source and entry.source.layout:
            log.info("%s", layouts.say(entry.source.layout, entry.spec.title()))
            for note in entry.source.notes:
                log.info("%s: %s", entry.spec.title(), note)


def _known(spec: params.Source, dataset_dir: Path) -> Known:
    """Recall how a source was laid out, or, of a data set that did not keep that, which labels its paths have."""
    entries = tables.load_summary(dataset_dir).get("sources", [])
    before = next((entry for entry in entries if entry["name"] == spec.title()), None)
    if before is None:
        return Known()
    if before.get("layout"):
        return Known(before["layout"])
    return Known(labels=lambda: tables.labels_of(dataset_dir, spec.title()))


def _labels(listed: list[SourceListing]) -> dict[str, str]:
    """Name every label that is offered now, and where it is from."""
    found: dict[str, str] = {}
    for entry in listed:
        for item in entry.source.items if entry.source else ():
            if item.label and item.label not in found:
                found[item.label] = f"{entry.spec.title()}: {item.path}"
    return found


def _images_before(dataset_dir: Path) -> dict[str, int]:
    """Count the images in the manifest by source; sources of which there are rejected files alone have none."""
    summary = tables.load_summary(dataset_dir)
    with reading(dataset_dir / tables.SUMMARY):
        counts = dict.fromkeys((source["name"] for source in summary.get("sources", [])), 0)
    for path in tables.files_of(dataset_dir / tables.MANIFEST):
        with reading(path), pq.ParquetFile(path) as file:  # pq.read_table would import pandas
            for entry in file.read(columns=["source"])["source"].value_counts().to_pylist():
                counts[entry["values"]] = counts.get(entry["values"], 0) + entry["counts"]
    return counts


def _fingerprint(settings: params.Ingest, seed: int, listed: list[SourceListing], images_dir: Path) -> str:
    """Digest everything a look sees: parameters, what the sources list, which shards there are."""
    digest = hashlib.sha256(f"{seed} {settings.model_dump_json()} {shards.names(images_dir)}".encode())
    for entry in listed:
        digest.update(f"{entry.spec.path} {entry.source is None}\n".encode())
        if entry.source:
            digest.update(f"{entry.source.layout} {entry.source.empty}\n".encode())
        for item in entry.source.items if entry.source else ():
            digest.update(f"{item.path}\t{item.label}\t{item.domain}\t{item.splits}\t{item.stamp}\n".encode())
    return digest.hexdigest()


def _outs(dataset_dir: Path) -> str:
    """Digest the data set's files; nothing where one is missing, or a run was killed while it wrote them."""
    paths = [path for name in tables.FILES for path in tables.files_of(dataset_dir / name)]
    return digest(paths, " ".join(path.name for path in paths)) if tables.is_complete(dataset_dir) else ""


def _unchanged(dataset_dir: Path) -> IngestResult:
    manifest, rejected = (
        sum(pq.read_metadata(path).num_rows for path in tables.files_of(dataset_dir / name))
        for name in (tables.MANIFEST, tables.REJECTED)
    )
    return IngestResult(manifest, 0, rejected, changed=False)


def _ask_for_ranges(listed: list[SourceListing], ranges: dict[str, Range], current: Dataset, scan: Scan) -> None:
    """Hold the 16-bit images of each source to filling 16 bits, all together; a dark one among them may well be.

    Of a source whose range is known, values that lie beyond it are said.

    Raises:
        SourceError: they do not; what was packed of them is dropped, as their range is not known.
    """
    for entry in listed:
        found, title = scan.deep(entry.spec.path), entry.spec.title()
        if found and title in ranges and (said := value_ranges.beyond(title, found, ranges[title])):
            log.warning("%s", said)
        if found and found.unclear and title not in ranges:
            scan.forget_packed_but_in(current.ledger["shard"].unique())
            scan.forget_deep(entry.spec.path)
            raise value_ranges.ask(entry.spec, found, [], heir=entry.stays)

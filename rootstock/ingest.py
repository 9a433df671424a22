"""Sources in, shards and a manifest out: look at everything, read only what is new, decode it once.

One streaming pass packs the new images; then all that is known, old and new, is put together into the manifest
(rootstock/snapshot.py). When nothing is new, nothing is written, and neither pandas nor torch is imported.
"""

import hashlib
import logging
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial, reduce
from itertools import chain
from pathlib import Path

import pyarrow.parquet as pq

from rootstock import dataset, inbox, intake, labels, layouts, params, progress, shards, sources, value_ranges
from rootstock.dataset import Dataset
from rootstock.deep import Found, Range
from rootstock.duplicates import perceptual_hashes
from rootstock.files import digest, reading, sweep
from rootstock.intake import Checks, NewImage, RangeUnknown, Reason, Rejected
from rootstock.layout import Item, Loader
from rootstock.layouts import Known
from rootstock.parallel import bundled, ordered_map
from rootstock.scan import Look, Packed, Scan, use
from rootstock.sources import Source, Unreachable

log = logging.getLogger(__name__)
MIB = 2**20
# Small files go to a thread, and are hashed, so many together (docs/extraction.md says what that saves).
TOGETHER, TOGETHER_BYTES = 64, MIB
# Of files that have been read and not yet packed: no more is read before that, but for a single file that is larger.
READ_BYTES, UNKNOWN_BYTES = 256 * MIB, 16 * MIB
LOOKS_KEPT = 10_000  # files that need no packing are recorded every so many
NOT_YET = ""  # the name of a shard that is still open
NAMED = 5  # files that a warning names
Result = NewImage | str | Rejected  # of a file: a new image, the id of a known one, or why it is rejected


@dataclass(frozen=True)
class Listed:
    """A source and what it offers now; `source` is None where it is away and its earlier images stay.

    Images of an inbox stay (`stays`) when their files have left it; those of another source leave with their files.
    """

    spec: params.Source
    source: Source | None
    stays: bool = False


@dataclass(frozen=True)
class Taken:
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
) -> Taken:
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
) -> Taken:  # fmt: skip
    _hold_shards(images_dir, scan)
    brought = _images_before(dataset_dir)
    listed = [_list(spec, brought.get(spec.title(), 0), dataset_dir, scratch, scan) for spec in settings.sources]
    if delivery or inbox.SPEC.title() in brought:
        listed.append(Listed(inbox.SPEC, delivery, stays=True))
    _say_layouts(listed)
    seen = _fingerprint(settings, seed, listed, images_dir)
    before = _outs(dataset_dir)
    if before and scan.note("look") == seen + before:
        return _unchanged(dataset_dir)

    labels.check_alike(_labels(listed))
    if delivery:
        inbox.check_classes(delivery.items, dataset.load_summary(dataset_dir).get("classes", []))
    from rootstock import snapshot  # pandas: only when there is something to put together

    rules = repr(replace(_checks(settings), max_side=None))  # which files are taken in
    if scan.note("rules") != rules:
        scan.forget_looks()
        scan.remember("rules", rules)
    current = dataset.load(dataset_dir)
    ranges = value_ranges.of_sources(settings.sources, value_ranges.recorded(current.summary), heir=inbox.SPEC.title())
    scan.forget_packed_but_in(shards.names(images_dir))
    snapshot.drop_unrecorded(current.ledger, images_dir, scan)
    packed = snapshot.known_images(current.ledger, images_dir, scan)
    unpacked = snapshot.unpacked_images(current.ledger) - packed
    known = packed | unpacked
    new, unreadable = _take_in(listed, known, settings, images_dir, scan, ranges)
    if unpacked and (back := snapshot.returned(listed, current, scan, unpacked)):
        again, unreadable = _take_in(listed, known - back, settings, images_dir, scan, ranges)
        new += again
    _ask_for_ranges(listed, ranges, current, scan)
    scan.hold(_stamps(images_dir))  # the new ones have just been written
    settled = snapshot.settle(settings, seed, listed, current, images_dir, scan, ranges)
    dataset.save(dataset_dir, settled)
    after = _outs(dataset_dir)
    if not unreadable:  # what could not be read now is tried again next time
        scan.remember("look", _fingerprint(settings, seed, listed, images_dir) + after)
    return Taken(len(settled.manifest), new, len(settled.rejected), before != after)


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
            raise shards.damaged(images_dir, shard, "it does not hold what was packed")
    if held != stamps:
        scan.hold(stamps)


def _stamps(images_dir: Path) -> dict[str, str]:
    """Give what of each shard's file changes with the content."""
    found = ((shard, shards.path_of(images_dir, shard).stat()) for shard in shards.names(images_dir))
    return {shard: f"{status.st_size} {status.st_mtime_ns}" for shard, status in found}


def _checks(settings: params.Ingest) -> Checks:
    return Checks(
        settings.min_side, settings.max_megapixels, settings.max_side, settings.accept_wrong_extension,
        settings.damaged, settings.seconds_a_file,
    )  # fmt: skip


def _list(spec: params.Source, before: int, dataset_dir: Path, scratch: Path, scan: Scan) -> Listed:
    """List a source; one that is away keeps the images it brought before, with a warning."""
    folder = sources.generated(spec, scratch)
    if before and folder and not folder.exists():
        return Listed(spec, None)  # what Rootstock generates or downloads itself does not change
    try:
        return Listed(spec, sources.open_source(spec, scratch, scan, _known(spec, dataset_dir)))
    except Unreachable as error:
        if not before:
            raise
        log.warning("%s Its %d earlier images stay.", error, before)
        return Listed(spec, None)


def _say_layouts(listed: list[Listed]) -> None:
    """Log how each source is read: what its classes are, and what a person should know of that."""
    for entry in listed:
        if entry.source and entry.source.layout:
            log.info("%s", layouts.say(entry.source.layout, entry.spec.title()))
            for note in entry.source.notes:
                log.info("%s: %s", entry.spec.title(), note)


def _known(spec: params.Source, dataset_dir: Path) -> Known:
    """Recall how a source was laid out, or, of a data set that did not keep that, which labels its paths have."""
    entries = dataset.load_summary(dataset_dir).get("sources", [])
    before = next((entry for entry in entries if entry["name"] == spec.title()), None)
    if before is None:
        return Known()
    if before.get("layout"):
        return Known(before["layout"])
    return Known(labels=lambda: dataset.labels_of(dataset_dir, spec.title()))


def _labels(listed: list[Listed]) -> dict[str, str]:
    """Name every label that is offered now, and where it is from."""
    found: dict[str, str] = {}
    for entry in listed:
        for item in entry.source.items if entry.source else ():
            if item.label and item.label not in found:
                found[item.label] = f"{entry.spec.title()}: {item.path}"
    return found


def _images_before(dataset_dir: Path) -> dict[str, int]:
    """Count the images in the manifest by source; sources of which there are rejected files alone have none."""
    summary = dataset.load_summary(dataset_dir)
    with reading(dataset_dir / dataset.SUMMARY):
        counts = dict.fromkeys((source["name"] for source in summary.get("sources", [])), 0)
    for path in dataset.files_of(dataset_dir / dataset.MANIFEST):
        with reading(path), pq.ParquetFile(path) as file:  # pq.read_table would import pandas
            for entry in file.read(columns=["source"])["source"].value_counts().to_pylist():
                counts[entry["values"]] = counts.get(entry["values"], 0) + entry["counts"]
    return counts


def _fingerprint(settings: params.Ingest, seed: int, listed: list[Listed], images_dir: Path) -> str:
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
    paths = [path for name in dataset.FILES for path in dataset.files_of(dataset_dir / name)]
    return digest(paths, " ".join(path.name for path in paths)) if dataset.is_whole(dataset_dir) else ""


def _unchanged(dataset_dir: Path) -> Taken:
    manifest, rejected = (
        sum(pq.read_metadata(path).num_rows for path in dataset.files_of(dataset_dir / name))
        for name in (dataset.MANIFEST, dataset.REJECTED)
    )
    return Taken(manifest, 0, rejected, changed=False)


def _take_in(
    listed: list[Listed], known: set[str], settings: params.Ingest, images_dir: Path, scan: Scan,
    ranges: dict[str, Range],
) -> tuple[int, int]:  # fmt: skip
    """Read what the scan cache does not know, pack what the ledger does not know.

    Returns:
        How many images were packed, and how many files could not be read.

    Raises:
        SourceError: a source holds images of which nobody knows which values are black and white.
    """
    unread = [_unread(entry, known, scan) for entry in listed]
    number = max((shards.number_of(name) for name in shards.names(images_dir)), default=-1) + 1
    packed = unreadable = 0
    with (
        shards.Writer(images_dir, number, int(settings.shard_mb * MIB)) as writer,
        progress.bar("ingest", sum(map(len, unread))) as advance,
    ):
        if cached := sum(len(entry.source.items) for entry in listed if entry.source) - sum(map(len, unread)):
            advance(0, cached=cached)
        for entry, paths in zip(listed, unread, strict=True):
            if entry.source and paths:
                journal = _Journal(entry.spec.path, writer, scan)
                checks = replace(_checks(settings), value_range=ranges.get(entry.spec.title()))
                for item, result, phash in _examine(entry.source.read(paths), known, checks, scan.damaged()):
                    if isinstance(result, Rejected) and result.reason is Reason.UNREADABLE:
                        unreadable += 1
                    else:
                        packed += journal.add(item, result, phash, known)
                    advance(1, **({"rejected": 1} if isinstance(result, Rejected) else {}))
                journal.close()
                _warn_of_damage(entry.spec, journal.damaged, settings.damaged)
                if journal.unclear:
                    found = reduce(Found.merged, journal.unclear.values())
                    raise value_ranges.ask(entry.spec, found, list(journal.unclear), heir=entry.stays)
    return packed, unreadable


def _warn_of_damage(spec: params.Source, damaged: list[str], what: str) -> None:
    if not damaged:
        return
    more = ", ..." if len(damaged) > NAMED else ""
    done = "kept" if what == "keep" else "rejected (ingest.damaged: keep takes them in)"
    log.warning("%s: %d damaged images are %s: %s%s", spec.path, len(damaged), done, ", ".join(damaged[:NAMED]), more)


def _ask_for_ranges(listed: list[Listed], ranges: dict[str, Range], current: Dataset, scan: Scan) -> None:
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


def _unread(entry: Listed, known: set[str], scan: Scan) -> set[str]:
    """Name the files of a source that are new or changed, or whose image is not in any shard here."""
    if entry.source is None:
        return set()
    looks = scan.looks(entry.spec.path)
    wanted = set()
    for item in entry.source.items:
        look = looks.get(item.path)
        same = look is not None and look.stamp == item.stamp
        if not item.problem and not (same and look and (look.reason or look.image_id in known)):
            wanted.add(item.path)
    return wanted


def _examine(
    wanted: Iterator[tuple[Item, Loader]], known: set[str], checks: Checks, damaged: set[str]
) -> Iterator[tuple[Item, Result, int]]:
    """Read and check files on all cores, in order; a new image comes with its perceptual hash."""

    def examine(group: list[tuple[Item, Loader]]) -> list[tuple[Item, Result, int]]:
        contents = [_load(load) for _, load in group]  # reading between the checks takes a tenth longer
        results = [_look(item, data, known, checks, damaged) for (item, _), data in zip(group, contents, strict=True)]
        hashes = iter(perceptual_hashes([new.thumbnail for new in results if isinstance(new, NewImage)]))
        return [
            (item, result, next(hashes) if isinstance(result, NewImage) else 0)
            for (item, _), result in zip(group, results, strict=True)
        ]

    def weight(group: list[tuple[Item, Loader]]) -> int:
        return sum(item.size or UNKNOWN_BYTES for item, _ in group)

    groups = bundled(wanted, TOGETHER, TOGETHER_BYTES, lambda entry: entry[0].size or TOGETHER_BYTES)
    return chain.from_iterable(ordered_map(examine, groups, weigh=weight, most=READ_BYTES))


def _load(load: Loader) -> bytes | Rejected:
    try:
        return load()
    except Rejected as rejected:
        return rejected


def _look(item: Item, data: bytes | Rejected, known: set[str], checks: Checks, damaged: set[str]) -> Result:
    """Check what was read of a file."""
    if isinstance(data, Rejected):
        return data
    if len(data) > intake.MAX_FILE_BYTES:
        return Rejected(Reason.TOO_LARGE)
    try:
        name = intake.image_id(data)
        if name not in known:
            return intake.check(data, item.path, checks, name)
        intake.check_header(data, item.path, checks)  # the pixels are known, this file's name is not
        if name in damaged and checks.damaged == "reject":
            return Rejected(Reason.DAMAGED)
        return name
    except Rejected as rejected:
        rejected.__context__ = None  # with the traceback it would keep the file's bytes
        return rejected.with_traceback(None)


class _Journal:
    """Packs images and records files, each shard with all that is in it, so that a kill loses only the open shard."""

    def __init__(self, source: str, writer: shards.Writer, scan: Scan) -> None:
        self.source, self.writer, self.scan = source, writer, scan
        self.looks: list[Look] = []
        self.open: list[Packed] = []
        self.deep: Found | None = None
        self.unclear: dict[str, Found] = {}  # files whose values nobody knows how to read
        self.damaged: list[str] = []  # in words
        self._damaged: dict[str, str] = {}

    def add(self, item: Item, result: Result, phash: int, known: set[str]) -> int:
        """Take in one file; returns the number of images packed, 1 or 0."""
        if len(self.looks) >= LOOKS_KEPT and not self.open:
            self.close()
        if isinstance(result, RangeUnknown):
            self.unclear[item.path] = result.found
            return 0
        if isinstance(result, Rejected):
            self.looks.append(Look(item.path, item.stamp, None, result.reason))
            if result.reason is Reason.DAMAGED:
                self.damaged.append(f"{item.path} ({result.said})")
            return 0
        name = result if isinstance(result, str) else result.image_id
        self.looks.append(Look(item.path, item.stamp, name, None))
        if isinstance(result, str) or name in known:
            return 0
        known.add(name)
        if result.deep:
            self.deep = result.deep.merged(self.deep)
        if result.said:
            self.damaged.append(f"{item.path} ({result.said})")
            self._damaged[name] = result.said
        place = self.writer.add(name, result.format, result.data)
        # The bytes are in the shard now; what stays in memory until it is full is what the ledger will say.
        size = result.width, result.height
        self.open.append(Packed(name, *size, result.format, phash, NOT_YET, place.offset, place.size))
        if self.writer.full:
            self.close()
        return 1

    def close(self) -> None:
        """Finish the open shard, if there is one, and record it."""
        shard = "" if self.writer.empty else self.writer.close()
        packed = (replace(packed, shard=shard) for packed in self.open)
        self.scan.record(self.source, self.looks, packed, self.deep, self._damaged)
        self.looks, self.open, self.deep, self._damaged = [], [], None, {}

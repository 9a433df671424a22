"""List the images of a table with one row per image, which may be in the table's own store or in another one.

Of millions of rows, some are objects at a time: the others stay in the table's columns.
"""

import posixpath
from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import groupby
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from fsspec.implementations.local import LocalFileSystem

from rootstock.config import params
from rootstock.dataset import label_sets
from rootstock.images.inspection import Reason
from rootstock.ingest import folder_names, image_tables, layout, opening
from rootstock.ingest.folders import Files, file_stamps
from rootstock.ingest.items import ROWS, Items, each_text
from rootstock.ingest.labels import clean
from rootstock.ingest.layout import SPLITS, Item
from rootstock.ingest.lookups import AWAY, Lookups
from rootstock.system.addresses import LOCAL, links, store_of
from rootstock.system.errors import SourceError
from rootstock.system.parallel import grouped
from rootstock.system.phrases import counted
from rootstock.system.redaction import kind_of_secret

TABLE, MULTI_LABEL = "table", "multi_label"  # the layout of such a source, in the summary
NAMED = 3  # stores that an error names
MISSING = {"nan", "none", "null", "n/a", "na", "<na>", "nat"}  # as pandas and spreadsheets write a missing value
Row = dict[str, str | None]


def list_manifest(spec: params.Source, store: Any, root: str, where: str, lookups: Lookups) -> Files:  # noqa: ANN401
    """List the images of a table with the columns path and label, and optionally domain, split and group.

    With a column labels in place of label, images have any number of classes: a list in Parquet, or text, `cat;dog`.

    Args:
        spec: the source.
        store: the table's; its images are there, or in the one store that the URLs in its column path name.
        root: the path of the table there.
        where: names the table if it cannot be opened.
        lookups: what is known of its images; those that cannot be reached now stay as they were when they were read.

    Raises:
        SourceError: the table is not readable or lacks a column, or its URLs cannot be used.
    """
    table, kind, without_path = image_tables.read(spec.path, root, opening.read_table(store, root, where))
    paths = table["path"].chunk(0)
    images = _store_of_images(spec.path, store, paths)
    rows = _Rows(spec, table, kind, pc.array_sort_indices(paths), _splits_asked(table, spec))
    places = _Places(root.rpartition("/")[0], images, is_own=images is store, are_absolute=_are_absolute(paths))
    converted = array("q")
    items = Items.of(_items(rows, places, converted, lookups)).in_order(rows.order)
    lookups.warn_of_away(len(paths))
    notes = layout.split_notes(rows.given, "row")
    if partly := _describe_partial_splits(rows):
        notes.append(partly)
    if without_path:
        notes.append(f"{counted(without_path, 'row')} without a path, left out")
    if converted:
        example = paths[min(converted)].as_py()
        notes.append(f"{len(converted):,} paths have backslashes, read as slashes (e.g. {example})")
    labels = {kind.label for kind in items.kinds}
    named = labels if kind == "label" else set(label_sets.classes_in(labels))
    if none := sorted(label for label in named if label.casefold() in MISSING):
        how = "has an empty cell" if kind == "label" else "does not belong into the table"
        notes.append(f"classes named like a missing value: {', '.join(none)}; an image whose label is unknown {how}")
    layout_of: dict[str, Any]
    if kind == "label":
        layout_of = {"layout": TABLE, "classes": sorted(labels - {""})}
    else:
        layout_of = {"layout": TABLE, "classes": label_sets.classes_in(labels), MULTI_LABEL: True}
        if bare := items.count(lambda kind: not kind.label and kind.problem in (None, Reason.TOO_LARGE)):
            notes.append(f"images of none of the classes, as their list of labels is empty: {bare:,}")
    return Files(images, items, notes, places.of_recorded, layout_of)


@dataclass(frozen=True)
class _Rows:
    """The rows of a table in order of their paths (`order`, (n,)), and the split that each text asks for."""

    spec: params.Source
    table: pa.Table
    kind: str  # the column of the labels
    order: pa.UInt64Array
    asked: dict[str | None, str]

    @property
    def given(self) -> set[str]:
        """Return the splits that the table defines: as with folders, none if it leaves some rows open."""
        return set(self.asked.values()) if all(self.asked.values()) else set()

    def by_path(self) -> Iterator[tuple[str, list[tuple[int, Row]]]]:
        """Yield each path with the numbers and the cells of its rows: a file is looked up once."""
        for path, rows in groupby(self._each(), key=lambda row: row[1]["path"]):
            yield path or "", list(rows)

    def _each(self) -> Iterator[tuple[int, Row]]:
        for at in range(0, len(self.order), ROWS):
            some = self.order[at : at + ROWS]
            yield from zip(some.to_pylist(), self.table.take(some).to_pylist(), strict=True)

    def paths(self) -> Iterator[str]:
        """Yield each path."""
        parts = (self.order[at : at + ROWS] for at in range(0, len(self.order), ROWS))
        column = self.table["path"].chunk(0)
        return (path for path, _ in groupby(path for part in parts for path in column.take(part).to_pylist()))

    def item(self, row: Row, path: str, stamp: str | None, allowed: dict[str, tuple[str, ...]]) -> Item:
        """Return the item of a row."""
        label = _label_of(row[self.kind] or "", self.kind)
        problem = _problem(label, row[self.kind], self.kind, stamp)
        if not problem and layout.is_too_large(stamp or ""):
            problem = Reason.TOO_LARGE  # so that it is never read into memory
        splits = allowed[self.asked[row.get("split")]]
        domain, group = row.get("domain") or self.spec.domain, clean(row.get("group") or "")
        return Item(path, label, domain, splits, stamp or "", problem, group)


@dataclass(frozen=True)
class _Places:
    """Where the images of a table are: `folder` is the table's, `are_absolute` tells that no path is relative to it.

    As long as images are read, this is kept, so it has nothing of the rows but `odd`: places by recorded path that are
    not where they are inferred to be.
    """

    folder: str
    store: Any
    is_own: bool  # the table's store
    are_absolute: bool
    odd: dict[str, str] = field(default_factory=dict)

    def of(self, path: str) -> str:
        """Return the path of a row's file in the store, from a relative path, absolute path or full URL."""
        if "://" in path:
            place: str = self.store._strip_protocol(path)
            return place
        place = path if path.startswith("/") else f"{self.folder}/{path}"
        return place if "://" in place or isinstance(self.store, LocalFileSystem) else posixpath.normpath(place)

    def of_recorded(self, path: str) -> str:
        """Return the path in the store of a recorded path."""
        return self.odd.get(path) or self._inferred(path)

    def record(self, path: str, place: str) -> str:
        """Return the path to record: no absolute path, but a URL if that is of another store."""
        recorded = posixpath.relpath(place, self.folder or "/") if self.is_own else path
        if self._inferred(recorded) != place.replace("/./", "/"):
            self.odd[recorded] = place
        return recorded

    def _inferred(self, recorded: str) -> str:
        place = self.of(recorded)
        if not self.are_absolute:
            return place
        protocol, separator, rest = place.rpartition("://")
        return protocol + separator + posixpath.normpath(rest)

    def looked_up(self, rows: _Rows, lookups: Lookups) -> Iterator[tuple[str, str | None]]:
        """Yield the place and the stamp of each path of some rows.

        Paths with backslashes, as written on Windows, are looked up with slashes instead if there is no such file.
        """
        stamps = file_stamps(self.store, lambda: map(self.of, rows.paths()), lookups)
        for some in grouped(zip(rows.paths(), stamps, strict=True), ROWS):
            missing = [path for path, stamp in some if "\\" in path and stamp is None]
            slashed = {path: self.of(path.replace("\\", "/")) for path in missing}
            found = dict(zip(missing, file_stamps(self.store, slashed.values), strict=True)) if missing else {}
            for path, stamp in some:
                yield (slashed[path], there) if (there := found.get(path)) else (self.of(path), stamp)


def _items(rows: _Rows, places: _Places, converted: "array[int]", lookups: Lookups) -> Iterator[Item]:
    """Yield the item of each row; the first row of each path whose backslashes were separators goes to `converted`."""
    # If no row is in the test split, for example, val becomes the test split.
    allowed = layout.resolve_splits(rows.given) | {"": SPLITS}
    for (path, same), (place, stamp) in zip(rows.by_path(), places.looked_up(rows, lookups), strict=True):
        recorded = places.record(path, place)
        if stamp == AWAY:
            stamp = lookups.stamp_of_away(recorded)
        if "\\" in path and places.of(path) != place:
            converted.append(same[0][0])
        for _, row in same:
            yield rows.item(row, recorded, stamp, allowed)


def _store_of_images(where: str, own: Any, paths: pa.LargeStringArray) -> Any:  # noqa: ANN401
    """Return the store of the images: the table's own, or that of the URLs among the paths.

    Raises:
        SourceError: a URL contains a secret, which would be recorded, or cannot be opened; or they name several stores.
    """
    if secret := list(_with_secrets(_urls(paths))):
        has = "URL contains" if len(secret) == 1 else "URLs contain"
        raise SourceError(
            f"{where}: {len(secret):,} {has} a {kind_of_secret(secret[0])} ({secret[0]}), which would be recorded with "
            "the dataset. Remove such rows, or give URLs without it; credentials come from the environment "
            "(docs/images.md)."
        )
    count, first_of = 0, dict[tuple[str, str], str]()
    for url in _urls(paths):
        key, count = store_of(url), count + 1
        first_of[key] = first_of.pop(key, url)  # as the last one
    stores = {id(store): (store, url) for url in reversed(first_of.values()) for store in [_opened(where, own, url)]}
    if count < len(paths):
        stores[id(own)] = own, "its own"
    if len(stores) > 1:
        named = ", ".join([name for _, name in stores.values()][:NAMED])
        raise SourceError(
            f"{where}: names images in {len(stores)} stores ({named}); expected one. Make a table of each, and a "
            "source of each table."
        )
    [(store, _)] = stores.values()
    return store


def _urls(paths: pa.LargeStringArray) -> Iterator[str]:
    return (path for path in each_text(paths) if "://" in path)


def _with_secrets(urls: Iterable[str]) -> Iterator[str]:
    return (url for url in urls if {"@", "=", "%"} & set(url) and kind_of_secret(url))


def _opened(where: str, own: Any, url: str) -> Any:  # noqa: ANN401
    """Open the store of a URL in a table.

    Raises:
        SourceError: it cannot be opened, or a table from elsewhere names files of this machine.
    """
    if links(url)[0].protocol in LOCAL and not isinstance(own, LocalFileSystem):
        raise SourceError(f"{where}: names files of this machine ({url}); expected images of its own store.")
    return opening.open_store_of_image(url, f"{where}: {url}")


@lru_cache(maxsize=100_000)
def _label_of(given: str, kind: str) -> str:
    """Normalise a label, or each of several."""
    if kind == "label":
        return clean(given)
    return label_sets.parse(given, clean)


def _problem(label: str, given_label: str | None, kind: str, stamp: str | None) -> Reason | None:
    if stamp is None:
        return Reason.UNREADABLE
    return None if label or (kind == "labels" and given_label is not None) else Reason.NO_LABEL


def _splits_asked(table: pa.Table, spec: params.Source) -> dict[str | None, str]:
    """Return the split that each text in a column asks for, or "" to have it drawn.

    Raises:
        SourceError: one is not the name of a split.
    """
    if "split" not in table.column_names:
        return {None: ""}
    column, asked = table["split"].chunk(0), {}
    for text in pc.unique(column).to_pylist():
        given = (text or "").strip()
        asked[text] = folder_names.split_of(given) or ""
        if given and not asked[text]:
            path = table["path"][pc.index(column, text).as_py()]
            raise SourceError(f"{spec.path}: split of {path} is {given!r}; expected train, val or test")
    return asked


def _describe_partial_splits(rows: _Rows) -> str:
    """Describe how many rows give their split, if some do and others leave it open."""
    asked = set(rows.asked.values())
    if "" not in asked or asked == {""}:
        return ""
    open_texts = pa.array([text for text, split in rows.asked.items() if not split], pa.string())
    column = rows.table["split"].cast(pa.string())
    left = pc.sum(pc.is_in(column, value_set=open_texts)).as_py()
    return f"{len(column) - left:,} of {len(column):,} rows give their split; those of the others are drawn"


def _are_absolute(paths: pa.LargeStringArray) -> bool:
    return bool(pc.all(pc.match_substring_regex(paths, "^/|://")).as_py())

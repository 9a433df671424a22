"""List the images of a table with one row per image, which may be in the table's own store or in another one."""

import posixpath
from collections.abc import Collection
from functools import lru_cache
from typing import Any

from fsspec.implementations.local import LocalFileSystem

from rootstock.config import params
from rootstock.dataset import label_sets
from rootstock.images.inspection import Reason
from rootstock.ingest import folder_names, image_tables, layout, opening
from rootstock.ingest.folders import Files, file_stamps
from rootstock.ingest.items import Items
from rootstock.ingest.labels import clean
from rootstock.ingest.layout import SPLITS, Item
from rootstock.system.addresses import LOCAL, links, store_of
from rootstock.system.errors import SourceError
from rootstock.system.redaction import kind_of_secret

TABLE, MULTI_LABEL = "table", "multi_label"  # the layout of such a source, in the summary
NAMED = 3  # stores that an error names


def list_manifest(spec: params.Source, store: Any, root: str, data: bytes) -> Files:  # noqa: ANN401
    """List the images of a table with the columns path and label, and optionally domain, split and group.

    With a column labels in place of label, images have any number of classes: a list in Parquet, or text, `cat;dog`.

    Args:
        spec: the source.
        store: the table's; its images are there, or in the one store that the URLs in its column path name.
        root: the path of the table there.
        data: its bytes.

    Raises:
        SourceError: the table is not readable or lacks a column, or its URLs cannot be used.
    """
    table, kind = image_tables.read(spec.path, root, data)
    rows = table.to_pylist()
    folder = root.rpartition("/")[0]
    own = store
    store = _store_of_images(spec.path, own, [row["path"] for row in rows])
    places = {row["path"]: _place(row["path"], folder, store) for row in rows}
    stamps = file_stamps(store, set(places.values()))
    converted = _convert_backslashes(places, stamps, folder, store)
    asked = [_split_of(row, spec) for row in rows]
    # As with folders: if no row is in the test split, for example, val becomes the test split.
    given = set(asked) if all(asked) else set()
    allowed = layout.resolve_splits(given) | {"": SPLITS}
    items, place_of = [], {}
    for row, split in zip(rows, asked, strict=True):
        place = places[row["path"]]
        # No absolute path is recorded, but a URL is that of another store
        path = posixpath.relpath(place, folder) if store is own else row["path"]
        place_of[path] = place
        stamp, given_label = stamps[place], row[kind]
        label = _label_of(given_label or "", kind)
        domain = row.get("domain") or spec.domain
        group = clean(row.get("group") or "")
        problem = _problem(label, given_label, kind, stamp)
        items.append(Item(path, label, domain, allowed[split], stamp or "", problem, group))
    items.sort(key=lambda item: item.path)
    notes = layout.split_notes(given, "row")
    if converted:
        notes.append(f"{len(converted):,} paths have backslashes, read as slashes (e.g. {converted[0]})")
    layout_of: dict[str, Any]
    if kind == "label":
        layout_of = {"layout": TABLE, "classes": sorted({item.label for item in items if item.label})}
    else:
        layout_of = {"layout": TABLE, "classes": label_sets.classes_in(item.label for item in items), MULTI_LABEL: True}
        if bare := sum(not item.label and not item.problem for item in items):
            notes.append(f"images of none of the classes, as their list of labels is empty: {bare:,}")
    return Files(store, Items.of(layout.mark_too_large(items)), notes, place_of.__getitem__, layout_of)


def _store_of_images(where: str, own: Any, paths: Collection[str]) -> Any:  # noqa: ANN401
    """Return the store of the images: the table's own, or that of the URLs among the paths.

    Raises:
        SourceError: a URL contains a secret, which would be recorded, or cannot be opened; or they name several stores.
    """
    urls = [path for path in paths if "://" in path]
    if secret := [url for url in urls if {"@", "=", "%"} & set(url) and kind_of_secret(url)]:
        raise SourceError(
            f"{where}: {len(secret):,} of its URLs contain a {kind_of_secret(secret[0])} ({secret[0]} is one), which "
            "would be recorded with the dataset. Remove these rows, or give URLs without it; credentials come from the "
            "environment (docs/images.md)."
        )
    first_of = {store_of(url): url for url in reversed(urls)}
    stores = {id(store): (store, url) for url in first_of.values() for store in [_opened(where, own, url)]}
    if len(urls) < len(paths):
        stores[id(own)] = own, "its own"
    if len(stores) > 1:
        named = ", ".join([name for _, name in stores.values()][:NAMED])
        raise SourceError(
            f"{where}: names images in {len(stores)} stores ({named}); expected one. Make a table of each, and a "
            "source of each table."
        )
    [(store, _)] = stores.values()
    return store


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


def _convert_backslashes(
    places: dict[str, str],
    stamps: dict[str, str | None],
    folder: str,
    store: Any,  # noqa: ANN401
) -> list[str]:
    """Look up paths with backslashes, as written on Windows, with slashes instead; return those found."""
    slashed = {
        path: path.replace("\\", "/") for path, place in places.items() if "\\" in path and stamps[place] is None
    }
    converted = {path: _place(with_slashes, folder, store) for path, with_slashes in slashed.items()}
    found = file_stamps(store, set(converted.values()))
    there = [path for path, place in converted.items() if found[place] is not None]
    for path in there:
        places[path] = converted[path]
        stamps[converted[path]] = found[converted[path]]
    return there


def _split_of(row: dict[str, str | None], spec: params.Source) -> str:
    """Return the split that a row asks for, or "" to have it drawn."""
    given = (row.get("split") or "").strip()
    split = folder_names.split_of(given)
    if given and not split:
        raise SourceError(f"{spec.path}: split of {row['path']} is {given!r}; expected train, val or test")
    return split


def _place(path: str, folder: str, store: Any) -> str:  # noqa: ANN401
    """Return the path of a row's file in the manifest's store, from a relative path, absolute path or full URL."""
    if "://" in path:
        place: str = store._strip_protocol(path)
        return place
    place = path if path.startswith("/") else f"{folder}/{path}"
    return place if "://" in place or isinstance(store, LocalFileSystem) else posixpath.normpath(place)

"""List and prune cached features.

A cache is a folder of features, `<root>/<key>/<shard>.parquet`. The key stands for everything that determines the
values; a pointer `<root>/<other key>.json` says that another key stands for the same values.
"""

import json
import shutil
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from rootstock.features.feature_files import METADATA
from rootstock.system import escape
from rootstock.system.errors import RootstockError
from rootstock.system.files import TEMPORARY, last_used

DAY = 24 * 60 * 60  # seconds


@dataclass(frozen=True)
class Entry:
    """The cached features under one key."""

    folder: Path
    fields: dict[str, Any]  # what the key stands for; empty if the folder is empty or damaged
    files: int
    images: int
    bytes: int
    last_used: float  # seconds since the epoch
    in_use: bool  # by the current params.yaml and data/backbone

    @property
    def key(self) -> str:
        """Return the key, which is the folder's name."""
        return self.folder.name

    @property
    def backbone(self) -> str:
        """Return the name of the backbone."""
        return str(self.fields.get("backbone", "?"))

    @property
    def days_unused(self) -> float:
        """Return the days since last use."""
        return max(0.0, time.time() - self.last_used) / DAY


@dataclass(frozen=True)
class Selection:
    """Which features to prune: an entry has to match every criterion given; without criteria, none is selected."""

    backbone: str | None = None
    older_than: float | None = None  # days
    key: str | None = None

    def __bool__(self) -> bool:
        return (self.backbone, self.older_than, self.key) != (None, None, None)

    def matches(self, entry: Entry) -> bool:
        """Check whether an entry matches every criterion."""
        return (
            self.backbone in (None, entry.backbone)
            and self.key in (None, entry.key)
            and (self.older_than is None or entry.days_unused > self.older_than)
        )


def list_entries(roots: Iterable[Path], in_use: Iterable[str]) -> list[Entry]:
    """List the features under each key, largest first.

    Args:
        roots: folders of keys; a missing one counts as empty.
        in_use: keys in use; a pointer among them stands for the key it names.
    """
    roots = list(roots)
    named = set(in_use)
    named |= {key for root in roots for pointer, key in _pointers(root) if pointer.stem in named}
    found = [_describe(folder, folder.name in named) for root in roots for folder in _folders(root)]
    return sorted(found, key=lambda entry: (-entry.bytes, entry.folder))


def _folders(root: Path) -> list[Path]:
    if not root.exists():
        return []
    return sorted(path for path in root.iterdir() if path.is_dir() and path.suffix != TEMPORARY)


def _pointers(root: Path) -> Iterator[tuple[Path, str]]:
    """Yield each pointer file and the key it names."""
    for path in sorted(root.glob("*.json")):
        try:
            yield path, str(json.loads(path.read_bytes())["key"])
        except (ValueError, KeyError, TypeError):
            continue  # not a pointer


def _describe(folder: Path, in_use: bool) -> Entry:
    fields: dict[str, Any] = {}
    images = size = 0
    paths = sorted(folder.glob("*.parquet"))
    for path in paths:
        size += path.stat().st_size
        try:
            metadata = pq.read_metadata(path)
        except (OSError, ValueError):  # damaged: still listed, and can be pruned
            continue
        images += metadata.num_rows
        fields = fields or json.loads((metadata.metadata or {}).get(METADATA, b"{}"))
    return Entry(folder, fields, len(paths), images, size, last_used(folder), in_use)


def select(entries: Sequence[Entry], selection: Selection) -> list[Entry]:
    """Select the entries to prune; those in use are kept.

    Raises:
        RootstockError: no such key or backbone, or everything selected by name is in use.
    """
    if selection.older_than is not None and selection.older_than < 0:
        raise RootstockError(f"older_than is {selection.older_than:g}; expected a number of days, 0 or more")
    for criterion, value, existing in (
        ("key", selection.key, sorted({entry.key for entry in entries})),
        ("backbone", selection.backbone, sorted({entry.backbone for entry in entries})),
    ):
        if value is not None and value not in existing:
            raise RootstockError(
                f"No features are cached for {criterion} {value!r}; expected one of: {', '.join(existing) or 'none'}"
            )
    matching = [entry for entry in entries if selection.matches(entry)]
    selected = [entry for entry in matching if not entry.in_use]
    if matching and not selected and (selection.key or selection.backbone):
        raise RootstockError(
            f"{matching[0].key} ({matching[0].backbone}) is in use by the current params.yaml and data/backbone, and "
            "would be computed again. To remove it, set another backbone or other extract values, run the pipeline, "
            "then prune."
        )
    return selected


def prune(entries: Iterable[Entry]) -> None:
    """Remove features and the pointers to them; what an interrupted run leaves of a key is swept as temporary."""
    for entry in entries:
        for pointer, key in _pointers(entry.folder.parent):
            if key == entry.key:
                pointer.unlink()
        for digest in entry.folder.parent.glob(f"{entry.key}.*.sha256"):
            digest.unlink()
        doomed = entry.folder.with_name(entry.key + TEMPORARY)
        shutil.rmtree(doomed, ignore_errors=True)
        entry.folder.rename(doomed)
        shutil.rmtree(doomed)


def size_of(folder: Path) -> int:
    """Return the total size in bytes of all files under a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def table(entries: Sequence[Entry]) -> str:
    """Format entries as a Markdown table, aligned for a terminal."""
    head = ("key", "backbone", "layer", "dtype", "engine", "other settings", "files", "images", "size", "last used", "")
    rows = [head, *(tuple(map(escape.markdown, _row(entry))) for entry in entries)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(head))]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in rows
    ]
    return "\n".join([lines[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *lines[1:]])


def _row(entry: Entry) -> tuple[str, ...]:
    settings = [str(entry.fields.get(name, "?")) for name in ("layer", "dtype", "engine")]
    age = "today" if entry.days_unused < 1 else f"{entry.days_unused:.0f} days ago"
    note = "in use" if entry.in_use else ""
    return (
        entry.key,
        entry.backbone,
        *settings,
        _non_default_settings(entry.fields),
        f"{entry.files:,}",
        f"{entry.images:,}",
        format_bytes(entry.bytes),
        age,
        note,
    )


def _non_default_settings(fields: dict[str, Any]) -> str:
    """Describe precision, decoding and view where they differ from the defaults."""
    values = [fields.get("precision", "f32"), fields.get("decode", "full")]
    changed = [value for value, default in zip(values, ("f32", "full"), strict=True) if value != default]
    view = [f"view {fields['view']}, {fields.get('augment')}"] if fields.get("view") else []
    return ", ".join([*changed, *view])


def format_bytes(size: float) -> str:
    """Format a number of bytes for display."""
    for unit in ("bytes", "kB", "MB"):
        if size < 999.5:  # which is rounded to 1,000
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:,.1f} GB"

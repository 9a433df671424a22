"""What is kept so that no image goes through a backbone twice: how large it is, and what of it can go.

A cache is a folder of features, `<root>/<key>/<shard>.parquet`, and its key stands for all that decides the numbers; a
pointer `<root>/<other key>.json` says that another key means the same numbers.
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
    """The features under one key."""

    folder: Path
    meaning: dict[str, Any]  # what the key stands for; of an empty or a damaged folder, nothing
    files: int
    images: int
    bytes: int
    used: float  # seconds, as time.time() gives them
    in_use: bool  # by params.yaml and data/backbone as they are

    @property
    def key(self) -> str:
        """Name it."""
        return self.folder.name

    @property
    def backbone(self) -> str:
        """Name the backbone whose features these are."""
        return str(self.meaning.get("backbone", "?"))

    @property
    def days(self) -> float:
        """Say how long it has not been used."""
        return max(0.0, time.time() - self.used) / DAY


@dataclass(frozen=True)
class Wanted:
    """Which features are to go: all that is given has to fit; nothing given is nothing wanted."""

    backbone: str | None = None
    older_than: float | None = None  # days
    key: str | None = None

    def __bool__(self) -> bool:
        return (self.backbone, self.older_than, self.key) != (None, None, None)

    def fits(self, entry: Entry) -> bool:
        """Whether it is meant."""
        return (
            self.backbone in (None, entry.backbone)
            and self.key in (None, entry.key)
            and (self.older_than is None or entry.days > self.older_than)
        )


def look(roots: Iterable[Path], in_use: Iterable[str]) -> list[Entry]:
    """Describe the features under each key, largest first.

    Args:
        roots: folders of keys; one that is not there has none.
        in_use: keys; a pointer among them stands for the key that it names.
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
    """Give each pointer file and the key that it names."""
    for path in sorted(root.glob("*.json")):
        try:
            yield path, str(json.loads(path.read_bytes())["key"])
        except (ValueError, KeyError, TypeError):
            continue  # not one of ours


def _describe(folder: Path, in_use: bool) -> Entry:
    meaning: dict[str, Any] = {}
    images = size = 0
    paths = sorted(folder.glob("*.parquet"))
    for path in paths:
        size += path.stat().st_size
        try:
            described = pq.read_metadata(path)
        except (OSError, ValueError):  # damaged: it can be seen, and it can go
            continue
        images += described.num_rows
        meaning = meaning or json.loads((described.metadata or {}).get(METADATA, b"{}"))
    return Entry(folder, meaning, len(paths), images, size, last_used(folder), in_use)


def choose(entries: Sequence[Entry], wanted: Wanted) -> list[Entry]:
    """Choose what is to go; what is in use stays.

    Raises:
        RootstockError: there is no such key or backbone, or what is named is in use and nothing else is meant.
    """
    if wanted.older_than is not None and wanted.older_than < 0:
        raise RootstockError(f"older_than is {wanted.older_than:g}; expected a number of days, 0 or more")
    for what, value, there in (
        ("key", wanted.key, sorted({entry.key for entry in entries})),
        ("backbone", wanted.backbone, sorted({entry.backbone for entry in entries})),
    ):
        if value is not None and value not in there:
            raise RootstockError(
                f"There are no features of the {what} {value!r}; there are: {', '.join(there) or 'none'}"
            )
    meant = [entry for entry in entries if wanted.fits(entry)]
    chosen = [entry for entry in meant if not entry.in_use]
    if meant and not chosen and (wanted.key or wanted.backbone):
        raise RootstockError(
            f"{meant[0].key} ({meant[0].backbone}) is in use: params.yaml and data/backbone as they are need it, and "
            "it would be computed again. To be rid of it, choose another backbone or other values of extract, run the "
            "pipeline, and prune then."
        )
    return chosen


def prune(entries: Iterable[Entry]) -> None:
    """Remove features and the pointers to them; killed in between, what is left of a key is swept as temporary."""
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
    """Add up the bytes of all files under a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def table(entries: Sequence[Entry]) -> str:
    """Lay features out as a Markdown table, which a terminal shows well, too."""
    head = ("key", "backbone", "layer", "dtype", "engine", "also", "files", "images", "size", "last used", "")
    rows = [head, *(tuple(map(escape.markdown, _row(entry))) for entry in entries)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(head))]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in rows
    ]
    return "\n".join([lines[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *lines[1:]])


def _row(entry: Entry) -> tuple[str, ...]:
    spelt = [str(entry.meaning.get(name, "?")) for name in ("layer", "dtype", "engine")]
    age = "today" if entry.days < 1 else f"{entry.days:.0f} days ago"
    note = "in use" if entry.in_use else ""
    return (
        entry.key,
        entry.backbone,
        *spelt,
        _also(entry.meaning),
        f"{entry.files:,}",
        f"{entry.images:,}",
        say(entry.bytes),
        age,
        note,
    )


def _also(meaning: dict[str, Any]) -> str:
    """Say what is not as usual."""
    parts = [meaning.get("precision", "f32"), meaning.get("decode", "full")]
    unusual = [part for part, usual in zip(parts, ("f32", "full"), strict=True) if part != usual]
    view = [f"view {meaning['view']}, {meaning.get('augment')}"] if meaning.get("view") else []
    return ", ".join([*unusual, *view])


def say(size: float) -> str:
    """Say a number of bytes for a person."""
    for unit in ("bytes", "kB", "MB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:,.1f} GB"

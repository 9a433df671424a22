"""The files of a source: millions of them, in columns of some 60 bytes and a path each, one at a time as objects."""

from array import array
from bisect import bisect_left
from collections.abc import Callable, Collection, ItemsView, Iterable, Iterator, Mapping, Sequence
from itertools import accumulate
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from rootstock.images.inspection import Reason
from rootstock.system.parallel import grouped

ROWS = 10_000  # at a time
TEXT = pa.large_string()


class Item(NamedTuple):
    """One file of a source.

    `splits` are those it may be assigned to: one if the source defines it, several if the split is drawn at random.
    `stamp` changes when the file may have changed; `problem` is the reason why it cannot be ingested; `group` names the
    images that belong together, "" if it is in none.
    """

    path: str
    label: str
    domain: str
    splits: tuple[str, ...]
    stamp: str
    problem: Reason | None = None
    group: str = ""

    @property
    def size(self) -> int | None:
        """Size in bytes, from the start of the stamp; None if the store does not report it."""
        return size_in(self.stamp)


def size_in(stamp: str) -> int | None:
    """Return the size of a file in bytes, which its stamp begins with; None if the store does not report it."""
    size = stamp.partition(":")[0]
    return int(size) if size.isdecimal() else None


class Kind(NamedTuple):
    """What many files of a source have in common."""

    label: str
    domain: str
    splits: tuple[str, ...]
    problem: Reason | None


class Stamps(Mapping[str, str]):
    """The stamp of each file of a source by its path, in order of the paths."""

    def __init__(self, paths: pa.LargeStringArray, stamps: pa.LargeStringArray) -> None:
        """Take two columns, of which the paths are in order, each once."""
        self.paths, self.stamps = paths, stamps

    @classmethod
    def of(cls, pairs: Iterable[tuple[str, str]], *, first_counts: bool = False) -> "Stamps":
        """Put pairs of a path and a stamp in order; of the same path the last one counts, or the first."""
        import pyarrow.compute as pc  # not imported by those who list nothing; to_numpy would import pandas

        columns = _Column(), _Column()
        for some in grouped(pairs, ROWS):
            for column, texts in zip(columns, zip(*some, strict=True), strict=True):
                column.add(texts)
        paths, stamps = (column.whole() for column in columns)
        if pc.all(pc.less(paths[:-1], paths[1:])).as_py():
            return cls(paths, stamps)
        order = pc.array_sort_indices(paths)  # stable; by bytes of UTF-8, which are ordered as Python's text is
        paths = paths.take(order)  # one after the other, so that little is there twice
        stamps = stamps.take(order)
        is_again = pc.equal(paths[1:], paths[:-1])
        if not pc.any(is_again).as_py():
            return cls(paths, stamps)
        counts = [not again for again in is_again.to_pylist()]
        return cls(paths, stamps).chosen(np.array([True, *counts] if first_counts else [*counts, True]))

    def __len__(self) -> int:
        return len(self.paths)

    def __iter__(self) -> Iterator[str]:
        return each_text(self.paths)

    def __getitem__(self, path: str) -> str:
        if (at := _find(self.paths, path)) is None:
            raise KeyError(path)
        stamp: str = self.stamps[at].as_py()
        return stamp

    def chosen(self, rows: NDArray[np.bool_]) -> "Stamps":
        """Return those of some files (n,)."""
        bits = [None, pa.py_buffer(np.packbits(rows, bitorder="little"))]
        mask = pa.Array.from_buffers(pa.bool_(), len(rows), bits)
        return Stamps(self.paths.filter(mask), self.stamps.filter(mask))

    def items(self) -> ItemsView[str, str]:
        """Return the pairs of a path and its stamp."""
        return _Pairs(self)


class _Pairs(ItemsView[str, str]):
    """Yields pairs without looking up each path."""

    _mapping: Stamps

    def __iter__(self) -> Iterator[tuple[str, str]]:
        return zip(each_text(self._mapping.paths), each_text(self._mapping.stamps), strict=True)


class Items(Sequence[Item]):
    """The files of a source, in columns: as objects, a million take half a gigabyte."""

    def __init__(
        self, stamps: Stamps, codes: NDArray[np.int32], kinds: Sequence[Kind], groups: pa.LargeStringArray | None = None
    ) -> None:
        """Take what there is of n files.

        Args:
            stamps: path and stamp of each.
            codes: (n,) positions in `kinds`.
            kinds: what files have in common.
            groups: (n,) names of groups; None if no file has one.
        """
        self.stamps, self.codes, self.kinds, self.groups = stamps, codes, kinds, groups

    @classmethod
    def of(cls, items: Iterable[Item]) -> "Items":
        """Put items, which are in order of their paths, into columns."""
        kinds: dict[Kind, int] = {}
        paths, stamps, groups, codes = _Column(), _Column(), _Column(), array("i")
        for some in grouped(items, ROWS):
            paths.add(item.path for item in some)
            stamps.add(item.stamp for item in some)
            groups.add(item.group for item in some)
            of = (Kind(item.label, item.domain, item.splits, item.problem) for item in some)
            codes.extend(kinds.setdefault(kind, len(kinds)) for kind in of)
        named = groups.whole() if groups.text else None
        return cls(Stamps(paths.whole(), stamps.whole()), np.frombuffer(codes, np.int32), list(kinds), named)

    def in_order(self, numbers: pa.UInt64Array) -> "Items":
        """Return the items in order of their paths, and of the same path in order of their numbers (n,)."""
        import pyarrow.compute as pc

        paths = self.stamps.paths
        if pc.all(pc.less(paths[:-1], paths[1:])).as_py():
            return self
        order = pc.sort_indices(
            pa.table({"path": paths, "number": numbers}), [("path", "ascending"), ("number", "ascending")]
        )
        stamps = Stamps(paths.take(order), self.stamps.stamps.take(order))
        codes = self.codes[np.frombuffer(order.buffers()[1], np.uint64)]
        return Items(stamps, codes, self.kinds, None if self.groups is None else self.groups.take(order))

    def count(self, is_meant: Callable[[Kind], bool]) -> int:
        """Return the number of items of some kinds."""
        counts = np.bincount(self.codes, minlength=len(self.kinds))
        return sum(int(counts[code]) for code, kind in enumerate(self.kinds) if is_meant(kind))

    def __len__(self) -> int:
        return len(self.codes)

    def __iter__(self) -> Iterator[Item]:
        return self._rows(0, len(self))

    def __getitem__(self, at: Any) -> Any:  # noqa: ANN401
        if isinstance(at, slice):
            return list(self)[at]
        row = range(len(self))[at]
        label, domain, splits, problem = self.kinds[self.codes[row]]
        group = "" if self.groups is None else self.groups[row].as_py()
        stamps = self.stamps
        return Item(stamps.paths[row].as_py(), label, domain, splits, stamps.stamps[row].as_py(), problem, group)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and list(self) == list(other)

    __hash__ = None  # type: ignore[assignment]

    def _rows(self, start: int, end: int) -> Iterator[Item]:
        for at in range(start, end, ROWS):
            part = slice(at, min(at + ROWS, end))
            groups = [""] * ROWS if self.groups is None else self.groups[part].to_pylist()
            rows = zip(self.stamps.paths[part].to_pylist(), self.stamps.stamps[part].to_pylist(), strict=True)
            for (path, stamp), code, group in zip(rows, self.codes[part].tolist(), groups, strict=False):
                label, domain, splits, problem = self.kinds[code]
                yield Item(path, label, domain, splits, stamp, problem, group)

    def firsts(self) -> Iterator[tuple[Kind, str]]:
        """Yield each kind that files have, in the order of their first files, and the path of that file."""
        first: dict[int, int] = {}
        for at in range(0, len(self), ROWS):
            for code, place in zip(*np.unique(self.codes[at : at + ROWS], return_index=True), strict=True):
                first.setdefault(int(code), at + int(place))
        for code, at in sorted(first.items(), key=lambda pair: pair[1]):
            yield self.kinds[code], self.stamps.paths[at].as_py()

    def chosen(self, rows: NDArray[np.bool_]) -> Iterator[Item]:
        """Yield some of the items (n,)."""
        for at in range(0, len(self), ROWS):
            part = slice(at, at + ROWS)
            if rows[part].any():
                for item, is_wanted in zip(self._rows(at, min(at + ROWS, len(self))), rows[part].tolist(), strict=True):
                    if is_wanted:
                        yield item


class Chosen(Collection[str]):
    """The paths of some items: a byte for each item."""

    def __init__(self, items: Items, rows: NDArray[np.bool_]) -> None:
        """Take items (n,), and which of them are chosen (n,)."""
        self.items, self.rows = items, rows
        self._count = int(np.count_nonzero(rows))

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[str]:
        return (item.path for item in self.items.chosen(self.rows))

    def __contains__(self, path: object) -> bool:
        at = _find(self.items.stamps.paths, str(path))
        return at is not None and bool(self.rows[at])


def rows_of(items: Items, wanted: Collection[str]) -> NDArray[np.bool_]:
    """Return which items are wanted, (n,)."""
    if isinstance(wanted, Chosen) and wanted.items is items:
        return wanted.rows.copy()
    return np.array([item.path in wanted for item in items], bool)


def among(items: Iterable[Item], wanted: Collection[str]) -> Iterator[Item]:
    """Yield the wanted items, in order."""
    if isinstance(wanted, Chosen) and wanted.items is items:
        return wanted.items.chosen(wanted.rows)
    return (item for item in items if item.path in wanted)


def as_items(items: Sequence[Item]) -> Items:
    """Return items in columns."""
    return items if isinstance(items, Items) else Items.of(sorted(items, key=lambda item: item.path))


def with_problem(items: Sequence[Item], paths: Collection[str], problem: Reason) -> Sequence[Item]:
    """Mark files as rejected."""
    if not paths:
        return items
    marked = (item._replace(problem=problem) if item.path in paths else item for item in items)
    return Items.of(marked) if isinstance(items, Items) else list(marked)


class _Column:
    """Text in one block of memory, which grows in place: parts that are joined would be there twice.

    pa.array would import pandas, which is slow, and not needed where nothing is new.
    """

    def __init__(self) -> None:
        self.text, self.ends = bytearray(), array("q", [0])

    def add(self, values: Iterable[str]) -> None:
        """Add texts."""
        encoded = [value.encode() for value in values]
        self.ends.extend(accumulate(map(len, encoded), initial=self.ends.pop()))
        self.text += b"".join(encoded)

    def whole(self) -> pa.LargeStringArray:
        """Return all texts; no more can be added then."""
        buffers = [None, pa.py_buffer(self.ends), pa.py_buffer(self.text)]
        return pa.Array.from_buffers(TEXT, len(self.ends) - 1, buffers)


def each_text(column: pa.LargeStringArray) -> Iterator[str]:
    """Yield the texts of a column."""
    for at in range(0, len(column), ROWS):
        yield from column[at : at + ROWS].to_pylist()


def _find(paths: pa.LargeStringArray, path: str) -> int | None:
    at = bisect_left(range(len(paths)), path, key=lambda row: paths[row].as_py())
    return at if at < len(paths) and paths[at].as_py() == path else None

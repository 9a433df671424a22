"""Feature files: one Parquet file per shard, written atomically, read one row group at a time.

Columns are `image_id` and `feature`, a fixed-size list of float32 or float16; rows are in the shard's order. The
metadata entry `rootstock` says what the features are. docs/extraction.md has the measurements behind the layout.

The digest of `<key>/<shard>.parquet` is in `<key>.<shard>.sha256`, in the format of `sha256sum -c`. A file that does
not match its digest counts as missing.
"""

import json
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from rootstock.system.errors import ParamsError
from rootstock.system.files import damaged, reading, replacing, sha256, write as write_file
from rootstock.system.parallel import ordered_map

Batch = tuple[list[str], NDArray[np.float32]]  # image ids, and their features (n, width)
METADATA, LIBRARIES = b"rootstock", b"libraries"
GROUP_BYTES = 16 * 2**20  # per row group: smaller ones are read no faster, larger ones only take memory
# Compression and layout: docs/extraction.md, "The files". Unsorted values have no statistics to skip row groups by.
LAYOUT: dict[str, Any] = {"compression": "lz4", "use_dictionary": False, "write_statistics": False}


def write(
    path: Path,
    batches: Iterable[Batch],
    width: int,
    dtype: str,
    metadata: dict[str, Any],
    libraries: dict[str, str] | None = None,
) -> None:
    """Write a shard's features one row group at a time.

    Args:
        path: the file, which appears when it is complete.
        batches: in row order.
        width: of a feature.
        dtype: float32 or float16, as stored.
        metadata: what the features are.
        libraries: versions of the libraries that computed them, if known.

    Raises:
        ParamsError: float16 is too small for them.
    """
    file_schema = schema(width, dtype, metadata, libraries)
    feature_type = file_schema.field("feature").type
    with replacing_with_digest(path) as temporary, pq.ParquetWriter(temporary, file_schema, **LAYOUT) as writer:
        for ids, rows in _groups(batches, width, dtype):
            values = pa.array(rows.reshape(-1), feature_type.value_type)
            columns = [pa.array(ids, pa.string()), pa.FixedSizeListArray.from_arrays(values, type=feature_type)]
            writer.write_table(pa.Table.from_arrays(columns, schema=file_schema))


def digest_path(path: Path) -> Path:
    """Return the path of a feature file's digest."""
    return path.parent.with_name(f"{path.parent.name}.{path.stem}.sha256")


@contextmanager
def replacing_with_digest(path: Path) -> Iterator[Path]:
    """Yield a temporary path; when the block succeeds, write the digest and move the file into place."""
    with replacing(path) as temporary:
        yield temporary
        write_file(digest_path(path), _line(path, sha256(temporary)))


def is_intact(path: Path) -> bool:
    """Check whether a file exists and matches its digest; under a key without digests, whether it exists."""
    try:
        if not has_digests(path.parent):
            return path.is_file()
        status, expected = path.stat(), digest_path(path).read_bytes().split()
        stamp = (status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
        return path.is_file() and _digest(path, stamp).encode() in expected[:1]
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        return False


def has_digests(folder: Path) -> bool:
    """Check whether the files of a key have digests, which earlier versions did not write."""
    return next(folder.parent.glob(f"{folder.name}.*.sha256"), None) is not None


def write_digests(folder: Path) -> None:
    """Write the digests of all files of a key as they are."""
    for path in sorted(folder.glob("*.parquet")):
        write_file(digest_path(path), _line(path, sha256(path)))


def _line(path: Path, digest: str) -> str:
    return f"{digest}  {path.parent.name}/{path.name}\n"


@lru_cache(maxsize=100_000)
def _digest(path: Path, stamp: tuple[int, ...]) -> str:
    """Return a file's digest; computed once per process while the file is unchanged."""
    return sha256(path)


def check(path: Path) -> None:
    """Check a feature file against its digest.

    Raises:
        DamagedError: it does not match.
    """
    if not is_intact(path):
        raise damaged(path, f"does not match the digest in {digest_path(path)}")


def copy(source: Path, target: Path) -> None:
    """Copy a feature file with its digest."""
    with replacing_with_digest(target) as temporary:
        shutil.copy(source, temporary)


def remove(path: Path) -> None:
    """Remove a feature file and its digest."""
    for file in (path, digest_path(path)):
        file.unlink(missing_ok=True)


def schema(width: int, dtype: str, metadata: dict[str, Any], libraries: dict[str, str] | None = None) -> pa.Schema:
    """Return the schema of a feature file."""
    # Not nullable at any level: Arrow then reads a third faster.
    value = pa.field("element", pa.float16() if dtype == "float16" else pa.float32(), nullable=False)
    return pa.schema(
        [
            pa.field("image_id", pa.string(), nullable=False),
            pa.field("feature", pa.list_(value, width), nullable=False),
        ],
        metadata={
            METADATA: json.dumps(metadata, sort_keys=True),
            LIBRARIES: json.dumps(libraries or {}, sort_keys=True),
        },
    )


def rows_per_group(width: int, dtype: str) -> int:
    """Return the number of rows in a row group."""
    return max(1, GROUP_BYTES // (width * np.dtype(dtype).itemsize))


def _groups(batches: Iterable[Batch], width: int, dtype: str) -> Iterator[tuple[list[str], NDArray[Any]]]:
    """Regroup batches of any size into row groups of equal length."""
    rows = rows_per_group(width, dtype)
    ids: list[str] = []
    waiting: list[NDArray[Any]] = []
    for names, batch in batches:
        ids += names
        waiting.append(_narrowed(batch, dtype))
        while len(ids) >= rows:
            together = np.concatenate(waiting)
            yield ids[:rows], together[:rows]
            ids, waiting = ids[rows:], [together[rows:]]
    if ids:
        yield ids, np.concatenate(waiting)


def _narrowed(batch: NDArray[np.float32], dtype: str) -> NDArray[Any]:
    with np.errstate(over="ignore"):
        narrow = batch.astype(dtype)
    if not np.isfinite(narrow).all():
        if not np.isfinite(batch).all():
            raise ParamsError(
                "params.yaml: with these backbone.weights some features are NaN or infinite; "
                "expected other weights, or extract.precision f32."
            )
        raise ParamsError(
            f"params.yaml: extract.dtype is {dtype!r}, but features of this backbone reach "
            f"{np.abs(batch).max():g}; expected float32, or other backbone.weights."
        )
    return narrow


def read(paths: Sequence[Path]) -> Iterator[tuple[Path, NDArray[np.str_], NDArray[np.float32]]]:
    """Yield the row groups of files in order, as path, image ids (n,) and features (n, width) float32."""
    for path, table in _row_groups(paths, ["image_id", "feature"]):
        yield path, table["image_id"].to_numpy(), _values(table)


def read_ids(path: Path) -> pa.ChunkedArray:
    """Return the image ids of a file, a chunk per row group."""
    with pq.ParquetFile(path, memory_map=True) as file:
        groups = [file.read_row_group(number, ["image_id"]) for number in range(file.num_row_groups)]
    return pa.chunked_array([group["image_id"].combine_chunks() for group in groups], pa.string())


def read_features(paths: Sequence[Path]) -> Iterator[NDArray[np.float32]]:
    """Yield the row groups of files in order, as features (n, width) float32."""
    for _, table in _row_groups(paths, ["feature"]):
        yield _values(table)


def _row_groups(paths: Sequence[Path], columns: list[str]) -> Iterator[tuple[Path, pa.Table]]:
    """Yield the row groups of files, prefetched: Parquet decodes at about 1 GB/s per core."""

    def read_group(request: tuple[Path, pq.FileMetaData, int]) -> tuple[Path, pa.Table]:
        path, metadata, number = request
        with pq.ParquetFile(path, memory_map=True, metadata=metadata) as file:
            return path, file.read_row_group(number, columns, use_threads=False)

    metadata = ((path, pq.read_metadata(path)) for path in paths)
    groups = ((path, found, number) for path, found in metadata for number in range(found.num_row_groups))
    yield from ordered_map(read_group, groups, threads=2, window=3)


def _values(table: pa.Table) -> NDArray[np.float32]:
    """Return the features (n, width) float32 of a row group; those that are float32 are not copied."""
    from torch.utils import dlpack  # seconds to import, and not needed to write or move features

    column = table["feature"].chunk(0)
    values = dlpack.from_dlpack(column.values).view(-1, column.type.list_size)  # Arrow's memory
    narrow: NDArray[np.float32] = values.float().numpy()
    return narrow


def read_metadata(path: Path) -> dict[str, Any]:
    """Read what the features in a file are."""
    with reading(path):
        metadata: dict[str, Any] = json.loads(pq.read_schema(path).metadata[METADATA])
    return metadata


def read_libraries(path: Path) -> dict[str, str]:
    """Read the versions of the libraries that computed a file; empty for files of earlier versions."""
    with reading(path):
        libraries: dict[str, str] = json.loads(pq.read_schema(path).metadata.get(LIBRARIES, b"{}"))
    return libraries


def width_of(path: Path) -> int:
    """Return the width of a file's features."""
    with reading(path):
        return int(pq.read_schema(path).field("feature").type.list_size)


def rows_of(path: Path) -> int:
    """Return the number of rows in a file."""
    with reading(path):
        return int(pq.read_metadata(path).num_rows)

"""The files of features: one Parquet file a shard, written whole or not at all, read a row group at a time.

Columns are `image_id` and `feature`, a fixed-size list of float32 or float16; rows are in the shard's order. The
metadata `rootstock` spells out what the features are. docs/extraction.md says what was measured to choose the layout.

The digest of `<key>/<shard>.parquet` is in `<key>.<shard>.sha256`, as `sha256sum -c` reads it: a file that is not what
was written counts as none.
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

Batch = tuple[list[str], NDArray[np.float32]]  # ids of images, and their features (n, width)
METADATA = b"rootstock"
GROUP_BYTES = 16 * 2**20  # of a row group: smaller ones are read no faster, larger ones only take memory
# Half of a network's features are zeros: lz4 saves 28 to 57 % and reads at 2 GB/s still; zstd saves 10 more and reads
# slower by a third or more. Hashes and floats in no order have no statistics that a reader could skip by.
LAYOUT: dict[str, Any] = {"compression": "lz4", "use_dictionary": False, "write_statistics": False}


def write(
    path: Path,
    batches: Iterable[Batch],
    width: int,
    dtype: str,
    meaning: dict[str, Any],
) -> None:
    """Write a shard's features, a row group at a time.

    Args:
        path: the file; it is there when all is written.
        batches: in the order of the rows.
        width: of a feature.
        dtype: float32 or float16, as they are stored.
        meaning: what the features are, for the metadata.

    Raises:
        ParamsError: float16 is too small for them.
    """
    columns_of = schema(width, dtype, meaning)
    feature_type = columns_of.field("feature").type
    with sealing(path) as temporary, pq.ParquetWriter(temporary, columns_of, **LAYOUT) as writer:
        for ids, rows in _groups(batches, width, dtype):
            values = pa.array(rows.reshape(-1), feature_type.value_type)
            columns = [pa.array(ids, pa.string()), pa.FixedSizeListArray.from_arrays(values, type=feature_type)]
            writer.write_table(pa.Table.from_arrays(columns, schema=columns_of))


def seal_of(path: Path) -> Path:
    """Name the file that holds the digest of a file of features."""
    return path.parent.with_name(f"{path.parent.name}.{path.stem}.sha256")


@contextmanager
def sealing(path: Path) -> Iterator[Path]:
    """Give a temporary path to write a file of features to; when the block ends well, it is there, after its digest."""
    with replacing(path) as temporary:
        yield temporary
        write_file(seal_of(path), _line(path, sha256(temporary)))


def is_whole(path: Path) -> bool:
    """Whether a file is there, and is the one that was written; of a key without digests, whether it is there."""
    try:
        if not is_sealed(path.parent):
            return path.is_file()
        status, expected = path.stat(), seal_of(path).read_bytes().split()
        stamp = (status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
        return path.is_file() and _digest(path, stamp).encode() in expected[:1]
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        return False


def is_sealed(folder: Path) -> bool:
    """Whether the files of a key have digests: earlier versions wrote none."""
    return next(folder.parent.glob(f"{folder.name}.*.sha256"), None) is not None


def seal(folder: Path) -> None:
    """Write down the digests of all files of a key, as they are."""
    for path in sorted(folder.glob("*.parquet")):
        write_file(seal_of(path), _line(path, sha256(path)))


def _line(path: Path, digest: str) -> str:
    return f"{digest}  {path.parent.name}/{path.name}\n"


@lru_cache(maxsize=100_000)
def _digest(path: Path, stamp: tuple[int, ...]) -> str:
    """Digest a file, once a process for as long as it stays the same."""
    return sha256(path)


def check(path: Path) -> None:
    """Hold a file of features to its digest.

    Raises:
        DamagedError: it is not what was written.
    """
    if not is_whole(path):
        raise damaged(path, f"is not what extract wrote: its digest is not that in {seal_of(path)}")


def copy(source: Path, target: Path) -> None:
    """Copy a file of features with its digest."""
    with sealing(target) as temporary:
        shutil.copy(source, temporary)


def remove(path: Path) -> None:
    """Remove a file of features and its digest."""
    for one in (path, seal_of(path)):
        one.unlink(missing_ok=True)


def schema(width: int, dtype: str, meaning: dict[str, Any]) -> pa.Schema:
    """Give the schema of a file, with what its features are in the metadata."""
    # That no value is missing is said at each level: a reader then looks for none, and is a third faster.
    value = pa.field("element", pa.float16() if dtype == "float16" else pa.float32(), nullable=False)
    return pa.schema(
        [
            pa.field("image_id", pa.string(), nullable=False),
            pa.field("feature", pa.list_(value, width), nullable=False),
        ],
        metadata={METADATA: json.dumps(meaning, sort_keys=True)},
    )


def rows_a_group(width: int, dtype: str) -> int:
    """Say how many rows go into a row group."""
    return max(1, GROUP_BYTES // (width * np.dtype(dtype).itemsize))


def _groups(batches: Iterable[Batch], width: int, dtype: str) -> Iterator[tuple[list[str], NDArray[Any]]]:
    """Put batches together into row groups of one number of rows, whatever the batches' sizes."""
    rows = rows_a_group(width, dtype)
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
                "params.yaml: with backbone.weights as they are, some features are no numbers (NaN or infinite); "
                "expected other weights, or extract.precision f32."
            )
        raise ParamsError(
            f"params.yaml: extract.dtype is {dtype!r}, but the features of this backbone go up to "
            f"{np.abs(batch).max():g}; expected float32, or other backbone.weights."
        )
    return narrow


def read(paths: Sequence[Path]) -> Iterator[tuple[Path, NDArray[np.str_], NDArray[np.float32]]]:
    """Yield the row groups of files in order, as path, image ids (n,) and features (n, width) float32.

    The next is read while one is used: Parquet is decoded at about 1 GB/s a core. Values that are stored as float32 are
    not copied.
    """
    from torch.utils import dlpack  # seconds to import, and whoever only writes or moves features does without

    def group(asked: tuple[Path, pq.FileMetaData, int]) -> tuple[Path, NDArray[np.str_], NDArray[np.float32]]:
        path, metadata, number = asked
        with pq.ParquetFile(path, memory_map=True, metadata=metadata) as file:
            table = file.read_row_group(number, use_threads=False)
        column = table["feature"].chunk(0)
        values = dlpack.from_dlpack(column.values).view(-1, column.type.list_size)  # Arrow's memory
        return path, table["image_id"].to_numpy(), values.float().numpy()

    metadata = ((path, pq.read_metadata(path)) for path in paths)
    groups = ((path, found, number) for path, found in metadata for number in range(found.num_row_groups))
    yield from ordered_map(group, groups, threads=2, window=3)


def read_metadata(path: Path) -> dict[str, Any]:
    """Read what the features of a file are."""
    with reading(path):
        meaning: dict[str, Any] = json.loads(pq.read_schema(path).metadata[METADATA])
    return meaning


def width_of(path: Path) -> int:
    """Read the width of a file's features."""
    with reading(path):
        return int(pq.read_schema(path).field("feature").type.list_size)


def rows_of(path: Path) -> int:
    """Count the rows of a file."""
    with reading(path):
        return int(pq.read_metadata(path).num_rows)

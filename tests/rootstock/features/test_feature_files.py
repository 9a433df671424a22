"""Feature files: one Parquet file per shard, readable by any library, written atomically."""

import json
from pathlib import Path

import duckdb
import numpy as np
import pandas as pd
import polars
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings, strategies as st

from rootstock.config.params import Extract
from rootstock.dataset.shards import iter_places, names
from rootstock.features import feature_files
from rootstock.features.extraction import extract
from rootstock.features.feature_keys import cache_key_fields
from rootstock.system.errors import ParamsError

METADATA = {"backbone": "some", "format": 2}


def drawn(n: int, width: int, seed: int = 0) -> tuple[list[str], np.ndarray]:
    rng = np.random.default_rng(seed)
    return [f"{rng.integers(2**60):064x}" for _ in range(n)], rng.standard_normal((n, width), np.float32)


def written(path: Path, ids: list[str], values: np.ndarray, batch: int, dtype: str = "float32") -> Path:
    batches = ((ids[at : at + batch], values[at : at + batch]) for at in range(0, len(ids), batch))
    feature_files.write(path, batches, values.shape[1], dtype, METADATA)
    return path


def test_a_feature_file_holds_exactly_the_images_of_its_shard_in_order(small, folder):
    assert sorted(path.stem for path in folder.iterdir()) == names(small.images)
    for shard in names(small.images):
        table = pq.read_table(folder / f"{shard}.parquet")
        assert table.schema.names == ["image_id", "feature"]
        assert table.schema.field("image_id").type == pa.string()
        assert table.schema.field("feature").type == pa.list_(pa.field("element", pa.float32(), False), 1024)
        assert table["image_id"].to_pylist() == [name for name, _ in iter_places(small.images, shard)]


def test_the_metadata_contains_every_field_of_the_key(small, folder, tmp_path_factory):
    from rootstock.backbones import backbones
    from tests.small_dataset import small_backbone

    backbone = backbones.load(small_backbone(tmp_path_factory.getbasetemp()))
    expected = {
        "backbone": "shufflenet_v2_x0_5",
        "digest": backbone.digest,
        "transform": backbone.transform.as_dict(),
        "layer": "penultimate",
        "dtype": "float32",
        "engine": "eager",
        "precision": "f32",
        "decode": "full",
        "format": 2,
    }
    for path in folder.iterdir():
        assert (
            feature_files.read_metadata(path) == expected == cache_key_fields(backbone.description, Extract(), "eager")
        )
        assert json.loads(pq.read_schema(path).metadata[b"rootstock"]) == expected


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_pandas_polars_and_duckdb_can_read_a_feature_file(tmp_path, dtype):
    ids, values = drawn(50, 12)
    path, expected = written(tmp_path / "a.parquet", ids, values, 7, dtype), values.astype(dtype).astype(np.float32)
    by_pandas = pd.read_parquet(path)
    by_polars = polars.read_parquet(path)
    by_duckdb = duckdb.sql(f"select image_id, feature from read_parquet('{path}')").fetchall()
    assert list(by_pandas["image_id"]) == by_polars["image_id"].to_list() == [name for name, _ in by_duckdb] == ids
    for read in (
        np.stack(by_pandas["feature"]),
        np.stack(by_polars["feature"].to_list()),
        np.stack([feature for _, feature in by_duckdb]),
    ):
        assert np.array_equal(read.astype(np.float32), expected)


@given(
    n=st.integers(1, 60), width=st.integers(1, 9), batch=st.integers(1, 20), group=st.integers(1, 30),
    dtype=st.sampled_from(["float32", "float16"]),
)  # fmt: skip
@settings(max_examples=30, deadline=None)
def test_features_are_read_as_they_were_written_whatever_the_batch_sizes(
    tmp_path_factory, n, width, batch, group, dtype
):
    ids, values = drawn(n, width, n)
    path = tmp_path_factory.mktemp("files") / "a.parquet"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(feature_files, "GROUP_BYTES", group * width * np.dtype(dtype).itemsize)
        written(path, ids, values, batch, dtype)
    read = [entry[1:] for entry in feature_files.read([path])]
    assert [len(found) for found, _ in read] == [group] * (n // group) + [n % group] * bool(n % group)
    assert [name for found, _ in read for name in found] == ids
    assert np.array_equal(np.concatenate([features for _, features in read]), values.astype(dtype).astype(np.float32))


def test_the_bytes_of_a_file_do_not_depend_on_the_batch_sizes(tmp_path):
    ids, values = drawn(40, 8)
    one, other = written(tmp_path / "a.parquet", ids, values, 3), written(tmp_path / "b.parquet", ids, values, 17)
    assert one.read_bytes() == other.read_bytes()


def test_float32_values_become_tensors_without_a_copy(tmp_path):
    ids, values = drawn(30, 16)
    path = written(tmp_path / "a.parquet", ids, values, 30)
    [(_, _, features)] = feature_files.read([path])
    assert not features.flags.owndata  # Arrow's memory, as its Parquet reader left it
    assert torch.from_numpy(features).data_ptr() == features.ctypes.data


def test_float16_halves_the_file_and_keeps_three_digits(tmp_path):
    ids, values = drawn(200, 256)
    wide, narrow = (written(tmp_path / dtype, ids, values, 64, dtype) for dtype in ("float32", "float16"))
    assert pq.read_schema(narrow).field("feature").type.value_type == pa.float16()
    [(_, _, read)] = feature_files.read([narrow])
    np.testing.assert_allclose(read, values, rtol=1e-3, atol=1e-6)
    assert narrow.stat().st_size < 0.6 * wide.stat().st_size


def test_features_too_large_for_float16_are_an_error_that_names_the_parameter(tmp_path):
    ids, values = drawn(4, 8)
    with pytest.raises(ParamsError, match=r"params\.yaml: extract\.dtype is 'float16', but .* expected float32"):
        written(tmp_path / "a.parquet", ids, values * 1e20, 2, "float16")
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_an_error_and_leaves_no_file(small, tmp_path_factory, tmp_path, monkeypatch):
    """Simulated by a limit on file size: the system refuses to write in the middle of a file."""
    import resource
    import signal

    from rootstock.backbones import backbones
    from tests.small_dataset import small_backbone

    backbone = backbones.load(small_backbone(tmp_path_factory.getbasetemp()))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, before[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            extract(backbone, Extract(engine="eager"), small.images, tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)
    assert list(tmp_path.rglob("*.parquet*")) == []
    assert extract(backbone, Extract(engine="eager"), small.images, tmp_path).computed == 120

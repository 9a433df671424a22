"""Feature keys, and streaming features with labels."""

import shutil

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings, strategies as st

from rootstock.backbones import backbones
from rootstock.config.params import Extract
from rootstock.features import feature_files, reader
from rootstock.features.extraction import extract
from rootstock.features.feature_keys import cache_key_fields, engine_of, find, key_of, note_engine
from rootstock.features.reader import Features
from rootstock.system.errors import SourceError
from tests.small_dataset import small_backbone

# The key


def test_the_key_depends_on_what_determines_the_values_and_on_nothing_else(backbone):
    described = backbone.description

    def key(engine: str = "eager", view: int = 0, described: dict = described, **changes: object) -> str:
        return key_of(cache_key_fields(described, Extract(**changes), engine, view))

    changed = [
        key(),
        key("openvino"),
        key(view=1),
        key(view=2),
        key(view=1, view_augment="crop_flip"),
        key(described=described | {"digest": "0" * 64}),
        key(described=described | {"transform": described["transform"] | {"resize": 40}}),
        key(dtype="float16"),
        key(precision="bf16"),
        key(decode="reduced"),
    ]
    assert len(set(changed)) == len(changed) and all(len(name) == 12 for name in changed)
    assert key(described=described | {"origin": "elsewhere", "licence": "other"}, batch_size=7) == changed[0]
    assert key(views=3) == changed[0] and key(view_augment="crop_flip") == changed[0]
    assert key(view=1, decode="reduced") == changed[2]  # a random part is cut out of all pixels


def test_features_of_a_second_backbone_are_stored_beside_those_of_the_first(small, folder, tmp_path_factory, tmp_path):
    base = tmp_path_factory.getbasetemp()
    keys = {
        extract(backbones.load(small_backbone(base, seed=seed)), Extract(), small.images, tmp_path).key
        for seed in (0, 1)
    }
    assert (
        keys == {path.name for path in tmp_path.iterdir() if path.is_dir()} and len(keys) == 2 and folder.name in keys
    )


# Which engine


def test_auto_keeps_the_engine_of_the_features_that_were_extracted_first(small, backbone, tmp_path):
    assert engine_of(backbone.description, Extract(), tmp_path) is None
    first = extract(backbone, Extract(engine="openvino"), small.images, tmp_path)
    again = extract(backbone, Extract(), small.images, tmp_path)
    assert (again.engine, again.key, again.computed) == ("openvino", first.key, 0)
    other = extract(backbone, Extract(engine="eager"), small.images, tmp_path)
    assert (other.engine, other.computed) == ("eager", 120) and other.key != first.key
    back = extract(backbone, Extract(), small.images, tmp_path)
    assert (back.engine, back.key, back.computed) == ("openvino", first.key, 0)
    assert find(backbone.description, Extract(), tmp_path) == [tmp_path / first.key]


@pytest.fixture
def of_an_earlier_version(small, backbone, tmp_path) -> str:
    """Features of an earlier version with other engines, which recorded the engine of auto."""
    done = extract(backbone, Extract(engine="eager"), small.images, tmp_path)
    fields = cache_key_fields(backbone.description, Extract(), "onnxruntime")
    (tmp_path / key_of(fields)).mkdir()
    for path in (tmp_path / done.key).iterdir():
        rows = ((ids.tolist(), values) for _, ids, values in feature_files.read([path]))
        feature_files.write(tmp_path / key_of(fields) / path.name, rows, 1024, "float32", fields)
    shutil.rmtree(tmp_path / done.key)
    note_engine(backbone.description, Extract(), tmp_path, "onnxruntime")
    return key_of(fields)


def test_features_of_an_engine_that_no_longer_exists_are_read(small, backbone, of_an_earlier_version, tmp_path):
    again = extract(backbone, Extract(), small.images, tmp_path)
    assert (again.engine, again.key, again.computed) == ("onnxruntime", of_an_earlier_version, 0)
    assert find(backbone.description, Extract(), tmp_path) == [tmp_path / of_an_earlier_version]


def test_features_of_an_engine_that_no_longer_exists_are_all_computed_again_if_some_are_missing(
    small, backbone, of_an_earlier_version, tmp_path, caplog
):
    next((tmp_path / of_an_earlier_version).iterdir()).unlink()
    with caplog.at_level("INFO"):
        again = extract(backbone, Extract(), small.images, tmp_path)
    assert (again.engine, again.computed) == ("eager", 120) and again.key != of_an_earlier_version
    assert "engine onnxruntime is no longer supported; recomputing all features" in caplog.text
    assert find(backbone.description, Extract(), tmp_path) == [tmp_path / again.key]


def test_views_have_the_engine_of_the_images_and_another_dtype_chooses_its_own(small, backbone, tmp_path):
    first = extract(backbone, Extract(engine="openvino"), small.images, tmp_path)
    assert extract(backbone, Extract(views=1), small.images, tmp_path).engine == first.engine
    assert engine_of(backbone.description, Extract(dtype="float16"), tmp_path) is None


def test_reading_with_engine_auto_before_any_extraction_is_an_error_that_says_so(backbone, tmp_path):
    with pytest.raises(SourceError, match="has no features of this backbone: run extract first"):
        find(backbone.description, Extract(), tmp_path)
    [named] = find(backbone.description, Extract(engine="eager"), tmp_path)
    assert named == tmp_path / key_of(cache_key_fields(backbone.description, Extract(), "eager"))


# Reading


@pytest.fixture(scope="module")
def twin(folder, tmp_path_factory):
    """Another folder of features of the same images."""
    return shutil.copytree(folder, tmp_path_factory.mktemp("views") / "twin")


def gathered(chunks: Features) -> tuple[np.ndarray, np.ndarray]:
    features, labels = zip(*chunks, strict=True)
    return np.concatenate(features), np.concatenate(labels)


def test_features_come_with_their_labels_in_the_order_of_the_shards(small, folder):
    rows = small.split("train").sample(frac=1, random_state=0)  # in no order
    chunks = Features(folder, rows)
    x, labels = gathered(chunks)
    assert x.shape == (len(rows), 1024) == (len(chunks), chunks.width) and x.dtype == np.float32
    assert np.array_equal(labels, chunks.labels) and labels.dtype == np.int64
    by_id = pd.concat(pd.read_parquet(path) for path in folder.iterdir()).set_index("image_id")["feature"]
    expected = rows.sort_values(["shard", "offset"])
    assert np.array_equal(x, np.stack(by_id[expected["image_id"]]))
    assert np.array_equal(labels, expected["class_index"])


@given(chosen=st.sets(st.integers(0, 119), min_size=1))
@settings(max_examples=30, deadline=None)
def test_any_selection_of_images_is_read_in_its_order(small, folder, chosen):
    rows = small.manifest.iloc[sorted(chosen)]
    chunks = Features(folder, rows)
    x, labels = gathered(chunks)
    assert len(x) == len(chunks) == len(chosen) and np.array_equal(labels, chunks.labels)


def test_features_kept_in_memory_equal_those_that_are_streamed(small, folder, monkeypatch):
    kept, streamed = (Features(folder, small.split("train")) for _ in range(2))
    expected = gathered(kept)
    assert kept._kept is not None
    monkeypatch.setattr(reader, "KEPT_BYTES", 1000)
    for _ in range(2):
        assert all(map(np.array_equal, gathered(streamed), expected))
    assert streamed._kept is None


@given(chosen=st.sets(st.integers(0, 119)), kept=st.booleans(), views=st.booleans())
@settings(max_examples=30, deadline=None)
def test_a_subset_has_the_features_that_reading_its_images_gives(small, folder, twin, chosen, kept, views):
    folders = [folder, twin] if views else [folder]
    whole = Features(folders, small.manifest)
    if kept:
        whole.keep()
    rows = small.manifest.iloc[sorted(chosen)].assign(class_index=7)
    part, alone = whole.subset(rows), Features(folders, rows)
    assert (len(part), part.width, list(part.labels)) == (len(alone), alone.width, list(alone.labels))
    for (x, labels), (expected, expected_labels) in zip(part, alone, strict=True):
        assert np.array_equal(x, expected) and np.array_equal(labels, expected_labels)
    assert part._kept is None if kept else whole._kept is None


def test_a_file_of_several_row_groups_is_read_one_group_at_a_time(small, folder, backbone, monkeypatch, tmp_path):
    monkeypatch.setattr(feature_files, "GROUP_BYTES", 6 * 4 * 1024)
    monkeypatch.setattr(reader, "KEPT_BYTES", 0)
    done = extract(backbone, Extract(batch_size=4), small.images, tmp_path)
    path = next((tmp_path / done.key).iterdir())
    assert pq.ParquetFile(path).metadata.row_group(0).num_rows == 6 < pq.ParquetFile(path).metadata.num_rows
    chunks = Features(tmp_path / done.key, small.split("train"))
    assert max(len(x) for x, _ in chunks) <= 6
    expected, labels = gathered(Features(folder, small.split("train")))
    np.testing.assert_allclose(gathered(chunks)[0], expected, rtol=1e-3, atol=1e-3)
    assert np.array_equal(gathered(chunks)[1], labels)


def test_features_that_have_not_been_extracted_are_an_error_that_says_so(small, folder, tmp_path):
    with pytest.raises(SourceError, match=r"\.parquet is missing: run extract first, or `dvc pull` it"):
        Features(tmp_path, small.manifest)
    shutil.copytree(folder, tmp_path / "some")
    sorted((tmp_path / "some").iterdir())[-1].unlink()
    with pytest.raises(SourceError, match="run extract first"):
        list(Features(tmp_path / "some", small.manifest))


def test_an_image_missing_from_its_feature_file_is_an_error_that_says_so(small, folder):
    rows = small.split("val").copy()
    rows.loc[rows.index[0], "image_id"] = "f" * 64
    with pytest.raises(SourceError, match=r"has \d+ of the \d+ expected images; remove the file and run extract again"):
        list(Features(folder, rows))


def test_no_images_give_no_features(small, folder):
    chunks = Features(folder, small.manifest.iloc[:0])
    assert (len(chunks), list(chunks)) == (0, [])

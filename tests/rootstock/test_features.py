"""Frozen features: one Parquet file a shard, computed once whatever happens, and read as a stream."""

import dataclasses
import json
import shutil
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import Tensor, nn

from rootstock import backbones, features, shards
from rootstock.errors import ParamsError, SourceError
from rootstock.features import Features, extract, key_of
from rootstock.params import Extract
from rootstock.pixels import Normalise, prepare
from tests.small_dataset import Small, draw, small_backbone, small_dataset, small_features, take_in


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> Small:
    return small_dataset(tmp_path_factory.getbasetemp())


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """The features of the data set; nothing writes to them."""
    return small_features(tmp_path_factory.getbasetemp())


@pytest.fixture
def backbone(tmp_path_factory) -> backbones.Backbone:
    return backbones.load(small_backbone(tmp_path_factory.getbasetemp()))


@pytest.fixture
def seen(backbone) -> list[int]:
    """The sizes of the batches that the backbone has been shown."""
    sizes: list[int] = []
    backbone.network.register_forward_hook(lambda network, given, features: sizes.append(len(features)))
    return sizes


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def identities(folder: Path) -> dict[str, tuple[int, int]]:
    """Which files these are: an unchanged one has not even been written again."""
    return {path.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in folder.glob("*.parquet")}


# The files


def test_a_shards_file_holds_its_images_in_its_order_and_nothing_else(small, folder, backbone):
    assert sorted(path.stem for path in folder.iterdir()) == shards.names(small.images)
    for shard in shards.names(small.images):
        table = pq.read_table(folder / f"{shard}.parquet")
        assert table.schema.names == ["image_id", "feature"]
        assert table.schema.field("image_id").type == pa.string()
        assert table.schema.field("feature").type == pa.list_(pa.float32(), backbone.width)
        assert table["image_id"].to_pylist() == [name for name, _ in shards.members(small.images, shard)]


def test_a_feature_is_what_the_backbone_gives_of_the_image(small, folder, backbone):
    row = small.manifest.iloc[77]
    with shards.Reader(small.images) as reader:
        pixels = prepare(reader.read(row["shard"], row["offset"], row["size"]), backbone.transform)
    with torch.inference_mode():
        shown = Normalise(backbone.transform)(torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None])
        expected = backbone.network(shown)[0].numpy()
    table = pd.read_parquet(folder / f"{row['shard']}.parquet").set_index("image_id")
    np.testing.assert_allclose(table.loc[row["image_id"], "feature"], expected, rtol=1e-3, atol=1e-3)
    assert expected.std() > 0


def test_the_metadata_spells_the_key_out(folder, backbone):
    key, meaning = key_of(backbone.description, Extract())
    assert key == folder.name
    for path in folder.iterdir():
        assert json.loads(pq.read_schema(path).metadata[b"rootstock"]) == meaning
    assert meaning == {
        "backbone": "shufflenet_v2_x0_5",
        "digest": backbone.digest,
        "transform": backbone.transform.as_dict(),
        "layer": "penultimate",
        "dtype": "float32",
        "engine": "torch eager",
        "format": 1,
    }


def test_pandas_reads_a_file_as_it_is(folder):
    frame = pd.read_parquet(next(folder.iterdir()))
    assert np.stack(frame["feature"]).shape == (len(frame), 1024)


def test_float16_halves_the_file_and_keeps_three_digits(small, folder, backbone, tmp_path):
    done = extract(backbone, Extract(dtype="float16"), small.images, tmp_path)
    assert done.key != folder.name
    for path in folder.iterdir():
        half = tmp_path / done.key / path.name
        assert pq.read_schema(half).field("feature").type.value_type == pa.float16()
        wide, narrow = (np.stack(pd.read_parquet(file)["feature"]).astype(np.float32) for file in (path, half))
        np.testing.assert_allclose(narrow, wide, rtol=1e-3, atol=1e-6)
        assert half.stat().st_size < 0.6 * path.stat().st_size


class Louder(nn.Module):
    def forward(self, features: Tensor) -> Tensor:
        return features * 1e20


def test_features_too_large_for_float16_are_an_error_that_names_the_parameter(small, backbone, tmp_path):
    loud = dataclasses.replace(backbone, network=nn.Sequential(backbone.network, Louder()))
    with pytest.raises(ParamsError, match=r"params\.yaml: extract\.dtype is 'float16', but .* expected float32"):
        extract(loud, Extract(dtype="float16"), small.images, tmp_path)
    assert list(tmp_path.rglob("*.parquet*")) == []


# The key


def test_the_key_changes_with_what_decides_the_numbers_and_with_nothing_else(backbone):
    described = backbone.description
    other_transform = described["transform"] | {"resize": 40}
    keys = [
        key_of(described, Extract())[0],
        key_of(described | {"digest": "0" * 64}, Extract())[0],
        key_of(described | {"transform": other_transform}, Extract())[0],
        key_of(described, Extract(dtype="float16"))[0],
    ]
    assert len(set(keys)) == 4 and all(len(key) == 12 for key in keys)
    assert key_of(described | {"origin": "elsewhere", "licence": "other"}, Extract(batch_size=7))[0] == keys[0]


def test_a_second_backbone_has_its_features_beside_those_of_the_first(small, folder, tmp_path_factory, tmp_path):
    base = tmp_path_factory.getbasetemp()
    keys = {
        extract(backbones.load(small_backbone(base, seed=seed)), Extract(), small.images, tmp_path).key
        for seed in (0, 1)
    }
    assert keys == {path.name for path in tmp_path.iterdir()} and len(keys) == 2 and folder.name in keys


# What is computed


def test_only_the_shards_that_have_no_features_yet_are_computed(small, folder, backbone, seen, tmp_path):
    shutil.copytree(folder, tmp_path / folder.name)
    first, *_, last = sorted((tmp_path / folder.name).iterdir())
    first.unlink(), last.unlink()
    kept = identities(tmp_path / folder.name)
    done = extract(backbone, Extract(), small.images, tmp_path)
    lost = [len(list(shards.members(small.images, path.stem))) for path in (first, last)]
    assert sum(seen) == sum(lost) == done.computed and done.images == 120
    assert contents(tmp_path / folder.name) == contents(folder)
    assert identities(tmp_path / folder.name).items() >= kept.items()
    again = extract(backbone, Extract(), small.images, tmp_path)
    assert (again.images, again.computed, sum(seen)) == (120, 0, done.computed)


def test_new_images_are_computed_and_no_earlier_file_is_touched(backbone, seen, tmp_path):
    small = take_in(tmp_path, (draw(tmp_path / "source", images=6), "field"))
    key = extract(backbone, Extract(), small.images, tmp_path / "features").key
    before, kept = contents(tmp_path / "features" / key), identities(tmp_path / "features" / key)
    draw(tmp_path / "source", images=3, first=6)
    take_in(tmp_path, (tmp_path / "source", "field"))
    seen.clear()
    extract(backbone, Extract(), small.images, tmp_path / "features")
    assert sum(seen) == 9 and len(small.manifest) == 27
    assert contents(tmp_path / "features" / key).items() > before.items()
    assert identities(tmp_path / "features" / key).items() > kept.items()


def test_relabelling_and_splitting_anew_touch_no_file(backbone, seen, tmp_path):
    small = take_in(tmp_path, (draw(tmp_path / "source", images=6), "field"))
    key = extract(backbone, Extract(), small.images, tmp_path / "features").key
    kept = identities(tmp_path / "features" / key)
    before = small.manifest
    (tmp_path / "source/rings/0000.png").rename(tmp_path / "source/checks/new.png")
    (tmp_path / "source/stripes").rename(tmp_path / "source/bars")
    take_in(tmp_path, (tmp_path / "source", "field"))
    assert not small.manifest.equals(before)
    seen.clear()
    assert extract(backbone, Extract(), small.images, tmp_path / "features").computed == 0
    assert seen == [] and identities(tmp_path / "features" / key) == kept


KILLED = """
import os, random, signal, sys, time
from contextlib import contextmanager
from pathlib import Path
import torch
from rootstock import backbones, features, params, progress

torch.set_num_threads(1)
images, folder, out, seed = *map(Path, sys.argv[1:4]), int(sys.argv[4])
delays = random.Random(seed)

@contextmanager
def slowly(what, total, unit):
    yield lambda n: time.sleep(0.01)

backbone = backbones.load(folder)
for attempt in range(7):
    child = os.fork()
    if child == 0:
        with progress.report_to(slowly):
            features.extract(backbone, params.Extract(batch_size=4), images, out)
        os._exit(0)
    time.sleep(delays.uniform(0.05, 0.4))
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    done = sorted(path for path in out.rglob("*.parquet"))
    print(attempt, os.WIFSIGNALED(status), *(f"{path.name}:{path.stat().st_ino}" for path in done))
"""


def test_a_killed_extraction_goes_on_where_it_stopped(small, backbone, tmp_path_factory, tmp_path):
    whole = extract(backbone, Extract(batch_size=4), small.images, tmp_path / "undisturbed")
    weights = small_backbone(tmp_path_factory.getbasetemp())
    command = [sys.executable, "-c", KILLED, small.images, weights, tmp_path / "killed", "0"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    killed = [line.split() for line in done.stdout.splitlines()]
    found = [set(files) for _, signalled, *files in killed]
    assert killed[0][1] == "True"
    assert all(earlier <= later for earlier, later in pairwise(found))  # nothing is computed twice
    extract(backbone, Extract(batch_size=4), small.images, tmp_path / "killed")
    assert contents(tmp_path / "killed" / whole.key) == contents(tmp_path / "undisturbed" / whole.key)


# Reading


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
def test_any_choice_of_images_is_found_in_its_order(small, folder, chosen):
    rows = small.manifest.iloc[sorted(chosen)]
    chunks = Features(folder, rows)
    x, labels = gathered(chunks)
    assert len(x) == len(chunks) == len(chosen) and np.array_equal(labels, chunks.labels)


def test_what_is_kept_in_memory_and_what_is_streamed_is_the_same(small, folder, monkeypatch):
    kept, streamed = (Features(folder, small.split("train")) for _ in range(2))
    expected = gathered(kept)
    assert kept._kept is not None
    monkeypatch.setattr(features, "KEPT_BYTES", 1000)
    for _ in range(2):
        assert all(map(np.array_equal, gathered(streamed), expected))
    assert streamed._kept is None


def test_a_file_of_several_row_groups_is_read_a_group_at_a_time(small, folder, backbone, monkeypatch, tmp_path):
    monkeypatch.setattr(features, "ROWS_A_GROUP", 4)
    monkeypatch.setattr(features, "KEPT_BYTES", 0)
    done = extract(backbone, Extract(batch_size=3), small.images, tmp_path)
    path = next((tmp_path / done.key).iterdir())
    assert pq.ParquetFile(path).metadata.row_group(0).num_rows == 6 < pq.ParquetFile(path).metadata.num_rows
    chunks = Features(tmp_path / done.key, small.split("train"))
    assert max(len(x) for x, _ in chunks) <= 6
    expected, labels = gathered(Features(folder, small.split("train")))
    np.testing.assert_allclose(gathered(chunks)[0], expected, rtol=1e-3, atol=1e-3)
    assert np.array_equal(gathered(chunks)[1], labels)


def test_features_that_have_not_been_extracted_are_an_error_that_says_so(small, folder, tmp_path):
    with pytest.raises(SourceError, match=r"\.parquet is not there: run extract first, or `dvc pull` it"):
        Features(tmp_path, small.manifest)
    shutil.copytree(folder, tmp_path / "some")
    sorted((tmp_path / "some").iterdir())[-1].unlink()
    with pytest.raises(SourceError, match="run extract first"):
        list(Features(tmp_path / "some", small.manifest))


def test_an_image_that_its_shards_file_does_not_hold_is_an_error_that_says_so(small, folder):
    rows = small.split("val").copy()
    rows.loc[rows.index[0], "image_id"] = "f" * 64
    with pytest.raises(SourceError, match=r"holds \d+ of the \d+ images wanted; remove the file and run extract again"):
        list(Features(folder, rows))


def test_of_no_images_there_are_no_features(small, folder):
    chunks = Features(folder, small.manifest.iloc[:0])
    assert (len(chunks), list(chunks)) == (0, [])

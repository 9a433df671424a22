"""Compaction: sparse shards are rewritten, and their features with them; nothing else changes."""

import shutil

import pandas as pd
import pyarrow.parquet as pq
import pytest

from rootstock.backbones import backbones
from rootstock.config import params
from rootstock.dataset import shards
from rootstock.features import extraction, feature_files
from rootstock.features.compaction import CompactionResult, waste
from rootstock.features.reader import Features
from rootstock.images import inspection
from rootstock.images.inspection import Reason, Rejected
from rootstock.ingest import inbox
from rootstock.system import files
from rootstock.system.errors import ParamsError, SourceError
from tests.small_dataset import CLASSES, draw, small_backbone
from tests.sparse_shards import NARROW, WIDE, Store


def test_compaction_frees_bytes_and_leaves_images_and_features_unchanged(store):
    pixels, manifest = store.pixels(), store.manifest
    values = {key: store.values(key) for key in (store.features / WIDE, store.features / NARROW, store.tried / WIDE)}
    found = waste(store.data)
    size = sum(path.stat().st_size for path in store.images.iterdir())
    done = store.compact()
    assert done.removed == len(found.shards) > 2 and 0 < done.written < done.removed
    assert done.freed == size - sum(path.stat().st_size for path in store.images.iterdir()) > 0.7 * found.freed
    assert not {path.stem for path in store.images.iterdir()} & set(found.shards)
    assert store.pixels() == pixels
    same = ["image_id", "source", "path", "label", "class_index", "domain", "split", "group_id", "batch"]
    pd.testing.assert_frame_equal(
        *(frame[same].sort_values("image_id", ignore_index=True) for frame in (manifest, store.manifest))
    )
    for key, before in values.items():
        after = store.values(key)
        assert after.items() <= before.items() and after.keys() >= set(manifest["image_id"])
        assert sorted(path.stem for path in key.iterdir()) == shards.names(store.images)


def test_images_no_longer_in_use_are_counted_with_their_bytes(store):
    found = waste(store.data)
    assert found.images == len(store.data.ledger) - len(store.manifest) > 0
    assert found.bytes >= found.freed > 0 and set(found.shards) < set(shards.names(store.images))


def test_an_empty_shard_is_removed_without_a_replacement(store):
    [shard, *others] = shards.names(store.images)
    for path in store.manifest.pipe(lambda rows: rows[rows["shard"] == shard])["path"]:
        (store.source / path).unlink()
    store.ingest()
    done = store.compact(share=1e-9)
    assert (done.removed, done.written, done.copied) == (1, 0, 0) and shards.names(store.images) == others
    assert not store.ingest().changed


def test_a_second_compaction_finds_nothing_to_do(store):
    store.compact()
    before = store.state()
    assert store.compact() == CompactionResult(0, 0, 0, 0, 0) and store.state() == before


def test_compacting_two_equal_datasets_gives_the_same_bytes(store, tmp_path):
    shutil.copytree(store.root, tmp_path / "other")
    other = Store(tmp_path / "other")
    store.compact(), other.compact()
    assert store.state() == other.state()


@pytest.mark.parametrize("share", [0, -1, 1.5])
def test_an_invalid_share_is_an_error(store, share):
    with pytest.raises(ParamsError, match="expected a share above 0 and up to 1"):
        store.compact(share=share)


def test_a_missing_dataset_or_shard_is_an_error_and_nothing_is_removed(store):
    before = store.state()
    path = shards.path_of(store.images, waste(store.data).shards[0])
    path.rename(store.aside / path.name)
    with pytest.raises(SourceError, match=r"\.tar is missing: restore it with `dvc pull`"):
        store.compact()
    (store.aside / path.name).rename(path)
    assert store.state() == before
    shutil.rmtree(store.dataset)
    with pytest.raises(SourceError, match="run ingest first"):
        store.compact()
    assert shards.names(store.images)


# Ingest afterwards


def test_the_next_ingest_finds_nothing_to_do(store):
    store.compact()
    before = store.state()
    taken = store.ingest()
    assert (taken.new, taken.changed) == (0, False) and store.state() == before
    shutil.rmtree(store.scratch)  # as in another clone
    assert (store.ingest().new, store.state()) == (0, before)


def test_images_that_come_back_are_packed_again_and_keep_their_split(store):
    ledger = store.data.ledger.set_index("image_id")
    done = store.compact()
    dropped = store.data.ledger.query("shard == 'unpacked'")["image_id"]
    assert len(dropped) == done.dropped > 10 and not set(dropped) & set(store.manifest["image_id"])
    store.bring_back()
    taken = store.ingest()
    assert taken.new == len(dropped) and taken.images == len(ledger) == 60
    same = ["split", "group_id", "batch", "phash", "width", "height", "format"]
    after = store.data.ledger.set_index("image_id").reindex(ledger.index)
    pd.testing.assert_frame_equal(ledger[same], after[same])
    assert store.pixels() == {
        str(path.relative_to(store.source)): path.read_bytes() for path in store.source.rglob("*.png")
    }
    assert store.compact().removed == 0 and not store.ingest().changed


def test_images_of_a_delivery_that_has_left_the_inbox_keep_their_bytes(store):
    draw(store.inbox / "field", images=3, first=30)
    assert store.ingest(inbox.list_delivery(str(store.inbox), 0).labelled).new == 9
    shutil.rmtree(store.inbox)
    assert len(store.manifest) == 27
    pixels, state = store.pixels(), store.state()
    store.compact(share=1)
    assert store.pixels() == pixels and store.state() != state
    assert not store.ingest().changed and store.pixels() == pixels


def test_images_that_wait_for_a_split_keep_their_bytes(store):
    data = store.data
    rows = data.ledger.index[~data.ledger["image_id"].isin(data.manifest["image_id"])]
    data.ledger.loc[rows, ["split", "group_id"]] = None
    assert waste(data).images == 0


def test_a_rejected_image_is_not_packed_at_every_ingest(store):
    kept = store.manifest.iloc[-1]
    other = next(label for label in CLASSES if label != kept["label"])
    shutil.copy(store.source / kept["path"], store.source / other / "conflict.png")
    store.ingest()
    assert kept["image_id"] not in set(store.manifest["image_id"])
    store.compact(share=1)
    assert store.data.ledger.set_index("image_id").loc[kept["image_id"], "shard"] == "unpacked"
    before = store.state()
    assert store.ingest().new == 0 and store.state() == before
    (store.source / other / "conflict.png").unlink()
    assert store.ingest().new == 1
    assert store.manifest.set_index("image_id").loc[kept["image_id"], "split"] == kept["split"]


def test_an_image_that_comes_back_and_could_not_be_read_is_tried_again(store, monkeypatch):
    left = len(store.manifest)
    store.compact(share=1)
    store.bring_back()
    packed = inspection.check
    with monkeypatch.context() as unread:
        unread.setattr(inspection, "check", refuse)  # the first pass knows the images by their names alone
        assert store.ingest().images == left and set(store.data.rejected["reason"]) == {"unreadable"}
    assert inspection.check is packed and store.ingest().images == 60


def refuse(*_: object) -> None:
    raise Rejected(Reason.UNREADABLE)


# Features


def test_a_rewritten_feature_file_has_the_format_that_extraction_writes(store, monkeypatch):
    monkeypatch.setattr(feature_files, "GROUP_BYTES", 4 * 8 * 2)  # of four rows
    before = set(shards.names(store.images))
    old = pq.read_schema(next((store.features / NARROW).iterdir()))
    store.compact(share=1)
    for shard in set(shards.names(store.images)) - before:
        file = pq.ParquetFile(store.features / NARROW / f"{shard}.parquet")
        assert file.schema_arrow.equals(old, check_metadata=True)
        members = [image for image, _ in shards.iter_places(store.images, shard)]
        assert file.read()["image_id"].to_pylist() == members
        sizes = [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]
        assert sizes[:-1] == [4] * (len(sizes) - 1) and 0 < sizes[-1] <= 4
        column = file.metadata.row_group(0).column(1)
        assert column.compression == "LZ4" and not column.is_stats_set
        assert column.encodings == ("PLAIN", "RLE") or "PLAIN" in column.encodings


def test_a_key_without_features_of_some_shards_keeps_those_of_the_others(store):
    found = waste(store.data).shards
    for shard in found[::2]:
        (store.features / WIDE / f"{shard}.parquet").unlink()
    before = store.values(store.features / WIDE)
    store.compact()
    after, left = store.values(store.features / WIDE), set(store.manifest["image_id"])
    assert {image: value for image, value in before.items() if image in left}.items() <= after.items()
    assert {path.stem for path in (store.features / NARROW).iterdir()} == set(shards.names(store.images))


def test_a_damaged_feature_file_is_left_to_extraction(store, caplog):
    path = store.features / WIDE / f"{waste(store.data).shards[0]}.parquet"
    pq.write_table(pq.read_table(path)[:0], path)
    store.compact()
    assert "images of its shard are missing; they will be extracted again" in caplog.text
    assert {file.stem for file in (store.features / WIDE).iterdir()} < set(shards.names(store.images))


def test_no_image_goes_through_the_backbone_again(store, tmp_path_factory):
    backbone = backbones.load(small_backbone(tmp_path_factory.getbasetemp()))
    key = extraction.extract(backbone, params.Extract(), store.images, store.features).key
    rows = store.manifest
    before = dict(zip(*gathered(Features(store.features / key, rows), rows), strict=True))
    store.compact()
    assert extraction.extract(backbone, params.Extract(), store.images, store.features).computed == 0
    rows = store.manifest
    assert dict(zip(*gathered(Features(store.features / key, rows), rows), strict=True)) == before


def gathered(chunks: Features, rows: pd.DataFrame) -> tuple[list[str], list[bytes]]:
    ordered = rows.sort_values(["shard", "offset"])["image_id"].tolist()
    return ordered, [row.tobytes() for x, _ in chunks for row in x]


def test_a_compaction_does_not_count_as_use_of_features(store):
    files.mark_used(store.features / WIDE, 1e9)
    store.compact()
    assert files.last_used(store.features / WIDE) == 1e9

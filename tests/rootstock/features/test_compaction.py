"""Compaction: sparse shards are rewritten; nothing else changes, even if it is interrupted."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rootstock.backbones import backbones
from rootstock.config import params
from rootstock.dataset import shards, tables
from rootstock.features import compaction, extraction, feature_files
from rootstock.features.compaction import CompactionResult, compact, waste
from rootstock.features.reader import Features
from rootstock.images.inspection import Reason, Rejected
from rootstock.ingest import inbox, packing, scan as scans
from rootstock.ingest.ingest import IngestResult, ingest
from rootstock.system import files
from rootstock.system.errors import ParamsError, SourceError
from tests.imports import ROOT
from tests.small_dataset import CLASSES, draw, small_backbone

MB = 2**20
WIDE, NARROW = "aaaaaaaaaaaa", "bbbbbbbbbbbb"  # keys


@dataclass(frozen=True)
class Store:
    """A dataset of three classes in shards of about ten images, and its features under two keys."""

    root: Path
    shard_mb: float = 0.05

    def __getattr__(self, name: str) -> Path:
        return self.root / name

    def ingest(self, delivery=None, **changed) -> IngestResult:
        settings = params.Ingest(
            sources=(params.Source(path=str(self.source), domain="studio"),),
            shard_mb=self.shard_mb, split=params.Split(val=0.2, test=0.2), allow_shrink=True, **changed,
        )  # fmt: skip
        return ingest(settings, 0, self.images, self.dataset, self.scratch, delivery)

    def compact(self, share: float = compaction.SHARE, shard_mb: float | None = None) -> CompactionResult:
        roots = [self.features, self.tried]
        shard_bytes = int((shard_mb or self.shard_mb) * MB)
        return compact(self.images, self.dataset, roots, self.scratch, shard_bytes, share)

    @property
    def data(self) -> tables.Dataset:
        return tables.load(self.dataset)

    @property
    def manifest(self) -> pd.DataFrame:
        return self.data.manifest

    def pixels(self) -> dict[str, bytes]:
        """The bytes of every image of the manifest, by its path."""
        with shards.Reader(self.images) as reader:
            rows = self.manifest[["path", "shard", "offset", "size"]].itertuples(index=False)
            return {path: reader.read(shard, offset, size) for path, shard, offset, size in rows}

    def values(self, key: Path) -> dict[str, bytes]:
        """The features of every image under a key."""
        tables = [pq.read_table(path) for path in sorted(key.glob("*.parquet"))]
        rows = pa.concat_tables(tables).to_pylist()
        return {row["image_id"]: np.array(row["feature"]).tobytes() for row in rows}

    def remove(self, share: float = 0.7) -> None:
        """Remove images of every class from the source: the first ones of every ten."""
        for label in CLASSES:
            for path in sorted((self.source / label).glob("*.png")):
                if int(path.stem) % 10 < 10 * share:
                    path.rename(self.aside / f"{label}-{path.name}")
        self.ingest()

    def bring_back(self) -> None:
        for path in self.aside.iterdir():
            label, _, name = path.name.partition("-")
            path.rename(self.source / label / name)

    def state(self) -> dict[str, bytes]:
        """Return the contents of all versioned files."""
        found = [path for folder in (self.images, self.dataset, self.features) for path in sorted(folder.rglob("*"))]
        return {str(path.relative_to(self.root)): path.read_bytes() for path in found if path.is_file()}


def fill(folder: Path, store: Store, dtype: str, names: list[str] | None = None) -> None:
    """Write features seeded by the image's id."""
    folder.mkdir(parents=True, exist_ok=True)
    scalar = pa.float16() if dtype == "float16" else pa.float32()
    schema = pa.schema(
        [("image_id", pa.string()), pa.field("feature", pa.list_(scalar, 8), nullable=False)],
        metadata={"rootstock": json.dumps({"backbone": "drawn", "dtype": dtype})},
    )
    for shard in names or shards.names(store.images):
        ids = [image for image, _ in shards.iter_places(store.images, shard)]
        drawn = [np.random.default_rng(list(image.encode())).normal(size=8).astype(dtype) for image in ids]
        column = pa.FixedSizeListArray.from_arrays(pa.array(np.concatenate(drawn), scalar), 8)
        pq.write_table(pa.Table.from_arrays([pa.array(ids), column], schema=schema), folder / f"{shard}.parquet")


@pytest.fixture(scope="module")
def sparse(tmp_path_factory) -> Store:
    """A dataset most of whose first images were removed; do not change it, copy it."""
    store = Store(tmp_path_factory.mktemp("sparse"))
    draw(store.source, images=14)
    store.aside.mkdir()
    store.ingest()
    draw(store.source, images=6, first=14)
    store.ingest()
    fill(store.features / WIDE, store, "float32")
    fill(store.features / NARROW, store, "float16")
    fill(store.tried / WIDE, store, "float32")
    store.remove()
    return store


@pytest.fixture
def store(sparse, tmp_path) -> Store:
    shutil.copytree(sparse.root, tmp_path / "store")
    copy = Store(tmp_path / "store")
    copy.ingest()  # its sources are elsewhere now: their files are looked at again
    return copy


def test_images_and_features_stay_as_they_were_and_bytes_are_freed(store):
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


def test_a_new_file_of_features_is_as_extraction_writes_it(store, monkeypatch):
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


def test_the_next_ingest_finds_nothing_to_do(store):
    store.compact()
    before = store.state()
    taken = store.ingest()
    assert (taken.new, taken.changed) == (0, False) and store.state() == before
    shutil.rmtree(store.scratch)  # as in another clone
    assert (store.ingest().new, store.state()) == (0, before)


def test_a_second_compaction_finds_nothing_to_do(store):
    store.compact()
    before = store.state()
    assert store.compact() == CompactionResult(0, 0, 0, 0, 0) and store.state() == before


def test_compacting_the_same_twice_gives_the_same_bytes(store, tmp_path):
    shutil.copytree(store.root, tmp_path / "other")
    other = Store(tmp_path / "other")
    store.compact(), other.compact()
    assert store.state() == other.state()


def test_images_that_return_are_packed_again_and_keep_their_split(store):
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


def test_an_image_that_comes_back_and_cannot_be_read_is_tried_again(store, monkeypatch):
    left = len(store.manifest)
    store.compact(share=1)
    store.bring_back()
    packed = packing.inspection.check
    with monkeypatch.context() as unread:
        unread.setattr(packing.inspection, "check", refuse)  # the first pass knows the images by their names alone
        assert store.ingest().images == left and set(store.data.rejected["reason"]) == {"unreadable"}
    assert packing.inspection.check is packed and store.ingest().images == 60


def refuse(*_: object) -> None:
    raise Rejected(Reason.UNREADABLE)


def test_images_that_wait_for_a_split_keep_their_bytes(store):
    data = store.data
    rows = data.ledger.index[~data.ledger["image_id"].isin(data.manifest["image_id"])]
    data.ledger.loc[rows, ["split", "group_id"]] = None
    assert waste(data).images == 0


def test_a_key_that_lacks_some_shards_loses_nothing_of_the_others(store):
    found = waste(store.data).shards
    for shard in found[::2]:
        (store.features / WIDE / f"{shard}.parquet").unlink()
    before = store.values(store.features / WIDE)
    store.compact()
    after, left = store.values(store.features / WIDE), set(store.manifest["image_id"])
    assert {image: value for image, value in before.items() if image in left}.items() <= after.items()
    assert {path.stem for path in (store.features / NARROW).iterdir()} == set(shards.names(store.images))


def test_a_damaged_file_of_features_is_left_to_extraction(store, caplog):
    path = store.features / WIDE / f"{waste(store.data).shards[0]}.parquet"
    pq.write_table(pq.read_table(path)[:0], path)
    store.compact()
    assert "images of its shard are missing; they will be extracted again" in caplog.text
    assert {file.stem for file in (store.features / WIDE).iterdir()} < set(shards.names(store.images))


def test_nothing_goes_through_the_backbone_again(store, tmp_path_factory):
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


class Killed(BaseException):
    pass


def killed() -> None:
    raise Killed


STEPS = (
    "shard", "features", "scan", "ledger begins", "ledger", "manifest begins", "manifest", "summary", "old features",
    "old shard",
)  # fmt: skip


@pytest.mark.parametrize("nth", [1, 2])
@pytest.mark.parametrize("step", STEPS)
def test_a_kill_at_any_moment_loses_nothing(store, monkeypatch, step, nth):
    before = facts(store)
    with monkeypatch.context() as until_killed:
        die_at(until_killed, step, nth, killed)
        try:
            store.compact()
        except Killed:
            pass
        else:
            assert nth == 2  # the first there is
    store.ingest()
    assert store.pixels() == before[0]
    check_mended(store, before)


KILLED = """
import os, sys
from pathlib import Path
import pytest
from tests.rootstock.features.test_compaction import STEPS, Store, die_at

for step in STEPS:
    child = os.fork()
    if child == 0:
        die_at(pytest.MonkeyPatch(), step, 1, lambda: os._exit(9))
        Store(Path(sys.argv[1]) / step).compact()
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9, step
"""


@pytest.mark.slow
def test_a_process_that_is_killed_leaves_nothing_that_the_next_one_cannot_mend(store, tmp_path):
    before = facts(store)
    for step in STEPS:
        shutil.copytree(store.root, tmp_path / "killed" / step)
    command = [sys.executable, "-c", KILLED, tmp_path / "killed"]
    subprocess.run(command, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, check=True, timeout=120)
    for step in STEPS:
        check_mended(Store(tmp_path / "killed" / step), before)


def facts(store: Store) -> tuple[dict[str, bytes], dict[str, str], dict[str, dict[str, bytes]]]:
    """What a compaction must not change: images by path, splits, features by key."""
    splits = store.data.ledger.set_index("image_id")["split"].to_dict()
    return store.pixels(), splits, {key: store.values(store.features / key) for key in (WIDE, NARROW)}


def check_mended(store: Store, before: tuple) -> None:
    """Compact once more, and compare the contents with those before."""
    pixels, splits, values = before
    store.compact()
    assert (store.pixels(), store.data.ledger.set_index("image_id")["split"].to_dict()) == (pixels, splits)
    assert waste(store.data).shards == ()
    for key, known in values.items():
        assert {path.stem for path in (store.features / key).iterdir()} == set(shards.names(store.images))
        assert store.values(store.features / key).items() <= known.items()
    assert set(store.data.ledger["shard"]) - {"unpacked"} == set(shards.names(store.images))
    state = store.state()
    assert not [name for name in state if ".tmp" in name or ".next" in name]
    assert not store.ingest().changed and store.state() == state


def die_at(monkeypatch, step: str, nth: int, die: Callable[[], object]) -> None:
    """Kill a compaction just before its nth operation."""
    seen = 0

    def counted(hit: bool) -> None:
        nonlocal seen
        seen += hit
        if hit and seen == nth:
            die()

    replace, unlink, forget = Path.replace, Path.unlink, scans.Scan.forget_packed_except

    def replacing(path: Path, target: Path) -> Path:
        place = "/".join(Path(target).parts[-3:])
        counted(
            {
                "shard": place.endswith(".tar"),
                "features": "features/" in place,
                "ledger begins": place.endswith("ledger.next"),
                "ledger": "ledger.parquet/" in place,
                "manifest begins": place.endswith("manifest.next"),
                "manifest": "manifest.parquet/" in place,
                "summary": place.endswith("summary.json"),
            }.get(step, False)
        )
        return replace(path, target)

    def unlinking(path: Path, missing_ok: bool = False) -> None:
        counted(
            {
                "old features": "features" in path.parts and path.suffix == ".parquet",
                "old shard": path.suffix == ".tar",
            }.get(step, False)
        )
        return unlink(path, missing_ok=missing_ok)

    def forgetting(self, names) -> None:
        counted(step == "scan")
        return forget(self, names)

    monkeypatch.setattr(Path, "replace", replacing)
    monkeypatch.setattr(Path, "unlink", unlinking)
    monkeypatch.setattr(scans.Scan, "forget_packed_except", forgetting)


def test_an_empty_shard_is_removed_without_a_replacement(store):
    [shard, *others] = shards.names(store.images)
    for path in store.manifest.pipe(lambda rows: rows[rows["shard"] == shard])["path"]:
        (store.source / path).unlink()
    store.ingest()
    done = store.compact(share=1e-9)
    assert (done.removed, done.written, done.copied) == (1, 0, 0) and shards.names(store.images) == others
    assert not store.ingest().changed


@pytest.mark.parametrize("share", [0, -1, 1.5])
def test_a_share_that_is_none_is_an_error(store, share):
    with pytest.raises(ParamsError, match="expected a share above 0 and up to 1"):
        store.compact(share=share)


def test_without_a_data_set_or_a_shard_it_is_an_error_and_nothing_is_removed(store):
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


def test_what_is_gone_is_counted(store):
    found = waste(store.data)
    assert found.images == len(store.data.ledger) - len(store.manifest) > 0
    assert found.bytes >= found.freed > 0 and set(found.shards) < set(shards.names(store.images))

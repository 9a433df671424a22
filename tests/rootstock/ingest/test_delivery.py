"""Delivered images are ingested like those of any source, and stay in the dataset when they have left the inbox."""

import hashlib
import shutil
from pathlib import Path

import pandas as pd
import pytest

from rootstock.config import params
from rootstock.dataset import tables
from rootstock.dataset.shards import Reader
from rootstock.ingest.ingest import ingest
from rootstock.system.errors import SourceError
from tests.deliveries import delivery_in
from tests.images import picture, put


class Taking:
    """A dataset with a folder and an inbox as sources."""

    def __init__(self, root: Path) -> None:
        self.root, self.inbox, self.photos = root, root / "inbox", root / "photos"
        for number in range(12):
            put(self.photos / ("ant" if number % 2 else "bee") / f"{number}.png", picture(number))

    def take(self, *, deliver: bool = True) -> pd.DataFrame:
        settings = params.Ingest(sources=(params.Source(path=str(self.photos), domain="garden"),))
        delivery = delivery_in(self.inbox).labelled if deliver else None
        ingest(settings, 0, self.root / "images", self.root / "dataset", self.root / "scratch", delivery)
        return tables.load_manifest(self.root / "dataset")

    def files(self) -> dict[str, bytes]:
        made = [path for name in ("images", "dataset") for path in (self.root / name).rglob("*") if path.is_file()]
        return {str(path.relative_to(self.root)): path.read_bytes() for path in made}

    def deliver(self, label: str, *numbers: int) -> None:
        for number in numbers:
            put(self.inbox / "shed" / label / f"{number}.png", picture(number))

    def check(self, manifest: pd.DataFrame) -> None:
        with Reader(self.root / "images") as reader:
            for row in manifest.itertuples():
                assert hashlib.sha256(reader.read(row.shard, row.offset, row.size)).hexdigest() == row.image_id


@pytest.fixture
def taking(tmp_path) -> Taking:
    return Taking(tmp_path)


def test_delivered_images_are_packed_into_new_shards_and_keep_their_domain(taking):
    taking.take()
    before = taking.files()
    taking.deliver("ant", *range(100, 106))
    manifest = taking.take()
    assert manifest["domain"].value_counts().to_dict() == {"garden": 12, "shed": 6}
    now = taking.files()
    kept = {name: data for name, data in before.items() if name.endswith((".tar", ".parquet")) and "/0000" in name}
    assert len(kept) == 3
    assert {name: now[name] for name in kept} == kept
    taking.check(manifest)


def test_they_stay_when_they_leave_the_inbox_and_without_a_look_into_it_not_a_byte_changes(taking):
    taking.deliver("ant", *range(100, 106))
    taking.take()
    before = taking.files()
    taking.take()
    assert taking.files() == before
    taking.take(deliver=False)
    assert taking.files() == before
    shutil.rmtree(taking.inbox)
    manifest = taking.take()
    assert (manifest["domain"] == "shed").sum() == 6
    assert (taking.photos / "ant" / "1.png").exists()
    (taking.photos / "ant" / "1.png").unlink()
    assert len(taking.take()) == 17  # images of a folder go with their files


def test_an_image_that_is_delivered_again_under_another_label_takes_that(taking):
    taking.deliver("ant", *range(100, 106))
    taking.take()
    shutil.rmtree(taking.inbox)
    taking.deliver("bee", 100, 101)
    manifest = taking.take()
    assert manifest.loc[manifest["domain"] == "shed", "label"].value_counts().to_dict() == {"ant": 4, "bee": 2}
    assert len({row.shard for row in manifest.itertuples()}) == 2  # nothing was packed again


@pytest.mark.parametrize(
    ("label", "said"),
    [("Ant", "'Ant'.*'ant'"), ("ant (1)", "looks like a copy of 'ant'"), ("train", "named like a split"),
     ("masks", "named like masks or annotations"), ("new/ant", "new/ contains ant/, which is also a class beside it"),
     ("2024-05-01", "2024-05-01/, named like a year, camera or batch")],
)  # fmt: skip
def test_a_delivered_class_that_is_hardly_a_new_one_is_refused(taking, label, said):
    taking.take()
    before = taking.files()
    taking.deliver(label, *range(100, 106))
    with pytest.raises(SourceError, match=said):
        taking.take()
    assert {name for name in taking.files() if not name.startswith("images/")} == {
        name for name in before if not name.startswith("images/")
    }


def test_a_really_new_class_may_come_and_its_label_is_spelt_as_all_are(taking):
    taking.take()
    taking.deliver("  red   wasp ", *range(100, 106))
    assert set(taking.take()["label"]) == {"ant", "bee", "red wasp"}


def test_after_a_delivery_was_put_back_the_next_one_is_taken_in_whole(taking):
    taking.take()
    for name in ("images", "dataset"):
        shutil.copytree(taking.root / name, taking.root / "before" / name)
    taking.deliver("ant", *range(100, 106))
    taking.take()
    for name in ("images", "dataset"):  # as DVC checks out the earlier version; the scan cache knows nothing of it
        shutil.rmtree(taking.root / name)
        shutil.copytree(taking.root / "before" / name, taking.root / name)
    shutil.rmtree(taking.inbox)
    taking.deliver("bee", *range(103, 112))
    manifest = taking.take()
    assert manifest.loc[manifest["domain"] == "shed", "label"].tolist() == ["bee"] * 9
    taking.check(manifest)
    ledger = tables.load(taking.root / "dataset").ledger
    assert len(ledger) == len(manifest) == 21

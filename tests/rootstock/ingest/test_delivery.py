"""Delivered images are ingested like those of any source, and stay in the dataset when they have left the inbox."""

import hashlib
import shutil
from pathlib import Path

import pandas as pd
import pytest

from rootstock.config import params
from rootstock.dataset import tables
from rootstock.dataset.shards import Reader
from rootstock.ingest import delivered_splits, inbox, saving
from rootstock.ingest.ingest import ingest
from rootstock.ingest.layout import Item
from rootstock.system.errors import SourceError
from tests.deliveries import delivery_in
from tests.images import picture, put


class DatasetWithInbox:
    """A dataset with a folder and an inbox as sources."""

    def __init__(self, root: Path) -> None:
        self.root, self.inbox, self.photos = root, root / "inbox", root / "photos"
        for number in range(12):
            put(self.photos / ("ant" if number % 2 else "bee") / f"{number}.png", picture(number))

    def ingest(self, *, deliver: bool = True, seed: int = 0) -> pd.DataFrame:
        settings = params.Ingest(sources=(params.Source(path=str(self.photos), domain="garden"),))
        delivery = delivery_in(self.inbox).labelled if deliver else None
        ingest(settings, seed, self.root / "images", self.root / "dataset", self.root / "scratch", delivery)
        return tables.load_manifest(self.root / "dataset")

    def files(self) -> dict[str, bytes]:
        made = [path for name in ("images", "dataset") for path in (self.root / name).rglob("*") if path.is_file()]
        return {str(path.relative_to(self.root)): path.read_bytes() for path in made}

    def keep(self) -> None:
        for name in ("images", "dataset"):
            shutil.copytree(self.root / name, self.root / "before" / name)

    def undo(self) -> None:
        """Restore what was kept, as DVC checks out an earlier version; the scan cache knows nothing of it."""
        for name in ("images", "dataset"):
            shutil.rmtree(self.root / name)
            shutil.copytree(self.root / "before" / name, self.root / name)

    def deliver(self, label: str, *numbers: int) -> None:
        for number in numbers:
            put(self.inbox / "shed" / label / f"{number}.png", picture(number))

    def check(self, manifest: pd.DataFrame) -> None:
        with Reader(self.root / "images") as reader:
            for row in manifest.itertuples():
                assert hashlib.sha256(reader.read(row.shard, row.offset, row.size)).hexdigest() == row.image_id


@pytest.fixture
def dataset(tmp_path) -> DatasetWithInbox:
    return DatasetWithInbox(tmp_path)


def test_a_delivery_still_lists_its_files_after_it_was_ingested(dataset):
    dataset.deliver("ant", *range(100, 106))
    delivery = delivery_in(dataset.inbox)
    before = delivery.signature()
    settings = params.Ingest(sources=(params.Source(path=str(dataset.photos), domain="garden"),))
    ingest(settings, 0, *(dataset.root / name for name in ("images", "dataset", "scratch")), delivery.labelled)
    assert len(delivery.labelled.items) == 6 and delivery.signature() == before  # by which it is known, and cleared


def test_delivered_images_are_packed_into_new_shards_and_keep_their_domain(dataset):
    dataset.ingest()
    before = dataset.files()
    dataset.deliver("ant", *range(100, 106))
    manifest = dataset.ingest()
    assert manifest["domain"].value_counts().to_dict() == {"garden": 12, "shed": 6}
    now = dataset.files()
    kept = {name: data for name, data in before.items() if name.endswith((".tar", ".parquet")) and "/0000" in name}
    assert len(kept) == 3
    assert {name: now[name] for name in kept} == kept
    dataset.check(manifest)


def test_delivered_images_stay_in_the_dataset_when_they_have_left_the_inbox(dataset):
    dataset.deliver("ant", *range(100, 106))
    dataset.ingest()
    before = dataset.files()
    dataset.ingest()
    assert dataset.files() == before
    dataset.ingest(deliver=False)
    assert dataset.files() == before
    shutil.rmtree(dataset.inbox)
    manifest = dataset.ingest()
    assert (manifest["domain"] == "shed").sum() == 6
    assert (dataset.photos / "ant" / "1.png").exists()
    (dataset.photos / "ant" / "1.png").unlink()
    assert len(dataset.ingest()) == 17  # images of a folder go with their files


def test_an_image_delivered_again_with_another_label_takes_that_label(dataset):
    dataset.deliver("ant", *range(100, 106))
    dataset.ingest()
    shutil.rmtree(dataset.inbox)
    dataset.deliver("bee", 100, 101)
    manifest = dataset.ingest()
    assert manifest.loc[manifest["domain"] == "shed", "label"].value_counts().to_dict() == {"ant": 4, "bee": 2}
    assert len({row.shard for row in manifest.itertuples()}) == 2  # nothing was packed again


@pytest.mark.parametrize(
    ("label", "said"),
    [("Ant", "'Ant'.*'ant'"), ("ant (1)", "looks like a copy of 'ant'"), ("train", "named like a split"),
     ("masks", "named like masks or annotations"), ("new/ant", "new/ contains ant/, which is also a class beside it"),
     ("2024-05-01", "2024-05-01/, named like a year, camera or batch")],
)  # fmt: skip
def test_a_delivered_class_that_is_probably_a_mistake_is_an_error(dataset, label, said):
    dataset.ingest()
    before = dataset.files()
    dataset.deliver(label, *range(100, 106))
    with pytest.raises(SourceError, match=said):
        dataset.ingest()
    assert {name for name in dataset.files() if not name.startswith("images/")} == {
        name for name in before if not name.startswith("images/")
    }


def test_a_new_class_may_be_delivered_and_its_label_is_normalised(dataset):
    dataset.ingest()
    dataset.deliver("  red   wasp ", *range(100, 106))
    assert set(dataset.ingest()["label"]) == {"ant", "bee", "red wasp"}


def test_after_a_delivery_was_undone_the_next_one_is_ingested_completely(dataset):
    dataset.ingest()
    dataset.keep()
    dataset.deliver("ant", *range(100, 106))
    dataset.ingest()
    dataset.undo()
    shutil.rmtree(dataset.inbox)
    dataset.deliver("bee", *range(103, 112))
    manifest = dataset.ingest()
    assert manifest.loc[manifest["domain"] == "shed", "label"].tolist() == ["bee"] * 9
    dataset.check(manifest)
    ledger = tables.load(dataset.root / "dataset").ledger
    assert len(ledger) == len(manifest) == 21


def test_images_of_a_delivery_that_waits_keep_their_splits_when_more_arrives(dataset):
    dataset.ingest()
    dataset.keep()
    dataset.deliver("ant", *range(100, 160))
    first = dataset.ingest().set_index("image_id")["split"]
    for more in (range(160, 200), range(200, 330)):
        dataset.undo()
        dataset.deliver("ant", *more)
        now = dataset.ingest()
        assert now.set_index("image_id")["split"][first.index].equals(first)
        of_shed = now[now["domain"] == "shed"]["split"].value_counts(normalize=True)
        assert of_shed["test"] == pytest.approx(0.15, abs=0.03) and of_shed["val"] == pytest.approx(0.15, abs=0.03)


def test_what_a_killed_run_had_ingested_of_a_delivery_keeps_its_splits_too(dataset):
    dataset.ingest()
    dataset.keep()
    dataset.deliver("ant", *range(100, 140))
    dataset.ingest()  # by a run that is killed afterwards
    dataset.deliver("ant", *range(140, 180))
    first = dataset.ingest().set_index("image_id")["split"]
    dataset.undo()
    dataset.deliver("ant", *range(180, 300))
    assert dataset.ingest().set_index("image_id")["split"][first.index].equals(first)


def test_a_run_killed_before_it_wrote_the_dataset_leaves_the_splits_of_a_delivery(dataset, monkeypatch):
    dataset.ingest()
    dataset.keep()
    dataset.deliver("ant", *range(100, 140))
    monkeypatch.setattr(saving, "save", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        dataset.ingest()
    monkeypatch.undo()
    first = dataset.ingest().set_index("image_id")["split"]
    dataset.undo()
    dataset.deliver("ant", *range(180, 300))
    assert dataset.ingest().set_index("image_id")["split"][first.index].equals(first)


def test_another_seed_draws_the_splits_of_a_delivery_that_waits_anew(dataset):
    dataset.ingest()
    dataset.keep()
    dataset.deliver("ant", *range(100, 160))
    first = dataset.ingest().set_index("image_id")["split"]
    dataset.undo()
    dataset.deliver("ant", 160)
    assert not dataset.ingest(seed=1).set_index("image_id")["split"][first.index].equals(first)
    dataset.undo()
    (dataset.root / "scratch" / delivered_splits.NAME).write_bytes(b"damaged")
    dataset.deliver("ant", 161)
    assert len(dataset.ingest()) == 74


def test_a_new_class_that_may_be_a_known_one_misspelt_is_a_warning(dataset, caplog):
    dataset.ingest()
    dataset.deliver("bees", *range(100, 106))
    dataset.ingest()
    assert "retrain.inbox: 'bees' is a new class; if 'bee' is meant, rename its folder" in caplog.text
    dataset.deliver("wasp", *range(110, 116))
    dataset.ingest()
    assert "'wasp'" not in caplog.text


def test_a_set_of_known_classes_is_no_misspelt_one(caplog):
    items = [Item(f"shed/elephant;ant/{number}.png", "ant;elephant", "shed", (), "") for number in range(3)]
    inbox.check_classes(items, ["ant", "elephant"], multi_label=True)
    assert caplog.text == ""
    inbox.check_classes([items[0]._replace(label="ant;elefant")], ["ant", "elephant"], multi_label=True)
    assert "'elefant' is a new class; if 'elephant' is meant" in caplog.text

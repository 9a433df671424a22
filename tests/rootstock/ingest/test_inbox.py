"""The inbox: which files are a delivery, which wait for the next run, where files go, and what stays ingested."""

import hashlib
import shutil
from pathlib import Path

import fsspec
import pandas as pd
import pytest

from rootstock.config import params
from rootstock.dataset import tables
from rootstock.dataset.shards import Reader
from rootstock.images.inspection import Reason, Rejected
from rootstock.ingest import inbox
from rootstock.ingest.ingest import ingest
from rootstock.system.errors import SourceError
from tests.images import picture, put


def look(folder: Path | str) -> inbox.Delivery:
    return inbox.list_delivery(str(folder), 0)


def items(files) -> dict[str, tuple[str, str]]:
    return {item.path: (item.domain, item.label) for item in files.items}


@pytest.fixture
def memory():
    """An empty remote store."""
    store = fsspec.filesystem("memory")
    store.store.clear()
    yield store
    store.store.clear()


def test_a_delivery_is_domain_class_image(tmp_path):
    for name in ("shed/ant/1.png", "shed/ant/deep/2.png", "barn/bee/3.png", "shed/_unlabelled/4.png"):
        put(tmp_path / name, len(name))
    for name in ("README.md", ".DS_Store", "_taken/shed/ant/0.png", "_rejected/shed/ant/0.png", "shed/ant/.hidden.png"):
        put(tmp_path / name, b"no delivery")
    delivery = look(tmp_path)
    assert items(delivery.labelled) == {
        "barn/bee/3.png": ("barn", "bee"), "shed/ant/1.png": ("shed", "ant"), "shed/ant/deep/2.png": ("shed", "ant"),
    }  # fmt: skip
    assert items(delivery.unlabelled) == {"shed/_unlabelled/4.png": ("shed", "_unlabelled")}
    assert delivery.unsettled == 0


def test_files_without_a_class_are_delivered_and_will_be_rejected(tmp_path):
    for name in ("alone.png", "shed/1.png", "shed/_odd/2.png"):
        put(tmp_path / name, 1)
    put(tmp_path / "shed" / "ant" / "notes.txt", b"text")
    for number in range(4):
        put(tmp_path / "shed" / "ant" / f"{number}.png", number)
    problems = {item.path: item.problem for item in look(tmp_path).labelled.items if item.problem}
    assert problems == {
        "alone.png": Reason.NO_LABEL, "shed/1.png": Reason.NO_LABEL, "shed/_odd/2.png": Reason.NO_LABEL,
        "shed/ant/notes.txt": Reason.NOT_AN_IMAGE,
    }  # fmt: skip


def test_an_inbox_that_is_not_there_is_empty_and_one_that_is_a_file_is_an_error(tmp_path):
    assert items(look(tmp_path / "nowhere").labelled) == {}
    put(tmp_path / "file", b"x")
    with pytest.raises(SourceError, match="is a file; expected a folder with one subfolder per domain"):
        look(tmp_path / "file")
    with pytest.raises(SourceError, match=r"retrain\.inbox: nonsense://x cannot be reached"):
        look("nonsense://x")


def test_a_file_that_grows_between_two_looks_is_left_for_the_next_time(tmp_path, monkeypatch):
    put(tmp_path / "shed" / "ant" / "whole.png", 1)
    growing = put(tmp_path / "shed" / "ant" / "growing.png", b"half")
    late = tmp_path / "shed" / "ant" / "late.png"

    def meanwhile(seconds: float) -> None:
        assert seconds == 7
        growing.write_bytes(b"half and more")
        put(late, 2)

    monkeypatch.setattr("rootstock.ingest.inbox.time.sleep", meanwhile)
    delivery = inbox.list_delivery(str(tmp_path), 7)
    assert list(items(delivery.labelled)) == ["shed/ant/whole.png"]
    assert delivery.unsettled == 2


def test_another_listing_has_another_signature(tmp_path):
    put(tmp_path / "shed" / "ant" / "1.png", 1)
    one = look(tmp_path).signature()
    assert look(tmp_path).signature() == one
    put(tmp_path / "shed" / "_unlabelled" / "2.png", 2)
    assert look(tmp_path).signature() == one  # only labelled images count
    put(tmp_path / "shed" / "ant" / "2.png", 2)
    assert look(tmp_path).signature() != one


def test_files_are_put_away_or_deleted_but_none_that_was_replaced_since(tmp_path):
    for name in ("a", "b", "c"):
        put(tmp_path / "shed" / "ant" / f"{name}[1].png", ord(name))
    put(tmp_path / "_taken" / "shed" / "ant" / "a[1].png", b"an earlier delivery's")
    delivery = look(tmp_path)
    put(tmp_path / "shed" / "ant" / "c[1].png", b"replaced")
    inbox.move_files(delivery, ["shed/ant/a[1].png", "shed/ant/c[1].png"], inbox.TAKEN)
    inbox.delete(delivery, ["shed/ant/b[1].png"])
    left = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.png"))
    assert left == ["_taken/shed/ant/a[1]-2.png", "_taken/shed/ant/a[1].png", "shed/ant/c[1].png"]


def test_a_store_that_is_no_folder_serves_as_well(memory, tmp_path):
    path = put(tmp_path / "x.png", 1)
    memory.pipe("/bucket/inbox/shed/ant/1.png", path.read_bytes())
    memory.pipe("/bucket/inbox/shed/_unlabelled/2.png", path.read_bytes())
    delivery = look("memory://bucket/inbox")
    assert items(delivery.labelled) == {"shed/ant/1.png": ("shed", "ant")}
    [(_, load)] = delivery.labelled.read({"shed/ant/1.png"})
    assert load() == path.read_bytes()
    inbox.move_files(delivery, ["shed/ant/1.png"], inbox.TAKEN)
    assert memory.find("/bucket/inbox") == [
        "/bucket/inbox/_taken/shed/ant/1.png", "/bucket/inbox/shed/_unlabelled/2.png"
    ]  # fmt: skip


# What is not a delivery, and what is never changed


def everything(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_links_are_listed_as_what_they_are_and_nothing_behind_them_is(tmp_path):
    outside = put(tmp_path / "photos" / "bee" / "1.png", 1).parent
    for number in range(4):
        put(tmp_path / "inbox" / "shed" / "ant" / f"{number}.png", number + 10)
    (tmp_path / "inbox" / "linked").symlink_to(tmp_path / "photos")
    (tmp_path / "inbox" / "shed" / "bee").symlink_to(outside)
    (tmp_path / "inbox" / "shed" / "ant" / "link.png").symlink_to(outside / "1.png")
    delivery = look(tmp_path / "inbox")
    problems = {item.path: item.problem for item in delivery.labelled.items if item.problem}
    assert problems == dict.fromkeys(["linked", "shed/ant/link.png", "shed/bee"], Reason.UNSAFE_PATH)
    inbox.delete(delivery, [item.path for item in delivery.labelled.items])
    assert list(everything(tmp_path / "photos")) == ["bee/1.png"]
    assert (tmp_path / "inbox" / "linked").is_symlink() and (tmp_path / "inbox" / "shed" / "bee").is_symlink()
    assert not (tmp_path / "inbox" / "shed" / "ant" / "0.png").exists()


@pytest.mark.parametrize("act", [inbox.delete, lambda delivery, paths: inbox.move_files(delivery, paths, inbox.TAKEN)])
@pytest.mark.parametrize("swapped", ["shed", "shed/ant", "_taken", "_taken/shed"])
def test_a_folder_that_became_a_link_since_leads_nowhere(tmp_path, act, swapped):
    put(tmp_path / "inbox" / "shed" / "ant" / "1.png", 1)
    delivery = look(tmp_path / "inbox")
    other = tmp_path / "other" / "ant"
    shutil.copytree(tmp_path / "inbox" / "shed" / "ant", other)  # the same size, time and name
    shutil.copytree(tmp_path / "inbox" / "shed" / "ant", tmp_path / "other" / "x")
    shutil.rmtree(tmp_path / "inbox" / swapped, ignore_errors=True)
    (tmp_path / "inbox" / swapped).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / "inbox" / swapped).symlink_to(other if swapped.endswith("ant") else other.parent)
    before = everything(tmp_path / "other")
    try:
        act(delivery, ["shed/ant/1.png"])
    except SourceError as error:
        assert "retrain.after" in str(error)
    assert everything(tmp_path / "other") == before


@pytest.mark.parametrize("swapped", ["shed", "shed/ant", "shed/ant/1.png"])
def test_what_became_a_link_since_is_not_read_through(tmp_path, swapped):
    put(tmp_path / "inbox" / "shed" / "ant" / "1.png", 1)
    put(tmp_path / "inbox" / "shed" / "_unlabelled" / "2.png", 2)
    delivery = look(tmp_path / "inbox")
    [(_, load)] = delivery.labelled.read({"shed/ant/1.png"})
    assert load() == (tmp_path / "inbox" / "shed" / "ant" / "1.png").read_bytes()
    (tmp_path / "inbox" / "shed").rename(tmp_path / "other")
    if swapped != "shed":
        (tmp_path / "inbox" / swapped).parent.mkdir(parents=True)
    (tmp_path / "inbox" / swapped).symlink_to(tmp_path / swapped.replace("shed", "other"))
    assert (tmp_path / "inbox" / "shed" / "ant" / "1.png").exists()
    with pytest.raises(Rejected, match="unreadable"):
        load()
    if swapped == "shed":
        [(_, load)] = delivery.unlabelled.read({"shed/_unlabelled/2.png"})
        with pytest.raises(Rejected, match="unreadable"):
            load()


def test_only_images_of_the_delivery_are_moved_or_removed(tmp_path):
    for number in range(4):
        put(tmp_path / "shed" / "ant" / f"{number}.png", number)
    put(tmp_path / "shed" / "ant" / "notes.txt", b"mine")
    put(tmp_path / "shed" / "loose.png", 9)
    before = everything(tmp_path)
    delivery = look(tmp_path)
    later = put(tmp_path / "shed" / "ant" / "later.png", 10)
    paths = ["shed/ant/notes.txt", "shed/loose.png", "shed/ant/later.png", "../x", "shed/ant", "nowhere/1.png"]
    inbox.delete(delivery, paths)
    inbox.move_files(delivery, paths, inbox.REJECTED)
    assert everything(tmp_path) == before | {"shed/ant/later.png": later.read_bytes()}


@pytest.mark.parametrize(
    ("place", "why"),
    [
        ("/", "is the root of the file system"), ("~", "is or contains a home folder"), ("~/..", "contains a home"),
        ("/etc", "is a system folder"), ("/usr/share", "is a system folder"), ("/proc/self", "is a system folder"),
        ("workspace", "contains the workspace"), ("workspace/..", "contains a home"),
        ("workspace/photos", "lies in the workspace, but not in data/inbox"), ("workspace/data", "in the workspace"),
        ("workspace/.rootstock/x", "lies in the workspace"), ("workspace/data/inbox2", "lies in the workspace"),
        ("source", "shares files with the source"), ("source/deep", "shares files"), ("linked", "shares"),
        ("file", "is a file"), ("workspace/data/inbox", ""), ("workspace/data/inbox/late", ""), ("elsewhere", ""),
    ],
)  # fmt: skip
def test_a_folder_that_cannot_be_an_inbox_is_refused_before_it_is_looked_into(tmp_path, monkeypatch, place, why):
    for name in ("home/me", "workspace/data/inbox/late", "workspace/photos", "source/deep", "elsewhere"):
        (tmp_path / name).mkdir(parents=True)
    put(tmp_path / "file", b"x")
    (tmp_path / "linked").symlink_to(tmp_path / "source")
    monkeypatch.setenv("HOME", str(tmp_path / "home" / "me"))
    monkeypatch.chdir(tmp_path / "workspace")
    url = str(tmp_path / place) if place[0] not in "/~" else place.replace("~", str(tmp_path / "home" / "me"))
    source = params.Source(path=str(tmp_path / "source"), domain="garden")
    for spelt in (url, f"file://{url}"):
        if why:
            with pytest.raises(SourceError, match=why):
                inbox.list_delivery(spelt, 0, [source])
        else:
            assert items(inbox.list_delivery(spelt, 0, [source]).labelled) == {}


@pytest.mark.parametrize(
    ("url", "source"),
    [
        ("s3://bucket/photos", "s3://bucket/photos"), ("s3://bucket/photos/new", "s3a://bucket/photos"),
        ("s3://bucket", "s3://bucket/photos/set.zip"), ("s3://bucket/x", "zip://a.csv::s3://bucket/x/a.zip"),
        ("~/x", "{home}/x"), ("{home}/x", "~/x/y"), ("{home}/x", "simplecache::file://{home}"),
    ],
)  # fmt: skip
def test_an_inbox_that_shares_files_with_a_source_is_refused_wherever_it_is(tmp_path, monkeypatch, url, source):
    monkeypatch.setenv("HOME", str(tmp_path))
    sources = [params.Source(path=source.format(home=tmp_path), domain="garden")]
    with pytest.raises(SourceError, match="shares files with the source"):
        inbox.list_delivery(url.format(home=tmp_path), 0, sources)


@pytest.mark.parametrize("url", ["simplecache::/", "filecache::file://{folder}", "zip://::{folder}/x.zip", "tar://"])
def test_an_inbox_behind_a_cache_or_an_archive_is_refused_unseen(tmp_path, url):
    put(tmp_path / "shed" / "ant" / "1.png", 1)
    with pytest.raises(
        SourceError, match=r"is chained through (simplecache|filecache|zip|tar): expected a dedicated folder"
    ):
        look(url.format(folder=tmp_path))


def test_a_file_that_is_about_an_image_does_not_count_against_an_inbox(tmp_path):
    for number in range(3):
        put(tmp_path / "shed" / "ant" / f"{number}.png", number)
        for ending in ("json", "txt", "xml"):
            put(tmp_path / "shed" / "ant" / f"{number}.{ending}", b"about it")
    assert sum(item.problem is None for item in look(tmp_path).labelled.items) == 3


@pytest.mark.parametrize("others", [["a/notes.txt", "b/c/d.pdf"], ["1.png", "shed/2.png"], ["shed/_old/1.png"] * 2])
def test_a_folder_that_holds_mostly_other_things_is_no_inbox(tmp_path, others):
    for name in others:
        put(tmp_path / name, 1 if name.endswith("png") else b"mine")
    with pytest.raises(SourceError, match=r"files other than images in <domain>/<class>/ \(.*, but only 0 images"):
        look(tmp_path)
    for number in range(3):
        put(tmp_path / "shed" / "ant" / f"{number}.png", number)
    assert len(look(tmp_path).labelled.items) == 3 + len(set(others))


# Ingested images stay


class Taking:
    """A dataset with a folder and an inbox as sources."""

    def __init__(self, root: Path) -> None:
        self.root, self.inbox, self.photos = root, root / "inbox", root / "photos"
        for number in range(12):
            put(self.photos / ("ant" if number % 2 else "bee") / f"{number}.png", picture(number))

    def take(self, *, deliver: bool = True) -> pd.DataFrame:
        settings = params.Ingest(sources=(params.Source(path=str(self.photos), domain="garden"),))
        delivery = look(self.inbox).labelled if deliver else None
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

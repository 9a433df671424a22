"""The inbox: which files are a delivery, which wait for the next run, where its files go, and which stay untouched."""

import shutil
from pathlib import Path

import pytest

from rootstock.images.inspection import Reason, Rejected
from rootstock.ingest import inbox
from rootstock.system.errors import SourceError
from tests.deliveries import delivery_in, items
from tests.images import put

# Deliveries


def test_a_delivery_is_the_images_in_domain_and_class_folders(tmp_path):
    for name in ("shed/ant/1.png", "shed/ant/deep/2.png", "barn/bee/3.png", "shed/_unlabelled/4.png"):
        put(tmp_path / name, len(name))
    for name in ("README.md", ".DS_Store", "_taken/shed/ant/0.png", "_rejected/shed/ant/0.png", "shed/ant/.hidden.png"):
        put(tmp_path / name, b"no delivery")
    delivery = delivery_in(tmp_path)
    assert items(delivery.labelled) == {
        "barn/bee/3.png": ("barn", "bee"), "shed/ant/1.png": ("shed", "ant"), "shed/ant/deep/2.png": ("shed", "ant"),
    }  # fmt: skip
    assert items(delivery.unlabelled) == {"shed/_unlabelled/4.png": ("shed", "_unlabelled")}
    assert delivery.unsettled == 0


def test_files_outside_class_folders_belong_to_the_delivery_with_a_reason_for_rejection(tmp_path):
    for name in ("alone.png", "shed/1.png", "shed/_odd/2.png"):
        put(tmp_path / name, 1)
    put(tmp_path / "shed" / "ant" / "notes.txt", b"text")
    for number in range(4):
        put(tmp_path / "shed" / "ant" / f"{number}.png", number)
    problems = {item.path: item.problem for item in delivery_in(tmp_path).labelled.items if item.problem}
    assert problems == {
        "alone.png": Reason.NO_LABEL, "shed/1.png": Reason.NO_LABEL, "shed/_odd/2.png": Reason.NO_LABEL,
        "shed/ant/notes.txt": Reason.NOT_AN_IMAGE,
    }  # fmt: skip


def test_a_missing_inbox_is_empty_and_a_file_or_unknown_url_is_an_error(tmp_path):
    assert items(delivery_in(tmp_path / "nowhere").labelled) == {}
    put(tmp_path / "file", b"x")
    with pytest.raises(SourceError, match="is a file; expected a folder with one subfolder per domain"):
        delivery_in(tmp_path / "file")
    with pytest.raises(SourceError, match=r"retrain\.inbox: nonsense://x cannot be reached"):
        delivery_in("nonsense://x")


def test_an_inbox_is_probably_filled_by_anything_but_what_earlier_runs_moved(tmp_path):
    assert not inbox.is_probably_filled(str(tmp_path / "missing"))
    (tmp_path / "_taken" / "photo").mkdir(parents=True)
    (tmp_path / ".DS_Store").touch()
    assert not inbox.is_probably_filled(str(tmp_path))
    assert not inbox.is_probably_filled("s3://bucket/inbox")
    (tmp_path / "photo").mkdir()
    assert inbox.is_probably_filled(str(tmp_path))


def test_files_that_change_or_appear_between_two_checks_wait_for_the_next_delivery(tmp_path, monkeypatch):
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


def test_the_signature_of_a_delivery_changes_only_with_its_labelled_images(tmp_path):
    put(tmp_path / "shed" / "ant" / "1.png", 1)
    one = delivery_in(tmp_path).signature()
    assert delivery_in(tmp_path).signature() == one
    put(tmp_path / "shed" / "_unlabelled" / "2.png", 2)
    assert delivery_in(tmp_path).signature() == one  # only labelled images count
    put(tmp_path / "shed" / "ant" / "2.png", 2)
    assert delivery_in(tmp_path).signature() != one


# After a delivery


def test_files_are_moved_or_deleted_unless_they_were_replaced_since(tmp_path):
    for name in ("a", "b", "c"):
        put(tmp_path / "shed" / "ant" / f"{name}[1].png", ord(name))
    put(tmp_path / "_taken" / "shed" / "ant" / "a[1].png", b"an earlier delivery's")
    delivery = delivery_in(tmp_path)
    put(tmp_path / "shed" / "ant" / "c[1].png", b"replaced")
    inbox.move_files(delivery, ["shed/ant/a[1].png", "shed/ant/c[1].png"], inbox.TAKEN)
    inbox.delete(delivery, ["shed/ant/b[1].png"])
    left = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.png"))
    assert left == ["_taken/shed/ant/a[1]-2.png", "_taken/shed/ant/a[1].png", "shed/ant/c[1].png"]


def test_the_inbox_can_be_on_a_remote_store(memory, tmp_path):
    path = put(tmp_path / "x.png", 1)
    memory.pipe("/bucket/inbox/shed/ant/1.png", path.read_bytes())
    memory.pipe("/bucket/inbox/shed/_unlabelled/2.png", path.read_bytes())
    delivery = delivery_in("memory://bucket/inbox")
    assert items(delivery.labelled) == {"shed/ant/1.png": ("shed", "ant")}
    [(_, load)] = delivery.labelled.read({"shed/ant/1.png"})
    assert load() == path.read_bytes()
    inbox.move_files(delivery, ["shed/ant/1.png"], inbox.TAKEN)
    assert memory.find("/bucket/inbox") == [
        "/bucket/inbox/_taken/shed/ant/1.png", "/bucket/inbox/shed/_unlabelled/2.png"
    ]  # fmt: skip


# What is never changed


def everything(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_links_in_an_inbox_are_unsafe_and_never_followed(tmp_path):
    outside = put(tmp_path / "photos" / "bee" / "1.png", 1).parent
    for number in range(4):
        put(tmp_path / "inbox" / "shed" / "ant" / f"{number}.png", number + 10)
    (tmp_path / "inbox" / "linked").symlink_to(tmp_path / "photos")
    (tmp_path / "inbox" / "shed" / "bee").symlink_to(outside)
    (tmp_path / "inbox" / "shed" / "ant" / "link.png").symlink_to(outside / "1.png")
    delivery = delivery_in(tmp_path / "inbox")
    problems = {item.path: item.problem for item in delivery.labelled.items if item.problem}
    assert problems == dict.fromkeys(["linked", "shed/ant/link.png", "shed/bee"], Reason.UNSAFE_PATH)
    inbox.delete(delivery, [item.path for item in delivery.labelled.items])
    assert list(everything(tmp_path / "photos")) == ["bee/1.png"]
    assert (tmp_path / "inbox" / "linked").is_symlink() and (tmp_path / "inbox" / "shed" / "bee").is_symlink()
    assert not (tmp_path / "inbox" / "shed" / "ant" / "0.png").exists()


@pytest.mark.parametrize("act", [inbox.delete, lambda delivery, paths: inbox.move_files(delivery, paths, inbox.TAKEN)])
@pytest.mark.parametrize("swapped", ["shed", "shed/ant", "_taken", "_taken/shed"])
def test_nothing_is_moved_or_deleted_through_a_folder_that_became_a_link(tmp_path, act, swapped):
    put(tmp_path / "inbox" / "shed" / "ant" / "1.png", 1)
    delivery = delivery_in(tmp_path / "inbox")
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
def test_nothing_is_read_through_a_path_that_became_a_link(tmp_path, swapped):
    put(tmp_path / "inbox" / "shed" / "ant" / "1.png", 1)
    put(tmp_path / "inbox" / "shed" / "_unlabelled" / "2.png", 2)
    delivery = delivery_in(tmp_path / "inbox")
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


def test_only_images_of_the_delivery_are_moved_or_deleted(tmp_path):
    for number in range(4):
        put(tmp_path / "shed" / "ant" / f"{number}.png", number)
    put(tmp_path / "shed" / "ant" / "notes.txt", b"mine")
    put(tmp_path / "shed" / "loose.png", 9)
    before = everything(tmp_path)
    delivery = delivery_in(tmp_path)
    later = put(tmp_path / "shed" / "ant" / "later.png", 10)
    paths = ["shed/ant/notes.txt", "shed/loose.png", "shed/ant/later.png", "../x", "shed/ant", "nowhere/1.png"]
    inbox.delete(delivery, paths)
    inbox.move_files(delivery, paths, inbox.REJECTED)
    assert everything(tmp_path) == before | {"shed/ant/later.png": later.read_bytes()}

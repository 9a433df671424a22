"""Sources on remote stores: folders, archives and manifests as on a disk."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import fsspec
import pytest
from fsspec.spec import AbstractFileSystem

from rootstock.images.inspection import Reason
from rootstock.ingest import folders
from rootstock.ingest.items import Item
from rootstock.system.errors import SourceError
from rootstock.system.stores import open_store
from tests.archive_files import archived
from tests.listing import PATHS, contents, drawn, manifest, problems


def test_folders_archives_and_manifests_are_read_from_a_remote_store(listed, memory, tmp_path):
    for number, path in enumerate(PATHS):
        memory.pipe(f"/bucket/photos/{path}", drawn(number))
    expected = {path: drawn(number) for number, path in enumerate(PATHS)}
    for name in ("photos.zip", "photos.tar.gz"):
        memory.pipe(f"/bucket/{name}", archived(tmp_path / name, expected).read_bytes())
        assert contents(listed(f"memory://bucket/{name}")) == expected
    assert contents(listed("memory://bucket/photos")) == expected
    rows = "".join(f"../photos/{path},x\n" for path in PATHS[:2]) + f"memory://bucket/photos/{PATHS[2]},x\ngone.png,x\n"
    memory.pipe("/bucket/lists/list.csv", b"path,label\n" + rows.encode())
    source = listed("memory://bucket/lists/list.csv")
    assert contents(source) == {f"../photos/{path}": expected[path] for path in PATHS[:3]}
    assert problems(source) == {"gone.png": Reason.UNREADABLE}


def test_a_file_rewritten_in_a_remote_store_has_a_new_stamp(listed, memory):
    memory.pipe("/bucket/photos/ants/1.png", b"12345")
    before = listed("memory://bucket/photos").items[0].stamp
    memory.pipe("/bucket/photos/ants/1.png", b"54321")
    assert listed("memory://bucket/photos").items[0].stamp != before


@pytest.mark.parametrize("name", ["a[1].png", "a*.png", "a?.png", "{b,c}.png"])
def test_wildcards_in_the_names_of_a_remote_store_are_read_literally(listed, name):
    store = fsspec.filesystem("memory")
    for path in ("a1.png", "ab.png", "b.png", name):
        store.pipe_file(f"/patterns/x/{path}", path.encode())
    try:
        assert contents(listed("memory://patterns"))[f"x/{name}"] == name.encode()
    finally:
        store.rm("/patterns", recursive=True)


@pytest.mark.parametrize(
    ("paths", "said"),
    [
        (["memory://bucket/1.png", "https://example.org/2.png"], r"in 2 stores \(.*memory://bucket/1.png"),
        (["memory://bucket/1.png", "bees/2.png"], r"in 2 stores \(memory://bucket/1.png, its own\); expected one"),
        (
            ["https://example.org/1.png?token=abcdef123"],
            r"1 URL contains a key or signature \(.*token=\*\*\*",
        ),
        (["https://me:secret123@example.org/1.png"], "1 URL contains a password"),
        (["ftp://example.org/1.png"], "'ftp' is not one of the supported protocols"),
    ],
)
def test_urls_of_a_table_are_those_of_one_store_and_contain_no_secret(listed, tmp_path, memory, paths, said):
    memory.pipe("/bucket/1.png", drawn(1))
    table = manifest(tmp_path / "list.csv", "path,label\n" + "".join(f"{path},x\n" for path in paths))
    with pytest.raises(SourceError, match=said) as raised:
        listed(table)
    assert "secret123" not in str(raised.value)
    assert "abcdef123" not in str(raised.value)


def test_a_table_on_a_store_may_not_name_files_of_this_machine(listed, memory, five_photos):
    memory.pipe("/bucket/list.csv", f"path,label\nfile://{five_photos}/ants/00.png,x\n".encode())
    with pytest.raises(SourceError, match="names files of this machine"):
        listed("memory://bucket/list.csv")


def test_folders_of_a_store_from_which_few_files_are_wanted_are_not_listed(listed, memory, monkeypatch):
    asked = []
    monkeypatch.setattr(memory, "ls", lambda folder, **_: asked.append(folder) or [])
    names = [*(f"many/{number}.png" for number in range(20)), "one/1.png", "two/2.png"]
    for number, name in enumerate(names):
        memory.pipe(f"/bucket/{name}", drawn(number))
    memory.pipe("/bucket/list.csv", ("path,label\n" + "".join(f"{name},x\n" for name in names)).encode())
    assert contents(listed("memory://bucket/list.csv")) == {name: drawn(at) for at, name in enumerate(names)}
    assert asked == ["/bucket/many"]


class OneAtATime(AbstractFileSystem):
    """Twenty folders of a store whose driver serves one thread at a time, as paramiko does."""

    protocol, cachable = ("sftp", "ssh"), False

    def __init__(self) -> None:
        super().__init__()
        self.users: list[int] = []

    @contextmanager
    def alone(self) -> Iterator[None]:
        self.users.append(threading.get_ident())
        time.sleep(0.001)
        assert len(self.users) == 1
        self.users.clear()
        yield

    def ls(self, path: str, detail: bool = True, **_: object) -> list[dict[str, Any]]:
        with self.alone():
            if path == "/photos":
                return [{"name": f"/photos/{folder}", "type": "directory", "size": 0} for folder in range(20)]
            return [{"name": f"{path}/{number}.png", "type": "file", "size": 1} for number in range(5)]

    def info(self, path: str, **_: object) -> dict[str, Any]:
        with self.alone():
            return {"name": path, "type": "file", "size": 1}

    def cat_file(self, path: str, *_: object, **__: object) -> bytes:
        with self.alone():
            return path.encode()


def test_a_store_whose_driver_serves_one_thread_at_a_time_is_asked_by_one_at_a_time():
    """Of several threads that wait for paramiko, one waits for ever."""
    store = OneAtATime()
    stamps, place_of = folders.list_stamps(store, "/photos", "sftp://host/photos")
    assert len(stamps) == 100
    items = [Item(path, "", "", (), stamp) for path, stamp in stamps.items()]
    read = dict(folders.Files(store, items, [], place_of).read({item.path for item in items}))
    assert {item.path: load() for item, load in read.items()} == {path: place_of(path).encode() for path in stamps}
    few = [f"/elsewhere/{number}/1.png" for number in range(100)]
    assert set(folders.file_stamps(store, lambda: few)) == {"1:"}


def test_members_of_a_tar_that_is_opened_as_a_store_are_read_as_they_are(tmp_path):
    """tarfile reads from wherever another thread has left its file."""
    files = {f"{number}.png": bytes([number % 256]) * 60_000 for number in range(600)}
    archive = archived(tmp_path / "photos.tar", files)
    for url in (f"tar://::{archive}", f"simplecache::tar://::{archive}"):
        store, _ = open_store(url)
        items = [Item(path, "", "", (), "60000:") for path in sorted(files)]
        read = folders.Files(store, items, [], lambda path: path).read(files.keys())
        assert all(load() == files[item.path] for item, load in read)

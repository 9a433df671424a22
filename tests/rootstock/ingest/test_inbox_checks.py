"""A folder that cannot be an inbox is an error before any of its files is moved or deleted."""

import pytest

from rootstock.config import params
from rootstock.ingest import inbox
from rootstock.system.errors import SourceError
from tests.deliveries import delivery_in, items
from tests.images import put


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
def test_a_folder_that_cannot_be_an_inbox_is_an_error_before_it_is_listed(tmp_path, monkeypatch, place, why):
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
def test_an_inbox_that_shares_files_with_a_source_is_an_error_on_any_store(tmp_path, monkeypatch, url, source):
    monkeypatch.setenv("HOME", str(tmp_path))
    sources = [params.Source(path=source.format(home=tmp_path), domain="garden")]
    with pytest.raises(SourceError, match="shares files with the source"):
        inbox.list_delivery(url.format(home=tmp_path), 0, sources)


@pytest.mark.parametrize("url", ["simplecache::/", "filecache::file://{folder}", "zip://::{folder}/x.zip", "tar://"])
def test_an_inbox_behind_a_cache_or_archive_is_an_error_before_it_is_listed(tmp_path, url):
    put(tmp_path / "shed" / "ant" / "1.png", 1)
    with pytest.raises(
        SourceError, match=r"is chained through (simplecache|filecache|zip|tar): expected a dedicated folder"
    ):
        delivery_in(url.format(folder=tmp_path))


def test_metadata_files_beside_images_are_allowed_in_an_inbox(tmp_path):
    for number in range(3):
        put(tmp_path / "shed" / "ant" / f"{number}.png", number)
        for ending in ("json", "txt", "xml"):
            put(tmp_path / "shed" / "ant" / f"{number}.{ending}", b"about it")
    assert sum(item.problem is None for item in delivery_in(tmp_path).labelled.items) == 3


@pytest.mark.parametrize("others", [["a/notes.txt", "b/c/d.pdf"], ["1.png", "shed/2.png"], ["shed/_old/1.png"] * 2])
def test_a_folder_of_mostly_other_files_is_an_error(tmp_path, others):
    for name in others:
        put(tmp_path / name, 1 if name.endswith("png") else b"mine")
    with pytest.raises(SourceError, match=r"files other than images in <domain>/<class>/ \(.*, but only 0 images"):
        delivery_in(tmp_path)
    for number in range(3):
        put(tmp_path / "shed" / "ant" / f"{number}.png", number)
    assert len(delivery_in(tmp_path).labelled.items) == 3 + len(set(others))

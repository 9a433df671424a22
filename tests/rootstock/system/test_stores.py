"""A store is a folder or a bucket: files go in whole, come out unchanged, and a folder's are not copied."""

import uuid

import pytest

from rootstock.system import stores
from rootstock.system.errors import SourceError

DATA = bytes(range(256)) * 100


@pytest.fixture(params=["folder", "file", "memory", "s3"])
def store(request, tmp_path, monkeypatch) -> str:
    """The URL of an empty store."""
    match request.param:
        case "folder":
            return str(tmp_path / "store")
        case "file":
            return f"file://{tmp_path}/store"
        case "memory":
            return f"memory://{uuid.uuid4().hex}"
    s3 = request.getfixturevalue("s3")
    for name, value in (s3.credentials | {"AWS_ENDPOINT_URL": s3.url}).items():
        monkeypatch.setenv(name, value)
    return f"s3://{s3.bucket}/{uuid.uuid4().hex}"


@pytest.fixture
def made(tmp_path):
    path = tmp_path / "made.parquet"
    path.write_bytes(DATA)
    return path


def test_what_is_put_is_listed_is_there_and_comes_back(store, made, tmp_path):
    assert stores.names(store) == [] and not stores.exists(f"{store}/b.parquet")
    for name in ("b.parquet", "a.parquet", "summary.json"):
        stores.put(made, f"{store}/{name}")
    assert stores.names(store, ".parquet") == ["a.parquet", "b.parquet"]
    assert stores.exists(f"{store}/b.parquet")
    assert stores.fetch(store, "b.parquet", tmp_path / "copies").read_bytes() == DATA


def test_what_is_put_again_replaces_what_was_there_and_leaves_nothing_beside(store, made, tmp_path):
    stores.put(made, f"{store}/a.parquet")
    made.write_bytes(DATA[::-1])
    stores.put(made, f"{store}/a.parquet")
    assert stores.names(store) == ["a.parquet"]
    assert stores.fetch(store, "a.parquet", tmp_path / "copies").read_bytes() == DATA[::-1]


def test_a_file_of_a_folder_is_used_where_it_lies(tmp_path, made):
    for url in (str(tmp_path), f"file://{tmp_path}"):
        assert stores.fetch(url, made.name, tmp_path / "copies") == made
    assert not (tmp_path / "copies").exists()


def test_a_copy_is_fetched_once(store, made, tmp_path, monkeypatch):
    if "://" not in store or store.startswith("file"):
        pytest.skip("a folder's files are not copied")
    stores.put(made, f"{store}/a.tar")
    first = stores.fetch(store, "a.tar", tmp_path / "copies").stat()
    again = stores.fetch(store, "a.tar", tmp_path / "copies").stat()
    assert (first.st_ino, first.st_mtime_ns) == (again.st_ino, again.st_mtime_ns)


def test_a_file_that_is_not_there_is_an_error_that_names_the_store_and_leaves_no_copy(store, tmp_path):
    with pytest.raises(SourceError, match="FileNotFoundError") as error:
        stores.fetch(store, "none.tar", tmp_path / "copies")
    assert store in str(error.value)
    assert not list((tmp_path / "copies").glob("*")) if (tmp_path / "copies").exists() else True


def test_a_password_in_a_url_is_not_repeated(tmp_path):
    with pytest.raises(SourceError) as error:
        stores.exists("no-such-store://me:never-to-be-seen@host/folder")
    assert "never-to-be-seen" not in str(error.value)
    assert "://me@host/folder" in str(error.value)


@pytest.mark.parametrize("scheme", ["folder", "file"])
def test_a_put_that_fails_leaves_the_old_file_and_no_temporary_one(scheme, tmp_path, made):
    store = str(tmp_path / "store") if scheme == "folder" else f"file://{tmp_path}/store"
    stores.put(made, f"{store}/a.parquet")
    with pytest.raises(SourceError):
        stores.put(tmp_path / "none", f"{store}/a.parquet")
    assert stores.names(store) == ["a.parquet"]
    assert stores.fetch(store, "a.parquet", tmp_path).read_bytes() == DATA

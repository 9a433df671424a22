"""A store is a folder or a bucket: files are written atomically and read back unchanged; local ones are not copied."""

import uuid

import fsspec
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


def test_a_file_put_into_a_store_exists_is_listed_and_is_fetched_unchanged(store, made, tmp_path):
    assert stores.names(store) == [] and not stores.exists(f"{store}/b.parquet")
    for name in ("b.parquet", "a.parquet", "summary.json"):
        stores.put(made, f"{store}/{name}")
    assert stores.names(store, ".parquet") == ["a.parquet", "b.parquet"]
    assert stores.exists(f"{store}/b.parquet")
    assert stores.fetch(store, "b.parquet", tmp_path / "copies").read_bytes() == DATA


def test_putting_a_file_again_replaces_it_and_leaves_no_other_file(store, made, tmp_path):
    stores.put(made, f"{store}/a.parquet")
    made.write_bytes(DATA[::-1])
    stores.put(made, f"{store}/a.parquet")
    assert stores.names(store) == ["a.parquet"]
    assert stores.fetch(store, "a.parquet", tmp_path / "copies").read_bytes() == DATA[::-1]


def test_a_file_of_a_local_store_is_used_in_place(tmp_path, made):
    for url in (str(tmp_path), f"file://{tmp_path}"):
        assert stores.fetch(url, made.name, tmp_path / "copies") == made
    assert not (tmp_path / "copies").exists()


def test_a_file_of_a_remote_store_is_fetched_only_once(store, made, tmp_path, monkeypatch):
    if "://" not in store or store.startswith("file"):
        pytest.skip("a folder's files are not copied")
    stores.put(made, f"{store}/a.tar")
    first = stores.fetch(store, "a.tar", tmp_path / "copies").stat()
    again = stores.fetch(store, "a.tar", tmp_path / "copies").stat()
    assert (first.st_ino, first.st_mtime_ns) == (again.st_ino, again.st_mtime_ns)


def test_a_missing_file_is_an_error_that_names_the_store_and_leaves_no_copy(store, tmp_path):
    with pytest.raises(SourceError, match="FileNotFoundError") as error:
        stores.fetch(store, "none.tar", tmp_path / "copies")
    assert store in str(error.value)
    assert not list((tmp_path / "copies").glob("*")) if (tmp_path / "copies").exists() else True


def test_a_password_in_the_url_of_a_store_is_not_repeated_in_errors(tmp_path):
    with pytest.raises(SourceError) as error:
        stores.exists("no-such-store://me:never-to-be-seen@host/folder")
    assert "never-to-be-seen" not in str(error.value)
    assert "://me@host/folder" in str(error.value)


@pytest.mark.parametrize("scheme", ["folder", "file"])
def test_a_failed_put_leaves_the_old_file_and_no_temporary_file(scheme, tmp_path, made):
    store = str(tmp_path / "store") if scheme == "folder" else f"file://{tmp_path}/store"
    stores.put(made, f"{store}/a.parquet")
    with pytest.raises(SourceError):
        stores.put(tmp_path / "none", f"{store}/a.parquet")
    assert stores.names(store) == ["a.parquet"]
    assert stores.fetch(store, "a.parquet", tmp_path).read_bytes() == DATA


def test_what_is_written_here_is_uploaded_at_the_end_and_removed_here(store, tmp_path):
    with stores.written_here(f"{store}/out.csv", tmp_path / "here") as path:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(DATA)
    assert stores.fetch(store, "out.csv", tmp_path / "copies").read_bytes() == DATA
    assert stores.names(store) == ["out.csv"]
    assert not list((tmp_path / "here").rglob("*.csv"))


def test_a_local_file_is_written_where_it_belongs_and_work_for_a_url_goes_on_at_the_same_place(tmp_path):
    for url in (str(tmp_path / "out.csv"), f"file://{tmp_path}/out.csv"):
        with stores.written_here(url, tmp_path / "here") as path:
            assert path == tmp_path / "out.csv"
    places = []
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt), stores.written_here("memory://b/out.csv", tmp_path / "here") as path:
            places.append(path)
            raise KeyboardInterrupt
    assert places[0] == places[1] and places[0].name == "out.csv" and places[0].parent.exists()


def test_an_upload_that_fails_leaves_the_file_here_and_says_where(tmp_path, monkeypatch, made):
    monkeypatch.setattr(fsspec.get_filesystem_class("memory"), "put_file", _fail)
    with (
        pytest.raises(SourceError, match=r"memory://b/out\.csv: OSError: full What was to be uploaded is .*out\.csv\."),
        stores.written_here("memory://b/out.csv", tmp_path / "here") as path,
    ):
        path.write_bytes(DATA)
    assert path.read_bytes() == DATA


def test_nothing_is_computed_for_a_place_that_cannot_be_written_to(tmp_path):
    with pytest.raises(SourceError, match="nothing can be written there by HTTP"):
        stores.written_here("https://example.org/out.csv", tmp_path).__enter__()


def _fail(*_: object, **__: object) -> None:
    raise OSError("full")

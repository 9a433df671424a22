"""Opening a source: which paths are errors, and which errors mean that it exists but cannot be reached now."""

import gzip
import os
import socket
from importlib.util import find_spec
from pathlib import Path

import pyarrow as pa
import pytest

from rootstock.config import params_file
from rootstock.ingest import archive_limits, image_tables, opening
from rootstock.ingest.sources import Unreachable
from rootstock.system.errors import ParamsError, SourceError
from tests.archive_files import archived
from tests.images import put, put_classes
from tests.listing import CLASSES, PATHS, drawn, labels, manifest


def test_a_torchvision_dataset_that_was_downloaded_is_listed_like_a_folder(listed, tmp_path):
    put_classes(tmp_path / "scratch" / "torchvision" / "EuroSAT", CLASSES)
    assert labels(listed("torchvision:EuroSAT")) == {path: path.split("/")[0] for path in PATHS}


def test_an_unknown_sample_or_torchvision_dataset_is_an_error_that_suggests_a_name(listed):
    with pytest.raises(SourceError, match=r"Did you mean sample:digits\?"):
        listed("sample:digit")
    with pytest.raises(SourceError, match=r"Did you mean Flowers102"):
        listed("torchvision:Flowers")


def test_an_unknown_protocol_is_an_error(listed):
    with pytest.raises(SourceError, match=r"gopher://x/photos: expected a path or an fsspec URL"):
        listed("gopher://x/photos")


@pytest.mark.skipif(find_spec("gcsfs") is not None, reason="the driver is installed")
def test_a_missing_driver_is_an_error_that_names_the_extra_to_install(listed):
    with pytest.raises(
        SourceError, match=r"gs://bucket/photos: its driver is not installed: pip install .* '\.\[gs\]'"
    ):
        listed("gs://bucket/photos")


def test_a_password_in_the_url_of_a_source_is_an_error_that_does_not_repeat_it(tmp_path):
    path = put(tmp_path / "params.yaml", b"ingest: {sources: [{path: 'sftp://me:s3cret@host/photos', domain: x}]}")
    with pytest.raises(ParamsError, match=r"ingest.sources\[0\].path: a password in a URL would be recorded") as error:
        params_file.load(path)
    assert "s3cret" not in str(error.value)


def test_a_missing_folder_is_unreachable(listed, tmp_path):
    with pytest.raises(Unreachable, match=r"ingest.sources: .*/photos does not exist. Expected a folder"):
        listed(tmp_path / "photos")


def test_a_file_of_an_unsupported_kind_is_an_error_that_names_the_supported_ones(listed, tmp_path):
    put(tmp_path / "photos.rar", b"Rar!")
    with pytest.raises(SourceError, match=r"photos.rar is a file; expected a folder, or a file ending in .zip, .tar"):
        listed(tmp_path / "photos.rar")


@pytest.mark.parametrize("name", ["list.csv", "list.parquet", "photos.zip", "photos.tar.gz"])
def test_a_folder_named_like_an_archive_or_manifest_is_an_error_and_not_unreachable(listed, tmp_path, name):
    put_classes(tmp_path / name, CLASSES)
    with pytest.raises(SourceError, match=f"{name} is a folder, but is named like a") as error:
        listed(tmp_path / name)
    assert not isinstance(error.value, Unreachable)


@pytest.mark.parametrize("name", ["labels.csv", "labels.parquet", "photos.zip", "photos.tar.gz"])
@pytest.mark.timeout(60)
def test_a_pipe_in_place_of_a_manifest_or_archive_is_an_error(listed, tmp_path, name):
    os.mkfifo(tmp_path / name)
    with pytest.raises(SourceError, match="is a pipe or a device; expected a file"):
        listed(tmp_path / name)


def answered(status: int) -> dict:
    """Return a response as botocore records it."""
    return {"ResponseMetadata": {"HTTPStatusCode": status}}


def of_driver(module: str, name: str, **said) -> Exception:
    """Return an error as the driver of a store raises it."""
    error = type(name, (Exception,), {"__module__": module})("refused")
    vars(error).update(said)
    return error


@pytest.mark.parametrize(
    ("error", "is_away"),
    [
        (FileNotFoundError(2, "gone"), True), (ConnectionResetError(), True), (TimeoutError(), True),
        (OSError(5, "input/output error"), True), (OSError(116, "stale file handle"), True),
        (OSError(107, "transport endpoint is not connected"), True), (PermissionError(13, "denied"), False),
        (OSError(22, "invalid argument"), False), (ValueError("x"), False), (KeyError("label"), False),
        (gzip.BadGzipFile("not gzipped"), False), (NotADirectoryError(20, "no folder"), False),
        (pa.ArrowNotImplementedError("cast"), False), (UnicodeDecodeError("utf-8", b"x", 0, 1, "bad"), False),
        (of_driver("botocore.exceptions", "EndpointConnectionError"), True), (OSError(16, "server is busy"), True),
        (of_driver("botocore.exceptions", "NoCredentialsError"), False),
        (of_driver("botocore.exceptions", "ClientError", response=answered(503)), True),
        (of_driver("botocore.exceptions", "ClientError", response=answered(400)), False),
        (of_driver("aiohttp.client_exceptions", "ClientResponseError", status=429), True),
        (of_driver("aiohttp.client_exceptions", "ClientResponseError", status=401), False),
        (of_driver("gcsfs.retry", "HttpError", code="403"), False),
        (of_driver("gcsfs.retry", "HttpError", code=502), True),
        (of_driver("google.auth.exceptions", "TransportError"), True),
        (of_driver("google.auth.exceptions", "DefaultCredentialsError"), False),
        (of_driver("azure.core.exceptions", "ClientAuthenticationError", status_code=401), False),
        (of_driver("azure.core.exceptions", "ServiceRequestError"), True),
        (of_driver("paramiko.ssh_exception", "AuthenticationException"), False),
        (of_driver("paramiko.ssh_exception", "SSHException"), True), (socket.gaierror(-2, "unknown host"), True),
    ],
)  # fmt: skip
def test_a_source_is_unreachable_only_if_its_path_is_missing_or_its_disk_or_network_fails(
    listed, five_photos, monkeypatch, error, is_away
):
    def fails(*_, **__):
        raise error

    manifest(five_photos / "list.csv", "path,label\nants/00.png,a\n")
    monkeypatch.setattr(opening, "read_table", fails)
    with pytest.raises(SourceError) as raised:
        listed(five_photos / "list.csv")
    assert isinstance(raised.value, Unreachable) == is_away
    assert "cannot be reached" in str(raised.value) if is_away else "exists but cannot be read" in str(raised.value)


@pytest.mark.parametrize("name", ["photos.zip", "photos.tar.gz", "list.csv", "list.tsv"])
def test_a_source_that_lists_too_many_files_is_an_error(listed, tmp_path, monkeypatch, name):
    monkeypatch.setattr(archive_limits, "MAX_MEMBERS", 20)
    monkeypatch.setattr(image_tables, "MAX_ROWS", 20)

    def with_files(count: int) -> Path:
        images = {f"{'ab'[number % 2]}/{number}.png": drawn(number) for number in range(count)}
        if name.startswith("photos"):
            return archived(tmp_path / name, images)
        for path, data in images.items():
            put(tmp_path / path, data)
        rows = [("path", "label"), *((path, path[0]) for path in images)]
        tab = "\t" if name.endswith("tsv") else ","
        return manifest(tmp_path / name, "".join(f"{tab.join(row)}\n" for row in rows))

    assert len(listed(with_files(20)).items) == 20
    with pytest.raises(SourceError, match=r"more than 20 (members|rows)"):
        listed(with_files(23))

"""Addresses in the parameters contain no secrets, error messages repeat none, and protocols are those on a list."""

import re
import sys
from pathlib import Path
from urllib.parse import quote

import pytest
from hypothesis import given, strategies as st
from pydantic import ValidationError

from rootstock.backbones import weights
from rootstock.config import params
from rootstock.config.params_file import validate
from rootstock.system import downloads, stores
from rootstock.system.addresses import PROTOCOLS, check_protocols, links
from rootstock.system.errors import ParamsError, RootstockError, SourceError, WeightsError
from rootstock.system.redaction import NO_SECRET, redacted

SECRET = "hunter2-hunter2"
HOLDING = [
    f"s3://key:{SECRET}@bucket/photos",
    f"sftp://me:{SECRET}@host/photos",
    f"sftp://me:{SECRET}@host:22/photos",
    f"http://u:{SECRET}@h/x",
    f"http://:{SECRET}@h/x",
    f"https://{SECRET}@h/x",
    f"s3://{SECRET}@bucket/x",
    f"//u:{SECRET}@h/x",
    f"u:{SECRET}@h/x",
    f"ssh://me:{SECRET}/with/slashes@host/x",
    f"s3:/key:{SECRET}@bucket",
    f"S3://key:{SECRET}@bucket",
    f"simplecache::http://u:{SECRET}@h/x",
    f"filecache::s3://u:{SECRET}@b/k",
    f"zip://a.csv::simplecache::sftp://me:{SECRET}@host/x.zip",
    f"simplecache::u:{SECRET}@h/x",
    f"sftp://u::{SECRET}@h/x",
    f"zip://a.csv::sftp://u:{SECRET}@h/x.zip",
    f"http://u%3A{SECRET}%40h/x",
    f"http://u:{quote(SECRET + '/@:', safe='')}@h/x",
    f"http%3A//u:{SECRET}%40h/x",
    quote(f"https://u:{SECRET}@h/x", safe=""),
    quote(quote(f"https://u:{SECRET}@h/x", safe=""), safe=""),
    f"https://u:a {SECRET} b@h/x",
    f"https://b.s3.amazonaws.com/k?X-Amz-Algorithm=A&X-Amz-Signature={SECRET}",
    f"https://storage.googleapis.com/b/k?X-Goog-Signature={SECRET}",
    f"https://a.blob.core.windows.net/c/k?sv=2022&se=2030&sig={SECRET}",
    f"https://b.s3.amazonaws.com/k?AWSAccessKeyId=AK&Signature={SECRET}&Expires=1",
    f"https://h/x?token={SECRET}",
    f"https://h/x?a=1;access_token={SECRET}",
    f"https://h/x#access_token={SECRET}",
    f"https://h/x?api_key={SECRET}",
    f"https://h/x?apikey={SECRET}",
    f"https://h/x?key={SECRET}",
    f"https://h/x?X-Amz-Security-Token={SECRET}",
    f"https://h/x?to%6ben={SECRET}",
    f"https://h/x?a=b%26password%3D{SECRET}",
    f"s3://bucket/x?secret={SECRET}",
    f"abfs://c@account.dfs.core.windows.net/x?account_key={SECRET}",
    f"simplecache::https://h/x.zip?sig={SECRET}",
]
FREE = [
    "photos", "/photos/bees", "/photos/me@home", "photos/10:30@noon.jpg", "../x", "data/inbox", "~/photos",
    "s3://bucket/photos", "s3://bucket/me@home.jpg", "s3://bucket/10:30@noon.jpg", "gs://bucket/x?y", "http://h:8080/a@b",
    "sftp://me@host/photos", "sftp://me@host:22/a@b", "abfs://container@account.dfs.core.windows.net/x",
    "zip://a.csv::s3://bucket/b.zip", "simplecache::https://h/x.zip", "memory://x", "https://h/x?version=3&page=2",
    "sample:digits", "torchvision:Flowers102", "pretrained", "random", "package:x/y.pth", "tcp://scheduler:8786",
    "ray://head:10001", "scheduler:8786", "auto", "http://h/x?tokenizer=bert",
    "zip://a.csv::sftp://me@host/b.zip", "zip://a.csv::simplecache::sftp://me@host:22/b.zip", "s3://bucket/tokens/keys/x",
    "/a/b?token", "C:\\photos",
]  # fmt: skip
FIELDS = {
    "ingest.sources[0].path": lambda address: {"ingest": {"sources": [{"path": address, "domain": "d"}]}},
    "backbone.weights": lambda address: {"backbone": {"weights": address}},
    "extract.store": lambda address: {"extract": {"store": address}},
    "extract.cluster": lambda address: {"extract": {"cluster": address}},
    "retrain.inbox": lambda address: {"retrain": {"inbox": address}},
}


@pytest.mark.parametrize("field", FIELDS)
@pytest.mark.parametrize("address", HOLDING)
def test_an_address_with_a_secret_is_an_error_that_does_not_repeat_it(field, address):
    with pytest.raises(ParamsError) as error:
        validate(FIELDS[field](address), "params.yaml")
    assert str(error.value).startswith(f"params.yaml: {field}: a ")
    assert "would be recorded with every run; set it in the environment: " in str(error.value)
    assert SECRET not in str(error.value)
    with pytest.raises(ValidationError) as raw:  # as a framework would print it
        params.Params.model_validate(FIELDS[field](address))
    assert SECRET not in str(raw.value)


@pytest.mark.parametrize("field", FIELDS)
@pytest.mark.parametrize("address", FREE)
def test_an_address_without_a_secret_is_accepted(field, address):
    if not (address.startswith("package:") and field != "backbone.weights"):
        validate(FIELDS[field](address), "params.yaml")


def test_the_schema_of_the_parameters_rejects_nearly_all_addresses_with_a_secret():
    assert all(re.search(NO_SECRET, address) for address in FREE)
    kept = [address for address in HOLDING if re.search(NO_SECRET, address)]
    assert all("%253A" in address or "?to%6ben" in address or "%26password" in address for address in kept)


@pytest.mark.parametrize(
    ("address", "variable"),
    [
        (f"s3://k:{SECRET}@b", "AWS_SECRET_ACCESS_KEY"),
        (f"gs://k:{SECRET}@b", "GOOGLE_APPLICATION_CREDENTIALS"),
        (f"abfs://k:{SECRET}@b", "AZURE_STORAGE_ACCOUNT_KEY"),
        (f"sftp://k:{SECRET}@b", "FSSPEC_SFTP_PASSWORD"),
        (f"https://k:{SECRET}@b", "FSSPEC_HTTP"),
        (f"simplecache::s3://k:{SECRET}@b", "AWS_SECRET_ACCESS_KEY"),
        (f"other://k:{SECRET}@b", "FSSPEC_<PROTOCOL>_<OPTION>"),
    ],
)
def test_the_error_names_the_environment_variables_for_the_protocol(address, variable):
    with pytest.raises(ParamsError, match=re.escape(variable)):
        validate(FIELDS["extract.store"](address), "params.yaml")


@pytest.mark.parametrize("address", [address for address in HOLDING if "%253A" not in address])
def test_secrets_of_addresses_are_redacted_from_error_messages(address):
    if "http%3A" in address or address.startswith(("u:", "simplecache::u:", "https%3A", "S3:/k", "s3:/k")):
        pytest.skip("not seen to be an address in the middle of a text")
    if " " in address or "to%6b" in address or "%26password" in address:
        pytest.skip("an address in a text ends at a blank; names are spelt in letters")
    said = str(SourceError(f"{address}: ConnectionError: Cannot connect to {address}, try later"))
    assert SECRET not in said and said.endswith("try later")


@given(text=st.text(max_size=60))
def test_a_text_without_an_address_is_not_changed(text):
    if not any(mark in text for mark in "@=:"):
        assert redacted(text) == text


@pytest.mark.parametrize(
    "text",
    ["head.l2 is 3; expected a list.", "photos/bees/17.jpg: truncated after 20,480 of 93,112 bytes.",
     "size mismatch for class_token: copying", "http://127.0.0.1:4200/api answers", "see http://h:80/me@x.jpg, and",
     "sftp://me@host/x is not there", "Set ROOTSTOCK_WEIGHTS_MIRROR to a folder", "tokens: 3", "key=1, keys=2"],
)  # fmt: skip
def test_a_text_that_only_resembles_a_secret_is_not_changed(text):
    assert redacted(text) == text


@pytest.mark.parametrize(
    ("name", "value", "secret"),
    [
        ("AWS_SECRET_ACCESS_KEY", SECRET, SECRET),
        ("AZURE_STORAGE_CONNECTION_STRING", f"DefaultEndpointsProtocol=https;AccountKey={SECRET}", SECRET),
        ("PREFECT_API_AUTH_STRING", f"admin:{SECRET}", SECRET),
        ("ROOTSTOCK_WEIGHTS_MIRROR", f"http://u:{SECRET}@h/w", SECRET),
        ("ROOTSTOCK_WEIGHTS_MIRROR", f"https://h/w?sig={SECRET}", SECRET),
        ("HTTPS_PROXY", f"http://u:{SECRET}@proxy:3128", SECRET),
        ("FSSPEC_SFTP_PASSWORD", SECRET, SECRET),
        ("FSSPEC_HTTP", f'{{"headers": {{"Authorization": "Bearer {SECRET}"}}}}', SECRET),
        ("FSSPEC_S3_SECRET", SECRET, SECRET),
    ],
)
def test_secrets_in_environment_variables_are_redacted_from_error_messages(name, value, secret, monkeypatch):
    monkeypatch.setenv(name, value)
    for spelling in (secret, quote(secret, safe="")):
        assert spelling not in str(RootstockError(f"the driver said {spelling}@127.0.0.1:9 and '{spelling}'"))


@pytest.mark.parametrize(
    "mirror", [f"http://u:{SECRET}@127.0.0.1:9/w", f"http://127.0.0.1:9/w?sig={SECRET}", f"sfpt://u:{SECRET}@h"]
)
def test_an_unreachable_mirror_is_named_without_the_secret_in_its_address(mirror, tmp_path, monkeypatch):
    monkeypatch.setenv(weights.MIRROR, mirror)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(downloads, "RETRY_AFTER_S", ())
    with pytest.raises(WeightsError, match="cannot be loaded from") as error:
        weights.find(params.Backbone(name="squeezenet1_1"), 0, 64)
    assert SECRET not in str(error.value)


def test_urls_are_parsed_as_by_fsspec():
    def seen(address: str) -> list[str]:
        return [link.protocol for link in links(address)]

    assert seen("photos") == seen("/a/b:c") == seen("C://x") == ["file"]
    assert seen("file:///a") == seen("file:/a") == ["file"]
    assert seen("zip://a::simplecache::s3://b/c.zip") == ["zip", "simplecache", "s3"]
    assert seen("dask::file:///a") == ["dask", "file"]
    assert seen("dask::/a/b") == ["dask", "file"]
    assert seen("data:text,x") == ["data"]


REFUSED = [
    "dask::file:///x", "dask://x", "reference://x", "github://o:r@main/x", "jupyter://x", "libarchive://x::file:///y",
    "blockcache::s3://b/x", "simplecache::dask::s3://b", "git://x", "gopher://x", "data:text,x", "ftp://h/x", "smb://h/x",
    "root://h/x", "hf://datasets/x", "dir::file:///x", "cached::s3://x", "S3://b/x", "dbfs://x", "lakefs://x", "webhdfs://x",
]  # fmt: skip


@pytest.mark.parametrize("address", REFUSED)
def test_an_unsupported_protocol_is_an_error_that_lists_the_supported_ones_and_imports_no_driver(address):
    with pytest.raises(ValueError, match=re.escape(f"supported protocols: {', '.join(PROTOCOLS)}")):
        check_protocols(address)
    before = set(sys.modules)
    with pytest.raises(SourceError, match="not one of the supported protocols"):
        stores.exists(address)
    assert not {name for name in set(sys.modules) - before if "implementations" in name}


@pytest.mark.parametrize(
    "name", ["/any/where/sample/digits", "../sample/digits", "digits/../digits", "", "Digits", "."]
)
@pytest.mark.parametrize("kind", ["sample", "torchvision"])
def test_samples_and_torchvision_datasets_are_accepted_only_by_their_exact_names(kind, name, tmp_path):
    from rootstock.ingest.scan import Scan
    from rootstock.ingest.sources import open_source

    (tmp_path / "scratch").mkdir()
    with Scan(tmp_path / "scan.sqlite") as scan, pytest.raises(SourceError, match=f"{kind}:{re.escape(name)} is not"):
        open_source(params.Source(path=f"{kind}:{name}", domain="d"), tmp_path / "scratch", scan)
    assert not list((tmp_path / "scratch").iterdir())
    assert not Path("/any").exists()

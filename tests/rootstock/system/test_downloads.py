"""Downloads of large files: each happens once, is verified, and resumes where a connection broke."""

import hashlib
import random
from base64 import b64encode
from collections.abc import Iterator

import fsspec
import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

from rootstock.system import downloads, progress
from rootstock.system.downloads import PART, DamagedError, fetch
from tests.site import Site, site as opened

CONTENT = random.Random(0).randbytes(3 * 2**20 + 17)
DIGEST = hashlib.sha256(CONTENT).hexdigest()[:8]


@pytest.fixture
def waits(monkeypatch) -> list[float]:
    """How long it would have waited before it tried again."""
    waited: list[float] = []
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(downloads.time, "sleep", waited.append)
    return waited


@pytest.fixture
def site(waits) -> Iterator[Site]:
    with opened(weights=CONTENT) as found:
        yield found


def get(site: Site, folder, digest: str | None = DIGEST) -> bytes:
    return fetch(f"{site.address}/weights", folder / "kept", digest).read_bytes()


def test_a_file_that_was_downloaded_is_not_requested_again(site, tmp_path):
    assert get(site, tmp_path) == get(site, tmp_path) == CONTENT
    assert site.asked == [("weights", 0, 200)]
    assert fetch("http://no.such.host.invalid/weights", tmp_path / "kept", DIGEST).read_bytes() == CONTENT


def test_user_and_password_in_an_address_are_sent_as_basic_authentication(site, tmp_path):
    fetch(f"{site.address.replace('//', '//me:pass%2Fword@')}/weights", tmp_path / "kept", DIGEST)
    assert site.sent[-1]["Authorization"] == f"Basic {b64encode(b'me:pass/word').decode()}"
    assert site.asked == [("weights", 0, 200)]


def test_a_download_resumes_where_the_connection_broke(site, waits, tmp_path):
    site.breaks = [2**20 + 5, 2**20]
    assert get(site, tmp_path) == CONTENT
    assert site.asked == [("weights", 0, 200), ("weights", 2**20 + 5, 206), ("weights", 2**21 + 5, 206)]
    assert waits == [1, 2]


def test_a_download_restarts_if_the_server_does_not_support_ranges(site, tmp_path):
    site.ranges, site.breaks = False, [2**20]
    assert get(site, tmp_path) == CONTENT
    assert [first for _, first, _ in site.asked] == [0, 0]


def test_a_partial_download_of_a_killed_run_is_resumed(site, tmp_path):
    (tmp_path / f"kept{PART}").write_bytes(CONTENT[:1000])
    assert get(site, tmp_path) == CONTENT
    assert site.asked == [("weights", 1000, 206)]


@pytest.mark.parametrize("left", [b"of another file", CONTENT + b"more", CONTENT[:-1] + b"?"])
def test_a_partial_download_of_another_file_is_discarded(left, site, tmp_path):
    (tmp_path / f"kept{PART}").write_bytes(left)
    assert get(site, tmp_path) == CONTENT
    assert site.asked[-1] == ("weights", 0, 200)


def test_a_complete_download_that_was_not_yet_renamed_is_used(site, tmp_path):
    (tmp_path / f"kept{PART}").write_bytes(CONTENT)
    assert get(site, tmp_path) == CONTENT


def test_a_busy_server_is_tried_again_with_increasing_delays(site, waits, tmp_path):
    site.failures = [503, 429, 500]
    assert get(site, tmp_path) == CONTENT
    assert waits == sorted(waits) == [1, 2, 4]


@pytest.mark.parametrize(("failures", "asked"), [([404] * 9, 1), ([403] * 9, 1), ([503] * 9, 4)])
def test_permanent_errors_are_not_retried_and_others_at_most_three_times(failures, asked, site, tmp_path):
    site.failures = failures
    with pytest.raises(OSError, match=f"HTTP Error {failures[0]}"):
        get(site, tmp_path)
    assert len(site.asked) == asked


def test_a_file_with_a_wrong_digest_is_an_error_and_not_kept(site, tmp_path):
    with pytest.raises(DamagedError, match=f"begins with {DIGEST[:4]}.*, expected 00000000"):
        get(site, tmp_path, "00000000")
    assert {path.name for path in tmp_path.iterdir()} <= {"kept.lock"}
    assert len(site.asked) == 1


def test_a_downloaded_file_that_was_damaged_since_is_an_error(site, tmp_path):
    get(site, tmp_path)
    (tmp_path / "kept").write_bytes(CONTENT[:-1])
    with pytest.raises(DamagedError):
        get(site, tmp_path)


def test_files_are_fetched_from_any_fsspec_store(tmp_path, waits):
    store = fsspec.filesystem("memory")
    store.pipe("/shelf/weights", CONTENT)
    (tmp_path / f"kept{PART}").write_bytes(CONTENT[:77])
    assert fetch("memory://shelf/weights", tmp_path / "kept", DIGEST).read_bytes() == CONTENT
    (tmp_path / "plain").write_bytes(CONTENT)
    assert fetch(str(tmp_path / "plain"), tmp_path / "copy", DIGEST).read_bytes() == CONTENT
    with pytest.raises(FileNotFoundError):
        fetch("memory://shelf/nothing", tmp_path / "none", None)
    assert waits == []


def test_progress_is_reported_in_megabytes(site, tmp_path):
    done = []

    class Bar:
        def __init__(self, what: str, total: int, unit: str) -> None:
            done.append((what, total, unit))

        def __enter__(self):
            return done.append

        def __exit__(self, *_: object) -> None:
            pass

    with progress.report_to(Bar):
        get(site, tmp_path)
    assert done == [("download", 4, "MB"), 1, 1, 1, 1]


@given(st.lists(st.integers(0, len(CONTENT)), max_size=3), st.booleans())
@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_the_downloaded_bytes_are_the_same_wherever_connections_break(site, tmp_path_factory, breaks, ranges):
    site.breaks, site.ranges, site.asked = breaks, ranges, []
    assert get(site, tmp_path_factory.mktemp("any")) == CONTENT


def test_a_digest_is_read_from_a_file_name_in_the_convention_of_torch_hub():
    assert downloads.digest_in("resnet34-b627a593.pth") == "b627a593"
    assert downloads.digest_in("model.safetensors") is None

"""Which addresses a run's parameters may name: those under the roots of this machine, for each parameter."""

from pathlib import Path

import pytest

from rootstock.config.params import Params
from rootstock.config.params_file import validate
from rootstock.system.errors import ParamsError
from tasks.bridge import allowed_addresses

COMMITTED = {
    "ingest": {
        "sources": [{"path": "/data/photos", "domain": "field"}, {"path": "s3://bucket/photos", "domain": "s3"}]
    },
    "extract": {"cluster": "scheduler:8786"},
}
KEYS = {
    "source": lambda value: {"ingest": {"sources": [{"path": value, "domain": "field"}]}},
    "weights": lambda value: {"backbone": {"weights": value}},
    "inbox": lambda value: {"retrain": {"inbox": value}},
    "store": lambda value: {"extract": {"store": value}},
    "cluster": lambda value: {"extract": {"cluster": value}},
}


@pytest.fixture
def judged(tmp_path, monkeypatch):
    """Make the function that says whether a value may be given for a key, in a workspace with a link out of it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "out").symlink_to("/etc")
    before = validate(COMMITTED, "params.yaml")

    def judge(key: str, value: str, committed: Params = before) -> bool:
        try:
            allowed_addresses.check(
                validate(KEYS[key](value), "run"), committed, lambda: allowed_addresses.roots(committed)
            )
        except ParamsError as error:
            assert "lies under none of" in str(error) or "supported protocols" in str(error)
            return False
        return True

    return judge


@pytest.mark.parametrize("key", ["source", "weights", "inbox", "store"])
def test_paths_are_allowed_in_the_workspace_and_where_the_committed_parameters_point(judged, key):
    reached = ["photos", "./a/../photos", "/data/photos/x", "file:///data/photos", "s3://bucket/photos/x"]
    assert [value for value in reached if not judged(key, value)] == []
    not_reached = ["/data/photos2", "/data", "out", "out/passwd", "..", "~", "s3://bucket", "https://h/x", "memory://x"]
    assert [value for value in not_reached if judged(key, value)] == []


def test_names_of_built_in_sources_and_weights_are_always_allowed(judged):
    assert judged("source", "sample:digits") and judged("source", "torchvision:EuroSAT")
    assert judged("weights", "pretrained") and judged("weights", "random") and judged("weights", "package:torch/x")


def test_a_cluster_is_allowed_by_its_host_however_its_address_is_written(judged, monkeypatch):
    reached = ["scheduler:8786", "tcp://scheduler:8786"]
    others = [
        "evil:8786",
        "tcp://evil:8786",
        "scheduler:87860",
        "127.0.0.1:8786",
        "auto",
        "photos",
        "ray://evil:1",
        "tls://x",
    ]
    assert [value for value in reached if not judged("cluster", value)] == []
    assert [value for value in others if judged("cluster", value)] == []
    monkeypatch.setenv(allowed_addresses.ROOTS, "head:10001;ray://head:10001")
    assert judged("cluster", "tcp://head:10001") and judged("cluster", "ray://head:10001")
    assert not judged("cluster", "tcp://evil:8786")


def test_roots_of_a_worker_may_be_relative_to_its_home(judged, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path / "me"))
    monkeypatch.setenv(allowed_addresses.ROOTS, " ~/photos ; s3://other/x;")
    home = Path(tmp_path / "me" / "photos")
    assert judged("inbox", f"{home}/new") and judged("inbox", "s3://other/x/y")
    assert not judged("inbox", f"{home}2") and not judged("inbox", "data/photos")

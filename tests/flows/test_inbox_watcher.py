"""Each file that arrives in the inbox is announced once."""

from pathlib import Path

import pytest

from flows.ui import inbox
from rootstock.config import params_file
from tests.images import put

PARAMS = Path(__file__).parents[2] / "params.yaml"


@pytest.fixture
def emitted(tmp_path, monkeypatch) -> list[dict]:
    """A workspace with an inbox; returns what was emitted to the server."""
    monkeypatch.chdir(tmp_path)
    params = params_file.load(PARAMS)
    settings = params.retrain.model_copy(update={"settle_seconds": 0.0})
    params_file.save(tmp_path / "params.yaml", params.model_copy(update={"retrain": settings}))
    found: list[dict] = []
    monkeypatch.setattr(inbox, "emit_event", lambda name, resource, payload: found.append(payload))
    return found


@pytest.mark.parametrize("name", ["1.png", "a\u2028b.png", "a\u0085b.png", "a\x0cb.png", "a\rb.png", "a\nb.png"])
def test_a_file_is_announced_once_whatever_its_name_holds(emitted, tmp_path, name):
    put(tmp_path / "data/inbox/shed/moss" / name, 1)
    assert [inbox.announce() for _ in range(3)] == [1, 0, 0]
    put(tmp_path / "data/inbox/shed/_unlabelled/2.png", 2)
    assert [inbox.announce() for _ in range(2)] == [1, 0]
    assert emitted == [{"new": 1, "labelled": 1, "unlabelled": 0}, {"new": 1, "labelled": 1, "unlabelled": 1}]


def test_what_another_version_has_noted_is_ignored(emitted, tmp_path):
    inbox.ANNOUNCED.parent.mkdir()
    inbox.ANNOUNCED.write_text("shed/moss/1.png\t10:20")
    put(tmp_path / "data/inbox/shed/moss/1.png", 1)
    assert [inbox.announce() for _ in range(2)] == [1, 0]

"""The stage fine_tune where there is nothing to fine-tune: it reads nothing, here or elsewhere."""

from contextlib import chdir
from pathlib import Path

import pytest

from rootstock.config.params import Finetune, Params
from rootstock.training import finetune
from tasks.bridge import handoff
from tasks.bridge.workspace import FINETUNED
from tasks.fine_tune import fine_tune

NOTHING = Params(finetune=Finetune(stages=(), where="fine-tune/gpu"))


def test_without_stages_nothing_is_read_and_no_weights_are_written(tmp_path):
    with chdir(tmp_path):
        summary = fine_tune(NOTHING)
        assert {path.name for path in FINETUNED.iterdir()} == {"history.parquet", "finetuned.json"}
        assert finetune.load_history(FINETUNED) == []
    assert summary.note == "no stages: the backbone stays frozen"
    assert not (tmp_path / ".rootstock" / "finetune.pt").exists()


def test_without_stages_no_other_machine_is_asked(tmp_path, monkeypatch):
    monkeypatch.setattr(handoff, "get_client", pytest.fail)
    monkeypatch.setattr(handoff.dvc_remote, "push_inputs", pytest.fail)
    with chdir(tmp_path):
        assert handoff.run_elsewhere("fine_tune", NOTHING, "fine-tune/gpu") is None
        assert list(Path().iterdir()) == []

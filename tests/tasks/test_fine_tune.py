"""The stage fine_tune where there is nothing to fine-tune: it reads nothing and is not handed off."""

from contextlib import chdir
from pathlib import Path

import pytest

from rootstock.config.params import Finetune, Params
from rootstock.training.course import AVERAGES, DESCRIPTION, HISTORY, RATES, Course, load_course
from tasks.bridge import handoff
from tasks.bridge.workspace import FINETUNED
from tasks.fine_tune import fine_tune

NOTHING = Params(finetune=Finetune(stages=(), where="fine-tune/gpu"))


def test_fine_tuning_without_stages_reads_nothing_and_writes_no_weights(tmp_path):
    with chdir(tmp_path):
        summary = fine_tune(NOTHING)
        assert {path.name for path in FINETUNED.iterdir()} == {HISTORY, AVERAGES, RATES, DESCRIPTION}
        assert load_course(FINETUNED) == Course()
    assert summary.note == "no stages: the backbone stays frozen"
    assert not (tmp_path / ".rootstock" / "finetune.pt").exists()


def test_fine_tuning_without_stages_is_not_handed_off(tmp_path, monkeypatch):
    monkeypatch.setattr(handoff, "get_client", pytest.fail)
    monkeypatch.setattr(handoff.dvc_remote, "push_inputs", pytest.fail)
    with chdir(tmp_path):
        assert handoff.run_elsewhere("fine_tune", NOTHING, "fine-tune/gpu") is None
        assert list(Path().iterdir()) == []

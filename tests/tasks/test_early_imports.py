"""Libraries that take seconds to import are imported while Prefect's own server starts, if something is to be done."""

import json
import os
import subprocess
import sys
import time

import pytest

from tasks.bridge import versions
from tests.workspace import ROOT, environment

TIMM = "timm/resnet10t"
CODE = """
import json, sys
from tasks.bridge import early_imports
sys.modules |= {hidden}
early_imports.begin({backbone!r})
early_imports.wait()
print(json.dumps(sorted({{"rootstock.training.heads", "timm", "torchvision"}} & set(sys.modules))))
"""


def imported(home, backbone, hidden=(), **env):
    """What a process without the hidden libraries has imported after the wait, and what it has printed as errors."""
    command = [sys.executable, "-c", CODE.format(backbone=backbone, hidden=dict.fromkeys(hidden))]
    done = subprocess.run(command, cwd=ROOT, env=environment(home) | env, capture_output=True, text=True, check=True)
    return json.loads(done.stdout), done.stderr


@pytest.mark.parametrize(
    ("backbone", "libraries"),
    [(TIMM, ["timm", "torchvision"]), ("resnet18", ["torchvision"]), ("lenet5", [])],
)
def test_what_the_stages_need_is_imported_with_the_library_of_the_backbone(tmp_path, backbone, libraries):
    found, _ = imported(tmp_path, backbone)
    assert found == ["rootstock.training.heads", *libraries]


def test_nothing_is_imported_early_where_a_server_runs_already(tmp_path):
    assert imported(tmp_path, TIMM, PREFECT_API_URL="http://127.0.0.1:9/api")[0] == []


@pytest.mark.parametrize(("backbone", "hidden"), [(TIMM, ["sklearn"]), (TIMM, ["timm"]), ("unknown", [])])
def test_a_library_that_cannot_be_imported_is_left_to_the_stage_that_needs_it(tmp_path, backbone, hidden):
    assert imported(tmp_path, backbone, hidden)[1] == ""


def test_a_run_is_probably_stale_before_the_first_and_after_an_edit(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    params, lock = tmp_path / "params.yaml", tmp_path / "dvc.lock"
    params.touch()
    assert versions.is_probably_stale()
    lock.touch()
    os.utime(lock, (time.time() + 1,) * 2)
    assert not versions.is_probably_stale()
    os.utime(params, (time.time() + 2,) * 2)
    assert versions.is_probably_stale()

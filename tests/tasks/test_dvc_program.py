"""The command `dvc` of the environment: which columns `dvc exp show` has."""

import json
import os
import subprocess
from pathlib import Path

import pytest

from rootstock.evaluation.model_selection import summarize

LONGEST = "sophisticated-caterpillars"  # Prefect's names for runs have up to 26 letters
SCORES = {"value": 0.977778, "low": 0.954321, "high": 0.991234}
VALIDATION = {"accuracy": SCORES, "balanced_accuracy": SCORES, "log_loss": {"value": 0.072345}}


@pytest.fixture(scope="module")
def kept(tmp_path_factory) -> Path:
    """A repository with metrics like evaluate's, and an experiment of an earlier year with a long name."""
    root = tmp_path_factory.mktemp("experiments")
    metrics = summarize({"head": VALIDATION, "finetuned": VALIDATION}, "finetuned")
    (root / "tasks" / "bridge").mkdir(parents=True)
    (root / "tasks" / "bridge" / "workspace.py").touch()
    (root / "metrics.json").write_text(json.dumps(metrics))
    (root / "params.yaml").write_text("seed: 0\nhead:\n  l2: 0.1\n  max_iterations: 50\n")
    (root / "dvc.yaml").write_text("metrics: [metrics.json]\nparams: [params.yaml]\n")
    run(root, "git", "init", "-q")
    run(root, "dvc", "init", "-q")
    run(root, "git", "add", "--all")
    run(root, "git", "commit", "-qm", "baseline")
    head = run(root, "git", "rev-parse", "HEAD").strip()
    commit = run(root, "git", "commit-tree", "-p", head, "-m", "experiment", "HEAD^{tree}").strip()
    run(root, "git", "update-ref", f"refs/exps/{head[:2]}/{head[2:]}/{LONGEST}", commit)
    return root


def run(root: Path, *command: str) -> str:
    who = {f"GIT_{role}_{what}": "a@b.c" for role in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
    env = os.environ | who | {"GIT_COMMITTER_DATE": "2020-11-27T10:00:00", "COLUMNS": "400"}
    return subprocess.run(command, cwd=root, env=env, capture_output=True, text=True, check=True).stdout


def shown(root: Path, *options: str) -> list[str]:
    return [line.rstrip() for line in run(root, "dvc", "exp", "show", "--no-pager", *options).splitlines()]


def test_exp_show_fits_120_columns_with_the_longest_name_and_an_old_date(kept):
    lines = shown(kept)
    assert any(LONGEST in line and "Nov 27, 2020" in line for line in lines)
    assert max(map(len, lines)) <= 120
    assert lines[1].split() == ["Experiment", "Created", "winner", "accuracy", "low", "high", "log_loss"]


def test_exp_show_keeps_the_columns_that_are_named(kept):
    assert shown(kept, "--keep", "head.l2")[1].split()[-2:] == ["log_loss", "head.l2"]


def test_options_that_choose_columns_are_left_to_dvc(kept):
    assert {"balanced", "head.l2", "head.max_iterations"} <= set(shown(kept, "--drop", "seed")[1].split())

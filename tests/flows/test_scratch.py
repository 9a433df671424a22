"""Training from scratch on the sample: LeNet-5 learns the digits, and 34 layers learn only with shortcuts."""

import sys

import pandas as pd
import pytest

from tests.workspace import make_workspace

MOST_S = 900  # a minute or two on two cores of its own, several beside other tests
pytestmark = [pytest.mark.slow, pytest.mark.timeout(2 * MOST_S)]


@pytest.fixture(scope="module")
def sample(tmp_path_factory, prefect_home):
    workspace = make_workspace(tmp_path_factory.mktemp("sample") / "workspace", prefect_home)
    workspace.run("git", "rm", "-rq", "--cached", "photos")
    workspace.set(ingest={"sources": [{"path": "sample:digits", "domain": "handwritten"}]})
    workspace.set(ingest={"split": {"val": 0.15, "test": 0.15}}, finetune={"batch_size": 32})
    return workspace


def compare(workspace, *arguments: str) -> tuple[pd.DataFrame, pd.DataFrame]:
    # On one thread: two that wait for each other at every layer take five times as long where cores are busy.
    command = [sys.executable, "-m", "flows.compare", "--scratch", *arguments]
    workspace.run(*command, timeout=MOST_S, OMP_NUM_THREADS="1")
    kept = workspace.root / "data" / "compare"
    return tuple(pd.read_parquet(kept / f"{name}.parquet").set_index(key) for name, key in TABLES)


TABLES = (("compare", "backbone"), ("curves", "name"))


def test_lenet5_reaches_98_percent(sample):
    rows, _ = compare(sample, "lenet5")
    assert rows.loc["lenet5", "accuracy"] >= 0.98
    assert rows.loc["lenet5", "parameters"] == 60_000


def test_the_residual_network_learns_where_the_plain_one_does_not(sample):
    rows, curves = compare(sample, "resnet34", "plain34", "--image-size", "32", "--epochs", "5", "--lr", "0.001")
    residual, plain = (curves.loc[name, "train_loss"].iloc[-1] for name in ("resnet34", "plain34"))
    assert residual < plain - 0.2
    assert rows.loc["resnet34", "accuracy"] > rows.loc["plain34", "accuracy"]

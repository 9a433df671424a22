"""Images of any number of classes, from a table through both entry points, and again when more of them arrive."""

import json
import sys
from pathlib import Path

import pandas as pd
import pytest

from tests.flows.test_repro_and_flow import UP_TO_DATE
from tests.retraining import champions, retrain
from tests.shapes import SHAPES, drawn_labels, picture, put_shapes
from tests.workspace import Workspace, environment, make_workspace

pytestmark = pytest.mark.usefixtures("one_server")


@pytest.fixture(scope="session")
def shapes_in_use(once, prefect_home, server) -> Workspace:
    """A workspace in which the flow has run on shapes; do not change it, copy it."""

    def make(folder: Path) -> None:
        workspace = make_workspace(folder, prefect_home)
        put_shapes(folder / "shapes", 150)
        sources = [{"path": "shapes/shapes.parquet", "domain": "desk"}]
        workspace.set(ingest={"sources": sources}, retrain={"settle_seconds": 0.2})
        workspace.flow(**server.env)

    return Workspace(once("shapes", make), environment(prefect_home))


def test_the_flow_leaves_nothing_to_do_for_dvc_and_a_model_with_thresholds(shapes_in_use):
    root = shapes_in_use.root
    assert shapes_in_use.status() == UP_TO_DATE
    assert set(json.loads((root / "data" / "model" / "model.json").read_text())["thresholds"]) == set(SHAPES)
    metric = json.loads((root / "data" / "report" / "metrics.json").read_text())
    assert {"accuracy", "map", "log_loss"} <= set(metric)


@pytest.mark.slow
def test_a_delivery_in_folders_that_are_sets_is_compared_with_the_champion_and_predicted_alone(shapes_in_use, tmp_path):
    workspace = shapes_in_use.copy(tmp_path / "workspace")
    for number, labels in enumerate(drawn_labels(60, seed=5)):
        folder = workspace.root / "data" / "inbox" / "wall" / (";".join(labels) or ";")
        folder.mkdir(parents=True, exist_ok=True)
        picture(labels, 70_000 + number).point(lambda value: 255 - value).save(folder / f"{number}.png")
    said = retrain(workspace)
    assert "60 new images (60 of wall)" in said
    assert "the share of images whose labels are all right" in said
    assert champions(workspace)[-1].new_images == 60
    manifest = pd.read_parquet(workspace.root / "data" / "dataset" / "manifest.parquet")
    done = workspace.run(sys.executable, "-m", "flows.predict", "data/inbox", "--out", "answers.csv")
    assert "60 images: 60 classified" in done.stdout
    assert list(pd.read_csv(workspace.root / "answers.csv").columns)[:3] == ["path", "labels", "label"]
    assert set(manifest["class_index"]) == {-1}

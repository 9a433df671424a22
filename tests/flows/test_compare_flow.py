"""`python -m flows.compare` on a real workspace, and a new backbone that is one entry in one file."""

import json
import re
import sys
from pathlib import Path

import pandas as pd
import pytest

from tests.flows.test_repro_and_flow import UP_TO_DATE
from tests.serving import worker

pytestmark = pytest.mark.usefixtures("one_server")

TWO = ("shufflenet_v2_x0_5", "lenet5")


def compare(workspace, *arguments: str, check: bool = True):
    return workspace.run(sys.executable, "-m", "flows.compare", *arguments, check=check)


@pytest.mark.slow
def test_a_comparison_writes_a_table_and_a_page_and_makes_nothing_stale(after_flow):
    kept = after_flow.outputs()
    said = compare(after_flow, *TWO, "--depths", "low", "penultimate").stdout
    for name in TWO:  # a line per candidate, as it ends
        assert len(re.findall(rf"^compare +[\d.]+  {name}, \w+: validation [\d.]+%, \d+ images/s$", said, re.M)) == 2
    assert "| lenet5 (random) | low | 32 px | random" in said and "Best validation accuracy in this run: " in said
    table = pd.read_parquet(after_flow.root / "data" / "compare" / "compare.parquet")
    assert list(zip(table["backbone"], table["layer"], strict=True)) == [
        (name, layer) for name in TWO for layer in ("low", "penultimate")
    ]
    assert (table["reason"] == "").all() and (table["data"] == table["data"][0]).all()
    assert after_flow.status() == UP_TO_DATE
    assert {name: data for name, data in after_flow.outputs().items() if not name.startswith("data/compare")} == kept
    assert "Comparison of backbones" in (after_flow.root / "data" / "compare" / "report.html").read_text()


@pytest.mark.slow  # half a minute
def test_the_pipeline_reuses_the_features_of_the_backbone_chosen_after_a_comparison(after_flow):
    compare(after_flow, "lenet5")
    after_flow.set(backbone={"name": "lenet5", "image_size": None, "crop_fraction": None})
    assert "0 of 45 images extracted" in after_flow.flow()


def test_a_misspelt_name_on_the_command_line_is_a_one_line_error(after_flow):
    done = compare(after_flow, "resnet-18", check=False)
    assert done.returncode == 1
    assert "compare: command line: compare.backbones is 'resnet-18'" in done.stderr
    assert "Did you mean resnet18" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.slow
def test_the_ui_shows_a_comparison_as_a_run_with_one_task_per_candidate_and_its_plots(deployed, after_flow):
    with worker(deployed, "cpu", after_flow):
        run = deployed.start(
            "compare/cpu",
            compare={"backbones": ["lenet5", "resnet18"], "depths": ["low"], "scratch": ["lenet5"], "epochs": 2},
        )
        state = run.ended()
    assert state["type"] == "COMPLETED", (state["message"], run.logs()[-30:])
    assert "1 of 3 could not be evaluated" in state["message"]
    stages = run.stages()
    assert stages["lenet5, low"] == "Completed" and stages["resnet18, low"] == "Not evaluated"
    artifact = run.artifacts()["comparison"]["data"]
    assert artifact.count("data:image/png;base64") == 2  # accuracy against size, and training from scratch
    assert "- resnet18, low: backbone.weights: resnet18's weights cannot be loaded" in artifact


NEW = """
    "tiny": Architecture(
        library="rootstock",
        depths=("edges", "parts", "parts"),
        pretrained="package:tiny_networks/*.safetensors",
        licence="MIT",
        transform=Transform(24, 24, "bilinear", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    ),
"""
CODE = """
from torch import nn
class Tiny(nn.Module):
    def __init__(self):
        super().__init__()
        self.edges = nn.Conv2d(3, 8, 3, 2)
        self.parts = nn.Conv2d(8, 16, 3, 2)
        self.fc = nn.Linear(16, 1000)
    def forward(self, images):
        return self.fc(self.parts(self.edges(images).relu()).relu().mean((2, 3)))
"""


def insert(path: Path, after: str, code: str) -> None:
    text = path.read_text()
    assert text.count(after) == 1
    path.write_text(text.replace(after, after + code))


@pytest.mark.slow  # half a minute
def test_a_new_backbone_takes_one_entry_and_a_builder(workspace):
    """As docs/backbones.md says: here a network of a package of one's own, with the weights it ships."""
    package = workspace.root / "tiny_networks"
    package.mkdir()
    (package / "__init__.py").write_text(CODE)
    save = "import torch; from safetensors.torch import save_file; from tiny_networks import Tiny; torch.manual_seed(0)"
    workspace.run("python", "-c", f"{save}; save_file(Tiny().state_dict(), 'tiny_networks/tiny.safetensors')")
    insert(workspace.root / "rootstock/config/architectures.py", "OURS: dict[str, Architecture] = {", NEW)
    networks = workspace.root / "rootstock/backbones/networks.py"
    insert(networks, "    from rootstock.backbones.lenet import LeNet5", "\n    from tiny_networks import Tiny")
    insert(networks, '"plain34": plain34, ', '"tiny": Tiny, ')
    workspace.set(backbone={"name": "tiny", "weights": "pretrained", "image_size": None}, extract={"layer": "low"})
    assert "report:" in workspace.flow()
    described = json.loads((workspace.root / "data" / "backbone" / "backbone.json").read_text())
    assert (described["name"], described["licence"], described["feature_width"]) == ("tiny", "MIT", 16)
    assert described["depths"]["low"]["width"] == 8
    model = json.loads((workspace.root / "data" / "model" / "model.json").read_text())
    assert {key: model["features"][key] for key in ("layer", "pooling", "width")} == {
        "layer": "low", "pooling": "avg", "width": 8,
    }  # fmt: skip
    ask = "from pathlib import Path; from rootstock.model.model import load; import sys"
    photo = "photos/moss/000.png"
    said = workspace.run("python", "-c", f"{ask}; print(load(Path('data/model')).predict([Path('{photo}')])[0].label)")
    assert said.stdout.strip() in ("lemon", "moss", "plum")

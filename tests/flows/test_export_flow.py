"""`python -m flows.export`, and the deployment `export/cpu`: the champion for other runtimes."""

import json
import sys

import numpy as np
import onnxruntime
import pytest

from flows.export import main
from tests.workspace import Workspace

FLOW = "from flows.export import export; print(export('torchscript', out={out!r}, return_state=True).message)"


def export(workspace: Workspace, *arguments: str, **given):
    return workspace.run(sys.executable, "-m", "flows.export", *arguments, check=False, **given)


def test_the_champion_is_written_for_several_runtimes_a_line_each(flow_ran_in, tmp_path):
    done = export(flow_ran_in, "--format", "onnx", "torchscript", "--out", f"{tmp_path}/{{format}}")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert [line.split(":")[0] for line in lines] == [f"{tmp_path}/onnx/model.onnx", f"{tmp_path}/torchscript/model.pt"]
    assert all("images/s, same class for all" in line and "test images" in line for line in lines)
    session = onnxruntime.InferenceSession(tmp_path / "onnx" / "model.onnx")
    classes = json.loads(session.get_modelmeta().custom_metadata_map["classes"])
    probabilities, _ = session.run(None, {"images": np.zeros((2, 3, *session.get_inputs()[0].shape[2:]), np.uint8)})
    assert probabilities.shape == (2, len(classes))


@pytest.mark.slow
def test_an_int8_version_that_loses_too_much_is_told_and_is_exit_status_3(after_flow, tmp_path):
    path = after_flow.root / "params.yaml"
    path.write_text(path.read_text().replace("max_loss: 0.01", "max_loss: -0.5"))
    refused = export(after_flow, "--int8", "--out", str(tmp_path / "out"))
    assert refused.returncode == 1 and "export.max_loss is -0.5; expected at least 0" in refused.stderr
    path.write_text(path.read_text().replace("max_loss: -0.5", "max_loss: 0.0"))
    done = export(after_flow, "--int8", "--out", str(tmp_path / "out"))
    kept = (tmp_path / "out" / "model.int8.onnx").exists()
    assert done.returncode == (0 if kept else 3), done.stderr
    assert ("model.int8.onnx: int8" if kept else "int8 was not kept: validation accuracy falls from") in done.stdout


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            ("--model", "data"),
            "export: data holds no model; expected a folder such as data/model, with a model.json, as",
        ),
        (("--out", "photos"), "export: photos holds something else than an export, and is left alone; name another"),
        (("--format", "torch", "--int8"), "export: int8 is for the formats onnx and openvino, not for torch."),
        (("--format", "torch", "onnx", "--out", "out"), "export: --out is out, for several formats; expected a folder"),
    ],
)
def test_an_error_is_one_sentence_and_exit_status_1(flow_ran_in, monkeypatch, arguments, said):
    monkeypatch.chdir(flow_ran_in.root)
    monkeypatch.setattr(sys, "argv", ["export", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    assert str(ended.value).startswith(said)  # printed, with exit status 1


@pytest.mark.slow
@pytest.mark.usefixtures("one_server")
def test_a_run_of_the_deployment_writes_only_under_the_roots(after_flow, tmp_path):
    by_the_api = {"PREFECT__RUNTIME__DEPLOYMENT__ID": "export/cpu"}
    inside = after_flow.run(sys.executable, "-c", FLOW.format(out="data/export/{format}"), **by_the_api)
    assert "data/export/torchscript/model.pt: float32" in inside.stdout.splitlines()[-1]
    elsewhere = after_flow.run(sys.executable, "-c", FLOW.format(out=str(tmp_path / "out")), **by_the_api)
    assert "which this run was given and which lies under none of" in elsewhere.stdout.splitlines()[-1]

"""`python -m flows.predict`, and the deployment `predict/cpu`: images in, a row for each out."""

import re
import signal
import subprocess
import sys

import fsspec
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from flows.predict import main
from rootstock.model.parts import ROWS
from tests.serving import until
from tests.workspace import Workspace, draw_photos

FLOW = "from flows.predict import predict; print(predict({source!r}, out={out!r}, return_state=True).message)"


@pytest.fixture
def photos(tmp_path):
    draw_photos(tmp_path / "photos", 3)
    (tmp_path / "photos" / "broken.png").write_bytes(b"no image")
    return tmp_path / "photos"


def predict(workspace: Workspace, *arguments: str, **given):
    return workspace.run(sys.executable, "-m", "flows.predict", *arguments, check=False, **given)


def test_each_image_is_a_row_and_the_last_line_and_the_exit_status_say_how_many_were_rejected(
    flow_ran_in, photos, tmp_path
):
    done = predict(flow_ran_in, str(photos), "--out", str(tmp_path / "out.csv"), "--top", "1")
    rows = pd.read_csv(tmp_path / "out.csv")
    count = len(rows)
    assert done.returncode == 3 and rows["reason"].dropna().tolist() == ["undecodable"]
    assert f"{count} images: {count - 1} classified (" in done.stdout.splitlines()[-1]
    assert "1 rejected (1 undecodable)" in done.stdout and f". {tmp_path}/out.csv, " in done.stdout
    (photos / "broken.png").unlink()
    again = predict(flow_ran_in, str(photos), "--out", str(tmp_path / "out.csv"), "--explain", str(tmp_path / "why"))
    rows = pd.read_csv(tmp_path / "out.csv")
    assert again.returncode == 0 and len(rows) == count - 1
    assert sorted(rows["explanation"]) == sorted(path.name for path in (tmp_path / "why").iterdir())


def test_images_of_the_dataset_are_classified_from_cached_features(flow_ran_in, tmp_path):
    done = predict(flow_ran_in, "photos", "--out", str(tmp_path / "out.parquet"))
    rows = pd.read_parquet(tmp_path / "out.parquet")
    assert done.returncode == 0, done.stderr
    winner = pd.read_json(flow_ran_in.root / "data/report/metrics.json", typ="series")["winner"]
    assert (f"{len(rows)} from cached features" in done.stdout) == (winner == "head")


@pytest.mark.slow
def test_a_killed_run_goes_on_and_its_file_is_that_of_one_that_was_not(flow_ran_in, tmp_path):
    rng = np.random.default_rng(0)
    (tmp_path / "many").mkdir()
    for number in range(3 * ROWS):
        Image.fromarray(rng.integers(0, 256, (12, 12, 3), np.uint8)).save(tmp_path / "many" / f"{number:05d}.png")
    whole, killed = tmp_path / "whole.parquet", tmp_path / "killed.parquet"
    assert predict(flow_ran_in, str(tmp_path / "many"), "--out", str(whole)).returncode == 0
    command = [sys.executable, "-m", "flows.predict", str(tmp_path / "many"), "--out", str(killed)]
    started = subprocess.Popen(
        command, cwd=flow_ran_in.root, env=flow_ran_in.env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    until(lambda: list((tmp_path / "killed.parquet.parts").glob("*.parquet")), "the first part", 120)
    started.send_signal(signal.SIGKILL)
    started.wait(30)
    assert not killed.exists()
    done = predict(flow_ran_in, str(tmp_path / "many"), "--out", str(killed))
    [resumed] = re.findall(r"([\d,]+) of an earlier run", done.stdout)
    assert int(resumed.replace(",", "")) >= ROWS
    pd.testing.assert_frame_equal(pd.read_parquet(killed), pd.read_parquet(whole))
    assert not (tmp_path / "killed.parquet.parts").exists()


@pytest.mark.slow
def test_predictions_are_written_to_a_store(flow_ran_in, photos, s3):
    out = f"s3://{s3.bucket}/predictions.csv"
    env = s3.credentials | {"AWS_ENDPOINT_URL": s3.url}
    done = predict(flow_ran_in, str(photos), "--out", out, **env)
    assert done.returncode == 3 and f". {out}, " in done.stdout, done.stderr
    with fsspec.open(
        out, key=env["AWS_ACCESS_KEY_ID"], secret=env["AWS_SECRET_ACCESS_KEY"], endpoint_url=s3.url
    ) as file:
        assert len(pd.read_csv(file)) == len(list(photos.rglob("*.png"))) + len(list(photos.rglob("*.jpg")))
    assert not list((flow_ran_in.root / ".rootstock" / "predictions").iterdir())


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("nowhere",), "predict: nowhere does not exist. Expected a folder, an archive or a manifest."),
        (("photos", "--model", "data"), "predict: data holds no model; expected a folder such as data/model, with a"),
        (("photos", "--top", "0"), "predict: top is 0; expected at least 1."),
    ],
)
def test_an_error_is_one_sentence_and_exit_status_1(flow_ran_in, tmp_path, monkeypatch, arguments, said):
    monkeypatch.chdir(flow_ran_in.root)
    monkeypatch.setattr(sys, "argv", ["predict", *arguments, "--out", str(tmp_path / "out.csv")])
    with pytest.raises(SystemExit) as ended:
        main()
    assert str(ended.value).startswith(said)  # printed, with exit status 1


def test_a_process_without_standard_input_classifies_a_folder(flow_ran_in, tmp_path, monkeypatch):
    monkeypatch.chdir(flow_ran_in.root)
    monkeypatch.setattr(sys, "argv", ["predict", "photos", "--out", str(tmp_path / "out.csv")])
    monkeypatch.setattr(sys, "stdin", None)  # as Python has it in `python -m flows.predict ... <&-`
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 0 and (tmp_path / "out.csv").exists()


@pytest.mark.slow
@pytest.mark.usefixtures("one_server")
def test_a_run_of_the_deployment_reads_and_writes_only_under_the_roots(flow_ran_in, photos, tmp_path):
    inside = str(flow_ran_in.root / "predictions.csv")
    asked = {
        "inside": FLOW.format(source="photos", out=inside),
        "elsewhere": FLOW.format(source=str(photos), out=inside),
        "written": FLOW.format(source="photos", out=str(tmp_path / "out.csv")),
        "explained": FLOW.replace("return_state", "explain='/elsewhere', return_state").format(
            source="photos", out=inside
        ),
    }
    by_the_api = {"PREFECT__RUNTIME__DEPLOYMENT__ID": "predict/cpu"}
    done = flow_ran_in.run(sys.executable, "-c", "\n".join(asked.values()), **by_the_api)
    said = dict(zip(asked, (line for line in done.stdout.splitlines() if "| " not in line), strict=True))
    assert f"{inside}, " in said["inside"] and "classified" in said["inside"]
    assert said["elsewhere"].startswith(f"source is '{photos}', which this run was given and which lies under none of")
    assert said["written"].startswith(f"out is '{tmp_path}/out.csv', which this run was given and which lies under")
    assert said["explained"].startswith(
        "explain is '/elsewhere', which this run was given and which lies under none of"
    )
    assert "classified" in flow_ran_in.run(sys.executable, "-c", asked["elsewhere"]).stdout  # by a person

"""Images of a new domain arrive: what is ingested, how the challenger is promoted, and what starts a retraining."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from PIL import Image

from rootstock.evaluation.paired_comparison import UNSEEN
from tests.flows.test_repro_and_flow import UP_TO_DATE
from tests.retraining import champions, deliver, retrain
from tests.serving import until, worker
from tests.workspace import CLASSES, long_finetune

pytestmark = pytest.mark.usefixtures("one_server")
LONG = long_finetune(epochs=25)


def test_a_promotion_adds_the_new_domain_and_changes_no_byte_of_earlier_files(in_use, promoted):
    earlier = {
        name: data for name, data in in_use.outputs().items() if name.endswith((".tar", ".parquet")) and "0000" in name
    }
    now = promoted.outputs()
    assert len(earlier) == 4  # a shard, its features, its rows of manifest and ledger
    assert {name: now[name] for name in earlier} == earlier
    manifest = pd.read_parquet(promoted.root / "data" / "dataset" / "manifest.parquet")
    assert manifest["domain"].value_counts().to_dict() == {"garden": 45, "shed": 60}
    assert promoted.status() == UP_TO_DATE


def test_a_promotion_is_a_version_with_its_reason_figures_and_data(in_use, promoted):
    first, second = champions(promoted)
    assert (first.decision, first.version, second.decision, second.version) == ("first", 1, "promoted", 2)
    assert "on shed" in second.reason
    assert (second.images, second.new_images, second.new_domains) == (105, 60, ("shed",))
    assert {line["what"] for line in json.loads(second.comparison)} == {"overall", "garden", "shed", UNSEEN}
    assert first.lock == (in_use.root / "dvc.lock").read_text()
    tags = promoted.run("git", "tag", "--list", "--format", "%(refname:short) %(objecttype)").stdout.split("\n")
    assert tags[:2] == ["champion@v1 tag", "champion@v2 tag"]
    assert promoted.run("git", "show", "champion@v2:dvc.lock").stdout == (promoted.root / "dvc.lock").read_text()
    assert promoted.run("git", "log", "--oneline", "HEAD").stdout.count("\n") == 2  # nothing was committed


@pytest.mark.slow
def test_a_group_pattern_that_matches_no_path_of_a_delivery_is_reported(before):
    before.set(retrain={"group": r"(?P<group>patient_\d+)", "settle_seconds": 0.2, "min_new": 100})
    deliver(before, "shed", 2)
    done = before.run(sys.executable, "-m", "flows.retrain")
    assert "retrain.group is '(?P<group>patient_" in done.stdout + done.stderr
    assert "matches none of 6 paths" in done.stdout + done.stderr


@pytest.mark.slow  # twenty seconds; `promoted` has read that 60 of 105 were computed
def test_only_new_images_go_through_the_backbone(before):
    deliver(before, "shed", 20)
    counting = """
from rootstock.features import computing
seen, compute = [], computing.groups_of
def counted(*given):
    for group, features in compute(*given):
        seen.append(len(features))
        yield group, features
computing.groups_of = counted
from flows.retrain import retrain
retrain()
print("passed", sum(seen))
"""
    assert before.run("python", "-c", counting).stdout.strip().endswith("passed 60")


@pytest.mark.slow
def test_the_run_after_a_promotion_finds_nothing_new_and_repro_has_nothing_to_do(after):
    kept = after.outputs()
    assert retrain(after) == "Nothing new: All images in the inbox have been ingested before."
    shutil.rmtree(after.root / "data" / "inbox")
    assert retrain(after) == "Nothing new: The inbox holds no labelled images."
    after.repro()
    assert after.outputs() == kept


@pytest.mark.slow
def test_the_history_survives_another_evaluation_by_dvc(after):
    after.set(evaluate={"mistakes": 15})
    after.repro()
    assert [row.version for row in champions(after)] == [1, 2]


def test_too_few_new_images_wait_for_more(in_use, waiting, promoted):
    assert waiting.outputs() == in_use.outputs()
    assert champions(promoted)[-1].new_images == 60


@pytest.mark.slow  # twenty seconds
def test_a_delivery_may_contain_a_class_unknown_to_the_champion(after):
    for number in range(20):
        path = after.root / "data" / "inbox" / "shed" / "brick" / f"{number}.png"
        path.parent.mkdir(exist_ok=True)
        Image.effect_noise((48, 40), 40 + 3 * number).convert("RGB").save(path)
    after.set(retrain={"new_class_accuracy": 0.1})  # four test images show no more
    said = retrain(after)
    assert "has learnt new classes" in said and "on the new class brick" in said
    classes = json.loads((after.root / "data" / "model" / "model.json").read_text())["classes"]
    assert classes == ["brick", *CLASSES]
    assert champions(after)[-1].version == 3


@pytest.mark.slow  # half a minute
def test_a_killed_retraining_resumes_and_is_compared_with_the_same_champion(before):
    deliver(before, "shed", 20)
    before.set(finetune=LONG)
    with subprocess.Popen(
        [sys.executable, "-m", "flows.retrain"], cwd=before.root, env=before.env, start_new_session=True,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    ) as killed:  # fmt: skip
        until((before.root / ".rootstock" / "finetune.pt").exists, "a checkpoint")
        os.killpg(killed.pid, signal.SIGKILL)
    assert (before.root / ".rootstock" / "champion").exists()
    assert retrain(before).startswith("Promoted")
    first, second = champions(before)
    assert (first.images, second.images, second.new_images) == (45, 105, 60)
    assert not (before.root / ".rootstock" / "champion").exists()
    assert before.status() == UP_TO_DATE


@pytest.mark.slow  # a minute; test_inbox.py has what is moved and what is not
def test_ingested_images_are_archived_out_of_the_inbox_and_stay_in_the_dataset(before):
    inbox = before.root / "data" / "inbox"
    deliver(before, "shed", 20)
    (inbox / "shed" / "moss" / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    before.set(retrain={"after": "archive"})
    assert retrain(before).startswith("Promoted")
    assert len(list((inbox / "_taken" / "shed").rglob("*.png"))) == 60
    assert [path.name for path in (inbox / "shed").rglob("*.png")] == ["broken.png"]  # it was not ingested
    assert not (inbox / "_rejected").exists()
    deliver(before, "shed", 1)  # again, as after a crash before it was tidied
    assert retrain(before).startswith("Nothing new: All images in the inbox have been ingested before.")
    assert [path.name for path in (inbox / "shed").rglob("*.png")] == ["broken.png"]
    assert "105 images" in before.flow()
    assert before.status() == UP_TO_DATE


@pytest.mark.slow  # fifteen seconds; test_promotion.py has what is pushed when
def test_a_promotion_is_committed_and_pushed_if_so_configured(before, tmp_path):
    before.run("git", "init", "-q", "--bare", str(tmp_path / "origin"))
    before.run("git", "remote", "add", "origin", str(tmp_path / "origin"))
    before.run("dvc", "remote", "add", "--default", "shelf", str(tmp_path / "shelf"))
    before.set(retrain={"git": "push"})
    before.run("git", "commit", "-qam", "a remote")
    deliver(before, "shed", 20)
    (before.root / "flows" / "pipeline.py").open("a").write("# not to be committed\n")
    assert retrain(before).startswith("Promoted")
    assert before.run("git", "log", "-1", "--format=%s").stdout.startswith("champion@v2: The challenger is better")
    committed = before.run("git", "show", "--stat", "--format=", "--name-only", "HEAD").stdout.split()
    assert committed == ["data/history.parquet.dvc", "dvc.lock"]
    there = before.run("git", "--git-dir", str(tmp_path / "origin"), "tag").stdout.split()
    assert there == ["champion@v2"]
    assert before.run("dvc", "status", "--cloud", "--json").stdout.strip() == "{}"


def test_retraining_without_a_champion_says_to_run_the_pipeline_first(workspace):
    done = workspace.run(sys.executable, "-m", "flows.retrain", check=False)
    assert done.returncode == 1
    assert "There is no champion yet: data/model holds no model. Run the pipeline once." in done.stderr


@pytest.mark.slow  # half a minute
def test_a_scheduled_retraining_shows_its_decision_and_the_drift_in_the_ui(deployed, before):
    deliver(before, "shed", 20)
    unlabelled = before.root / "data" / "inbox" / "attic" / "_unlabelled"
    unlabelled.mkdir(parents=True)
    for number in range(30):
        Image.effect_noise((48, 40), 90).convert("RGB").save(unlabelled / f"{number:02d}.png")
    deployment = deployed.ask("deployments/name/retrain/cpu")
    assert [schedule["active"] for schedule in deployment["schedules"]] == [False]
    every_ten_seconds = [{"active": True, "schedule": {"interval": 10}}]
    with worker(deployed, "cpu", before):
        [schedule] = deployed.ask(f"deployments/{deployment['id']}/schedules", every_ten_seconds)
        try:
            completed = {"deployment_id": {"any_": [deployment["id"]]}, "state": {"type": {"any_": ["COMPLETED"]}}}
            [run, *_] = until(
                lambda: [run for run in deployed.runs(**completed) if run.page()["state"]["name"] != "Nothing new"],
                "a scheduled run", 120,
            )  # fmt: skip
        finally:
            deployed.ask(f"deployments/{deployment['id']}/schedules/{schedule['id']}", method="DELETE")
    state = run.page()["state"]
    assert state["name"] == "Promoted"
    assert "60 new images (60 of shed); 60 of 105 images extracted" in state["message"]
    assert "compare" in run.stages()
    artifacts = until(lambda: {"decision", "drift"} <= (found := run.artifacts()).keys() and found, "artifacts")
    assert "| shed |" in artifacts["decision"]["data"]
    assert "data:image/png;base64" in artifacts["decision"]["data"]
    assert "attic" in artifacts["drift"]["data"]
    table = pd.read_csv(before.root / "data" / "report" / "to_label.csv")
    assert table["path"].str.startswith("attic/_unlabelled/").all()
    assert before.status() == UP_TO_DATE


@pytest.mark.slow
def test_retrain_and_rollback_are_deployed_and_retrainings_run_one_at_a_time(deployed):
    deployment = deployed.ask("deployments/name/retrain/cpu")
    assert deployment["concurrency_options"]["collision_strategy"] == "CANCEL_NEW"
    assert "retrain" in deployment["parameter_openapi_schema"]["properties"]
    assert Path("flows/rollback.py").name in deployed.ask("deployments/name/rollback/cpu")["entrypoint"]

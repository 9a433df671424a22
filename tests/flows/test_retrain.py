"""Images of a new domain arrive: what is ingested, which model becomes champion, what is restored and never touched."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from PIL import Image, ImageOps

from rootstock.evaluation.decision import UNSEEN
from rootstock.model import history
from rootstock.model.history import Row
from tests.flows.test_repro_and_flow import UP_TO_DATE, experiments
from tests.serving import until, worker
from tests.workspace import CLASSES, Workspace, draw_photos

pytestmark = pytest.mark.usefixtures("one_server")

LONG = [{"unfreeze": "all", "epochs": 25, "lr": 0.0005}]


def deliver(workspace: Workspace, domain: str, each: int, first: int = 500, *, bad: bool = False) -> None:
    """Put photos of another domain, negatives, into the inbox; bad ones under another class's name."""
    drawn, labels = workspace.root.parent / f"drawn-{domain}-{first}", list(CLASSES)
    draw_photos(drawn, each, first)
    for number, path in enumerate(sorted(drawn.rglob("*.png"))):
        label = labels[(7 * number + 3) % 3] if bad else path.parent.name
        target = workspace.root / "data" / "inbox" / domain / label / f"{path.parent.name}-{path.name}"
        target.parent.mkdir(parents=True, exist_ok=True)
        ImageOps.invert(Image.open(path)).save(target)
    shutil.rmtree(drawn)


def retrain(workspace: Workspace, **env: str) -> str:
    """Retrain on a terminal; returns what a person reads at the end."""
    return workspace.run(sys.executable, "-m", "flows.retrain", **env).stdout.strip().splitlines()[-1]


def champions(workspace: Workspace) -> list[Row]:
    """Read who was champion when."""
    return history.read(workspace.root / "data")


def model_of(workspace: Workspace) -> dict[str, bytes]:
    files = sorted((workspace.root / "data" / "model").iterdir())
    return {path.name: path.read_bytes() for path in files}


@pytest.fixture(scope="module")
def in_use(flow_ran_in, tmp_path_factory) -> Workspace:
    """A workspace whose model is in use; do not change it, copy it."""
    workspace = flow_ran_in.copy(tmp_path_factory.mktemp("in-use") / "workspace")
    workspace.set(retrain={"settle_seconds": 0.2, "min_new": 10})
    workspace.run("git", "add", "params.yaml", "dvc.lock")
    workspace.run("git", "commit", "-qm", "in use")
    return workspace


@pytest.fixture(scope="module")
def waiting(in_use, tmp_path_factory) -> Workspace:
    """A workspace in which too few images of a new domain have arrived; do not change it, copy it."""
    workspace = in_use.copy(tmp_path_factory.mktemp("waiting") / "workspace")
    deliver(workspace, "shed", 2)
    said = retrain(workspace)
    assert said.startswith("Waiting: 6 new images (6 of shed), fewer than retrain.min_new (10)"), said
    return workspace


@pytest.fixture(scope="module")
def promoted(waiting, tmp_path_factory) -> Workspace:
    """A workspace in which enough of it has arrived, and the challenger was promoted; do not change it, copy it."""
    workspace = waiting.copy(tmp_path_factory.mktemp("promoted") / "workspace")
    deliver(workspace, "shed", 18, first=600)
    said = retrain(workspace)
    assert said.startswith("Promoted: The challenger is better"), said
    assert "60 new images (60 of shed); 60 of 105 images extracted" in said
    return workspace


@pytest.fixture
def before(in_use, tmp_path) -> Workspace:
    """A copy of the workspace whose model is in use."""
    return in_use.copy(tmp_path / "workspace")


@pytest.fixture
def after(promoted, tmp_path) -> Workspace:
    """A copy of the workspace after a promotion."""
    return promoted.copy(tmp_path / "workspace")


def test_what_was_there_stays_byte_for_byte_and_the_new_domain_is_in(in_use, promoted):
    earlier = {
        name: data for name, data in in_use.outputs().items() if name.endswith((".tar", ".parquet")) and "0000" in name
    }
    now = promoted.outputs()
    assert len(earlier) == 4  # a shard, its features, its rows of manifest and ledger
    assert {name: now[name] for name in earlier} == earlier
    manifest = pd.read_parquet(promoted.root / "data" / "dataset" / "manifest.parquet")
    assert manifest["domain"].value_counts().to_dict() == {"garden": 45, "shed": 60}
    assert promoted.status() == UP_TO_DATE


def test_a_promotion_is_a_version_with_its_reason_its_figures_and_its_data(in_use, promoted):
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


def test_where_no_model_could_be_shown_to_be_as_good_nothing_is_trained_and_the_delivery_waits(before):
    before.set(retrain={"margin": 0.04})
    kept, models = before.outputs(), model_of(before)
    deliver(before, "shed", 6)
    said = retrain(before)
    assert said.startswith("Undecided: To show that a new model is as good on what was there before takes about ")
    assert "more test images of garden (it has 9). 18 new images (18 of shed): they stay in the inbox" in said
    assert said.endswith("To decide yourself, set retrain.undecided to ask, and run again.")
    assert before.outputs() == kept and model_of(before) == models
    assert len(list((before.root / "data" / "inbox").rglob("*.png"))) == 18


@pytest.mark.slow  # twenty seconds
def test_deliveries_that_wait_add_up(before):
    before.set(retrain={"margin": 0.04})
    deliver(before, "shed", 6)
    assert retrain(before).startswith("Undecided: ")
    assert retrain(before).startswith("Nothing new: Nothing has arrived since the last delivery")
    deliver(before, "shed", 1, first=600)
    assert "21 new images (21 of shed)" in retrain(before)


@pytest.mark.slow  # forty seconds, most of them until the run is seen to be paused and resumed
@pytest.mark.parametrize("promote", [True, False])
def test_what_the_test_images_leave_open_a_person_decides(before, server, promote):
    before.set(retrain={"undecided": "ask", "alpha": 1e-12})  # nothing is ever shown to be better
    deliver(before, "shed", 6)
    command = [sys.executable, "-m", "flows.retrain"]
    with subprocess.Popen(command, cwd=before.root, env=before.env | {"PREFECT_API_URL": server.url},
                          stdout=subprocess.PIPE, text=True) as running:  # fmt: skip
        [run] = until(lambda: server.runs(state={"type": {"any_": ["PAUSED"]}}), "the question", 120)
        server.ask(f"flow_runs/{run.id}/resume", {"run_input": {"promote": promote}})
        said = running.communicate(timeout=120)[0].strip().splitlines()[-1]
    outcome, answer = ("Promoted", "promote it") if promote else ("Rejected", "keep the champion")
    assert said.startswith(f"{outcome}: Too few test images to tell whether the challenger is better: ")
    assert f"A person decided to {answer}." in said
    assert champions(before)[-1].decision == outcome.lower()


@pytest.mark.slow  # twenty seconds
def test_what_the_test_images_leave_open_waits_or_is_promoted_as_told(before):
    before.set(retrain={"alpha": 1e-12})
    deliver(before, "shed", 6)
    said = retrain(before)
    assert said.startswith("Undecided: Too few test images to tell whether the challenger is better: ")
    assert "v1 stays champion" in said and "The delivery stays in the inbox, and counts together with the next." in said
    assert "To decide yourself, set retrain.undecided to ask, and run again." in said
    assert champions(before)[-1].decision == "undecided"
    assert len(list((before.root / "data" / "inbox").rglob("*.png"))) == 18
    assert retrain(before).startswith("Nothing new: Nothing has arrived since the last delivery")
    before.set(retrain={"undecided": "promote"})  # which is reason enough to try the same delivery again
    said = retrain(before)
    assert said.startswith("Promoted: ") and "retrain.undecided is promote" in said and "18 new images" in said


@pytest.mark.slow
def test_groups_are_found_in_the_paths_of_a_delivery(before):
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
seen, decoded = [], computing._Decoder.__call__
def counted(self, part):
    seen.append(len(part[1]))
    return decoded(self, part)
computing._Decoder.__call__ = counted
from flows.retrain import retrain
retrain()
print("passed", sum(seen))
"""
    assert before.run("python", "-c", counting).stdout.strip().endswith("passed 60")


@pytest.mark.slow
def test_the_next_run_finds_nothing_new_and_repro_nothing_to_do(after):
    kept = after.outputs()
    assert retrain(after) == "Nothing new: All images in the inbox have been ingested before."
    shutil.rmtree(after.root / "data" / "inbox")
    assert retrain(after) == "Nothing new: The inbox holds no labelled images."
    after.repro()
    assert after.outputs() == kept


@pytest.mark.slow
def test_the_history_stays_when_dvc_evaluates_again(after):
    after.set(evaluate={"resamples": 150})
    after.repro()
    assert [row.version for row in champions(after)] == [1, 2]


def test_a_delivery_with_wrong_labels_is_rejected_and_the_champion_untouched(after):
    model, kept = model_of(after), after.outputs()
    deliver(after, "barn", 20, first=700, bad=True)
    said = retrain(after)
    assert said.startswith("Rejected: The challenger is")
    assert "v2 stays champion" in said
    assert model_of(after) == model
    changed = {name for name, data in after.outputs().items() if data != kept.get(name)}
    assert changed == {"data/history.parquet", "data/history.parquet.dvc"}
    assert after.outputs().keys() == kept.keys()
    assert after.status() == UP_TO_DATE
    assert (champions(after)[-1].decision, champions(after)[-1].version) == ("rejected", 2)
    [challenger] = [name for name in experiments(after) if name in said]  # it can be looked at
    assert experiments(after)[challenger]["metrics"]["data/report/metrics.json"]["data"]["winner"]
    assert retrain(after) == "Nothing new: Nothing has arrived since the last delivery, which was not promoted."


@pytest.mark.slow  # twenty seconds
def test_images_that_come_again_under_other_labels_have_to_prove_themselves_too(after):
    kept = after.outputs()
    shutil.rmtree(after.root / "data" / "inbox")
    deliver(after, "shed", 20, bad=True)
    assert retrain(after).startswith("Rejected")
    assert {n for n, data in after.outputs().items() if data != kept.get(n)} == {
        "data/history.parquet",
        "data/history.parquet.dvc",
    }


def test_too_few_new_images_wait_for_more(in_use, waiting, promoted):
    assert waiting.outputs() == in_use.outputs()
    assert champions(promoted)[-1].new_images == 60


@pytest.mark.slow
def test_a_delivery_that_cannot_be_used_is_rejected_with_the_files_named(before):
    kept = before.outputs()
    deliver(before, "shed", 4)
    for path in sorted((before.root / "data" / "inbox").rglob("*.png"))[:-3]:
        path.write_bytes(path.read_bytes()[:200])
    said = retrain(before)
    assert said.startswith(
        "Rejected: 75% of the new files cannot be used, and retrain.max_rejected is 50%: shed/lemon/"
    )
    rare = before.root / "data" / "inbox" / "shed" / "rare"
    rare.mkdir()
    shutil.copy(before.root / "photos" / "moss" / "000.png", rare / "one.png")
    Image.open(rare / "one.png").rotate(90).save(rare / "one.png")
    shutil.rmtree(before.root / "data" / "inbox" / "shed" / "lemon")
    assert "'rare' has 1. A class needs at least 3 usable images" in retrain(before)
    changed = {name for name, data in before.outputs().items() if data != kept.get(name)}
    assert changed == {"data/history.parquet", "data/history.parquet.dvc"}


@pytest.mark.slow  # twenty seconds
def test_a_class_that_the_champion_does_not_know_may_come_with_a_delivery(after):
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


@pytest.mark.slow
def test_a_class_that_is_only_spelt_in_another_way_is_refused_and_both_names_are_said(before):
    kept = before.outputs()
    deliver(before, "shed", 6)
    inbox = before.root / "data" / "inbox" / "shed"
    (inbox / "lemon").rename(inbox / "Lemon")
    said = retrain(before)
    assert said.startswith("Rejected: The delivery cannot be ingested: ")
    assert "'Lemon'" in said and "'lemon'" in said
    changed = {name for name, data in before.outputs().items() if data != kept.get(name)}
    assert changed == {"data/history.parquet", "data/history.parquet.dvc"}
    assert len(list(inbox.rglob("*.png"))) == 18


def test_a_folder_that_is_no_inbox_is_refused_and_nothing_in_it_is_touched(before, tmp_path):
    home = tmp_path / "somebody"
    for name in ("thesis/chapter.tex", "taxes/2025/return.pdf", "code/app/main.py"):
        (home / name).parent.mkdir(parents=True, exist_ok=True)
        (home / name).write_bytes(b"mine")
    (home / "photos" / "summer").mkdir(parents=True)
    shutil.copy(before.root / "photos" / "moss" / "000.png", home / "photos" / "summer" / "1.png")
    files = {path: path.read_bytes() for path in home.rglob("*") if path.is_file()}
    photos = {path: path.read_bytes() for path in (before.root / "photos").rglob("*.png")}
    for inbox, why in ((home, "holds 3 files other than images"), ("photos", "lies in the workspace")):
        before.set(retrain={"inbox": str(inbox), "after": "delete", "min_new": 1})
        done = before.run(sys.executable, "-m", "flows.retrain", check=False)
        assert done.returncode == 1
        assert f"retrain.inbox: {inbox} {why}" in done.stderr
    assert {path: path.read_bytes() for path in home.rglob("*") if path.is_file()} == files
    assert {path: path.read_bytes() for path in (before.root / "photos").rglob("*.png")} == photos


@pytest.mark.slow  # half a minute
def test_a_killed_retraining_goes_on_and_is_judged_against_the_same_champion(before):
    deliver(before, "shed", 20)
    before.set(finetune={"stages": LONG})
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
def test_what_was_ingested_is_archived_or_deleted_and_stays_in_the_data_set(before):
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


@pytest.mark.slow
def test_an_earlier_champion_comes_back_with_its_data_and_says_what_changed(in_use, after):
    after.set(retrain={"min_gain": 0.5})
    refused = after.run(sys.executable, "-m", "flows.rollback", check=False)
    assert refused.returncode == 1
    assert "rollback: params.yaml was edited and not committed" in refused.stderr
    after.run("git", "checkout", "-q", "params.yaml")
    said = after.run(sys.executable, "-m", "flows.rollback").stdout
    assert "Champion v1 is restored.\nimages: 105 -> 45\ndomains: garden 45, shed 60 -> garden 45" in said
    assert model_of(after) == model_of(in_use)
    assert after.status() == UP_TO_DATE
    unknown = after.run(sys.executable, "-m", "flows.rollback", "--version", "7", check=False)
    assert "There is no champion v7 in data/history.parquet; there is v1, v2." in unknown.stderr
    assert [row.decision for row in champions(after)] == ["first", "promoted", "brought back"]


@pytest.mark.slow  # half a minute
def test_after_a_rollback_what_was_ingested_has_had_its_chance_and_the_later_champion_can_come_back(after):
    after.run(sys.executable, "-m", "flows.rollback")
    assert retrain(after).startswith("Nothing new")
    assert "Champion v2 is restored." in after.run(sys.executable, "-m", "flows.rollback", "--version", "2").stdout
    assert [row.decision for row in champions(after)] == ["first", "promoted", "brought back", "brought back"]


@pytest.mark.slow  # fifteen seconds; test_promotion.py has what is pushed when
def test_a_promotion_is_committed_and_pushed_if_that_is_asked_for(before, tmp_path):
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


def test_without_a_model_it_says_what_to_do_first(workspace):
    done = workspace.run(sys.executable, "-m", "flows.retrain", check=False)
    assert done.returncode == 1
    assert "There is no champion yet: data/model holds no model. Run the pipeline once." in done.stderr


@pytest.mark.slow  # half a minute
def test_it_runs_on_a_schedule_and_shows_the_decision_and_the_drift_in_the_ui(deployed, before):
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
            runs = until(lambda: deployed.runs(**completed), "a scheduled run", 120)
        finally:
            deployed.ask(f"deployments/{deployment['id']}/schedules/{schedule['id']}", method="DELETE")
    state = runs[-1].page()["state"]
    assert state["name"] == "Promoted"
    assert "60 new images (60 of shed); 60 of 105 images extracted" in state["message"]
    assert "compare" in runs[-1].stages()
    artifacts = until(lambda: {"decision", "drift"} <= (found := runs[-1].artifacts()).keys() and found, "artifacts")
    assert "| shed |" in artifacts["decision"]["data"]
    assert "data:image/png;base64" in artifacts["decision"]["data"]
    assert "attic" in artifacts["drift"]["data"]
    table = pd.read_csv(before.root / "data" / "report" / "to_label.csv")
    assert table["path"].str.startswith("attic/_unlabelled/").all()
    assert before.status() == UP_TO_DATE


def test_an_event_or_a_person_starts_it_and_later_deliveries_wait_for_the_one_that_runs(deployed):
    deployment = deployed.ask("deployments/name/retrain/cpu")
    assert deployment["concurrency_options"]["collision_strategy"] == "CANCEL_NEW"
    assert "retrain" in deployment["parameter_openapi_schema"]["properties"]
    assert Path("flows/rollback.py").name in deployed.ask("deployments/name/rollback/cpu")["entrypoint"]

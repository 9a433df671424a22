"""Deliveries that are not promoted: undecided ones wait, unusable and worse ones are rejected; the champion stays."""

import shutil
import subprocess
import sys
from functools import partial

import pandas as pd
import pytest
from PIL import Image

from flows import retrain as flow
from rootstock.config.params import Params
from rootstock.ingest.opening import Unreachable
from rootstock.system.errors import RootstockError
from tests.deliveries import delivery_in
from tests.flows.test_repro_and_flow import UP_TO_DATE, experiments
from tests.retraining import champions, deliver, model_of, retrain
from tests.serving import until
from tests.workspace import CLASSES

pytestmark = pytest.mark.usefixtures("one_server")
HISTORY = {"data/history.parquet", "data/history.parquet.dvc"}


def test_nothing_is_trained_and_the_delivery_waits_where_no_model_could_be_shown_to_be_as_good(before):
    before.set(retrain={"margin": 0.04})
    kept, models, tried = before.outputs(), model_of(before), experiments(before).keys()
    deliver(before, "shed", 6)
    said = retrain(before)
    assert said.startswith(
        "Undecided: Too few test images to show that a new model is as good as before: it takes about "
    )
    assert "more test images of garden (it has 9). 18 new images (18 of shed). v1 stays champion. The delivery" in said
    assert said.endswith("To decide yourself, set retrain.undecided to ask, and run again.")
    assert {name for name, data in before.outputs().items() if data != kept.get(name)} == HISTORY
    assert (model_of(before), experiments(before).keys()) == (models, tried)
    assert (champions(before)[-1].decision, champions(before)[-1].validation) == ("undecided", None)
    assert len(list((before.root / "data" / "inbox").rglob("*.png"))) == 18


@pytest.mark.slow  # twenty seconds
def test_waiting_deliveries_add_up(before):
    before.set(retrain={"margin": 0.04})
    deliver(before, "shed", 6)
    assert retrain(before).startswith("Undecided: ")
    assert retrain(before).startswith("Nothing new: Nothing has arrived since the last delivery")
    deliver(before, "shed", 1, first=600)
    assert "21 new images (21 of shed)" in retrain(before)


@pytest.mark.slow  # forty seconds, most of them until the run is seen to be paused and resumed
@pytest.mark.parametrize("promote", [True, False])
def test_a_person_decides_what_the_test_images_leave_undecided(before, server, promote):
    before.set(retrain={"undecided": "ask", "alpha": 1e-12})  # nothing is ever shown to be better
    deliver(before, "shed", 6)
    command = [sys.executable, "-m", "flows.retrain"]
    with subprocess.Popen(command, cwd=before.root, env=before.env | {"PREFECT_API_URL": server.url},
                          stdout=subprocess.PIPE, text=True) as running:  # fmt: skip
        try:
            [run] = until(lambda: server.runs(state={"type": {"any_": ["PAUSED"]}}), "the question", 120)
            resume = partial(server.ask, f"flow_runs/{run.id}/resume", {"run_input": {"promote": promote}})
            # Prefect stores the form after it has paused the run, and refuses answers until then.
            until(lambda: resume()["status"] == "ACCEPT", "the answer's acceptance")
            said = running.communicate(timeout=120)[0].strip().splitlines()[-1]
        finally:
            running.kill()
    outcome, answer = ("Promoted", "promote it") if promote else ("Rejected", "keep the champion")
    assert said.startswith(f"{outcome}: Too few test images to tell whether the challenger is better: ")
    assert f"A person decided to {answer}." in said
    assert champions(before)[-1].decision == outcome.lower()


@pytest.mark.slow  # twenty seconds
def test_an_undecided_delivery_waits_or_is_promoted_as_configured(before):
    before.set(retrain={"alpha": 1e-12})
    deliver(before, "shed", 6)
    said = retrain(before)
    assert said.startswith("Undecided: Too few test images to tell whether the challenger is better: ")
    assert "v1 stays champion" in said and "The delivery stays in the inbox, and counts together with the next." in said
    assert "To decide yourself, set retrain.undecided to ask, and run again." in said
    assert champions(before)[-1].decision == "undecided"
    assert len(list((before.root / "data" / "inbox").rglob("*.png"))) == 18
    answers = before.root / ".rootstock" / "waiting.parquet"  # which the next challenger has to be as good as
    assert set(pd.read_parquet(answers, filters=[("delivered", "==", True)])["challenger"]) <= {True, False}
    assert retrain(before).startswith("Nothing new: Nothing has arrived since the last delivery")
    before.set(retrain={"undecided": "promote"})  # which is reason enough to try the same delivery again
    said = retrain(before)
    assert not answers.exists()
    assert said.startswith("Promoted: ") and "retrain.undecided is promote" in said and "18 new images" in said


@pytest.mark.slow
def test_a_delivery_with_wrong_labels_is_rejected_and_the_champion_is_unchanged(after):
    model, kept = model_of(after), after.outputs()
    deliver(after, "barn", 20, first=700, bad=True)
    said = retrain(after)
    assert said.startswith("Rejected: The challenger is")
    assert "v2 stays champion" in said
    assert model_of(after) == model
    changed = {name for name, data in after.outputs().items() if data != kept.get(name)}
    assert changed == HISTORY
    assert after.outputs().keys() == kept.keys()
    assert after.status() == UP_TO_DATE
    assert (champions(after)[-1].decision, champions(after)[-1].version) == ("rejected", 2)
    [challenger] = [name for name in experiments(after) if name in said]  # it can be looked at
    assert experiments(after)[challenger]["metrics"]["data/report/metrics.json"]["data"]["winner"]
    assert retrain(after) == "Nothing new: Nothing has arrived since the last delivery, which is not champion."


@pytest.mark.slow  # twenty seconds
def test_a_second_delivery_of_images_under_wrong_labels_is_rejected_too(after):
    kept = after.outputs()
    shutil.rmtree(after.root / "data" / "inbox")
    deliver(after, "shed", 20, bad=True)
    assert retrain(after).startswith("Rejected")
    assert {n for n, data in after.outputs().items() if data != kept.get(n)} == HISTORY


@pytest.mark.slow
def test_an_unusable_delivery_is_rejected_and_its_files_are_named(before):
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
    assert changed == HISTORY


@pytest.mark.slow
def test_a_class_that_differs_only_in_spelling_is_rejected_and_both_names_are_shown(before):
    kept = before.outputs()
    deliver(before, "shed", 6)
    inbox = before.root / "data" / "inbox" / "shed"
    (inbox / "lemon").rename(inbox / "Lemon")
    said = retrain(before)
    assert said.startswith("Rejected: The delivery cannot be ingested: ")
    assert "'Lemon'" in said and "'lemon'" in said
    changed = {name for name, data in before.outputs().items() if data != kept.get(name)}
    assert changed == HISTORY
    assert len(list(inbox.rglob("*.png"))) == 18


@pytest.mark.slow
def test_a_folder_that_is_not_an_inbox_is_refused_and_left_untouched(before, tmp_path):
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


@pytest.mark.parametrize("error", [RootstockError("The disk is full"), Unreachable("the store cannot be reached")])
def test_a_failure_of_the_machine_is_not_held_against_a_delivery(monkeypatch, tmp_path, error):
    """It would be recorded as rejected, and not be tried again."""
    tried = []

    def submit(task, *_):
        tried.append(task)
        raise error

    monkeypatch.setattr(flow, "submit", submit)
    with pytest.raises(RootstockError, match=str(error)):
        flow.ingest_delivery(delivery_in(tmp_path), Params())
    assert len(tried) == 1


@pytest.mark.slow
def test_a_challenger_that_lost_a_class_of_the_champion_is_undecided(before):
    lost = sorted(CLASSES)[0]
    shutil.rmtree(before.root / "photos" / lost)
    before.set(retrain={"margin": 0.5, "min_new": 1})
    deliver(before, "shed", 20)
    shutil.rmtree(before.root / "data" / "inbox" / "shed" / lost)
    said = retrain(before)
    assert said.startswith("Undecided: "), said
    assert f"It no longer knows {lost}, whose images are gone from the dataset" in said

"""`dvc repro` and the flow run the same stages: both write the same files, and neither repeats the other's work."""

import json

import pytest
from ruamel.yaml import YAML

from rootstock.config.params_file import load
from tests.workspace import CLASSES, draw_photo, draw_photos, make_workspace, without_seconds

pytestmark = pytest.mark.usefixtures("one_server")

SAFE = YAML(typ="safe")
STAGES = ("ingest", "backbone", "extract", "train_head", "fine_tune", "evaluate")
UP_TO_DATE = {"ingest": ["always changed"]}


def ran(repro_output: str) -> list[str]:
    """Name the stages that `dvc repro` ran."""
    return [name for name in STAGES if f"Running stage '{name}'" in repro_output]


def did(table: str) -> dict[str, str]:
    """Read off the flow's table which stages were cached, restored or ran."""
    rows = {line.split()[0]: line.split(maxsplit=2)[2] for line in table.splitlines() if line.startswith(STAGES)}
    words = {name: rows[name].split(":")[0] for name in STAGES}
    return {name: word if word in ("cached", "restored") else "ran" for name, word in words.items()}


def test_flow_and_repro_write_the_same_bytes_and_the_same_lock(flow_ran_in, repro_ran_in):
    by_flow, by_repro = flow_ran_in.outputs(), repro_ran_in.outputs()
    assert by_flow.keys() == by_repro.keys()
    assert [name for name in by_flow if by_flow[name] != by_repro[name]] == ["dvc.lock"]
    assert without_seconds(by_flow["dvc.lock"]) == without_seconds(by_repro["dvc.lock"])


def test_repro_after_the_flow_runs_only_ingest(after_flow):
    assert after_flow.status() == UP_TO_DATE
    before = after_flow.outputs()
    assert ran(after_flow.repro()) == ["ingest"]
    assert after_flow.outputs() == before


def test_the_flow_after_repro_finds_everything_cached(after_repro):
    assert after_repro.status() == UP_TO_DATE
    before = after_repro.outputs()
    assert set(did(after_repro.flow()).values()) == {"cached"}
    assert after_repro.outputs() == before


@pytest.mark.slow
def test_changed_head_settings_extract_nothing_again(after_flow):
    after_flow.set(head={"l2": [3.0]})
    assert did(after_flow.flow()) == {
        "ingest": "cached", "backbone": "cached", "extract": "cached",
        "train_head": "ran", "fine_tune": "ran", "evaluate": "ran",
    }  # fmt: skip
    assert ran(after_flow.repro()) == ["ingest"]
    after_flow.set(head={"l2": [10.0, 0.1]})
    again = did(after_flow.flow())
    assert again["train_head"] == again["fine_tune"] == again["evaluate"] == "restored"


@pytest.mark.slow
def test_changed_evaluation_settings_run_only_evaluate(after_repro):
    after_repro.set(evaluate={"mistakes": 15})
    assert ran(after_repro.repro()) == ["ingest", "evaluate"]


@pytest.mark.slow
def test_relabelled_and_removed_images_are_not_extracted_again(after_repro):
    photos = after_repro.root / "photos"
    (photos / "moss" / "000.png").rename(photos / "plum" / "was-moss.png")
    (photos / "lemon" / "001.png").unlink()
    features = {name: data for name, data in after_repro.outputs().items() if "features" in name or "images" in name}
    assert ran(after_repro.repro()) == ["ingest", "train_head", "fine_tune", "evaluate"]
    assert {name: after_repro.outputs()[name] for name in features} == features
    assert set(did(after_repro.flow()).values()) == {"cached"}


@pytest.mark.slow
def test_only_added_images_are_extracted(after_flow):
    earlier = {n: data for n, data in after_flow.outputs().items() if n.endswith((".tar", ".parquet")) and "00000" in n}
    draw_photos(after_flow.root / "photos", each=2, first=100)
    table = after_flow.flow()
    assert "6 new of 51 images" in table
    assert "6 of 51 images extracted" in table
    now = after_flow.outputs()
    assert {name: now[name] for name in earlier} == earlier
    assert after_flow.status() == UP_TO_DATE


@pytest.mark.slow
def test_a_stray_file_in_a_source_retrains_nothing_and_is_listed_in_the_report(after_flow):
    (after_flow.root / "photos" / "moss" / "README.md").write_text("# Moss\n")
    (after_flow.root / "photos" / "moss" / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    kept = after_flow.outputs()
    table = after_flow.flow()
    assert "1 rejected" in table or "2 rejected" in table
    assert did(table) == {
        "ingest": "ran", "backbone": "cached", "extract": "cached",
        "train_head": "cached", "fine_tune": "cached", "evaluate": "ran",
    }  # fmt: skip
    changed = {name for name, data in after_flow.outputs().items() if data != kept.get(name)}
    assert {name for name in changed if name.startswith("data/dataset/")} == {
        "data/dataset/rejected.parquet",
        "data/dataset/summary.json",
    }
    assert ran(after_flow.repro()) == ["ingest"]


@pytest.mark.slow
def test_flow_and_repro_work_in_an_unpacked_archive_without_git(tmp_path, prefect_home):
    workspace = make_workspace(tmp_path / "unpacked", prefect_home, git=False)
    workspace.run("python", "-m", "tasks.bridge.versions")
    assert ran(workspace.repro()) == list(STAGES)
    assert set(did(workspace.flow()).values()) == {"cached"}


@pytest.mark.slow
def test_a_pulled_clone_without_the_source_runs_only_ingest(after_flow, tmp_path):
    remote, clone = tmp_path / "remote", tmp_path / "clone"
    after_flow.run("dvc", "remote", "add", "--default", "shelf", str(remote))
    after_flow.run("git", "add", ".dvc/config", "dvc.lock", "params.yaml")
    after_flow.run("git", "commit", "-qm", "run")
    after_flow.run("dvc", "push")
    after_flow.run("git", "clone", "-q", str(after_flow.root), str(clone))
    second = type(after_flow)(clone, after_flow.env)
    second.run("rm", "-r", "photos")
    second.run("dvc", "pull")
    assert second.outputs() == after_flow.outputs()
    done = second.run("dvc", "repro")
    assert ran(done.stdout) == ["ingest"]
    assert "Its 45 earlier images are kept" in done.stderr
    assert set(did(second.flow()).values()) == {"cached"}
    assert second.outputs() == after_flow.outputs()


@pytest.mark.slow
def test_values_given_to_the_flow_are_recorded_by_dvc_and_kept_as_an_experiment(after_flow):
    given = (
        "from flows.pipeline import pipeline; from rootstock.config.params import Head; pipeline(head=Head(l2=(7.0,)))"
    )
    said = after_flow.run("python", "-c", given)
    assert "extract: up to date" in said.stderr or "Cached('up to date'" in said.stderr  # another head extracts nothing
    assert load(after_flow.root / "params.yaml").head.l2 == (7.0,)
    assert after_flow.status() == UP_TO_DATE
    shown = json.loads(after_flow.run("dvc", "exp", "show", "--json").stdout)
    kept = {
        experiment["name"]: experiment["revs"][0]["data"]["params"]["params.yaml"]["data"]["head"]["l2"]
        for revision in shown
        for experiment in revision["experiments"] or []
    }
    assert sorted(map(tuple, kept.values())) == [(7.0,), (10.0, 0.1)]
    earlier = next(name for name, l2 in kept.items() if l2 != [7.0])
    after_flow.run("dvc", "exp", "apply", earlier)
    assert after_flow.status() == UP_TO_DATE


def experiments(workspace) -> dict[str, dict]:
    """Return what `dvc exp show` knows of each experiment, by name."""
    shown = json.loads(workspace.run("dvc", "exp", "show", "--json").stdout)
    found = [experiment for revision in shown for experiment in revision["experiments"] or []]
    return {experiment["name"]: experiment["revs"][0]["data"] for experiment in found}


EDITED_WHILE_IT_RAN = """
import re, sys
from pathlib import Path
from rootstock.training import logistic
fit = logistic.fit_logistic_path
def fit_while_a_person_edits(*given, **options):
    fitted = fit(*given, **options)
    path = Path("params.yaml")
    path.write_text(re.sub(r"max_iterations: \\d+", "max_iterations: 77", path.read_text()))
    return fitted
logistic.fit_logistic_path = fit_while_a_person_edits
from flows.pipeline import main
main()
"""


@pytest.mark.slow
def test_an_edit_during_a_stage_is_not_recorded_as_what_the_stage_ran_with(after_flow):
    after_flow.set(head={"l2": [3.0], "max_iterations": 60})
    done = after_flow.run("python", "-c", EDITED_WHILE_IT_RAN, check=False)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "While train_head ran, head.max_iterations was 60, is 77" in done.stderr and "so it is stale" in done.stderr
    recorded = SAFE.load(after_flow.root / "dvc.lock")["stages"]["train_head"]["params"]["params.yaml"]
    assert recorded["head"]["max_iterations"] == 60
    assert load(after_flow.root / "params.yaml").head.max_iterations == 77  # a person's
    assert "train_head" in after_flow.status()
    assert did(after_flow.flow())["train_head"] == "ran"
    after_flow.set(head={"max_iterations": 60})  # what it ran with was recorded, so it is there
    assert did(after_flow.flow())["train_head"] == "restored"


@pytest.mark.slow
def test_an_edit_before_a_stage_of_a_run_begins_stops_the_run(after_flow):
    after_flow.set(head={"l2": [3.0]})
    edit = EDITED_WHILE_IT_RAN.replace(r"max_iterations: \d+", "weight_decay: [0-9.]+")
    edit = edit.replace("max_iterations: 77", "weight_decay: 0.07")
    done = after_flow.run("python", "-c", edit, check=False)
    assert done.returncode == 1
    assert "params.yaml was edited during this run (finetune.weight_decay was" in done.stderr
    assert "fine_tune" in after_flow.status() and "train_head" not in after_flow.status()
    after_flow.flow()
    assert after_flow.status() == UP_TO_DATE


@pytest.mark.slow
def test_results_of_repro_are_kept_as_an_experiment_before_a_flow_replaces_them(after_repro):
    assert not experiments(after_repro)
    given = (
        "from flows.pipeline import pipeline; from rootstock.config.params import Head; pipeline(head=Head(l2=(7.0,)))"
    )
    after_repro.run("python", "-c", given)
    kept = experiments(after_repro)
    assert sorted(name.startswith("repro-") for name in kept) == [False, True]
    left = next(data for name, data in kept.items() if name.startswith("repro-"))
    assert left["params"]["params.yaml"]["data"]["head"]["l2"] == [10.0, 0.1]
    assert left["metrics"]["data/report/metrics.json"]["data"]["winner"]
    after_repro.flow()  # an experiment has it now
    assert len([name for name in experiments(after_repro) if name.startswith("repro-")]) == 1


@pytest.mark.slow
def test_a_run_by_dvc_exp_run_is_kept_once(after_repro):
    after_repro.run("dvc", "exp", "run", "--name", "by-dvc", "-S", "evaluate.mistakes=3")
    after_repro.flow()
    kept = experiments(after_repro)
    assert "by-dvc" in kept
    assert not [name for name in kept if name.startswith("repro-")]


@pytest.mark.slow
def test_a_run_that_git_cannot_keep_still_succeeds(after_flow):
    nameless = [f"--unset=GIT_{who}_{what}" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")]
    after_flow.set(evaluate={"mistakes": 3})
    done = after_flow.run("env", *nameless, "python", "-m", "flows.pipeline", HOME=str(after_flow.root))
    assert "Not kept as an experiment: Git user name and email must be configured" in done.stderr


@pytest.mark.parametrize("start", ["repro", "flow"])
def test_a_bad_parameter_stops_a_run_before_any_work(workspace, start):
    workspace.set(backbone={"name": "resnet43"})
    command = ("dvc", "repro") if start == "repro" else ("python", "-m", "flows.pipeline")
    done = workspace.run(*command, check=False)
    assert done.returncode != 0
    assert "params.yaml: backbone.name is 'resnet43'" in done.stderr
    assert "Did you mean resnet34" in done.stderr
    assert not (workspace.root / "data" / "dataset").exists()


@pytest.mark.slow
def test_a_class_of_two_images_stops_a_run_and_is_named(workspace):
    for number in range(2):
        draw_photo(workspace.root / "photos" / "rare" / f"{number}.png", next(iter(CLASSES)), 900 + number)
    done = workspace.run("python", "-m", "flows.pipeline", check=False)
    assert done.returncode != 0
    assert "'rare' has 2. A class needs at least 3 usable images" in done.stderr

"""Fine-tuning on a worker elsewhere: two clones, one remote, nothing else between them."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import psutil
import pytest

from tests.flows.test_repro_and_flow import UP_TO_DATE
from tests.serving import Api, Run, until, worker
from tests.workspace import Workspace, long_finetune

ELSEWHERE = {"where": "fine-tune/gpu"}
LONG = long_finetune(epochs=150)


@pytest.fixture
def here(after_flow, tmp_path) -> Workspace:
    """A workspace in which the flow has run, with a remote, that is to fine-tune elsewhere."""
    after_flow.run("dvc", "remote", "add", "--default", "shelf", str(tmp_path / "shelf"))
    after_flow.run("git", "commit", "-qam", "remote")
    after_flow.set(finetune=ELSEWHERE)
    return after_flow


@pytest.fixture
def there(here, tmp_path) -> Workspace:
    """Another machine: a clone of the commit, without data and without the photos."""
    root = tmp_path / "there" / "clone"
    here.run("git", "clone", "-q", str(here.root), str(root))
    here.run("rm", "-r", str(root / "photos"))
    return Workspace(root, here.env)


@contextmanager
def pipeline(workspace: Workspace, api: Api) -> Iterator[tuple["subprocess.Popen[str]", Run]]:
    """Run the pipeline on a terminal, beside the test."""
    known = {run.id for run in api.runs()}
    command, env = [sys.executable, "-m", "flows.pipeline"], workspace.env | {"PREFECT_API_URL": api.url}
    with subprocess.Popen(
        command, cwd=workspace.root, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        try:
            [run] = until(lambda: [run for run in api.runs() if run.id not in known], "a run of the pipeline")
            yield process, run
        finally:
            process.kill()


def handed(run: Run, nth: int = 1) -> Run:
    """Wait for the nth fine-tuning that a run has started elsewhere; it has begun."""
    children = until(lambda: len(found := run.subflows()) == nth and found, f"fine-tuning elsewhere, attempt {nth}")
    until(lambda: children[0].state == "Running", "its start")
    return children[0]


def said(run: Run, start: str) -> None:
    """Find a line in a run's log; logs arrive after states."""
    try:
        until(lambda: any(line.startswith(start) for line in run.logs()), start, 20)
    except AssertionError as error:
        raise AssertionError("\n".join([f"{error}, but:", *run.logs()])) from None


def has_checkpoint(workspace: Workspace) -> bool:
    """Whether a checkpoint has arrived on the remote; while it is copied there its name begins with a dot."""
    shelf = workspace.root.parent / "shelf" / "rootstock"
    return any(not path.name.startswith(".") for path in shelf.glob("*"))


@pytest.mark.slow  # waits for servers and workers
def test_another_machine_fine_tunes_and_the_first_clone_continues_with_its_result(deployed, here, there):
    here.set(finetune={"label_smoothing": 0.05})
    with worker(deployed, "gpu", there):
        table = here.flow(PREFECT_API_URL=deployed.url)
    assert "run by fine-tune/gpu: best after stage" in table
    assert here.status() == UP_TO_DATE
    [child] = next(found for run in deployed.runs() if (found := run.subflows()))
    assert child.page()["state"]["name"] == "Completed"
    assert child.stages() == {"fine_tune": "Completed"}
    assert any(line.startswith("fine_tune: best after stage") for line in child.logs())
    assert any(key.startswith("fine-tune-") for key in child.artifacts())  # its progress
    assert not (there.root / "data" / "finetuned").exists()
    assert not list((there.root / ".rootstock" / "elsewhere").glob("*"))
    assert not list((here.root.parent / "shelf" / "rootstock").glob("*"))  # the checkpoint


@pytest.mark.slow  # waits for servers and workers
def test_a_hand_off_gives_the_result_of_a_single_machine_and_is_not_repeated(deployed, here, there):
    here.set(finetune={"label_smoothing": 0.05})
    alone = here.copy(here.root.parent / "alone")
    alone.set(finetune={"where": "here"})
    alone.flow()
    with worker(deployed, "gpu", there):
        here.flow(PREFECT_API_URL=deployed.url)
    mine, theirs = here.outputs(), alone.outputs()
    assert [name for name in mine if mine[name] != theirs[name]] == ["dvc.lock"]  # the timed files' digests
    before = len(deployed.runs())
    here.flow(PREFECT_API_URL=deployed.url)
    assert len(deployed.runs()) == before + 1


@pytest.mark.slow  # waits for servers and workers
def test_a_worker_with_different_code_names_the_files_that_differ(deployed, here, there):
    here.set(finetune={"label_smoothing": 0.06})
    (there.root / "rootstock" / "training" / "finetune.py").open("a").write("# a line more\n")
    with worker(deployed, "gpu", there):
        done = here.run(sys.executable, "-m", "flows.pipeline", check=False, PREFECT_API_URL=deployed.url)
    assert done.returncode == 1
    assert (
        "differs from the pipeline's: rootstock/training/finetune.py. Check out the pipeline's commit there."
        in done.stderr
    )


@pytest.mark.slow  # waits for servers and workers
def test_a_hand_off_without_a_worker_falls_back_or_fails_at_once_as_configured(deployed, here):
    here.set(finetune={"label_smoothing": 0.07, "if_no_worker": "fail"})
    done = here.run(sys.executable, "-m", "flows.pipeline", check=False, PREFECT_API_URL=deployed.url)
    assert done.returncode == 1
    assert "No worker of the work pool gpu is online" in done.stderr
    assert "prefect worker start --pool gpu" in done.stderr
    here.set(finetune={"if_no_worker": "here"})
    assert "best after stage" in here.flow(PREFECT_API_URL=deployed.url)
    assert here.status() == UP_TO_DATE


@pytest.mark.slow  # waits for servers and workers
def test_a_hand_off_without_a_worker_waits_and_continues_when_one_starts(deployed, here, there):
    here.set(finetune={"label_smoothing": 0.08})
    with pipeline(here, deployed) as (process, run):
        until(run.subflows, "fine-tuning handed over")
        with worker(deployed, "gpu", there):
            assert process.wait(120) == 0
    assert here.status() == UP_TO_DATE


@pytest.mark.slow  # waits for servers and workers
def test_a_hand_off_names_a_missing_remote_deployment_or_server(deployed, here):
    def error(**env: str) -> str:
        done = here.run(sys.executable, "-m", "flows.pipeline", check=False, **env)
        assert done.returncode == 1
        return next(line for line in done.stderr.splitlines() if line.startswith("pipeline: "))

    here.set(finetune={"label_smoothing": 0.09})
    assert error() == "pipeline: finetune.where is 'fine-tune/gpu', which needs a Prefect server; set PREFECT_API_URL"
    here.set(finetune={"where": "fine-tune/tpu"})
    assert "has no such deployment. Deploy it (python -m flows.ui.deploy), or use here." in error(
        PREFECT_API_URL=deployed.url
    )
    here.run("dvc", "remote", "remove", "shelf")
    assert "default DVC remote, and none is set: dvc remote add --default" in error(PREFECT_API_URL=deployed.url)


@pytest.mark.slow  # waits for servers and workers
def test_a_hand_off_resumes_from_the_checkpoint_that_a_killed_one_pushed(deployed, here, there):
    here.set(finetune=LONG)
    with worker(deployed, "gpu", there) as running, pipeline(here, deployed) as (process, run):
        first = handed(run)
        until(lambda: has_checkpoint(here), "a checkpoint on the remote")
        for child in psutil.Process(running.pid).children(recursive=True):
            child.kill()
        assert first.ended()["name"] == "Crashed"
        second = handed(run, 2)
        assert process.wait(200) == 0
    said(second, "Resuming from the checkpoint")
    said(second, "Resuming after epoch")
    assert here.status() == UP_TO_DATE


@pytest.mark.slow  # waits for servers and workers
def test_cancelling_the_pipeline_cancels_its_hand_off(deployed, here, there):
    here.set(finetune=LONG | {"label_smoothing": 0.11})
    with worker(deployed, "cpu", here), worker(deployed, "gpu", there):
        run = deployed.start()
        until(run.subflows, "fine-tuning handed over")
        child = handed(run)
        until(lambda: child.stages().get("fine_tune") == "Running", "the stage over there")
        run.cancel()
        assert run.ended(15)["name"] == "Cancelled"
        assert child.ended(15)["name"] == "Cancelled"


@pytest.mark.slow  # waits for servers and workers
def test_the_remote_may_be_an_s3_bucket(deployed, here, there, s3):
    for clone in (here, there):
        clone.run("dvc", "remote", "modify", "shelf", "url", f"s3://{s3.bucket}/shelf")
        clone.run("dvc", "remote", "modify", "--local", "shelf", "endpointurl", s3.url)
    here.set(finetune={"label_smoothing": 0.12})
    with worker(deployed, "gpu", there, **s3.credentials):
        table = here.flow(PREFECT_API_URL=deployed.url, **s3.credentials)
    assert "run by fine-tune/gpu" in table
    assert here.status() == UP_TO_DATE
    assert not (here.root.parent / "shelf").exists()
    texts = [path.read_text(errors="replace") for path in (here.root / "dvc.lock", *here.root.parent.glob("*.log"))]
    assert not any(s3.credentials["AWS_SECRET_ACCESS_KEY"] in text for text in texts)


@pytest.mark.slow  # waits for servers and workers
def test_a_lost_machine_is_noticed_by_missing_heartbeats_and_the_next_worker_resumes(deployed, here, there, tmp_path):
    here.set(finetune=LONG | {"label_smoothing": 0.13})
    with worker(deployed, "gpu", there) as running, pipeline(here, deployed) as (process, run):
        first = handed(run)
        until(lambda: has_checkpoint(here), "a checkpoint on the remote")
        machine = psutil.Process(running.pid)
        for gone in [machine, *machine.children(recursive=True)]:
            gone.kill()
        with worker(deployed, "gpu", there.copy(tmp_path / "third" / "clone"), name="another"):
            state = first.ended(200)
            second = handed(run, 2)
            assert process.wait(200) == 0
    assert (state["name"], state["message"]) == ("Crashed", "No heartbeat from its machine for 90 s.")
    said(second, "Resuming after epoch")
    assert here.status() == UP_TO_DATE

"""Run a stage on another machine: parameters and dvc.lock travel with the run, data through the DVC remote.

    here                                           there (a worker in a clone of its own)
    push what the stage reads
    start the deployment as a subflow  ─────────>  create a workspace for this run, pull what the stage reads
    wait, and retry if a machine died              run the stage; push each new checkpoint
    pull the outputs            <────────────────  push the outputs, return their digests

It needs no shared disk and no git commit. Each run there has its own workspace, so that several workers (one per GPU)
can share a clone, and the pipeline's own machine can have a worker, too.
"""

import json
import logging
import os
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from uuid import UUID

from filelock import FileLock, Timeout
from prefect import get_run_logger
from prefect.artifacts import create_table_artifact
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterFlowRunId, ArtifactFilterKey
from prefect.client.schemas.objects import FlowRun, StateType, WorkerStatus
from prefect.deployments import run_deployment
from prefect.exceptions import ObjectNotFound
from prefect.runtime import flow_run
from prefect.settings import PREFECT_API_URL
from prefect.states import Cancelling

from rootstock.config.params import Params
from rootstock.system.errors import ParamsError, RootstockError
from rootstock.system.redaction import redacted
from tasks.bridge import cancellation, dvc_remote, lock_file
from tasks.bridge.stage import Summary
from tasks.bridge.workspace import CHECKPOINT, LOCAL

log = logging.getLogger(__name__)
RUNS = LOCAL / "elsewhere"  # on the other machine: one workspace per run
ATTEMPTS = 3  # per stage, if machines die
POLL_S = 2.0
OUTPUTS = "stage-outputs"  # key of the artifact that lists the outputs of the stage


def run_elsewhere(stage: str, params: Params, where: str) -> Summary | None:
    """Run a stage by a deployment, and fetch its outputs.

    Returns:
        What it did; None if the stage should run here: no worker is online, or there is nothing to fine-tune.

    Raises:
        ParamsError: there is no such deployment, no server, or no DVC remote.
        RootstockError: it failed there, or there is no worker and `if_no_worker` is fail.
    """
    if not params.finetune.stages:
        return None
    if not PREFECT_API_URL.value():
        raise ParamsError(f"finetune.where is {where!r}, which needs a Prefect server; set PREFECT_API_URL")
    dvc_remote.check(f"finetune.where is {where!r}")
    key = dvc_remote.key_of(stage)
    for attempt in range(1, ATTEMPTS + 1):
        with get_client(sync_client=True) as client:
            pool = _pool_of(client, where)
            if not _has_worker(client, pool) and not _should_wait(pool, params):
                return None
        dvc_remote.push_inputs(stage)
        parameters = {
            "params": params.model_dump(mode="json", include=dvc_remote.sections_of(stage)),
            "lock": lock_file.LOCK.read_text(),
            "code": dvc_remote.code_of(stage),
        }
        name = f"{flow_run.name}-{stage.replace('_', '-')}" + (f"-{attempt}" if attempt > 1 else "")
        started: Any = run_deployment(where, parameters=parameters, timeout=0, flow_run_name=name)
        get_run_logger().info("Handed to %s, as flow run %s", where, name)
        ended = _wait(started.id)
        if ended.state_type == StateType.COMPLETED:
            dvc_remote.take_over(stage, _outputs_of(ended.id))
            dvc_remote.drop_file(key)
            return Summary(0, f"run by {where}: {ended.state.message if ended.state else ''}")
        message = (ended.state and ended.state.message) or ended.state_name
        if ended.state_type != StateType.CRASHED:
            raise RootstockError(f"{where}, run {name}: {message}")
        get_run_logger().warning("Run %s crashed (%s); attempt %d of %d", name, message, attempt, ATTEMPTS)
    raise RootstockError(f"{where}: crashed on {ATTEMPTS} machines; see their runs")


def _pool_of(client: SyncPrefectClient, where: str) -> str:
    try:
        deployment = client.read_deployment_by_name(where)
    except ObjectNotFound:
        raise ParamsError(
            f"finetune.where is {where!r}, and {PREFECT_API_URL.value()} has no such deployment. "
            "Deploy it (python -m flows.ui.deploy), or use here."
        ) from None
    if not deployment.work_pool_name:
        raise ParamsError(f"finetune.where is {where!r}, a deployment without a work pool, which no worker can run")
    return deployment.work_pool_name


def _has_worker(client: SyncPrefectClient, pool: str) -> bool:
    found = client.read_work_pool(pool)
    if found.is_push_pool or found.is_managed_pool:
        return True  # a cloud service instead of workers
    return any(worker.status == WorkerStatus.ONLINE for worker in client.read_workers_for_work_pool(pool))


def _should_wait(pool: str, params: Params) -> bool:
    warn, missing = get_run_logger().warning, f"No worker of the work pool {pool} is online"
    remedy = f"Start one: prefect worker start --pool {pool}"
    match params.finetune.if_no_worker:
        case "fail":
            raise RootstockError(f"{missing}, and finetune.if_no_worker is fail. {remedy}")
        case "here":
            warn("%s: the stage runs here, as finetune.if_no_worker says", missing)
            return False
        case _:
            warn("%s: waiting for one. %s", missing, remedy)
            return True


def _wait(run: UUID) -> FlowRun:
    """Wait until a run has ended, and cancel it if this run is cancelled."""
    with get_client(sync_client=True) as client:
        try:
            while not ((found := client.read_flow_run(run)).state and found.state.is_final()):
                cancellation.pause(POLL_S)
        except cancellation.Stopped:
            client.set_flow_run_state(run, Cancelling(message="The run that started it was cancelled."))
            raise
    return found


def _outputs_of(run: UUID) -> list[dict[str, Any]]:
    wanted = ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=[run]), key=ArtifactFilterKey(any_=[OUTPUTS]))
    with get_client(sync_client=True) as client:
        [artifact] = client.read_artifacts(artifact_filter=wanted)
    outputs: list[dict[str, Any]] = json.loads(str(artifact.data))
    return outputs


@contextmanager
def workspace_for(stage: str, params: Params, lock: str, code: dict[str, str]) -> Iterator[None]:
    """Work in a temporary workspace with the inputs of a stage, and the checkpoint of an earlier run, if any.

    Args:
        stage: of dvc.yaml.
        params: written to its params.yaml.
        lock: text of the pipeline's dvc.lock.
        code: digests of the stage's code on the pipeline's machine.

    Raises:
        RootstockError: this clone's code differs from the pipeline's, or the remote lacks data.
    """
    clone = Path.cwd()
    if different := [path for path, digest in dvc_remote.code_of(stage).items() if code.get(path) != digest]:
        raise RootstockError(
            f"The code of this worker, in {clone}, differs from the pipeline's: {', '.join(different)}. "
            "Check out the pipeline's commit there."
        )
    root = RUNS.resolve() / str(flow_run.id)
    root.parent.mkdir(parents=True, exist_ok=True)
    sweep(root.parent)
    held = FileLock(f"{root}.lock")
    held.acquire()
    dvc_remote.create_workspace(root, params, lock, cache=clone / ".dvc" / "cache")
    os.chdir(root)
    try:
        dvc_remote.pull_inputs(stage)
        key = dvc_remote.key_of(stage)
        if dvc_remote.get_file(key, CHECKPOINT):
            get_run_logger().info("Resuming from the checkpoint of an earlier run")
        with _pushing_checkpoints(key):
            yield
    finally:
        os.chdir(clone)
        _remove(root, held)


def sweep(folder: Path) -> None:
    """Remove the workspaces of dead runs, whose locks nobody holds."""
    for path in folder.glob("*.lock"):
        lock = FileLock(path, timeout=0)
        with suppress(Timeout):
            lock.acquire()
            _remove(path.with_suffix(""), lock)


def _remove(root: Path, lock: FileLock) -> None:
    shutil.rmtree(root, ignore_errors=True)
    Path(lock.lock_file).unlink(missing_ok=True)
    lock.release()


@contextmanager
def _pushing_checkpoints(key: str) -> Iterator[None]:
    """Push each new checkpoint in a thread, for at most a tenth of the time."""
    ended = threading.Event()

    def push() -> None:
        pushed, pause = _written_at(CHECKPOINT), POLL_S
        while not ended.wait(pause):
            if (written := _written_at(CHECKPOINT)) == pushed:
                continue
            start = time.monotonic()
            try:
                dvc_remote.put_file(CHECKPOINT, key)
            except Exception as error:  # training continues, and the next push may succeed
                log.warning("The checkpoint could not be pushed: %s", redacted(f"{type(error).__name__}: {error}"))
            pushed, pause = written, max(POLL_S, 10 * (time.monotonic() - start))

    thread = threading.Thread(target=push, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _written_at(path: Path) -> int:
    with suppress(FileNotFoundError):
        return path.stat().st_mtime_ns
    return 0


def return_outputs(stage: str) -> None:
    """Push the outputs of a stage, and report their digests to the pipeline."""
    dvc_remote.push_outputs(stage)
    create_table_artifact(
        dvc_remote.outputs_of(stage), key=OUTPUTS, description=f"Outputs of {stage}, on the DVC remote"
    )

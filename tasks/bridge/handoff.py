"""A stage on another machine: parameters and dvc.lock go along with the run, data by the DVC remote.

    here                                           there (a worker in a clone of its own)
    push what the stage reads
    start the deployment as a sub-flow  ────────>  lay out a workspace for this run alone, pull what the stage reads
    wait, and try again where a machine died       run the stage; push a checkpoint whenever there is a new one
    pull what it made           <────────────────  push what it made, and give back its digests

There is no shared disk and no git commit in between. A run there has a workspace of its own, so that a worker a GPU
can share a clone, and the machine of the pipeline can have one, too.
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
from tasks.bridge import cancellation, dvc_remote, versions
from tasks.bridge.stage import Summary
from tasks.bridge.workspace import CHECKPOINT, LOCAL

log = logging.getLogger(__name__)
RUNS = LOCAL / "elsewhere"  # on the other machine: a workspace a run
MACHINES = 3  # so many may die under one stage
LOOK_S = 2.0
GIVEN_BACK = "given-back"  # key of the artifact that says what the stage made


def run_elsewhere(stage: str, params: Params, where: str) -> Summary | None:
    """Have a stage done by a deployment, and bring its outputs here.

    Returns:
        What it did; nothing where no worker is online and the stage is to be done here.

    Raises:
        ParamsError: there is no such deployment, no server, or no DVC remote.
        RootstockError: it failed there, or there is no worker and none is to be waited for.
    """
    if not PREFECT_API_URL.value():
        raise ParamsError(f"finetune.where is {where!r}, which needs a Prefect server; set PREFECT_API_URL")
    dvc_remote.check(f"finetune.where is {where!r}")
    key = dvc_remote.key_of(stage)
    for attempt in range(1, MACHINES + 1):
        with get_client(sync_client=True) as client:
            pool = _pool_of(client, where)
            if not _has_worker(client, pool) and not _to_be_waited_for(pool, params):
                return None
        dvc_remote.push_inputs(stage)
        handed = {
            "params": params.model_dump(mode="json", include=dvc_remote.sections_of(stage)),
            "lock": versions.LOCK.read_text(),
            "code": dvc_remote.code_of(stage),
        }
        name = f"{flow_run.name}-{stage.replace('_', '-')}" + (f"-{attempt}" if attempt > 1 else "")
        started: Any = run_deployment(where, parameters=handed, timeout=0, flow_run_name=name)
        get_run_logger().info("Handed to %s, as flow run %s", where, name)
        ended = _wait(started.id)
        if ended.state_type == StateType.COMPLETED:
            dvc_remote.take_over(stage, _given_back(ended.id))
            dvc_remote.drop_file(key)
            return Summary(0, f"done by {where}: {ended.state.message if ended.state else ''}")
        said = (ended.state and ended.state.message) or ended.state_name
        if ended.state_type != StateType.CRASHED:
            raise RootstockError(f"{where}, run {name}: {said}")
        get_run_logger().warning("Run %s is gone (%s); attempt %d of %d", name, said, attempt, MACHINES)
    raise RootstockError(f"{where}: {MACHINES} machines died of it; see their runs")


def _pool_of(client: SyncPrefectClient, where: str) -> str:
    try:
        deployment = client.read_deployment_by_name(where)
    except ObjectNotFound:
        raise ParamsError(
            f"finetune.where is {where!r}, and {PREFECT_API_URL.value()} has no such deployment. "
            "Put it there (python -m flows.ui.deploy), or use here."
        ) from None
    if not deployment.work_pool_name:
        raise ParamsError(f"finetune.where is {where!r}, a deployment without a work pool; no worker can take it")
    return deployment.work_pool_name


def _has_worker(client: SyncPrefectClient, pool: str) -> bool:
    found = client.read_work_pool(pool)
    if found.is_push_pool or found.is_managed_pool:
        return True  # a cloud service in the place of workers
    return any(worker.status == WorkerStatus.ONLINE for worker in client.read_workers_for_work_pool(pool))


def _to_be_waited_for(pool: str, params: Params) -> bool:
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
    """Wait until a run has ended; it is cancelled with the one that waits."""
    with get_client(sync_client=True) as client:
        try:
            while not ((found := client.read_flow_run(run)).state and found.state.is_final()):
                cancellation.pause(LOOK_S)
        except cancellation.Stopped:
            client.set_flow_run_state(run, Cancelling(message="The run that started it was cancelled."))
            raise
    return found


def _given_back(run: UUID) -> list[dict[str, Any]]:
    wanted = ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=[run]), key=ArtifactFilterKey(any_=[GIVEN_BACK]))
    with get_client(sync_client=True) as client:
        [artifact] = client.read_artifacts(artifact_filter=wanted)
    outputs: list[dict[str, Any]] = json.loads(str(artifact.data))
    return outputs


@contextmanager
def workspace_for(stage: str, params: Params, lock: str, code: dict[str, str]) -> Iterator[None]:
    """Be in a workspace of this run's own that has what a stage reads, and a checkpoint if an earlier run left one.

    Args:
        stage: of dvc.yaml.
        params: to be its params.yaml.
        lock: text of the pipeline's dvc.lock.
        code: digests of the stage's code over there.

    Raises:
        RootstockError: this clone's code is not the pipeline's, or the remote lacks data.
    """
    clone = Path.cwd()
    if different := [path for path, digest in dvc_remote.code_of(stage).items() if code.get(path) != digest]:
        raise RootstockError(
            f"The code of this worker, in {clone}, is not the pipeline's: {', '.join(different)}. "
            "Bring the clone to the pipeline's commit."
        )
    root = RUNS.resolve() / str(flow_run.id)
    root.parent.mkdir(parents=True, exist_ok=True)
    _sweep(root.parent)
    held = FileLock(f"{root}.lock")
    held.acquire()
    dvc_remote.lay_out(root, params, lock, cache=clone / ".dvc" / "cache")
    os.chdir(root)
    try:
        dvc_remote.pull_inputs(stage)
        key = dvc_remote.key_of(stage)
        if dvc_remote.get_file(key, CHECKPOINT):
            get_run_logger().info("Goes on from the checkpoint of an earlier run")
        with _pushing_checkpoints(key):
            yield
    finally:
        os.chdir(clone)
        _remove(root, held)


def _sweep(folder: Path) -> None:
    """Remove the workspaces of runs that are gone: nobody holds their locks."""
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
    """Push the checkpoint beside the training whenever it is a new one, but no more than a tenth of the time."""
    ended = threading.Event()

    def push() -> None:
        pushed, pause = _written_at(CHECKPOINT), LOOK_S
        while not ended.wait(pause):
            if (written := _written_at(CHECKPOINT)) == pushed:
                continue
            start = time.monotonic()
            try:
                dvc_remote.put_file(CHECKPOINT, key)
            except Exception as error:  # the training is well, and the next checkpoint may get through
                log.warning("The checkpoint could not be pushed: %s", redacted(f"{type(error).__name__}: {error}"))
            pushed, pause = written, max(LOOK_S, 10 * (time.monotonic() - start))

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
    """Push what a stage made, and tell whoever handed it over."""
    dvc_remote.push_outputs(stage)
    create_table_artifact(
        dvc_remote.outputs_of(stage), key=GIVEN_BACK, description=f"What {stage} made, on the DVC remote"
    )

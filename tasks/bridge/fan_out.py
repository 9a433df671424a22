"""Process shards in parallel with Dask or Ray, on this machine or a cluster, through Prefect's task runners.

Every shard is a task run of the flow run `extract shards`. A worker that dies loses only its shard, which the scheduler
gives to another one, so the work has to be idempotent. Workers report to the Prefect server that PREFECT_API_URL names,
else to a temporary one, which only workers of this machine can reach. Workers import this module, so it imports neither
DVC nor torch.
"""

import logging
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from itertools import islice
from queue import Empty, SimpleQueue
from typing import Any, Literal, TypeVar

from prefect import Flow, Task, get_client
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State, TaskRun
from prefect.context import TaskRunContext
from prefect.futures import PrefectFuture
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect.states import Completed, Failed
from prefect.task_runners import TaskRunner

from rootstock.system.errors import RootstockError, SourceError
from tasks.bridge import connection

Job = TypeVar("Job")
Runner = Literal["dask", "ray"]
Advance = Callable[[int], None]
AHEAD = 1000  # unfinished shards submitted to the scheduler: enough for hundreds of workers without flooding it
POLL_S = 1.0  # how often to check for cancellation while no shard ends
RETRY_AFTER_S = [10.0, 60.0]


def fan_out(
    function: Callable[[Job, str], int],
    job: Job,
    shards: Sequence[str],
    runner: Runner,
    cluster: str | None,
    workers: int,
    advance: Advance,
) -> None:
    """Run a function for each shard, and report each result.

    Args:
        function: workers call `function(job, shard)`; from an installed module. It may be called again for a shard that
            is done or half done.
        job: the same for every shard; must be picklable.
        shards: their names.
        runner: dask or ray.
        cluster: address of a running cluster; None starts one on this machine for the duration of the call.
        workers: processes of the latter; a running cluster has its own.
        advance: called with each result, and with 0 every second; an exception in it ends the call.

    Raises:
        RootstockError: the first that a worker raised; or the runner is not installed, the workers have no server to
            report to, or the cluster gave a shard up.
    """
    logging.getLogger("httpx").setLevel(logging.WARNING)  # it tells of every request to the server
    chosen = _task_runner(runner, cluster, workers)
    failed: list[RootstockError] = []

    def run() -> State[None]:
        try:
            with _without_task_context(), _gpu_per_shard(runner):
                _run_all(function, job, shards, advance)
        except RootstockError as error:  # raised below: from here it would be shown with the framework's stack
            failed.append(error)
            return Failed(message=str(error))
        return Completed(message=f"{len(shards):,} shards")

    flow = Flow(_flow, name="extract shards", task_runner=chosen, persist_result=False)
    token = _current.set(run)
    try:
        with _server_for_workers(cluster):
            flow(len(shards), runner, return_state=True).result(raise_on_failure=not failed)
    finally:
        _current.reset(token)
    if failed:
        raise failed[0]


# Neither closes over anything, and each is found by its name: they are pickled for every shard. What the flow has to
# do cannot be pickled, so it is not among its parameters.
_current: ContextVar[Callable[[], State[None]]] = ContextVar("fan_out")


def _flow(shards: int, runner: str) -> State[None]:
    return _current.get()()


def _shard(function: Callable[[Job, str], int], job: Job, shard: str) -> int:
    return function(job, shard)


def _may_pass(task: Task[..., Any], run: TaskRun, state: State[Any]) -> bool:
    """Whether a store, rather than a person or the code, is at fault: trying again may help."""
    final = (FileNotFoundError, PermissionError, NotADirectoryError, IsADirectoryError, ImportError, ValueError)
    match state.data:
        case SourceError(__cause__=cause):  # every driver has its own errors for a store that does not answer
            return cause is not None and not isinstance(cause, final)
        case OSError() as error:
            return not isinstance(error, final)
    return False


SHARD = Task(
    _shard,
    name="extract shard",
    task_run_name="{shard}",
    retries=len(RETRY_AFTER_S),
    retry_delay_seconds=RETRY_AFTER_S,
    retry_condition_fn=_may_pass,
    cache_policy=NO_CACHE,
    persist_result=False,
)


def _run_all(function: Callable[[Job, str], int], job: Job, shards: Sequence[str], advance: Advance) -> None:
    """Keep AHEAD shards submitted until all are done."""
    ended: SimpleQueue[PrefectFuture[int]] = SimpleQueue()
    under_way: dict[PrefectFuture[int], str] = {}  # Dask drops tasks whose future is garbage-collected
    waiting = iter(shards)

    def submit(number: int) -> None:
        for shard in islice(waiting, number):
            future: PrefectFuture[int] = SHARD.submit(function, job, shard)
            under_way[future] = shard
            future.add_done_callback(ended.put)

    submit(AHEAD)
    while under_way:
        try:
            future = ended.get(timeout=POLL_S)
        except Empty:
            advance(0)
            continue
        advance(_result(future, under_way.pop(future)))
        submit(1)


def _result(future: PrefectFuture[int], shard: str) -> int:
    try:
        return future.result()
    except Exception as error:
        by = type(error).__module__.partition(".")[0]
        if by in (
            "distributed",
            "ray",
        ):  # raised by the cluster, not by the work: KilledWorker, WorkerCrashedError, ...
            raise RootstockError(
                f"Shard {shard}: {by} gave up after several tries ({type(error).__name__}). Usually a worker runs out "
                "of memory: try a smaller extract.batch_size, or fewer workers per machine; see docs/scale.md."
            ) from error
        raise


def _task_runner(runner: Runner, cluster: str | None, workers: int) -> TaskRunner[Any]:
    try:
        if runner == "dask":
            from prefect_dask import DaskTaskRunner

            logging.getLogger("distributed").setLevel(logging.WARNING)  # it would log every connection
            # One thread per process: a worker holds one backbone, and a crash affects one shard only.
            private = "127.0.0.1:0"  # the dashboard has no authentication
            here = {"n_workers": workers, "threads_per_worker": 1, "processes": True, "dashboard_address": private}
            made = DaskTaskRunner(address=cluster) if cluster else DaskTaskRunner(cluster_kwargs=here)
        else:
            os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # read when Ray starts
            import ray  # noqa: F401 - Prefect's module would import it only later
            from prefect_ray import RayTaskRunner

            quiet = {"log_to_driver": False}
            here = {"num_cpus": workers, "include_dashboard": False, **quiet}
            # local: without an address Ray joins any cluster that is running on this machine.
            address, kwargs = (cluster, quiet) if cluster else ("local", here)
            made = RayTaskRunner(address=address, init_kwargs=kwargs)
    except ImportError as error:
        raise RootstockError(
            f"extract.runner is {runner!r}, and {error.name} is not installed: "
            f"pip install -c constraints.txt -e '.[{runner}]'"
        ) from error
    return made  # type: ignore[no-any-return]


def _gpu_per_shard(runner: Runner) -> AbstractContextManager[Any]:
    """Request one GPU per shard if Ray has any: it hides them from tasks that request none."""
    if runner == "ray":
        import ray
        from prefect_ray.context import remote_options

        if ray.cluster_resources().get("GPU"):
            return remote_options(num_gpus=1)  # type: ignore[no-any-return]
    return nullcontext()


@contextmanager
def _without_task_context() -> Iterator[None]:
    """Hide the task run of the stage, which would be pickled with every shard."""
    var: ContextVar[Any] = TaskRunContext.__var__
    token = var.set(None)
    try:
        yield
    finally:
        var.reset(token)


@contextmanager
def _server_for_workers(cluster: str | None) -> Iterator[None]:
    """Let all workers report to one server; by default, each would start its own."""
    if PREFECT_API_URL.value():
        yield
        return
    if cluster:
        raise RootstockError(
            "extract.cluster is set, and its workers need a Prefect server: set PREFECT_API_URL to one that they "
            "can reach; see docs/scale.md."
        )
    connection.guard_own_server()
    with get_client(sync_client=True) as client, temporary_settings({PREFECT_API_URL: str(client.api_url)}):
        yield

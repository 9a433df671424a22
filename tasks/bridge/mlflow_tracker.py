"""Track a run in MLflow: parameters, metrics per epoch, artifacts, and the model in MLflow's pyfunc flavour.

Where the server is, and who is asking, MLflow's own environment variables say: MLFLOW_TRACKING_URI,
MLFLOW_TRACKING_USERNAME and so on; MLFLOW_EXPERIMENT_NAME names the experiment.
"""

import json
import logging
import os
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path

import mlflow
from mlflow import MlflowClient
from mlflow.entities import Metric, Run, RunStatus, ViewType
from mlflow.exceptions import MlflowException
from mlflow.models import ModelSignature
from mlflow.types import ColSpec, DataType, Schema
from mlflow.types.schema import Map
from packaging.requirements import Requirement

import rootstock
from rootstock.system.causes import first_line
from rootstock.system.errors import RootstockError
from rootstock.system.redaction import redacted
from tasks.bridge.tracked_run import FINGERPRINT, TrackedRun

EXPERIMENT = "rootstock"
MODEL, SOURCE = "model", Path(__file__).with_name("mlflow_model.py")
LONGEST_PARAM, LONGEST_TAG = 6000, 5000  # characters that every MLflow server takes
# MLflow asks again for four minutes by default. The first question tells whether the server answers at all.
FIRST = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0", "MLFLOW_HTTP_REQUEST_TIMEOUT": "10"}  # seconds
LATER = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1", "MLFLOW_HTTP_REQUEST_TIMEOUT": "60"}
UNREACHABLE = "failed with exception"  # MLflow's words where it got no answer at all
SILENT = {"MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true", "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false"}
SIGNATURE = ModelSignature(
    inputs=Schema([ColSpec(DataType.binary)]),
    outputs=Schema(
        [
            ColSpec(DataType.string, "label"),
            ColSpec(DataType.double, "probability"),
            ColSpec(DataType.boolean, "unknown"),
            ColSpec(DataType.double, "novelty", required=False),
            ColSpec(DataType.string, "reason"),
            ColSpec(DataType.string, "detail"),
            ColSpec(Map(DataType.double), "probabilities"),
        ]
    ),
)


def track(run: TrackedRun) -> str:
    """Log a run, unless the server has it; return a sentence on where it is.

    Raises:
        RootstockError: the server does not answer within seconds, or refuses.
    """
    with _quietly():
        try:
            client = MlflowClient()
            with _environment(FIRST):
                client.search_experiments(max_results=1)
            with _environment(LATER):
                experiment = mlflow.set_experiment(os.environ.get("MLFLOW_EXPERIMENT_NAME") or EXPERIMENT)
                if there := _logged_before(client, experiment.experiment_id, run.fingerprint):
                    return f"MLflow has this run already: {_address(there)}."
                return f"Tracked in MLflow: {_address(_log(client, run))}."
        except MlflowException as error:
            why = "does not answer" if UNREACHABLE in str(error) else f"says: {first_line(error)}"
            raise RootstockError(f"the server at {_server()} (MLFLOW_TRACKING_URI) {why}.") from error


def _log(client: MlflowClient, run: TrackedRun) -> Run:
    tags = {name: value[:LONGEST_TAG] for name, value in run.tags.items()}
    started: Run
    with mlflow.start_run(run_name=run.name, tags=tags) as started:
        now, own = started.info.start_time, started.info.run_id
        mlflow.log_params({key: _text(value) for key, value in run.params.items()})
        metrics = [Metric(point.name, point.value, now, point.epoch) for point in run.curves]
        metrics += [Metric(name, value, now, 0) for name, value in run.metrics.items()]
        client.log_batch(own, metrics=metrics)
        for path in run.artifacts:
            client.log_artifact(own, str(path))
        _log_model(run.model)
    return started


def _log_model(folder: Path) -> None:
    """Log the model with the code that loads it, rootstock/, and the versions of the libraries it was trained with."""
    mlflow.pyfunc.log_model(
        name=MODEL,
        python_model=str(SOURCE),
        artifacts={MODEL: str(folder)},
        code_paths=[str(Path(rootstock.__file__).parent)],
        pip_requirements=requirements(),
        signature=SIGNATURE,
    )


def requirements() -> list[str]:
    """List what rootstock/ needs, at the installed versions; a build such as +cpu is left open."""
    named = (Requirement(line) for line in metadata.requires("rootstock") or [])
    needed = (one.name for one in named if not one.marker or one.marker.evaluate({"extra": ""}))
    return [f"{name}=={metadata.version(name).partition('+')[0]}" for name in needed]


def _logged_before(client: MlflowClient, experiment: str, fingerprint: str) -> Run | None:
    """Find the run with this fingerprint; one that was killed while it was logged is marked so and does not count."""
    found = client.search_runs([experiment], f"tags.`{FINGERPRINT}` = '{fingerprint}'", ViewType.ACTIVE_ONLY)
    finished = RunStatus.to_string(RunStatus.FINISHED)
    for run in found:
        if run.info.status == RunStatus.to_string(RunStatus.RUNNING):
            client.set_terminated(run.info.run_id, RunStatus.to_string(RunStatus.KILLED))
    return next((run for run in found if run.info.status == finished), None)


def _text(value: object) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= LONGEST_PARAM else f"{text[: LONGEST_PARAM - 3]}..."


def _address(run: Run) -> str:
    if _server().startswith("http"):
        return f"{_server()}/#/experiments/{run.info.experiment_id}/runs/{run.info.run_id}"
    return f"run {run.info.run_id} in {_server()}"


def _server() -> str:
    return redacted(mlflow.get_tracking_uri()).rstrip("/")


@contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
    """Set environment variables, by which MLflow is told all of this, except those that the user has set."""
    own = {name: value for name, value in values.items() if name not in os.environ}
    os.environ.update(own)
    try:
        yield
    finally:
        for name in own:
            os.environ.pop(name, None)


@contextmanager
def _quietly() -> Iterator[None]:
    """Keep MLflow's notes, warnings and progress bars off the terminal: errors are raised."""
    logger = logging.getLogger("mlflow")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), _environment(SILENT):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)

"""Compare backbones on this dataset: accuracy against size, by depth, and against training from scratch.

    ingest ──> try, one after the other ──> compare.parquet, pictures, report

    python -m flows.compare                                              # as in params.yaml: small backbones
    python -m flows.compare classics --depths low mid high penultimate   # LeNet-5 to ResNet-34, at every depth
    python -m flows.compare --scratch lenet5 resnet34 plain34 --image-size 32 --epochs 20

The pipeline reuses the extracted features if one of the backbones is chosen. A candidate that fails (no weights, not
enough memory) is a row with its reason.
"""

import argparse
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from prefect import flow, get_run_logger, task
from prefect.client.schemas.objects import State
from prefect.states import Completed
from pydantic import ValidationError

from flows.ui import form
from rootstock.config import params as parameters, params_file
from rootstock.config.params import Params
from rootstock.evaluation import figures
from rootstock.system import escape
from rootstock.system.entry_points import add_verbose
from rootstock.system.errors import ParamsError, RootstockError
from tasks.bridge import artifacts, causes, comparison, run_params, terminal, versions, workspace
from tasks.bridge.orchestration import failed, reported_task, submit
from tasks.bridge.workspace_lock import locked_workspace
from tasks.ingest import ingest

if TYPE_CHECKING:
    from rootstock.evaluation.compare import Candidate
    from rootstock.evaluation.compare_table import Row


@dataclass(frozen=True)
class ComparisonResult:
    """The rows of a comparison, a sentence on the best one, and the table as text."""

    rows: "tuple[Row, ...]"
    summary: str
    table: str


@task(name="try", task_run_name="{title}")
@reported_task
def try_out(candidate: "Candidate", params: Params, title: str) -> State["Row"]:
    """Extract features and train a head on them, or train from scratch."""
    row = comparison.measure(candidate, params)
    if row.reason:
        get_run_logger().warning("%s: %s", title, row.reason)
        return Completed(name="Not evaluated", message=row.reason, data=row)
    measured = f"validation {figures.percent(row.accuracy or 0.0)}, {row.images_per_second:.0f} images/s"
    terminal.show_stage("compare", row.seconds or 0.0, f"{title}: {measured}")
    return Completed(message=measured, data=row)


@flow(name="compare", validate_parameters=False)  # form.py says why
def compare(compare: form.Compare = form.SHOWN["compare"]) -> State[ComparisonResult]:
    """Evaluate backbones on the dataset, at several depths, and plot accuracy against size.

    Args:
        compare: Which backbones to compare, at which layers, and which networks to train from scratch as well.
    """
    try:
        with locked_workspace() as log, run_params.merged(form.given(compare=compare), log.info) as params:
            submit(ingest, params).result()
            tried = comparison.candidates(params)
            rows: tuple[Any, ...] = tuple(try_out.submit(one, params, one.title).result() for one in tried)
            table, pictures = comparison.finish()
            shown = artifacts.show_comparison(table, pictures)
    except RootstockError as error:
        return failed(error)
    summary = _summarize(rows) + ("; the table has earlier runs, too" if len(table) > len(rows) else "")
    ended = ComparisonResult(rows, summary, shown)
    return Completed(message=ended.summary, data=ended)


def _summarize(rows: "tuple[Row, ...]") -> str:
    measured = [row for row in rows if not row.reason]
    missing = (
        f"; {len(rows) - len(measured)} of {len(rows)} could not be evaluated" if len(measured) < len(rows) else ""
    )
    if not measured:
        return f"No backbone could be evaluated{missing}"
    best = max(measured, key=lambda row: row.accuracy or 0.0)
    what = f"{best.backbone}, {best.layer}, {best.image_size} px, {best.origin}"
    return f"Best validation accuracy in this run: {figures.percent(best.accuracy or 0.0)}, {what}{missing}"


def arguments() -> dict[str, Any]:
    """Parse the command line: what is given there overrides params.yaml."""
    parser = argparse.ArgumentParser(description="Compare backbones on the dataset.")
    parser.add_argument("backbones", nargs="*", help="names, or classics, small, all")
    parser.add_argument("--depths", nargs="+", help="low, mid, high, penultimate, or names of modules")
    parser.add_argument("--scratch", nargs="*", help="networks to train from random weights")
    parser.add_argument("--image-size", type=int, help="input size in pixels")
    parser.add_argument("--epochs", type=int, help="epochs of training from scratch")
    parser.add_argument("--augment", help="augmentation when training from scratch: none, crop, crop_flip")
    parser.add_argument("--lr", type=float, help="peak learning rate of training from scratch")
    add_verbose(parser)
    asked = {name: value for name, value in vars(parser.parse_args()).items() if value not in (None, [])}
    if "scratch" in asked:
        asked.setdefault("backbones", [])  # then only those named
    return asked


def merged(settings: parameters.Compare, asked: dict[str, Any]) -> parameters.Compare:
    """Merge the command line over params.yaml.

    Raises:
        ParamsError: a backbone or a depth is misspelt.
    """
    try:
        return parameters.Compare.model_validate({**settings.model_dump(), **asked})
    except ValidationError as error:
        raise ParamsError(params_file.explain(error, "command line", ("compare",))) from None


def main() -> None:
    """Compare; an error is one sentence and exit status 1."""
    asked = arguments()
    with causes.entry_point("compare", verbose=asked.pop("verbose")):
        params = workspace.read_params()
        versions.prepare()
        done: Any = compare(merged(params.compare, asked).model_dump(mode="json"))
        print(f"\n{escape.plain(done.table)}\n\n{done.summary}\n\nreport: {comparison.PAGE.resolve().as_uri()}")


if __name__ == "__main__":
    main()

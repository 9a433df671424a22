"""What a run shows in the Prefect UI beside states and logs: pictures of a stage's outputs, and the verdict.

Only for a server that somebody looks at: without one, nothing is drawn. A picture that cannot be drawn is a warning,
never the end of a run.
"""

import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefect import get_run_logger
from prefect.artifacts import create_link_artifact, create_markdown_artifact
from prefect.runtime import flow_run
from prefect.settings import PREFECT_API_URL

from rootstock.system.escape import file_name, markdown
from rootstock.system.files import read_json, write
from tasks.bridge.versions import Kept
from tasks.bridge.workspace import (
    COMPARE,
    DATASET,
    FINETUNED,
    HEAD,
    IMAGES,
    MODEL,
    REPORT,
    REPORTS,
    REPORTS_URL,
    TO_LABEL,
)

if TYPE_CHECKING:
    import pandas as pd

    from rootstock.evaluation.challenge import Decision
    from rootstock.evaluation.drift import Drift

KEPT_REPORTS = 200  # of about a megabyte each
MODELS = {"head": "Head on frozen features", "finetuned": "Fine-tuned"}


def show(stage: str) -> None:
    """Show what a stage made, or had made before."""
    made = {
        "ingest": ("sample", "Some of the images, each with its label", _sample),
        "fine_tune": ("curves", "Loss and validation accuracy: the head, then fine-tuning", _curves),
        "evaluate": ("confusion", "The winner on the test images, by actual and predicted class", _confusion),
    }
    if stage in made and PREFECT_API_URL.value():
        key, what, draw = made[stage]
        unless_it_fails(lambda: create_markdown_artifact(draw(), key=key, description=what))


def show_verdict(outcomes: Sequence[Any], metrics: dict[str, Any], kept: Kept, run: str, *, tuned: bool = True) -> None:
    """Show how a run ended: which model won and why, how good it is, and what each stage did."""
    if PREFECT_API_URL.value():
        unless_it_fails(lambda: _verdict(outcomes, metrics, kept, run, tuned=tuned))


def show_decision(decision: "Decision", came: str, kept: str) -> None:
    """Show whether the challenger was promoted, why, and both models' accuracy on every domain."""

    def draw() -> str:
        from rootstock.evaluation import challenge

        said = f"## {'Promoted' if decision.promote else 'Rejected'}: {markdown(decision.reason)}"
        shown = [
            challenge.table(decision.lines),
            _picture(challenge.draw(decision.lines), "Test accuracy before, after"),
        ]
        return "\n\n".join([said, f"{markdown(came)}. {_note(kept)}", *(shown if decision.lines else ())])

    what = "Champion against challenger, and what was decided"
    if PREFECT_API_URL.value():
        unless_it_fails(lambda: create_markdown_artifact(draw(), key="decision", description=what))


def show_comparison(table: "pd.DataFrame", pictures: Mapping[str, bytes]) -> str:
    """Show what each backbone is worth: a table, the pictures, and the page; returns the table as text."""
    from rootstock.evaluation import compare_report

    captions = {"size": "Accuracy against size", "depths": "Accuracy by depth", "scratch": "Trained from scratch"}
    text = compare_report.markdown(table)

    def draw() -> None:
        shown = [_picture(pictures[name], caption) for name, caption in captions.items() if name in pictures]
        create_markdown_artifact(
            "\n\n".join([text, *shown]), key="comparison", description="Backbones on this data set"
        )
        if address := _publish_report(flow_run.name, COMPARE / "report.html"):
            create_link_artifact(link=address, link_text="Report", key="report", description="The comparison as a page")

    if PREFECT_API_URL.value():
        unless_it_fails(draw)
    return text


def show_drift(drifts: "Sequence[Drift]") -> None:
    """Show how far unlabelled images are from those that the champion was trained on."""
    text = "\n\n".join([*(markdown(drift.say()) for drift in drifts), f"Most informative first: {TO_LABEL}"])
    if PREFECT_API_URL.value():
        unless_it_fails(lambda: create_markdown_artifact(text, key="drift", description="Unlabelled images"))


def show_rollback(version: int, changed: Sequence[str]) -> None:
    """Show what is different since an earlier champion is back."""
    text = "\n".join([f"## Champion v{version} is back", "", *(f"- {markdown(line)}" for line in changed)])
    if PREFECT_API_URL.value():
        unless_it_fails(lambda: create_markdown_artifact(text, key="rollback", description="What is different now"))


def show_cache(said: str, shown: str) -> None:
    """Show what went of the cache, and what is left."""
    text = f"## {markdown(said)}\n\n{shown}"
    if PREFECT_API_URL.value():
        unless_it_fails(lambda: create_markdown_artifact(text, key="cache", description="What is cached now"))


def unless_it_fails(draw: Callable[[], object]) -> bool:
    """Show something, and return whether that went well; else it is a warning, and the run goes on."""
    try:
        draw()
    except Exception:
        get_run_logger().warning("This cannot be shown in the UI", exc_info=True)
        return False
    return True


def _sample() -> str:
    from rootstock.dataset import tables
    from rootstock.evaluation import contact_sheet

    manifest = tables.load_manifest(DATASET)
    return _picture(contact_sheet.draw(manifest, IMAGES), f"Some of {len(manifest):,} images, each with its label")


def _curves() -> str:
    import pandas as pd

    from rootstock.evaluation import plots

    history = pd.read_parquet(FINETUNED / "history.parquet")
    path = read_json(HEAD / "head.json")["path"]
    return _picture(plots.draw_curves(history, path), "Loss and validation accuracy: the head, then fine-tuning")


def _confusion() -> str:
    import numpy as np
    import pandas as pd

    from rootstock.evaluation import plots

    winner = read_json(REPORT / "metrics.json")["winner"]
    classes = read_json(MODEL / "model.json")["classes"]
    predictions = pd.read_parquet(REPORT / "predictions.parquet", columns=["split", "label", winner])
    test = predictions[predictions["split"] == "test"]
    labels = pd.Categorical(test["label"], categories=classes).codes.astype(np.int64)
    predicted = np.stack(test[winner].to_list()).argmax(axis=1)
    picture = plots.draw_confusion(labels, predicted, classes)
    return _picture(picture, f"{MODELS[winner]}: {len(labels):,} test images, by actual and predicted class")


def _picture(png: bytes, caption: str) -> str:
    """Put a picture into Markdown; an artifact of type image would show its whole address, which is the picture."""
    from rootstock.evaluation.report import data_uri

    return f"{caption}\n\n![{caption}]({data_uri(png)})"


def _verdict(outcomes: Sequence[Any], metrics: dict[str, Any], kept: Kept, run: str, *, tuned: bool) -> None:
    address = _publish_report(run, REPORT / "report.html")
    if address:
        create_link_artifact(link=address, link_text="Report", key="report", description="The whole report of this run")
    why = (MODEL / "README.md").read_text().split("\n\n")[1]
    lines = [
        f"## {why}",
        "",
        "| on the test images | accuracy | 95 % interval | macro F1 | log loss | calibration error |",
    ]
    lines.append("|---|---|---|---|---|---|")
    for name, called in MODELS.items():
        if name == "finetuned" and not tuned:
            lines.append(f"| {called} | nothing was tuned | | | | |")
            continue
        own = metrics[name]
        accuracy = own["accuracy"]
        lines.append(
            f"| {called} | **{accuracy['value']:.1%}** | {accuracy['low']:.1%} to {accuracy['high']:.1%} "
            f"| {own['macro_f1']['value']:.3f} | {own['log_loss']['value']:.3f} | {own['ece']['value']:.3f} |"
        )
    page = REPORT / "report.html"
    where = f"[The report of this run]({address})" if address else f"The report is {markdown(page.resolve())}"
    lines += ["", f"{where}. {_note(kept.note)}", "", "| stage | seconds | |", "|---|---|---|"]
    lines += [f"| {one.stage} | {one.seconds:.1f} | {one.did}: {markdown(one.note)} |" for one in outcomes]
    text = "\n\n".join(["\n".join(lines), _confusion(), _curves()])
    create_markdown_artifact(text, key="verdict", description="Which model won, and how good it is")


def _publish_report(name: str, page: Path) -> str | None:
    """Keep a copy of the report where it is served, if it is; returns its address.

    A run's name is whatever somebody has called it, so that it names no file before it is made into such a name. A link
    that has this name is replaced, and not followed.
    """
    served_at = os.environ.get(REPORTS_URL)
    if not served_at:
        return None
    REPORTS.mkdir(parents=True, exist_ok=True)
    published = REPORTS / f"{file_name(name)}.html"
    write(published, page.read_bytes())
    oldest_first = sorted(REPORTS.glob("*.html"), key=lambda path: path.lstat().st_mtime)
    for old in oldest_first[:-KEPT_REPORTS]:
        old.unlink()
    return f"{served_at}/{published.name}"


def _note(text: str) -> str:
    """Give a sentence in Markdown with what stands between backquotes as code, and the rest as it is."""
    parts = re.split(r"`([\w .-]+)`", text)
    shown = [f"`{part}`" if index % 2 else markdown(part) for index, part in enumerate(parts)]
    return " ".join(filter(None, shown))

"""What a run shows in the Prefect UI besides states and logs: pictures of a stage's outputs, and the verdict.

Without a server, nothing is drawn. A picture that cannot be drawn is a warning and never ends a run.
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

from rootstock.dataset import tables
from rootstock.evaluation import figures
from rootstock.system.escape import file_name, markdown
from rootstock.system.files import read_json, write
from tasks.bridge.experiments import SavedExperiment
from tasks.bridge.workspace import (
    COMPARE,
    DATASET,
    FINETUNED,
    HEAD,
    IMAGES,
    MEASURED,
    MODEL,
    REPORT,
    REPORTS,
    REPORTS_URL,
    TO_LABEL,
)

if TYPE_CHECKING:
    import pandas as pd

    from rootstock.evaluation.decision import Decision
    from rootstock.evaluation.drift import Drift

KEPT_REPORTS = 200  # of about a megabyte each
MODELS = {"head": "Head on frozen features", "finetuned": "Fine-tuned"}


def show(stage: str) -> None:
    """Show the outputs of a stage, whether it ran or was cached."""
    pictures = {
        "ingest": ("sample", "A sample of the images, with their labels", _sample),
        "fine_tune": ("curves", "Loss and validation accuracy: head, then fine-tuning", _curves),
        "evaluate": ("confusion", "Confusion matrix of the winner on the test split", _confusion),
    }
    if stage in pictures and PREFECT_API_URL.value():
        key, what, draw = pictures[stage]
        unless_it_fails(lambda: create_markdown_artifact(draw(), key=key, description=what))


def show_verdict(
    outcomes: Sequence[Any],
    validation: dict[str, Any],
    test: dict[str, Any],
    uses: str,
    kept: SavedExperiment,
    run: str,
) -> None:
    """Show how a run ended: which model won and why, its test figures, and what each stage did."""

    def draw() -> None:
        address = _publish_report(run, REPORT / "report.html")
        if address:
            create_link_artifact(
                link=address, link_text="Report", key="report", description="The full report of this run"
            )
        lines = [*_measured(validation, test, uses), "", *_done(outcomes, kept, address)]
        text = "\n\n".join(["\n".join(lines), _confusion(), _curves()])
        create_markdown_artifact(text, key="verdict", description="Which model won, and how good it is")

    if PREFECT_API_URL.value():
        unless_it_fails(draw)


def describe_test_images(test: dict[str, Any]) -> str:
    """Describe how many test images there are, and in how many groups if those are fewer."""
    return figures.count_images(test["images"], test.get("groups", test["images"]), "test image")


def describe_test_uses() -> str:
    """Describe what earlier models measured on the present test images do to the figures; "" for the first model."""
    from rootstock.evaluation import measured_models

    manifest = tables.load_manifest(DATASET)
    images = manifest.loc[manifest["split"] == "test", "image_id"]
    digest = read_json(MODEL / "model.json").get("digest", "")
    return measured_models.describe(measured_models.count(MEASURED, images, digest), len(images))


def show_decision(decision: "Decision", arrived: str, kept: str) -> None:
    """Show whether and why the challenger was promoted, and both models' accuracy per domain."""

    def draw() -> str:
        from rootstock.evaluation import decision_report as report

        heading = f"## {decision.outcome.capitalize()}: {markdown(decision.reason)}"
        caption = f"{report.measure(decision.comparisons).capitalize()} before and after"
        shown = [report.table(decision.comparisons), _picture(report.draw(decision.comparisons), caption)]
        return "\n\n".join([heading, f"{markdown(arrived)}. {_note(kept)}", *(shown if decision.comparisons else ())])

    what = "Champion against challenger, and the decision"
    if PREFECT_API_URL.value():
        unless_it_fails(lambda: create_markdown_artifact(draw(), key="decision", description=what))


def show_comparison(table: "pd.DataFrame", pictures: Mapping[str, bytes]) -> str:
    """Show the comparison of backbones as a table, plots and a page; return the table as text."""
    from rootstock.evaluation import compare_report

    captions = {"size": "Accuracy against size", "depths": "Accuracy by depth", "scratch": "Trained from scratch"}
    text = compare_report.markdown(table)

    def draw() -> None:
        shown = [_picture(pictures[name], caption) for name, caption in captions.items() if name in pictures]
        create_markdown_artifact("\n\n".join([text, *shown]), key="comparison", description="Backbones on this dataset")
        if address := _publish_report(flow_run.name, COMPARE / "report.html"):
            create_link_artifact(link=address, link_text="Report", key="report", description="The full comparison")

    if PREFECT_API_URL.value():
        unless_it_fails(draw)
    return text


def show_drift(drifts: "Sequence[Drift]") -> None:
    """Show how far unlabelled images have drifted from the champion's training images."""
    text = "\n\n".join([*(markdown(drift.describe()) for drift in drifts), f"Most informative first: {TO_LABEL}"])
    if PREFECT_API_URL.value():
        unless_it_fails(lambda: create_markdown_artifact(text, key="drift", description="Unlabelled images"))


def show_rollback(version: int, changed: Sequence[str]) -> None:
    """Show what an earlier champion, now restored, changes."""
    text = "\n".join([f"## Champion v{version} is restored", "", *(f"- {markdown(line)}" for line in changed)])
    if PREFECT_API_URL.value():
        unless_it_fails(lambda: create_markdown_artifact(text, key="rollback", description="What changed"))


def show_cache(done: str, contents: str) -> None:
    """Show what was removed from the cache, and what is left."""
    text = f"## {markdown(done)}\n\n{contents}"
    if PREFECT_API_URL.value():
        unless_it_fails(lambda: create_markdown_artifact(text, key="cache", description="The cache now"))


def unless_it_fails(draw: Callable[[], object]) -> bool:
    """Create an artifact and return whether that worked; a failure is a warning, and the run continues."""
    try:
        draw()
    except Exception:
        get_run_logger().warning("The artifact could not be created", exc_info=True)
        return False
    return True


def _sample() -> str:
    from rootstock.dataset import tables
    from rootstock.evaluation import contact_sheet

    manifest = tables.load_manifest(DATASET)
    return _picture(contact_sheet.draw(manifest, IMAGES), f"A sample of {len(manifest):,} images, with their labels")


def _curves() -> str:
    import pandas as pd

    from rootstock.evaluation import plot_style, plots

    history = pd.read_parquet(FINETUNED / "history.parquet")
    path = read_json(HEAD / "head.json")["path"]
    return _picture(
        plot_style.png(plots.draw_curves(history, path)), "Loss and validation accuracy: head, then fine-tuning"
    )


def _confusion() -> str:
    import numpy as np
    import pandas as pd

    from rootstock.dataset import label_sets
    from rootstock.evaluation import plot_style, plots
    from rootstock.evaluation.multi_label_predictions import NO_CLASS, confused_sets
    from rootstock.evaluation.predictions import read_predicted

    winner = read_json(REPORT / "metrics.json")["winner"]
    classes = read_json(MODEL / "model.json")["classes"]
    columns = ("split", "label")
    table = read_predicted(REPORT / "predictions.parquet", winner, classes, columns).to_pandas()
    test = table[table["split"] == "test"]
    both = (test["label"], test["predicted"])
    names = classes
    if read_json(MODEL / "model.json").get("thresholds"):  # images have any number of classes
        labels, predicted = confused_sets(*(label_sets.matrix(texts, classes) for texts in both))
        names = [*classes, NO_CLASS]
    else:
        labels, predicted = (pd.Categorical(texts, categories=classes).codes.astype(np.int64) for texts in both)
    picture = plot_style.png(plots.draw_confusion(labels, predicted, names))
    return _picture(picture, f"{MODELS[winner]}: confusion matrix, {len(test):,} test images")


def _picture(png: bytes, caption: str) -> str:
    """Embed a picture in Markdown; an artifact of type image would print its whole data URI."""
    from rootstock.evaluation.report import data_uri

    return f"{caption}\n\n![{caption}]({data_uri(png)})"


def _measured(validation: dict[str, Any], test: dict[str, Any], uses: str) -> list[str]:
    """Format the winner's test figures, why it won, and each model's validation accuracy, as lines of Markdown."""
    why = markdown(read_json(MODEL / "model.json").get("why", ""))  # models of earlier versions do not say
    accuracy, repeated = test["accuracy"], test.get("repeated_splits")
    splits = (
        f" Head on repeated splits of all images: {figures.percent(repeated['mean'])} on average." if repeated else ""
    )
    return [
        f"## {figures.percent(accuracy['value'])} test accuracy",
        "",
        f"{MODELS[test['winner']]}, on {describe_test_images(test)}, not used for any choice "
        f"({figures.describe_interval(accuracy)}; macro F1 {test['macro_f1']['value']:.3f}, "
        f"log loss {test['log_loss']['value']:.3f}).{splits} {uses}",
        "",
        why,
        "",
        "| validation | accuracy |",
        "|---|---|",
        *(
            f"| {called} | {figures.percent(validation[name]['accuracy']['value'])} |"
            for name, called in MODELS.items()
            if name in validation
        ),
    ]


def _done(outcomes: Sequence[Any], kept: SavedExperiment, address: str | None) -> list[str]:
    """Format where the report is, how the run is kept, and what each stage did, as lines of Markdown."""
    page = REPORT / "report.html"
    where = f"[The report of this run]({address})" if address else f"Report: {markdown(page.resolve())}"
    return [
        f"{where}. {_note(kept.note)}",
        "",
        "| stage | seconds | |",
        "|---|---|---|",
        *(f"| {one.stage} | {one.seconds:.1f} | {one.did}: {markdown(one.note)} |" for one in outcomes),
    ]


def _publish_report(name: str, page: Path) -> str | None:
    """Copy the report to where it is served, if anywhere; return its address.

    Anybody may choose a run's name, so it is made into a safe file name first. A link of that name is replaced, not
    followed.
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
    """Escape a sentence for Markdown, with the parts between backquotes as code."""
    parts = re.split(r"`([\w .-]+)`", text)
    shown = [f"`{part}`" if index % 2 else markdown(part) for index, part in enumerate(parts)]
    return " ".join(filter(None, shown))

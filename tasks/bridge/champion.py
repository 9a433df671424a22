"""The champion while a challenger is trained in its place: set aside, compared, replaced or restored.

The champion is the model in data/model, with the data version that dvc.lock names; each decision is a row of its
history (rootstock/model/history.py). A killed retraining leaves the champion aside, and the next one goes on with it.
"""

import json
import logging
import shutil
from collections import Counter
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from rootstock.config.params import Params, Retrain
from rootstock.dataset import tables
from rootstock.evaluation import figures
from rootstock.images.inspection import Reason
from rootstock.ingest import inbox
from rootstock.ingest.inbox import Delivery
from rootstock.ingest.sources import Source
from rootstock.model import history
from rootstock.model.history import Row
from rootstock.system import files
from rootstock.system.errors import DamagedError, RootstockError
from rootstock.system.files import TEMPORARY, digest, remove, replacing_folder, write
from tasks.bridge import experiments, lineage, versions
from tasks.bridge.lock_file import LOCK
from tasks.bridge.workspace import BACKBONE, DATASET, FEATURES, HISTORY, LOCAL, MODEL, PARAMS, REPORT, TO_LABEL

if TYPE_CHECKING:  # these import torch and scikit-learn
    from rootstock.evaluation.decision import Decision
    from rootstock.evaluation.drift import Drift

log = logging.getLogger(__name__)
ASIDE = LOCAL / "champion"
TRIED = LOCAL / "inbox.rejected"  # signature of the last delivery without a promotion; it is not tried again unchanged
PREDICTIONS = "predictions.parquet"
UNANSWERED = "\nunanswered"  # at the end of the signature of one on which nobody could be asked
DUPLICATE = Reason.DUPLICATE.value  # not the fault of the file
NAMED = 3  # files that a message names
# What a delivery is judged by: a person who changes one of these wants it to be tried again.
DECIDING = {"group", "max_rejected", "measure", "margin", "alpha", "undecided", "min_gain", "new_class_accuracy"}


@dataclass(frozen=True)
class DeliverySummary:
    """What a delivery contains: images that are new or have a new label, new domains, unusable files."""

    images: int = 0
    domains: dict[str, int] = field(default_factory=dict)
    new_domains: tuple[str, ...] = ()
    unusable: int = 0
    examples: tuple[str, ...] = ()

    def describe(self) -> str:
        """Return it as text."""
        named = ", ".join(f"{count:,} of {domain}" for domain, count in self.domains.items())
        return f"{figures.counted(self.images, 'new image')} ({named})" if self.images else "No new images"


def check() -> None:
    """Check that there is a champion.

    Raises:
        RootstockError: there is none yet.
    """
    if not is_aside() and not (LOCK.exists() and (MODEL / "model.json").exists()):
        raise RootstockError(f"There is no champion yet: {MODEL} holds no model. Run the pipeline once.")


def check_files() -> list[str]:
    """Make sure that the champion's files are those recorded or set aside; return a sentence per file restored.

    Raises:
        RootstockError: they are damaged and cannot be restored.
    """
    if not is_aside():
        return versions.restore_recorded(MODEL, REPORT / PREDICTIONS)
    try:
        files.verify_sums(ASIDE)
    except DamagedError as error:
        rows = decisions()
        remedy = f"`python -m flows.rollback --version {rows[-1].version}` restores the champion" if rows else None
        raise RootstockError(
            f"{str(error).partition('. ')[0]}. It belongs to the champion, set aside while a challenger is trained. "
            f"{remedy or f'Remove {ASIDE}, and run the pipeline'}."
        ) from error
    return []


def is_aside() -> bool:
    """Whether a retraining is running, or was killed before it ended."""
    return ASIDE.exists()


def set_aside() -> None:
    """Copy the champion and its data version aside while a challenger is trained; keep one that is already there."""
    if is_aside():
        return
    rows = decisions()
    model = digest_of_model()
    if not rows or model != history.versions(rows)[rows[-1].version].model:
        reason = "Trained by a pipeline run, without a challenge." if rows else "The first champion."
        version = max(history.versions(rows), default=0) + 1
        kept = experiments.find(LOCK)
        rows.append(as_champion(row_of(history.FIRST, version, reason, run=kept.name if kept else "")))
        experiments.tag(tag_of(version), kept.revision if kept else None, reason)
    with replacing_folder(ASIDE) as temporary:
        shutil.copytree(MODEL, temporary / MODEL.name)
        history.write(temporary, rows)
        shutil.copytree(DATASET, temporary / DATASET.name)
        for path in (REPORT / PREDICTIONS, LOCK):
            shutil.copy(path, temporary)
        files.write_sums(temporary)
    history.keep(ASIDE, LOCAL)


def decisions() -> list[Row]:
    """Read the champion history of this workspace."""
    return history.read(HISTORY.parent, LOCAL)


def decisions_when_set_aside() -> list[Row]:
    """Read the history as it was when the champion was set aside."""
    return history.read(ASIDE, ASIDE / MODEL.name)  # where earlier versions wrote it


def adopt_history() -> None:
    """Move the history that an earlier version wrote into the model folder, before evaluate replaces that."""
    history.keep(MODEL, LOCAL)


def digest_of_model() -> str:
    """Return a digest of the model's files, without the history that earlier versions kept among them."""
    return digest(path for path in sorted(MODEL.iterdir()) if path.name != HISTORY.name)


def row_of(
    decision: str,
    version: int,
    reason: str,
    new: DeliverySummary | None = None,
    comparison: str = "[]",
    run: str = "",
    *,
    trained: bool = True,
) -> Row:
    """Return the history row of a decision on the current model, or, if none was `trained`, on a delivery."""
    new = new or DeliverySummary()
    return Row(
        decision=decision,
        version=version,
        reason=reason,
        images=len(tables.load_manifest(DATASET)),
        new_images=new.images,
        new_domains=new.new_domains,
        comparison=comparison,
        at=datetime.now(UTC).isoformat(timespec="seconds"),
        run=run,
        validation=history.read_accuracy(REPORT / "metrics.json") if trained else None,
        test=history.read_accuracy(REPORT / "test.json") if trained else None,
        data=lineage.data_version(),
    )


def as_champion(row: Row) -> Row:
    """Return a decision's row with what restores the current model."""
    return replace(row, model=digest_of_model(), lock=LOCK.read_text(), params=PARAMS.read_text())


def record(rows: list[Row]) -> None:
    """Write the history, and add it to DVC."""
    for folder in (LOCAL, HISTORY.parent):
        history.write(folder, rows)
    versions.add(HISTORY)


def tag_of(version: int) -> str:
    """Return the git tag of a champion, as GTO names it."""
    return f"champion@v{version}"


def summarize_delivery() -> DeliverySummary:
    """Compare the dataset with the champion's."""
    import pandas as pd  # not needed for an empty inbox

    before, now = tables.load_manifest(ASIDE / DATASET.name), tables.load_manifest(DATASET)
    facts = ["image_id", "label", "domain"]
    new = now[~pd.MultiIndex.from_frame(now[facts]).isin(pd.MultiIndex.from_frame(before[facts]))]
    counts = {str(domain): int(count) for domain, count in sorted(Counter(new["domain"]).items())}
    known = set(before.loc[before["split"] == "train", "domain"])
    known_bad = _unusable(ASIDE / DATASET.name)
    bad = {path: reason for path, reason in _unusable(DATASET).items() if path not in known_bad}
    examples = tuple(f"{path}: {reason}" for path, reason in sorted(bad.items())[:NAMED])
    return DeliverySummary(
        len(new), counts, tuple(domain for domain in counts if domain not in known), len(bad), examples
    )


def _unusable(folder: Path) -> dict[str, str]:
    rejected = tables.load_rejected(folder)
    rows = rejected[(rejected["source"] == inbox.SPEC.title()) & (rejected["reason"] != DUPLICATE)]
    return dict(zip(rows["path"], rows["reason"], strict=True))


def decide_untrained(outcome: str, reason: str) -> "Decision":
    """Return a decision on a delivery on which no challenger was trained."""
    from rootstock.evaluation.decision import Decision

    return Decision(outcome, reason)


def accuracy_table(decision: "Decision") -> str:
    """Return a table of both models' accuracy per domain."""
    from rootstock.evaluation.decision_report import table

    return table(decision.comparisons) if decision.comparisons else ""


def sign(delivery: Delivery, settings: Retrain, *, unanswered: bool = False) -> str:
    """Return a string that identifies a delivery and what it is judged by.

    Args:
        delivery: the delivery.
        settings: the section `retrain` of params.yaml.
        unanswered: whether a person was to decide on it, and could not be asked.
    """
    signed = f"{delivery.signature()}\n{json.dumps(settings.model_dump(include=DECIDING), sort_keys=True)}"
    return signed + UNANSWERED * unanswered


def remember_tried(tried: str) -> None:
    """Remember a delivery that led to no promotion, so that it is not tried again unchanged.

    Args:
        tried: as returned by `sign`; the delivery's signature alone: not even if the settings change.
    """
    write(TRIED, tried)


def was_tried(delivery: Delivery, settings: Retrain, *, can_ask: bool = False) -> bool:
    """Whether exactly this delivery was rejected before, or left undecided, by the same settings.

    Args:
        delivery: the delivery.
        settings: the section `retrain` of params.yaml.
        can_ask: whether a person can be asked now: a question that is still open is to be asked.
    """
    signatures = [delivery.signature(), sign(delivery, settings)]
    if not can_ask:
        signatures.append(sign(delivery, settings, unanswered=True))
    return TRIED.exists() and TRIED.read_bytes() in [signature.encode() for signature in signatures]


def remove_aside() -> None:
    """End a retraining by removing the copy of the champion, atomically."""
    if is_aside():
        gone = ASIDE.with_name(ASIDE.name + TEMPORARY)  # swept by the next run after a kill
        remove(gone)
        ASIDE.rename(gone)
        remove(gone)


def abandon_retraining(params: Params) -> None:
    """Drop a retraining and the delivery in the inbox: a person has rolled back the champion made from it."""
    remove_aside()
    try:
        remember_tried(inbox.list_delivery(params.retrain.inbox, 0, params.ingest.sources).signature())
    except RootstockError as error:
        log.warning("%s", error)


def ingested_files(delivery: Delivery) -> set[str]:
    """Return the files of a delivery whose images are in the dataset, from it or from another source."""
    manifest = tables.labels_of(DATASET, inbox.SPEC.title())
    rejected = tables.load_rejected(DATASET)
    copies = (rejected["source"] == inbox.SPEC.title()) & (rejected["reason"] == DUPLICATE)
    known = manifest.keys() | set(rejected.loc[copies, "path"])
    return {item.path for item in delivery.labelled.items if item.problem is None and item.path in known}


def tidy(delivery: Delivery, ingested: set[str], settings: Retrain, *, promoted: bool = True) -> None:
    """Keep, archive or delete the ingested files, as the settings say; all other files stay where they are.

    Images of a rejected delivery are archived, never deleted.
    """
    match settings.after:
        case "keep":
            return
        case "archive" | "delete" if not promoted:
            inbox.move_files(delivery, sorted(ingested), inbox.REJECTED)
        case "archive":
            inbox.move_files(delivery, sorted(ingested), inbox.TAKEN)
        case "delete":
            inbox.delete(delivery, sorted(ingested))
    if left := [item.path for item in delivery.labelled.items if item.path not in ingested]:
        named = ", ".join(left[:NAMED]) + (", ..." if len(left) > NAMED else "")
        count = f"{len(left):,}"
        log.warning("%s: %s files were not ingested and stay where they are: %s", settings.inbox, count, named)


def score_drift(unlabelled: Source, params: Params) -> "list[Drift]":
    """Measure the drift of unlabelled images from the champion's training images, and list them for labelling."""
    from rootstock.evaluation import drift  # imports torch

    return drift.score(unlabelled, BACKBONE, FEATURES, DATASET, MODEL, params, TO_LABEL)

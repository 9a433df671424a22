"""The champion while a challenger is trained in its place: set aside, compared with, replaced or put back.

The champion is the model in data/model, with the data version that dvc.lock names; a decision is a row of its history
(model/history.py). A retraining that is killed leaves the champion aside, and the next one goes on against it.
"""

import logging
import shutil
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from rootstock.config.params import Params, Retrain
from rootstock.dataset import tables
from rootstock.images.inspection import Reason
from rootstock.ingest import inbox
from rootstock.ingest.inbox import Delivery
from rootstock.ingest.sources import Source
from rootstock.model import history
from rootstock.model.history import Row
from rootstock.system import files
from rootstock.system.errors import DamagedError, RootstockError
from rootstock.system.files import TEMPORARY, digest, remove, replacing_folder, write
from tasks.bridge import versions
from tasks.bridge.versions import LOCK
from tasks.bridge.workspace import BACKBONE, DATASET, FEATURES, HISTORY, IMAGES, LOCAL, MODEL, PARAMS, REPORT, TO_LABEL

if TYPE_CHECKING:  # torch and scikit-learn: only for who has something to compare
    from rootstock.evaluation.challenge import Decision
    from rootstock.evaluation.drift import Drift

log = logging.getLogger(__name__)
ASIDE = LOCAL / "champion"
REJECTED = LOCAL / "inbox.rejected"  # what lay in the inbox when it was rejected: not to be tried again as it is
PREDICTIONS = "predictions.parquet"
DUPLICATE = Reason.DUPLICATE.value  # says nothing against a file
NAMED = 3  # files that a refusal names


@dataclass(frozen=True)
class Arrived:
    """What a delivery brought: images that are new or have a new label, new domains, files of no use."""

    images: int = 0
    domains: dict[str, int] = field(default_factory=dict)
    new_domains: tuple[str, ...] = ()
    unusable: int = 0
    examples: tuple[str, ...] = ()

    def say(self) -> str:
        """Say it in words."""
        named = ", ".join(f"{count} of {domain}" for domain, count in self.domains.items())
        return f"{self.images} new images ({named})" if self.images else "No new images"


def check() -> None:
    """Check that there is a champion.

    Raises:
        RootstockError: there is no model yet.
    """
    if not is_aside() and not (LOCK.exists() and (MODEL / "model.json").exists()):
        raise RootstockError(f"There is no champion yet: {MODEL} holds no model. Run the pipeline once.")


def check_files() -> list[str]:
    """Have the champion be the one that was recorded, or set aside; says which of its files were brought back.

    Raises:
        RootstockError: it cannot be had.
    """
    if not is_aside():
        return versions.bring_back_as_recorded(MODEL, REPORT / PREDICTIONS)
    try:
        files.verify_sums(ASIDE)
    except DamagedError as error:
        rows = decisions()
        remedy = f"`python -m flows.rollback --version {rows[-1].version}` brings the champion back" if rows else None
        raise RootstockError(
            f"{str(error).partition('. ')[0]}. It is the champion's, set aside while a challenger is made. "
            f"{remedy or f'Remove {ASIDE}, and run the pipeline'}."
        ) from error
    return []


def is_aside() -> bool:
    """Whether a retraining is under way, or was when it was killed."""
    return ASIDE.exists()


def set_aside() -> None:
    """Keep the champion and its data version apart while a challenger is made; one that is aside already stays."""
    if is_aside():
        return
    rows = decisions()
    model = digest_of_model()
    if not rows or model != history.versions(rows)[rows[-1].version].model:
        reason = "Made by a pipeline run, without a contest." if rows else "The first one."
        version = max(history.versions(rows), default=0) + 1
        rows.append(row_of(history.FIRST, version, reason))
        versions.tag(tag_of(version), versions.revision_with(LOCK), reason)
    with replacing_folder(ASIDE) as temporary:
        shutil.copytree(MODEL, temporary / MODEL.name)
        history.write(temporary, rows)
        shutil.copytree(DATASET, temporary / DATASET.name)
        for path in (REPORT / PREDICTIONS, LOCK):
            shutil.copy(path, temporary)
        files.write_sums(temporary)
    history.keep(ASIDE, LOCAL)


def decisions() -> list[Row]:
    """Read the history of this workspace."""
    return history.read(HISTORY.parent, LOCAL)


def decisions_then() -> list[Row]:
    """Read the history as it was when the champion was set aside."""
    return history.read(ASIDE, ASIDE / MODEL.name)  # the latter by an earlier version


def adopt_history() -> None:
    """Keep the history that an earlier version wrote into the model's folder, before evaluate replaces that."""
    history.keep(MODEL, LOCAL)


def digest_of_model() -> str:
    """Return a digest of a model's files; an earlier version's history among them is none of it."""
    return digest(path for path in sorted(MODEL.iterdir()) if path.name != HISTORY.name)


def row_of(decision: str, version: int, reason: str, arrived: Arrived | None = None, comparison: str = "[]") -> Row:
    """Describe the model in place, as a decision makes it champion."""
    return Row(
        decision=decision,
        version=version,
        reason=reason,
        images=len(tables.load_manifest(DATASET)),
        new_images=arrived.images if arrived else 0,
        new_domains=arrived.new_domains if arrived else (),
        comparison=comparison,
        model=digest_of_model(),
        lock=LOCK.read_text(),
        params=PARAMS.read_text(),
    )


def record(rows: list[Row]) -> None:
    """Write the history, and add it to DVC."""
    for folder in (LOCAL, HISTORY.parent):
        history.write(folder, rows)
    versions.add(HISTORY)


def tag_of(version: int) -> str:
    """Name a champion's git tag, as GTO does."""
    return f"champion@v{version}"


def arrived() -> Arrived:
    """Compare the data set with the champion's."""
    import pandas as pd  # what looks into an empty inbox does without

    before, now = tables.load_manifest(ASIDE / DATASET.name), tables.load_manifest(DATASET)
    facts = ["image_id", "label", "domain"]
    new = now[~pd.MultiIndex.from_frame(now[facts]).isin(pd.MultiIndex.from_frame(before[facts]))]
    counts = {str(domain): int(count) for domain, count in sorted(Counter(new["domain"]).items())}
    known = set(before.loc[before["split"] == "train", "domain"])
    bad = {path: reason for path, reason in _unusable(DATASET).items() if path not in _unusable(ASIDE / DATASET.name)}
    examples = tuple(f"{path}: {reason}" for path, reason in sorted(bad.items())[:NAMED])
    return Arrived(len(new), counts, tuple(domain for domain in counts if domain not in known), len(bad), examples)


def _unusable(folder: Path) -> dict[str, str]:
    rejected = tables.load_rejected(folder)
    rows = rejected[(rejected["source"] == inbox.SPEC.title()) & (rejected["reason"] != DUPLICATE)]
    return dict(zip(rows["path"], rows["reason"], strict=True))


def compare(params: Params, new_domains: tuple[str, ...]) -> "Decision":
    """Compare champion and challenger on the same test images, and decide."""
    from rootstock.evaluation import challenge

    champion = ASIDE / MODEL.name
    table = challenge.predict_both(champion, ASIDE / PREDICTIONS, REPORT / PREDICTIONS, DATASET, IMAGES, MODEL)
    return challenge.decide(table, new_domains, params.retrain, resamples=params.evaluate.resamples, seed=params.seed)


def refuse(reason: str) -> "Decision":
    """Decide without a challenger."""
    from rootstock.evaluation.challenge import Decision

    return Decision(promote=False, reason=reason)


def figures(decision: "Decision") -> str:
    """Tabulate both models' accuracy on every domain."""
    from rootstock.evaluation import challenge

    return challenge.table(decision.comparisons) if decision.comparisons else ""


def remember_rejected(delivery: Delivery) -> None:
    """Have what lies in the inbox wait for something new."""
    write(REJECTED, delivery.signature())


def was_rejected(delivery: Delivery) -> bool:
    """Whether just this delivery was rejected before."""
    return REJECTED.exists() and REJECTED.read_text() == delivery.signature()


def no_longer_aside() -> None:
    """End a retraining: from one moment to the next, no champion is aside."""
    if is_aside():
        gone = ASIDE.with_name(ASIDE.name + TEMPORARY)  # else swept by the next run
        remove(gone)
        ASIDE.rename(gone)
        remove(gone)


def leave_alone(params: Params) -> None:
    """Forget a retraining under way, and what lies in the inbox: a person has decided against the champion it made."""
    no_longer_aside()
    try:
        remember_rejected(inbox.list_delivery(params.retrain.inbox, 0, params.ingest.sources))
    except RootstockError as error:
        log.warning("%s", error)


def taken(delivery: Delivery) -> set[str]:
    """Name the files of a delivery whose images this run has taken in, or had from elsewhere."""
    manifest = tables.labels_of(DATASET, inbox.SPEC.title())
    rejected = tables.load_rejected(DATASET)
    copies = (rejected["source"] == inbox.SPEC.title()) & (rejected["reason"] == DUPLICATE)
    known = manifest.keys() | set(rejected.loc[copies, "path"])
    return {item.path for item in delivery.labelled.items if item.problem is None and item.path in known}


def tidy(delivery: Delivery, taken: set[str], settings: Retrain, *, promoted: bool = True) -> None:
    """Do with files that this run took in what the settings say; whatever else is there lies where it is.

    Images of a delivery that was rejected are put away, never deleted.
    """
    match settings.after:
        case "keep":
            return
        case "archive" | "delete" if not promoted:
            inbox.move_files(delivery, sorted(taken), inbox.REJECTED)
        case "archive":
            inbox.move_files(delivery, sorted(taken), inbox.TAKEN)
        case "delete":
            inbox.delete(delivery, sorted(taken))
    if left := [item.path for item in delivery.labelled.items if item.path not in taken]:
        named = ", ".join(left[:NAMED]) + (", ..." if len(left) > NAMED else "")
        log.warning("%s: %d files were not taken in, and lie where they are: %s", settings.inbox, len(left), named)


def score_drift(unlabelled: Source, params: Params) -> "list[Drift]":
    """Compare unlabelled images with those the champion was trained on, and list them for labelling."""
    from rootstock.evaluation import drift  # torch: only when there are any

    return drift.score(unlabelled, BACKBONE, FEATURES, DATASET, MODEL, params, TO_LABEL)

"""Carry out a decision about the challenger; if a run is killed on the way, the next one completes it.

The decision is written down next to the champion set aside before anything else happens. Every step is idempotent:
files and experiments end up the same, git gets a commit and a tag unless it has them, and only what the remote lacks is
pushed.
"""

import json
import logging
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rootstock.config.params import Retrain
from rootstock.model import history
from rootstock.model.history import Row
from rootstock.system.errors import RootstockError
from rootstock.system.files import sha256, write
from tasks.bridge import champion, experiments, git, versions
from tasks.bridge.champion import ASIDE, DeliverySummary
from tasks.bridge.lock_file import LOCK
from tasks.bridge.verdict import ANSWERS
from tasks.bridge.workspace import HISTORY, LOCAL, PARAMS, WAITING, read_note

if TYPE_CHECKING:  # these import torch and scikit-learn
    from rootstock.evaluation.decision import Decision

log = logging.getLogger(__name__)
DECIDED = ASIDE / "decided.json"
CHALLENGER = ASIDE / "challenger.txt"  # how the challenger was kept, noted before the champion is restored
UNCOMMITTED = LOCAL / "uncommitted.json"  # a promotion still to be committed
REMOTE = "origin"
COMMITTED = [LOCK, PARAMS, HISTORY.with_name(f"{HISTORY.name}.dvc")]  # with a promotion


@dataclass(frozen=True)
class Settlement:
    """The result of a decision: the champion's version, and how the challenger is kept."""

    version: int
    note: str


def promote(decision: "Decision", new: DeliverySummary, run: str, settings: Retrain) -> Settlement:
    """Make the challenger champion, with a new version, tagged, committed and pushed as the settings say."""
    version = max(history.versions(champion.decisions_when_set_aside())) + 1
    row = champion.row_of(history.PROMOTED, version, decision.reason, new, decision.to_json(), run)
    settled = _settle(champion.as_champion(row), run, settings.git)
    pushed = publish() if settings.git == "push" else ""
    return Settlement(settled.version, " ".join(filter(None, [settled.note, pushed])))


def restore_champion(decision: "Decision", new: DeliverySummary, run: str, tried: str) -> Settlement:
    """Keep the challenger, if one was trained, as an experiment, and restore the champion with its data version.

    Args:
        decision: what was decided, and why.
        new: what the delivery contains.
        run: name of the flow run.
        tried: identifies the delivery (`champion.sign`).
    """
    version, trained = champion.decisions_when_set_aside()[-1].version, bool(decision.comparisons)
    if decision.held_back:  # the next challenger has to be as good as the one before this one
        ANSWERS.unlink(missing_ok=True)
    row = champion.row_of(decision.outcome, version, decision.reason, new, decision.to_json(), run, trained=trained)
    return _settle(row, run if trained else "", rejected=tried)


def undo() -> None:
    """Restore the champion with its data version, without a decision."""
    _settle(None, "")


def finish() -> str | None:
    """Complete the decision of a killed run, if any; return a sentence on it."""
    if not DECIDED.exists():
        return None
    return f"The decision of a killed run has been completed. {_carry_out().note}".strip()


def _settle(row: Row | None, run: str, with_git: str = "none", rejected: str = "") -> Settlement:
    decided = {"row": asdict(row) if row else None, "run": run, "git": with_git, "rejected": rejected}
    write(DECIDED, json.dumps(decided))
    return _carry_out()


def _carry_out() -> Settlement:
    decided = read_note(DECIDED, "row", "run", "git", "rejected")
    row = Row(**{**decided["row"], "new_domains": tuple(decided["row"]["new_domains"])}) if decided["row"] else None
    rows = champion.decisions_when_set_aside()
    if row and row.decision == history.PROMOTED:
        champion.record([*rows, row])
        note = _keep(row, decided["run"], decided["git"] != "none")
        champion.TRIED.unlink(missing_ok=True)
        WAITING.unlink(missing_ok=True)
    else:
        try:
            note = _restore(rows, row, decided["run"])
        except RootstockError:  # its data are missing: do not block later runs
            DECIDED.unlink()
            raise
        if decided["rejected"]:
            champion.remember_tried(decided["rejected"])
        if row and row.decision == history.UNDECIDED and ANSWERS.exists():  # its delivery adds up with the next
            ANSWERS.replace(WAITING)
        elif row and row.decision == history.REJECTED and decided["run"]:  # else nothing was trained: it waits on
            WAITING.unlink(missing_ok=True)
    champion.remove_aside()
    return Settlement((row or rows[-1]).version, note)


def _keep(row: Row, run: str, with_git: bool) -> str:
    """Keep a new champion as an experiment, a commit and a tag; return a sentence on it."""
    kept = experiments.save_experiment(run)
    name = champion.tag_of(row.version)
    if not with_git or not experiments.has_commits(Path()):
        tag = experiments.tag(name, kept.revision, row.reason)
        return f"It is champion v{row.version}{', tagged ' + tag if tag else ''}. {kept.note}"
    of_earlier = commit_what_waits()
    now = {str(path): sha256(path) for path in COMMITTED}
    write(UNCOMMITTED, json.dumps({"name": name, "reason": row.reason, "revision": kept.revision, "files": now}))
    notes = [f"It is champion v{row.version}.", commit_what_waits(), kept.note, of_earlier]
    return " ".join(filter(None, notes))


def commit_what_waits() -> str:
    """Commit and tag the last promotion, if configured and not done yet; return a sentence on the result.

    A merge in progress, another git program or a missing user name prevents it: then the next run tries again. If the
    files have changed since, nothing is committed: the tag names the promotion's experiment instead.
    """
    if not UNCOMMITTED.exists():
        return ""
    waits = read_note(UNCOMMITTED, "name", "reason", "revision", "files")
    name, revision, did = waits["name"], waits["revision"], "Committed and tagged"
    if all(Path(path).exists() and sha256(Path(path)) == digest for path, digest in waits["files"].items()):
        try:
            revision = git.commit(COMMITTED, f"{name}: {waits['reason']}")
        except RootstockError as error:  # it is champion nevertheless
            return f"{name} is not committed yet, nor tagged: {error}. The next run tries again."
    else:
        did = f"{LOCK} or {PARAMS} changed before {name} was committed. Its experiment is tagged"
        if not revision:
            UNCOMMITTED.unlink()
            return f"{LOCK} or {PARAMS} changed before {name} was committed; git does not have it."
    if not experiments.tag(name, revision, waits["reason"]):
        return f"{name} is not tagged yet; the next run tries again."
    UNCOMMITTED.unlink()
    return f"{did} {name}."


def _restore(rows: list[Row], row: Row | None, run: str) -> str:
    """Restore the champion set aside, keep the challenger of a run, and record a decision; return a sentence on it."""
    if run and not CHALLENGER.exists():
        write(CHALLENGER, experiments.save_experiment(run).note)
    versions.restore_version((ASIDE / LOCK.name).read_text())
    if row is None:
        return ""
    champion.record([*rows, row])
    return f"v{row.version} stays champion. {CHALLENGER.read_text() if run else ''}".strip()


def publish() -> str:
    """Push data, branch and tag of the last promotion if the remote lacks them; return a sentence on the result."""
    promoted = [row for row in champion.decisions() if row.decision == history.PROMOTED]
    if not promoted:
        return ""
    tag = champion.tag_of(promoted[-1].version)
    try:
        if not git.has_tag(tag) or git.is_on_remote(REMOTE, tag):
            return ""
        versions.push()
        git.run("push", "--quiet", REMOTE, "HEAD", tag, hooks=True)  # Git LFS has one
    except RootstockError as error:  # it is champion here nevertheless, and a later run pushes it
        log.warning("%s", error)
        return f"Not pushed: {error}"
    return "Pushed data and tag."

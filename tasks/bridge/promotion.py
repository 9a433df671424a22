"""What a decision leads to, carried out to its end by whoever comes next, should a run be killed on the way.

A decision is written down, beside the champion that is aside, before anything is done about it. Every step can be done
again: files and experiments become what they are, git has a commit and a tag or gets them, and what is to be pushed is
what the remote does not have.
"""

import json
import logging
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rootstock.config.params import Retrain
from rootstock.dataset import tables
from rootstock.ingest.inbox import Delivery
from rootstock.model import history
from rootstock.model.history import Row
from rootstock.system.errors import RootstockError
from rootstock.system.files import sha256, write
from tasks.bridge import champion, git, versions
from tasks.bridge.champion import ASIDE, Arrived
from tasks.bridge.versions import LOCK
from tasks.bridge.workspace import DATASET, HISTORY, LOCAL, PARAMS, read_note

if TYPE_CHECKING:  # torch and scikit-learn
    from rootstock.evaluation.challenge import Decision

log = logging.getLogger(__name__)
DECIDED = ASIDE / "decided.json"
CHALLENGER = ASIDE / "challenger.txt"  # how it was kept, before the champion took its place again
UNCOMMITTED = LOCAL / "uncommitted.json"  # a promotion that git is to have, and has not yet
REMOTE = "origin"
COMMITTED = [LOCK, PARAMS, HISTORY.with_name(f"{HISTORY.name}.dvc")]  # with a promotion


@dataclass(frozen=True)
class Settled:
    """What a decision led to: the champion's version, and how the challenger is kept."""

    version: int
    note: str


def promote(decision: "Decision", came: Arrived, run: str, settings: Retrain) -> Settled:
    """Let the challenger be the champion: a version of its own, tagged, committed and pushed as the settings say."""
    version = max(history.versions(champion.decisions_then())) + 1
    row = champion.row_of(history.PROMOTED, version, decision.reason, came, decision.to_json())
    settled = _settle(row, run, settings.git)
    pushed = publish() if settings.git == "push" else ""
    return Settled(settled.version, " ".join(filter(None, [settled.note, pushed])))


def put_back(decision: "Decision", came: Arrived, run: str, delivery: Delivery) -> Settled:
    """Keep the challenger as an experiment, and bring back the champion with its data version."""
    version, images = champion.decisions_then()[-1].version, len(tables.load_manifest(DATASET))
    row = Row(history.REJECTED, version, decision.reason, images, came.images, came.new_domains, decision.to_json())
    return _settle(row, run, rejected=delivery.signature())


def undo() -> None:
    """Bring back the champion with its data version; nothing was decided."""
    _settle(None, "")


def finish() -> str | None:
    """Carry out what a run that was killed had decided; says so."""
    if not DECIDED.exists():
        return None
    return f"What a run that was killed had decided is carried out. {_carry_out().note}".strip()


def _settle(row: Row | None, run: str, with_git: str = "none", rejected: str = "") -> Settled:
    decided = {"row": asdict(row) if row else None, "run": run, "git": with_git, "rejected": rejected}
    write(DECIDED, json.dumps(decided))
    return _carry_out()


def _carry_out() -> Settled:
    decided = read_note(DECIDED, "row", "run", "git", "rejected")
    row = Row(**{**decided["row"], "new_domains": tuple(decided["row"]["new_domains"])}) if decided["row"] else None
    rows = champion.decisions_then()
    if row and row.decision == history.PROMOTED:
        champion.record([*rows, row])
        note = _keep(row, decided["run"], decided["git"] != "none")
        champion.REJECTED.unlink(missing_ok=True)
    else:
        try:
            note = _bring_back([*rows, row] if row else rows, decided["run"])
        except RootstockError:  # its data are gone: nobody else is to be kept from going on
            DECIDED.unlink()
            raise
        if decided["rejected"]:
            write(champion.REJECTED, decided["rejected"])
    champion.no_longer_aside()
    return Settled((row or rows[-1]).version, note)


def _keep(row: Row, run: str, with_git: bool) -> str:
    """Keep a new champion as an experiment, a commit and a tag; says how."""
    kept = versions.save_experiment(run)
    name = champion.tag_of(row.version)
    if not with_git or not versions.has_commits(Path()):
        tag = versions.tag(name, kept.revision, row.reason)
        return f"It is champion v{row.version}{', tagged ' + tag if tag else ''}. {kept.note}"
    of_earlier = commit_what_waits()
    now = {str(path): sha256(path) for path in COMMITTED}
    write(UNCOMMITTED, json.dumps({"name": name, "reason": row.reason, "revision": kept.revision, "files": now}))
    notes = [f"It is champion v{row.version}.", commit_what_waits(), kept.note, of_earlier]
    return " ".join(filter(None, notes))


def commit_what_waits() -> str:
    """Commit and tag the last promotion, if that was asked for and not done; says what became of it.

    A person's merge or another git program keeps it from being done, or git has no name to use: then the next run
    tries. What has changed since then is not committed: the tag names the promotion's experiment instead.
    """
    if not UNCOMMITTED.exists():
        return ""
    waits = read_note(UNCOMMITTED, "name", "reason", "revision", "files")
    name, revision, did = waits["name"], waits["revision"], "Committed and tagged"
    if all(Path(path).exists() and sha256(Path(path)) == digest for path, digest in waits["files"].items()):
        try:
            revision = git.commit(COMMITTED, f"{name}: {waits['reason']}")
        except RootstockError as error:  # it is champion all the same
            return f"{name} is not committed yet, nor tagged: {error}. The next run tries again."
    else:
        did = f"{LOCK} or {PARAMS} changed before {name} was committed. Its experiment is tagged"
        if not revision:
            UNCOMMITTED.unlink()
            return f"{LOCK} or {PARAMS} changed before {name} was committed; git has it nowhere."
    if not versions.tag(name, revision, waits["reason"]):
        return f"{name} is not tagged yet; the next run tries again."
    UNCOMMITTED.unlink()
    return f"{did} {name}."


def _bring_back(rows: list[Row], run: str) -> str:
    """Put the champion that is aside into its place, and keep the challenger that is there; says how."""
    if run and not CHALLENGER.exists():
        write(CHALLENGER, versions.save_experiment(run).note)
    versions.bring_back((ASIDE / LOCK.name).read_text())
    if not run:
        return ""
    champion.record(rows)
    return f"v{rows[-1].version} stays champion. {CHALLENGER.read_text()}"


def publish() -> str:
    """Send data, branch and tag of the last promotion, where the remote lacks them; says so, or why not."""
    promoted = [row for row in champion.decisions() if row.decision == history.PROMOTED]
    if not promoted:
        return ""
    tag = champion.tag_of(promoted[-1].version)
    try:
        if not git.has_tag(tag) or git.is_on_remote(REMOTE, tag):
            return ""
        versions.push()
        git.run("push", "--quiet", REMOTE, "HEAD", tag, hooks=True)  # Git LFS has one
    except RootstockError as error:  # what cannot be sent now is champion here all the same, and sent by a later run
        log.warning("%s", error)
        return f"Not pushed: {error}"
    return "Pushed, data and tag."

"""Roll back to an earlier champion: its model, data version and parameters."""

import json
from collections import Counter
from contextlib import suppress
from typing import Any

from rootstock.config import params_file
from rootstock.dataset import tables
from rootstock.evaluation import figures
from rootstock.model import history
from rootstock.system.errors import DamagedError, ParamsError, RootstockError
from rootstock.system.files import read_json, write
from tasks.bridge import champion, experiments, run_params, versions
from tasks.bridge.workspace import DATASET, HISTORY, LOCAL, MODEL, PARAMS, REPORT, read_note

BEGUN = LOCAL / "rollback.json"  # the version being restored, and the state before


def roll_back(version: int | None) -> tuple[int, tuple[str, ...]]:
    """Restore an earlier champion with its data version and parameters.

    Args:
        version: None: the one before the current champion, or that of an interrupted rollback.

    Returns:
        Its version, and a sentence for each difference.

    Raises:
        RootstockError: there is no such version, its data are missing, or params.yaml has an uncommitted edit.
    """
    rows, begun = champion.decisions(), _begun()
    champions = history.versions(rows)
    now = rows[-1].version if rows else 0
    wanted = version if version is not None else begun.get("version")
    wanted = wanted if wanted is not None else max((old for old in champions if old < now), default=None)
    if wanted is None or wanted not in champions:
        there = ", ".join(f"v{old}" for old in champions) or "none"
        which = "before this one" if version is None else f"v{version}"
        raise RootstockError(f"There is no champion {which} in {HISTORY}; there is {there}.")
    if not begun and experiments.committed(PARAMS) is not None and not experiments.find(PARAMS):
        remedy = f"commit it (`git commit {PARAMS}`) or undo the edit"
        raise RootstockError(f"{PARAMS} was edited and not committed, and would be overwritten: {remedy}.")
    before = {"facts": _facts(), "params": PARAMS.read_text(), "rows": len(rows), "now": now}
    write(BEGUN, json.dumps({**before, **begun, "version": wanted}))
    return _carry_out()


def finish() -> str | None:
    """Complete the rollback of a killed run, if any; return a sentence on it."""
    if not _begun():
        return None
    version, _ = _carry_out()
    return f"The rollback of a killed run has been completed: champion v{version} is restored."


def _begun() -> dict[str, Any]:
    return read_note(BEGUN, "version", "facts", "params", "rows", "now") if BEGUN.exists() else {}


def _carry_out() -> tuple[int, tuple[str, ...]]:
    """Complete the rollback that was noted; every step is idempotent."""
    begun = _begun()
    rows = champion.decisions()[: begun["rows"]]
    wanted: int = begun["version"]
    target = history.versions(rows).get(wanted)
    try:
        if target is None:
            raise RootstockError(f"{HISTORY} no longer has champion v{wanted}.")
        versions.restore_version(target.lock)
    except RootstockError:
        BEGUN.unlink()
        raise
    write(run_params.BEFORE, begun["params"])
    write(PARAMS, target.params)
    if wanted == begun["now"]:  # its files have been restored, which is no other decision
        champion.record(rows)
    else:
        back = champion.row_of(history.ROLLED_BACK, wanted, f"v{wanted} in place of v{begun['now']}.")
        champion.record([*rows, back])
    try:
        params = params_file.load(PARAMS)
    except ParamsError as error:  # a tracker that is not installed here, say
        champion.remove_aside()
        with suppress(ParamsError):  # the inbox is that of before
            champion.abandon_retraining(params_file.load(run_params.BEFORE))
        BEGUN.unlink()
        raise ParamsError(f"Champion v{wanted} is restored, but its parameters cannot be used here: {error}") from None
    champion.abandon_retraining(params)
    BEGUN.unlink()
    before = begun["facts"]
    changed = [f"{what}: {before[what]} -> {fact}" for what, fact in _facts().items() if fact != before.get(what, fact)]
    with suppress(ParamsError):  # an invalid edit was there before
        changed += [f"{PARAMS}: {change}" for change in run_params.changes(params_file.load(run_params.BEFORE), params)]
    return wanted, tuple(changed)


def _facts() -> dict[str, str]:
    """Return the key facts of the current version, as far as its files exist."""
    facts = {}
    with suppress(OSError, RootstockError):
        manifest = tables.load_manifest(DATASET)
        domains = Counter(manifest["domain"])
        facts["images"] = f"{len(manifest):,}"
        facts["domains"] = ", ".join(f"{domain} {count:,}" for domain, count in sorted(domains.items()))
        facts["classes"] = str(len(tables.classes_of(manifest)))
    with suppress(DamagedError, KeyError):
        facts["backbone"] = read_json(MODEL / "model.json")["backbone"]["name"]
    with suppress(DamagedError, KeyError):
        test = read_json(REPORT / "test.json")
        facts["test accuracy"] = f"{figures.percent(test['accuracy']['value'])} ({test['winner']})"
    return facts

"""An earlier champion brought back: its model, its data version, its parameters."""

import json
from collections import Counter
from contextlib import suppress
from typing import Any

from rootstock.config import params_file
from rootstock.dataset import tables
from rootstock.model import history
from rootstock.model.history import Row
from rootstock.system.errors import DamagedError, RootstockError
from rootstock.system.files import read_json, write
from tasks.bridge import champion, run_params, versions
from tasks.bridge.workspace import DATASET, HISTORY, LOCAL, MODEL, PARAMS, REPORT, read_note

BEGUN = LOCAL / "rollback.json"  # which version is being brought back, and what was there before


def bring_back(version: int | None) -> tuple[int, tuple[str, ...]]:
    """Bring an earlier champion back, with its data version and its parameters.

    Args:
        version: None is the one before the present one, or that of a rollback that was killed.

    Returns:
        Its version, and what is different now, in words.

    Raises:
        RootstockError: there is no such version, its data are gone, or params.yaml has an edit that nobody keeps.
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
    if not begun and versions.committed(PARAMS) is not None and not versions.is_kept(PARAMS):
        remedy = f"commit it (`git commit {PARAMS}`) or undo the edit"
        raise RootstockError(f"{PARAMS} was edited and not committed, and would be replaced: {remedy}.")
    before = {"facts": _facts(), "params": PARAMS.read_text(), "rows": len(rows), "now": now}
    write(BEGUN, json.dumps({**before, **begun, "version": wanted}))
    return _carry_out()


def finish() -> str | None:
    """Carry out a rollback that was killed; says so."""
    if not _begun():
        return None
    version, _ = _carry_out()
    return f"A rollback that was killed is carried out: champion v{version} is back."


def _begun() -> dict[str, Any]:
    return read_note(BEGUN, "version", "facts", "params", "rows", "now") if BEGUN.exists() else {}


def _carry_out() -> tuple[int, tuple[str, ...]]:
    """Do it, each step as often as it takes."""
    begun = _begun()
    rows = champion.decisions()[: begun["rows"]]
    wanted: int = begun["version"]
    target = history.versions(rows).get(wanted)
    try:
        if target is None:
            raise RootstockError(f"{HISTORY} has no champion v{wanted} any more.")
        versions.bring_back(target.lock)
    except RootstockError:
        BEGUN.unlink()
        raise
    write(run_params.BEFORE, begun["params"])
    write(PARAMS, target.params)
    back = Row(history.BROUGHT_BACK, wanted, f"v{wanted} in the place of v{begun['now']}.", target.images)
    champion.record([*rows, back])
    params = params_file.load(PARAMS)
    champion.leave_alone(params)
    BEGUN.unlink()
    before = begun["facts"]
    changed = [f"{what}: {before[what]} -> {fact}" for what, fact in _facts().items() if fact != before.get(what, fact)]
    changed += [f"{PARAMS}: {change}" for change in run_params.changes(params_file.load(run_params.BEFORE), params)]
    return wanted, tuple(changed)


def _facts() -> dict[str, str]:
    """Say what a person would look at first in a version, as far as it is there."""
    facts = {}
    with suppress(OSError, RootstockError):
        manifest = tables.load_manifest(DATASET)
        domains = Counter(manifest["domain"])
        facts["images"] = f"{len(manifest):,}"
        facts["domains"] = ", ".join(f"{domain} {count:,}" for domain, count in sorted(domains.items()))
        facts["classes"] = str(manifest["label"].nunique())
    with suppress(DamagedError, KeyError):
        facts["backbone"] = read_json(MODEL / "model.json")["backbone"]["name"]
    with suppress(DamagedError, KeyError):
        metrics = read_json(REPORT / "metrics.json")
        facts["test accuracy"] = f"{metrics[metrics['winner']]['accuracy']['value']:.1%} ({metrics['winner']})"
    return facts

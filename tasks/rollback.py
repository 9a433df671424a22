"""An earlier champion brought back: its model, its data version, its parameters."""

from collections import Counter

from rootstock import dataset, history, params_file
from rootstock.errors import RootstockError
from rootstock.files import read_json, write
from rootstock.history import Row
from tasks import champion, given, versions
from tasks.workspace import DATASET, LOCAL, MODEL, PARAMS, REPORT


def bring_back(version: int | None) -> tuple[int, tuple[str, ...]]:
    """Bring an earlier champion back, with its data version and its parameters.

    Args:
        version: None is the one before the present one.

    Returns:
        Its version, and what is different now, in words.

    Raises:
        RootstockError: there is no such version, its data are gone, or params.yaml has an edit that nobody keeps.
    """
    rows = history.read(MODEL, LOCAL)
    champions = history.versions(rows)
    now = rows[-1].version if rows else 0
    wanted = version if version is not None else max((old for old in champions if old < now), default=None)
    if wanted is None or wanted not in champions:
        there = ", ".join(f"v{old}" for old in champions) or "none"
        which = "before this one" if version is None else f"v{version}"
        raise RootstockError(f"There is no champion {which} in {MODEL}/{history.HISTORY}; there is {there}.")
    if versions.committed(PARAMS) is not None and not versions.is_kept(PARAMS):
        remedy = f"commit it (`git commit {PARAMS}`) or undo the edit"
        raise RootstockError(f"{PARAMS} was edited and not committed, and would be replaced: {remedy}.")
    before, params_before = _facts(), params_file.load(PARAMS)
    target = champions[wanted]
    versions.bring_back(target.lock)
    write(given.BEFORE, PARAMS.read_bytes())
    write(PARAMS, target.params)
    back = Row(history.BROUGHT_BACK, wanted, f"v{wanted} in the place of v{now}.", target.images)
    champion.record([*rows, back])
    changed = [f"{what}: {before[what]} -> {fact}" for what, fact in _facts().items() if fact != before[what]]
    changed += [f"{PARAMS}: {change}" for change in given.changes(params_before, params_file.load(PARAMS))]
    return wanted, tuple(changed)


def _facts() -> dict[str, str]:
    """Say what a person would look at first in a version."""
    manifest = dataset.load_manifest(DATASET)
    metrics = read_json(REPORT / "metrics.json")
    domains = Counter(manifest["domain"])
    return {
        "images": f"{len(manifest):,}",
        "domains": ", ".join(f"{domain} {count:,}" for domain, count in sorted(domains.items())),
        "classes": str(manifest["label"].nunique()),
        "backbone": read_json(MODEL / "model.json")["backbone"]["name"],
        "test accuracy": f"{metrics[metrics['winner']]['accuracy']['value']:.1%} ({metrics['winner']})",
    }

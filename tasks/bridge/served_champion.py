"""Which model of a workspace is served: the champion, never a challenger that has not been promoted.

While a challenger is trained in data/model, or where that run was killed, the champion is the one set aside. Otherwise
it is the model in data/model if the history of champions has it, or if there is no history yet. A model of which the
history knows nothing was trained by a run without a challenge, or brought there by hand: nobody has decided on it.
"""

from dataclasses import replace
from functools import lru_cache

from rootstock.model import history
from rootstock.model.serving import served
from rootstock.model.serving.served import Found, Stamp
from rootstock.system.errors import RootstockError
from tasks.bridge import champion
from tasks.bridge.champion import ASIDE
from tasks.bridge.workspace import HISTORY, LOCAL, MODEL

HISTORIES = (HISTORY, LOCAL / HISTORY.name)  # the file, and the copy of this machine


def find() -> Found:
    """Find the champion, by its version where it has one: champion@v3.

    Raises:
        RootstockError: there is no model, or the one in data/model is no champion.
    """
    if champion.is_aside():
        return _set_aside()
    found = served.in_folder(MODEL)
    return _in_place(found, tuple(path.stat().st_mtime_ns for path in HISTORIES if path.exists()))


def _set_aside() -> Found:
    rows = champion.decisions_when_set_aside()
    row = history.versions(rows).get(rows[-1].version) if rows else None
    if row is None:
        raise RootstockError(f"{ASIDE} does not say which champion it holds. The next `python -m flows.retrain` does.")
    folder = ASIDE / MODEL.name
    return Found(folder, champion.tag_of(row.version), row.model, served.stamp(folder))


@lru_cache(maxsize=1)
def _in_place(found: Found, histories: tuple[int, ...]) -> Found:
    """Name the model in data/model; files are read again only when they or the history (its times) have changed."""
    rows, digest = champion.decisions(), _digest_of(found.stamp)
    if not rows:
        return replace(found, digest=digest)
    versions = {row.model: version for version, row in history.versions(rows).items()}
    if digest not in versions:
        raise RootstockError(
            f"{MODEL} holds a model that is none of the champions in {HISTORY}: a run without a challenge trained it, "
            f"or an experiment was applied. `python -m flows.rollback --version {rows[-1].version}` brings the "
            f"champion back; `python -m flows.serve --model {MODEL}` serves it as it is."
        )
    return replace(found, name=champion.tag_of(versions[digest]), digest=digest)


@lru_cache(maxsize=1)
def _digest_of(state: Stamp) -> str:
    return champion.digest_of_model()

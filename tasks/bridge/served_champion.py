"""Which model of a workspace is served: the champion, never a challenger that has not been promoted.

While a challenger is trained in data/model, or where that run was killed, the champion is the one set aside. Otherwise
it is the model in data/model if the history of champions has it, or if there is no history yet. A model of which the
history knows nothing was trained by a run without a challenge, or brought there by hand: nobody has decided on it.
"""

from functools import lru_cache

from rootstock.model import history
from rootstock.model.serving import served
from rootstock.model.serving.served import Found, Stamp
from rootstock.system.errors import RootstockError
from tasks.bridge import champion
from tasks.bridge.champion import ASIDE
from tasks.bridge.workspace import HISTORY, MODEL


def find() -> Found:
    """Find the champion, by a version where it has one: champion@v3.

    Raises:
        RootstockError: there is no model, or the one in data/model is no champion.
    """
    if champion.is_aside():
        rows, folder = champion.decisions_when_set_aside(), ASIDE / MODEL.name
        version = rows[-1].version
        return Found(folder, champion.tag_of(version), history.versions(rows)[version].model, served.stamp(folder))
    found = served.in_folder(MODEL)
    rows = champion.decisions()
    digest = _digest_of(found.stamp)
    versions = {row.model: version for version, row in history.versions(rows).items()}
    if not rows:
        return Found(MODEL, found.name, digest, found.stamp)
    if digest not in versions:
        raise RootstockError(
            f"{MODEL} holds a model that is none of the champions in {HISTORY}: a run without a challenge trained it, "
            f"or an experiment was applied. `python -m flows.rollback --version {rows[-1].version}` brings the "
            f"champion back; `python -m flows.serve --model {MODEL}` serves it as it is."
        )
    return Found(MODEL, champion.tag_of(versions[digest]), digest, found.stamp)


@lru_cache(maxsize=1)
def _digest_of(state: Stamp) -> str:
    """Return the digest of the model in data/model, which is read again only when its files have changed."""
    return champion.digest_of_model()

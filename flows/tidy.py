"""The flow `cache`: less of what is cached (flows/cache.py is its command).

prefect deployment run cache/cpu -p older_than=30
"""

from typing import Any

from prefect import flow, task
from prefect.client.schemas.objects import State
from prefect.states import Completed

from rootstock.features.cache import Wanted
from rootstock.system.errors import RootstockError
from tasks.bridge import artifacts, versions
from tasks.bridge.cache import Tidied, show, tidy as to_tidy
from tasks.bridge.orchestration import failed, worded
from tasks.bridge.workspace_lock import locked_workspace


@task(name="tidy", task_run_name="tidy")
@worded
def tidy(wanted: Wanted, share: float | None) -> State[Tidied]:
    """Prune and compact, with progress."""
    done = to_tidy(wanted, share)
    return Completed(message=done.said, data=done)


@flow(name="cache")
def cache(
    backbone: str | None = None,
    older_than: float | None = None,
    key: str | None = None,
    compact: float | None = None,
) -> State[Tidied]:
    """Prune cached features, compact shards, and show what is left; with no value given, only show.

    Features that the present parameters use are never pruned. With several of the first three, all have to fit.

    Args:
        backbone: Prune the features of this backbone.
        older_than: Prune features that have not been used for so many days.
        key: Prune the features under this key.
        compact: Write shards anew of which less than this share is left (0.5, say); what is trained on them is stale.
    """
    wanted = Wanted(backbone, older_than, key)
    try:
        with locked_workspace() as log:
            done: Any = Tidied(said="Only shown")
            if wanted or compact is not None:
                versions.save_what_repro_left()
                done = tidy.submit(wanted, compact).result()
            shown = show()
    except RootstockError as error:
        return failed(error)
    for entry in done.pruned:
        log.info("Pruned %s: %s, %s, %d images", entry.folder, entry.backbone, entry.meaning.get("layer"), entry.images)
    log.info("%s", done.said)
    artifacts.show_cache(done.said, shown)
    return Completed(message=done.said, data=done)

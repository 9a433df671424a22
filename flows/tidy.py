"""The flow `cache`: prune cached features and compact shards (its command is flows/cache.py).

prefect deployment run cache/cpu -p older_than=30
"""

import sys
from typing import Any

from prefect import flow, task
from prefect.client.schemas.objects import State
from prefect.states import Completed

from rootstock.system.errors import RootstockError
from tasks.bridge import artifacts, experiments
from tasks.bridge.cache import Request, Tidied, plan, show, tidy as to_tidy
from tasks.bridge.orchestration import failed, reported_task
from tasks.bridge.workspace_lock import locked_workspace


@task(name="tidy", task_run_name="tidy")
@reported_task
def tidy(asked: Request) -> State[Tidied]:
    """Prune features, decoded images, activations and versions, and compact shards."""
    done = to_tidy(asked)
    return Completed(message=done.summary, data=done)


@flow(name="cache")
def cache(
    backbone: str | None = None,
    older_than: float | None = None,
    key: str | None = None,
    compact: float | None = None,
    pixels: bool = False,
    activations: bool = False,
    unused_versions: bool = False,
    dry_run: bool = False,
) -> State[Tidied]:
    """Prune cached features, compact shards, and show what is left; without any value, only show.

    Features that the current parameters use are never pruned. Given several of the first three, all have to match.

    Args:
        backbone: Prune features of this backbone.
        older_than: Prune features not used for this many days.
        key: Prune features under this key.
        compact: Rewrite shards of which less than this share is still in use (e.g. 0.5); models become stale.
        pixels: Remove the decoded images of fine-tuning, which the next one decodes again.
        activations: Remove the activations of frozen layers, which the next fine-tuning computes again.
        unused_versions: Remove from DVC's cache what no commit, tag, experiment or champion refers to.
        dry_run: Only say what would be removed.
    """
    asked = Request(backbone, older_than, key, compact, pixels, activations, unused_versions)
    try:
        with locked_workspace() as log:
            done: Any = Tidied(summary="Nothing removed")
            if asked and dry_run:
                done = Tidied(summary=plan(asked))
            elif asked:
                experiments.save_what_repro_left()
                done = tidy.submit(asked).result()
            contents = show()
    except RootstockError as error:
        return failed(error)
    for entry in done.pruned:
        what = f"{entry.backbone}, {entry.fields.get('layer')}, {entry.images:,} images"
        log.info("Pruned %s: %s", entry.folder, what)
    log.info("%s", done.summary)
    artifacts.show_cache(done.summary, contents)
    return Completed(message=done.summary, data=done)


if __name__ == "__main__":
    sys.exit("tidy: this is the deployment cache/cpu; its command is `python -m flows.cache`.")

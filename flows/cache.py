"""Show the cache, prune features by age or backbone, compact shards, and remove versions that nothing refers to.

    python -m flows.cache                                    # show
    python -m flows.cache --backbone resnet18                # prune its features
    python -m flows.cache --older-than 30                    # prune what has not been used for 30 days
    python -m flows.cache --compact                          # rewrite shards of which less than half is in use
    python -m flows.cache --pixels                           # remove decoded images
    python -m flows.cache --activations                      # remove the activations of frozen layers
    python -m flows.cache --unused-versions                  # remove from DVC's cache what nothing refers to

With --dry-run, it only says what would be removed. Showing needs no Prefect; changes are made by the flow in tidy.py.
"""

import argparse
from typing import Any

from rootstock.features.compaction import SHARE
from rootstock.system import escape
from rootstock.system.entry_points import add_verbose, entry_point
from tasks.bridge.cache import Request, check, plan, show


def arguments() -> dict[str, Any]:
    """Parse the command line into the arguments of the flow that were given."""
    parser = argparse.ArgumentParser(description="Show the cache; prune features, compact shards.")
    parser.add_argument("--backbone", metavar="NAME", help="prune features of this backbone")
    parser.add_argument("--older-than", metavar="DAYS", type=float, help="prune features not used for this many days")
    parser.add_argument("--key", help="prune features under this key")
    parser.add_argument(
        "--compact", metavar="SHARE", type=float, nargs="?", const=SHARE,
        help=f"rewrite shards of which less than this share is still in use (default {SHARE})",
    )  # fmt: skip
    parser.add_argument("--pixels", action="store_true", default=None, help="remove the decoded images of fine-tuning")
    parser.add_argument("--activations", action="store_true", default=None, help="remove activations of frozen layers")
    parser.add_argument(
        "--unused-versions", action="store_true", default=None,
        help="remove from DVC's cache what no commit, tag, experiment or champion refers to",
    )  # fmt: skip
    parser.add_argument("--dry-run", action="store_true", help="only say what would be removed")
    add_verbose(parser)
    return {name: value for name, value in vars(parser.parse_args()).items() if value is not None}


def main() -> None:
    """Show the cache, or say what is removed and remove it; an error is one sentence and exit status 1."""
    asked = arguments()
    verbose, dry_run = asked.pop("verbose"), asked.pop("dry_run")
    with entry_point("cache"):
        request = Request(**asked)
        if request and dry_run:
            print(escape.plain(plan(request)))
            return
        if request:
            check(request)
            print(escape.plain(plan(request)), flush=True)
            tidy(asked, verbose=verbose)
        print(escape.plain(show()))


def tidy(asked: dict[str, Any], *, verbose: bool) -> None:
    """Run the flow."""
    from flows.tidy import cache  # Prefect and DVC take seconds to import
    from tasks.bridge import causes, versions

    with causes.entry_point("cache", verbose=verbose):
        versions.prepare()
        done: Any = cache(**asked)
        print("", done.summary, "", sep="\n")


if __name__ == "__main__":
    main()

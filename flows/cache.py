"""What is cached, and less of it: features by age or backbone, shards whose images are mostly gone.

    python -m flows.cache                                    # shows
    python -m flows.cache --backbone resnet18                # prunes its features
    python -m flows.cache --older-than 30                    # prunes what has not been used for 30 days
    python -m flows.cache --compact                          # writes shards anew of which less than half is left

To show takes no flow, and no Prefect; what changes something is the flow in tidy.py.
"""

import argparse
from typing import Any

from rootstock.features.compaction import SHARE
from rootstock.system import escape
from rootstock.system.entry_points import entry_point
from tasks.bridge.cache import check, show


def arguments() -> dict[str, Any]:
    """Read what the command line asks for: the arguments of the flow, where given."""
    parser = argparse.ArgumentParser(description="Show what is cached; prune features, compact shards.")
    parser.add_argument("--backbone", metavar="NAME", help="prune the features of this backbone")
    parser.add_argument("--older-than", metavar="DAYS", type=float, help="prune what has not been used for so long")
    parser.add_argument("--key", help="prune the features under this key")
    parser.add_argument(
        "--compact", metavar="SHARE", type=float, nargs="?", const=SHARE,
        help=f"write shards anew of which less than this share is left ({SHARE})",
    )  # fmt: skip
    return {name: value for name, value in vars(parser.parse_args()).items() if value is not None}


def main() -> None:
    """Show, or tidy; an error is one sentence, and exit status 1."""
    asked = arguments()
    with entry_point("cache"):
        if asked:
            check(**asked)
            tidy(asked)
        print(escape.plain(show()))


def tidy(asked: dict[str, Any]) -> None:
    """Run the flow."""
    from flows.tidy import cache  # Prefect and DVC take seconds to import
    from tasks.bridge import causes, versions

    with causes.entry_point("cache"):
        versions.prepare()
        done: Any = cache(**asked)
        print("", done.said, "", sep="\n")


if __name__ == "__main__":
    main()

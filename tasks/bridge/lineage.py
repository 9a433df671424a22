"""What a report says of its origin: the git commit and the version of the data."""

from contextlib import suppress

from rootstock.system.errors import RootstockError
from tasks.bridge import git, lock_file

SHORT = 7  # hexadecimal digits, as in the list of runs


def lineage() -> dict[str, str]:
    """Return the git commit, with a note if files that git tracks differ from it, and the version of the data.

    What there is none of is left out.
    """
    found: dict[str, str] = {}
    with suppress(RootstockError):
        commit = git.head()[:SHORT]
        edited = git.run("status", "--porcelain", "--untracked-files=no")
        found["git commit"] = f"{commit}, with uncommitted changes" if edited else commit
    if version := data_version():
        found["data version"] = version
    return found


def data_version() -> str:
    """Return the version of the dataset, as dvc.lock has it; "" if unknown."""
    try:
        return lock_file.data_version(lock_file.stages_in(lock_file.LOCK.read_bytes()))[:SHORT]
    except (OSError, RootstockError):
        return ""

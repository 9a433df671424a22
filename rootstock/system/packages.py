"""Files that an installed package ships, found by what its installer wrote down: nothing is imported.

To import a package is to run its code, and a name in params.yaml may be anybody's: that of a folder which was delivered
into the workspace, say. So only what stands on Python's path outside the workspace counts (its own environment may be
in there), and only packages that were installed. Editable installs have their files elsewhere; they are not found.
"""

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from importlib.metadata import Distribution

PREFIX = "package:"


@dataclass(frozen=True)
class Shipped:
    """A file of a package, and which version of which distribution has brought it."""

    path: Path
    distribution: str


def check(place: str) -> None:
    """Check how a file of a package is written: package:<import name>/<file>, where the file may be a pattern.

    Raises:
        ValueError: it is not written so.
    """
    package, pattern = parts(place)
    named = all(part.isidentifier() for part in package.split("."))
    if not named or "\0" in pattern or pattern.startswith("/") or any(p in ("", "..") for p in pattern.split("/")):
        raise ValueError(
            f"is {place!r}; expected {PREFIX}<import name>/<file>, a file that an installed package ships, without .."
        )


def parts(place: str) -> tuple[str, str]:
    """Take package:<import name>/<file> apart; without a file, the one of safetensors is meant."""
    package, slash, pattern = place.removeprefix(PREFIX).partition("/")
    return package, pattern if slash else "*.safetensors"


def find(package: str, pattern: str) -> list[Shipped] | None:
    """List the files of a package, by its import name, that match a pattern; None where there is no such package."""
    from importlib import metadata  # every stage imports this module, few look for a package

    installed = False
    found = []
    for root in _trusted_path():
        for distribution in metadata.distributions(path=[str(root)]):
            listed = {str(file) for file in distribution.files or ()}
            if package.partition(".")[0] not in _import_names(distribution, listed):
                continue
            installed = True
            for path in sorted((root / package.replace(".", "/")).glob(pattern)):
                own = not listed or str(path.relative_to(root)) in listed  # others may share a namespace
                if own and path.is_file() and _is_trusted(path.resolve(), root):
                    found.append(Shipped(path, f"{distribution.metadata['Name']} {distribution.version}"))
    return found if installed else None


def beside(package: str, pattern: str) -> list[Shipped] | None:
    """The same of a folder anywhere on Python's path, not installed: only for what the code itself names."""
    folders = [folder for entry in sys.path if (folder := Path(entry, package.replace(".", "/"))).is_dir()]
    return [Shipped(path, package) for path in sorted(folders[0].glob(pattern))] if folders else None


def _trusted_path() -> Iterator[Path]:
    """Yield the folders in which Python looks for packages, but those in the workspace."""
    import sysconfig

    environment = {Path(sysconfig.get_path(kind)).resolve() for kind in ("purelib", "platlib")}
    for root in dict.fromkeys(Path(entry).resolve() for entry in sys.path):
        if root.is_dir() and (root in environment or not _is_in_workspace(root)):
            yield root


def _is_trusted(path: Path, root: Path) -> bool:
    """Whether a file, links resolved, is out of the workspace, or in the environment that lies in there."""
    return not _is_in_workspace(path) or (_is_in_workspace(root) and path.is_relative_to(root))


def _is_in_workspace(path: Path) -> bool:
    return path.is_relative_to(Path.cwd().resolve())


def _import_names(distribution: "Distribution", listed: set[str]) -> set[str]:
    declared = (distribution.read_text("top_level.txt") or "").split()
    return {*declared, *(name.partition("/")[0] for name in listed if "/" in name)}

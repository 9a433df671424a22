"""Finds files that an installed package ships by its installation metadata, without importing it.

Importing a package runs its code, and a name in params.yaml may be that of a folder delivered into the workspace. So
only packages installed on Python's path outside the workspace count (the environment itself may be inside). Editable
installs keep their files elsewhere and are not found.
"""

import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from importlib.metadata import Distribution

PREFIX = "package:"


@dataclass(frozen=True)
class Shipped:
    """A file of a package, and the name and version of the distribution that ships it."""

    path: Path
    distribution: str


def check(place: str) -> None:
    """Check the form package:<import name>/<file>, where the file may be a glob pattern.

    Raises:
        ValueError: it does not have this form.
    """
    package, pattern = parts(place)
    named = all(part.isidentifier() for part in package.split("."))
    if not named or "\0" in pattern or pattern.startswith("/") or any(p in ("", "..") for p in pattern.split("/")):
        raise ValueError(
            f"is {place!r}; expected {PREFIX}<import name>/<file>, a file that an installed package ships, without .."
        )


def parts(place: str) -> tuple[str, str]:
    """Split package:<import name>/<file>; the default file is *.safetensors."""
    package, slash, pattern = place.removeprefix(PREFIX).partition("/")
    return package, pattern if slash else "*.safetensors"


def find(package: str, pattern: str) -> list[Shipped] | None:
    """Return the files of a package (by import name) that match a pattern; None if it is not installed."""
    from importlib import metadata  # imported late: every stage imports this module, few look for a package

    installed = False
    found = []
    for root in _trusted_path():
        for distribution in metadata.distributions(path=[str(root)]):
            if not _has_import_name(distribution, package.partition(".")[0]):
                continue
            installed = True
            listed = {str(file) for file in distribution.files or ()}
            for path in sorted((root / package.replace(".", "/")).glob(pattern)):
                own = not listed or str(path.relative_to(root)) in listed  # other distributions may share the namespace
                if own and path.is_file() and _is_trusted(path.resolve(), root):
                    found.append(Shipped(path, f"{distribution.metadata['Name']} {distribution.version}"))
    return found if installed else None


def beside(package: str, pattern: str) -> list[Shipped] | None:
    """Like `find`, for a folder on Python's path that is not installed: only for names in our own code."""
    folders = [folder for entry in sys.path if (folder := Path(entry, package.replace(".", "/"))).is_dir()]
    return [Shipped(path, package) for path in sorted(folders[0].glob(pattern))] if folders else None


def _trusted_path() -> Iterator[Path]:
    """Yield the folders on Python's path, except those in the workspace."""
    import sysconfig

    environment = {Path(sysconfig.get_path(kind)).resolve() for kind in ("purelib", "platlib")}
    for root in dict.fromkeys(Path(entry).resolve() for entry in sys.path):
        if root.is_dir() and (root in environment or not _is_in_workspace(root)):
            yield root


def _is_trusted(path: Path, root: Path) -> bool:
    """Whether a resolved path is outside the workspace, or in an environment inside it."""
    return not _is_in_workspace(path) or (_is_in_workspace(root) and path.is_relative_to(root))


def _is_in_workspace(path: Path) -> bool:
    return path.is_relative_to(Path.cwd().resolve())


def _has_import_name(distribution: "Distribution", name: str) -> bool:
    """Whether a distribution declares an import name, or installed files in a folder of that name."""
    if name in (distribution.read_text("top_level.txt") or "").split():
        return True
    record = distribution.read_text("RECORD")  # searched as text: parsing those of an environment takes a second or two
    if record is None:
        return any(str(file).startswith(f"{name}/") for file in distribution.files or ())
    return f"\n{name}/" in f"\n{record}"


def installed_versions(*names: str) -> dict[str, str]:
    """Return the installed versions of packages, by name; packages that are not installed are left out."""
    from importlib.metadata import PackageNotFoundError, version

    found = {}
    for name in names:
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found

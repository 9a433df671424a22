"""Check file names: possible images, and archive members that point outside; make names valid UTF-8."""

import posixpath
from pathlib import PurePosixPath

from rootstock.images.pixels import format_by_name

NON_IMAGE_EXTENSIONS = frozenset(
    {
        ".txt", ".md", ".rst", ".csv", ".tsv", ".json", ".jsonl", ".xml", ".yaml", ".yml", ".html", ".htm",
        ".pdf", ".doc", ".docx", ".xls", ".xlsx", ".ods", ".odt", ".py", ".ipynb", ".m", ".r", ".sh", ".bat",
        ".log", ".cfg", ".ini", ".toml", ".npy", ".npz", ".mat", ".pkl", ".h5", ".hdf5", ".parquet", ".db",
        ".sqlite", ".zip", ".tar", ".gz", ".7z", ".tex", ".bib", ".cache", ".names", ".data", ".sql", ".js",
        ".css"
    }
)  # fmt: skip


def storable(path: str) -> str:
    """Return a path as valid UTF-8, with other bytes as hexadecimal escapes."""
    return path.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def member_name(name: str) -> str:
    """Return the path of an archive's member, as it is listed."""
    return storable(name).removeprefix("./")


def is_unsafe(path: str) -> bool:
    """Whether an archive member's name points outside the archive."""
    pure = PurePosixPath(path.replace("\\", "/"))
    return pure.is_absolute() or ".." in pure.parts or (pure.parts[:1] != () and pure.parts[0].endswith(":"))


def is_image_name(path: str) -> bool:
    """Whether a name has the extension of a supported format, or none at all."""
    return posixpath.splitext(path)[1] in ("", ".") or format_by_name(path) is not None


def may_be_image(path: str) -> bool:
    """Whether a name is not clearly that of a text, table, program or similar."""
    return posixpath.splitext(path)[1].lower() not in NON_IMAGE_EXTENSIONS

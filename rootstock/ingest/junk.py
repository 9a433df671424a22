"""Recognise junk files that desktops, cameras, network drives and programs leave in image folders.

The names come from the ignore lists of established tools: the npm package junk, the templates
Global/ of github/gitignore (macOS, Windows, Linux, Synology, Dropbox, Lightroom), Nextcloud's sync-exclude.lst.
"""

import posixpath
import re

# Anything whose name begins with a dot is hidden: .DS_Store, ._1.jpg, .Trash-1000, .@__thumb, .ipynb_checkpoints, ...
NAMES = frozenset(
    name.casefold()
    for name in (
        # macOS
        "__MACOSX", "Icon\r", "Icon\uf00d", "Network Trash Folder", "Temporary Items", "TheVolumeSettingsFolder",
        "TheFindByContentFolder",
        # Windows, its file systems, its programs
        "Thumbs.db", "Thumbs.db:encryptable", "ehthumbs.db", "ehthumbs_vista.db", "desktop.ini", "IconCache.db",
        "$RECYCLE.BIN", "RECYCLER", "RECYCLED", "System Volume Information", "Picasa.ini", "ZbThumbnail.info",
        "pspbrwse.jbf", "AlbumArtSmall.jpg",
        # Linux, Android
        "lost+found", "LOST.DIR", "aquota.user", "aquota.group",
        # Synology, QNAP and other network drives
        "@eaDir", "#recycle", "#snapshot", "@Recycle", "@Recently-Snapshot", "@tmp", "@sharebin", "~snapshot",
        # programs
        "CaptureOne", "__pycache__",
    )
)  # fmt: skip
FOUND = re.compile(r"found\.\d{3}")  # created by Windows when repairing a disk
# Partial files, backups, Windows shortcuts; previews and edits that photo programs keep next to the photos.
EXTENSIONS = frozenset(
    {
        ".tmp", ".temp", ".part", ".partial", ".crdownload", ".download", ".swp", ".swo", ".bak", ".lnk",
        ".lock", ".lrdata", ".lrcat", ".lrprev", ".xmp", ".aae", ".thm", ".dop", ".pp3"
    }
)  # fmt: skip


def is_junk_name(name: str) -> bool:
    """Whether a file or folder of this name is hidden or junk."""
    if name.startswith("."):
        return name not in (".", "..")
    lower = name.casefold()
    if lower.endswith("~") or lower.startswith(("~$", "albumart_{")):  # editors, office programs, Windows Media Player
        return True
    return lower in NAMES or FOUND.fullmatch(lower) is not None or posixpath.splitext(lower)[1] in EXTENSIONS


def is_junk(path: str) -> bool:
    """Whether a path (with forward slashes) is junk or in a junk folder."""
    return any(map(is_junk_name, path.split("/")))

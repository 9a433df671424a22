"""What desktops, cameras, network drives and programs leave behind in folders of images; nobody means these.

The names are those of the lists that programs for synchronising folders keep: the package junk of npm, the templates
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
FOUND = re.compile(r"found\.\d{3}")  # by Windows, on a disk that it has mended
# Half-written files, backups, links of Windows; previews and edits that photo programs keep beside the photos.
EXTENSIONS = frozenset(
    {
        ".tmp", ".temp", ".part", ".partial", ".crdownload", ".download", ".swp", ".swo", ".bak", ".lnk",
        ".lock", ".lrdata", ".lrcat", ".lrprev", ".xmp", ".aae", ".thm", ".dop", ".pp3"
    }
)  # fmt: skip


def is_litter_name(name: str) -> bool:
    """Whether a file or folder of this name is hidden, or left behind by a system or a program."""
    if name.startswith("."):
        return name not in (".", "..")
    lower = name.casefold()
    if lower.endswith("~") or lower.startswith(("~$", "albumart_{")):  # editors, office programs, Windows Media Player
        return True
    return lower in NAMES or FOUND.fullmatch(lower) is not None or posixpath.splitext(lower)[1] in EXTENSIONS


def is_litter(path: str) -> bool:
    """Whether a path, with forward slashes, is litter or lies in a folder that is."""
    return any(map(is_litter_name, path.split("/")))

"""Archives in memory or in files, from the contents of their members."""

import io
import tarfile
import zipfile
from pathlib import Path

from tests.images import put


def zip_bytes(members: dict[str, bytes], **options) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", **options) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return file.getvalue()


def tar_bytes(members: dict[str, bytes], compression: str = "") -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode=f"w:{compression}") as archive:
        for name, data in members.items():
            add_to_tar(archive, name, data)
    return file.getvalue()


def add_to_tar(archive: tarfile.TarFile, name: str, data: bytes = b"", **attributes) -> None:
    """Add a member; attributes are those of its header."""
    member = tarfile.TarInfo(name)
    member.size = len(data)
    for key, value in attributes.items():
        setattr(member, key, value)
    archive.addfile(member, io.BytesIO(data))


def archived(path: Path, members: dict[str, bytes]) -> Path:
    """Write an archive of the kind that its name says."""
    compression = path.suffix[1:] if path.suffix in (".gz", ".bz2", ".xz") else ""
    return put(path, zip_bytes(members) if path.suffix == ".zip" else tar_bytes(members, compression))

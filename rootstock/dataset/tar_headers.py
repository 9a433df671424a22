"""Headers of tar members as shards have them: written and read in a fraction of tarfile's time."""

import tarfile
from dataclasses import dataclass

NAMELESS = tarfile.TarInfo().tobuf(tarfile.USTAR_FORMAT)  # template: mtime, owner and mode are constants


@dataclass(frozen=True, slots=True)
class Member:
    """An image in a shard: its member name and the position of its bytes."""

    name: str
    offset: int
    size: int

    @property
    def image_id(self) -> str:
        """Return the image id, the member name without its extension."""
        return self.name.partition(".")[0]


def header(name: str, size: int) -> bytes:
    """Return a tar header identical to tarfile's (tested), which took half of the packing time of small images.

    Args:
        name: at most 99 ASCII characters.
        size: of the file in bytes, at most 8 GiB.
    """
    block = bytearray(NAMELESS)
    block[: len(name)] = name.encode()
    block[124:135] = b"%011o" % size
    block[148:155] = b" " * 7  # the checksum field counts as blanks
    block[148:155] = b"%06o\0" % sum(block)
    return bytes(block)


def read_header(block: bytes, at: int, size: int) -> Member | None:
    """Read a header that `header` wrote, in a third of tarfile's time.

    Args:
        block: of 512 bytes.
        at: its offset in the file.
        size: of the file.

    Returns:
        None if it is another kind of header, or the file ends before the member does.
    """
    name, length = block[:100].rstrip(b"\0"), block[124:135]
    if not name.isascii() or not length or length.strip(b"01234567"):
        return None
    found = Member(name.decode(), at + tarfile.BLOCKSIZE, int(length, 8))
    whole = block == header(found.name, found.size) and found.offset + padded(found.size) <= size
    return found if whole else None


def padded(size: int) -> int:
    """Return the size of a file in whole blocks."""
    return size + -size % tarfile.BLOCKSIZE

"""Limits on what an archive may hold, so that a small file takes neither all memory nor hours."""

# On the unpacked size, in bytes and as a multiple of the packed size; a bitmap of one colour reaches 1,000.
MAX_UNPACKED_BYTES, MAX_EXPANSION = 2**32, 100
MAX_MEMBERS = 2**21


def check_expansion(unpacked: int, packed: int) -> None:
    """Reject an archive that unpacks to many times its size, which images never do.

    Raises:
        ValueError: it unpacks to more than the limits.
    """
    if unpacked > max(MAX_UNPACKED_BYTES, MAX_EXPANSION * packed):
        raise ValueError(f"its {packed:,} bytes unpack to {unpacked:,} or more")


def check_members(count: int) -> None:
    """Reject an archive with too many members.

    Raises:
        ValueError: it has more than the limit.
    """
    if count > MAX_MEMBERS:
        raise ValueError(f"it has more than {MAX_MEMBERS:,} members. Split it")

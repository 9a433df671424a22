"""Integrity of image files: classifies decoder errors, and checks each format beyond what decoders check."""

from rootstock.images import png, tiff, tiff_pieces, transfer_damage, webp
from rootstock.images.reasons import Reason, Rejected

CUT = ("truncated", "eof", "unexpected end", "not processed", "broken png", "unrecognized data", "not enough")
UNKNOWN = ("unsupported", "cannot handle", "not supported", "unknown pixel mode", "unknown compression")
ZEROS = 512  # at the end of compressed data: an interrupted copy whose space was already allocated
MOST_BLOCKS = 2**21  # of a GIF up to the end of its first image: 512 MiB in blocks of 255 bytes
GIF_AFTER = b"\x21\x2c\x3b"  # what may follow an image: an extension, another image, the trailer


def rejection(error: Exception, data: bytes) -> Rejected:
    """Classify a decoder's error: truncated, unsupported, undecodable, or unreadable for now if memory was short."""
    if isinstance(error, Rejected):
        return error
    message = str(error) or type(error).__name__
    if isinstance(error, MemoryError):
        return Rejected(Reason.UNREADABLE, message)
    if isinstance(error, EOFError) or any(word in message.lower() for word in CUT) or is_truncated(data):
        return Rejected(Reason.TRUNCATED, message)
    if isinstance(error, NotImplementedError) or any(word in message.lower() for word in UNKNOWN):
        return Rejected(Reason.UNSUPPORTED, message)
    return Rejected(Reason.UNDECODABLE, message)


def is_truncated(data: bytes) -> bool:
    """Whether a file ends before the end that its format requires."""
    match data[:4]:
        case b"\x89PNG":
            return b"IEND" not in data[-16:]
        case b"GIF8":
            return not data.endswith(b";")
        case b"RIFF":  # WebP: the size of the rest follows
            return len(data) < 8 + int.from_bytes(data[4:8], "little")
        case b"II*\0" | b"MM\0*" | b"II+\0" | b"MM\0+":
            try:
                directory = tiff.read(data)
            except Rejected as rejected:
                return rejected.reason is Reason.TRUNCATED
            return directory.ends > len(data)
    return False


def check(kind: str, data: bytes, seconds: float) -> str:
    """Check what decoding does not, for all formats but JPEG; return the defect of a file that decodes anyway, or "".

    Args:
        kind: the format.
        data: the file.
        seconds: CPU time limit.

    Raises:
        Rejected: the file is truncated, or the check takes longer.
    """
    match kind:
        case "PNG":
            return png.check(data)
        case "TIFF":
            if is_truncated(data):
                raise Rejected(Reason.TRUNCATED)
            return tiff_pieces.check(data, seconds)
        case "WEBP":
            if is_truncated(data):
                raise Rejected(Reason.TRUNCATED)
            if webp.first_image(data).endswith(bytes(ZEROS)):  # further inside, a flat area may have many
                return "the compressed data end in zeros"
            return transfer_damage.find_text_transfer(data)
        case "GIF":
            return _gif(data)
    return ""


def _gif(data: bytes) -> str:
    """Check the blocks of a GIF up to the end of its first image; return the defect, or ""."""
    at, left = 13 + _gif_table(data[10:11]), MOST_BLOCKS
    while at < len(data):
        kind = data[at : at + 1]
        if kind == b"\x21":
            at, left = _gif_blocks(data, at + 2, left)
        elif kind == b"\x2c":
            at, _ = _gif_blocks(data, at + 11 + _gif_table(data[at + 9 : at + 10]), left)
            if at >= len(data):
                raise Rejected(Reason.TRUNCATED)
            return (
                ""
                if data[at : at + 1] in (bytes([mark]) for mark in GIF_AFTER)
                else "invalid data after the first image"
            )
        else:
            break
    raise Rejected(Reason.TRUNCATED)


def _gif_table(flags: bytes) -> int:
    """Return the size of a colour table in bytes."""
    return 3 * 2 ** ((flags[0] & 7) + 1) if flags and flags[0] & 0x80 else 0


def _gif_blocks(data: bytes, at: int, left: int) -> tuple[int, int]:
    """Skip a chain of blocks; return the offset after its empty last block, and how many more blocks are allowed.

    Raises:
        Rejected: there are more than any program writes.
    """
    while at < len(data) and data[at]:
        at += 1 + data[at]
        left -= 1
        if left < 0:
            raise Rejected(Reason.TOO_COSTLY, f"more than {MOST_BLOCKS:,} blocks")
    return at + 1, left - 1

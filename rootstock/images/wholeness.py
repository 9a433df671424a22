"""Whether a file is whole: what a decoder's complaint means, and what each format can be checked for beyond that."""

from rootstock.images import png, tiff, tiff_pieces, transfers, webp
from rootstock.images.reasons import Reason, Rejected

CUT = ("truncated", "eof", "unexpected end", "not processed", "broken png", "unrecognized data", "not enough")
UNKNOWN = ("unsupported", "cannot handle", "not supported", "unknown pixel mode", "unknown compression")
ZEROS = 512  # so many at the end of what is compressed: an interrupted copy, of which the disk had the place alone
MOST_BLOCKS = 2**21  # of a GIF before its first image's end: of 255 bytes each, 512 MiB have so many
GIF_AFTER = b"\x21\x2c\x3b"  # what may follow an image: an extension, another image, the end mark


def why(error: Exception, data: bytes) -> Rejected:
    """Tell a file that lacks its end from one that is wrong in itself, or of a kind that nobody reads here."""
    if isinstance(error, Rejected):
        return error
    said = str(error) or type(error).__name__
    if isinstance(error, EOFError) or any(word in said.lower() for word in CUT) or lacks_its_end(data):
        return Rejected(Reason.TRUNCATED, said)
    if isinstance(error, NotImplementedError) or any(word in said.lower() for word in UNKNOWN):
        return Rejected(Reason.UNSUPPORTED, said)
    return Rejected(Reason.UNDECODABLE, said)


def lacks_its_end(data: bytes) -> bool:
    """Whether a file ends before what its format has at the end."""
    match data[:4]:
        case b"\x89PNG":
            return b"IEND" not in data[-16:]
        case b"GIF8":
            return not data.endswith(b";")
        case b"RIFF":  # WebP: the size of the rest follows
            return len(data) < 8 + int.from_bytes(data[4:8], "little")
        case b"II*\0" | b"MM\0*" | b"II+\0" | b"MM\0+":
            try:
                says = tiff.read(data)
            except Rejected as rejected:
                return rejected.reason is Reason.TRUNCATED
            return says.ends > len(data)
    return False


def check(kind: str, data: bytes, seconds: float) -> str:
    """Check what decoding does not, of all formats but JPEG; returns what is wrong where there are pixels even so.

    Args:
        kind: the format.
        data: the file.
        seconds: of a core, after which it is given up.

    Raises:
        Rejected: the end is missing, or it takes longer.
    """
    match kind:
        case "PNG":
            return png.check(data)
        case "TIFF":
            if lacks_its_end(data):
                raise Rejected(Reason.TRUNCATED)
            return tiff_pieces.check(data, seconds)
        case "WEBP":
            if lacks_its_end(data):
                raise Rejected(Reason.TRUNCATED)
            if webp.first_image(data).endswith(bytes(ZEROS)):  # inside it, a flat area may have many
                return "it ends in zeros"
            return transfers.as_text(data)
        case "GIF":
            return _gif(data)
    return ""


def _gif(data: bytes) -> str:
    """Walk the blocks of a GIF to the end of its first image."""
    at, left = 13 + _gif_table(data[10:11]), MOST_BLOCKS
    while at < len(data):
        kind = data[at : at + 1]
        if kind == b"\x21":
            at, left = _gif_blocks(data, at + 2, left)
        elif kind == b"\x2c":
            at, _ = _gif_blocks(data, at + 11 + _gif_table(data[at + 9 : at + 10]), left)
            if at >= len(data):
                raise Rejected(Reason.TRUNCATED)
            return "" if data[at : at + 1] in (bytes([mark]) for mark in GIF_AFTER) else "what follows it is no GIF"
        else:
            break
    raise Rejected(Reason.TRUNCATED)


def _gif_table(flags: bytes) -> int:
    """Give the bytes of a table of colours."""
    return 3 * 2 ** ((flags[0] & 7) + 1) if flags and flags[0] & 0x80 else 0


def _gif_blocks(data: bytes, at: int, left: int) -> tuple[int, int]:
    """Walk a chain of blocks; returns where it ends, behind its block of no bytes, and how many more there may be.

    Raises:
        Rejected: there are more than any program writes.
    """
    while at < len(data) and data[at]:
        at += 1 + data[at]
        left -= 1
        if left < 0:
            raise Rejected(Reason.TOO_COSTLY, f"more than {MOST_BLOCKS:,} blocks")
    return at + 1, left - 1

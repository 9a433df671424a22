"""Whether the strips and tiles of a TIFF are whole: libtiff, as Pillow has it, lets much of what is wrong pass.

It takes what is deflated, or packed by LZMA or Zstandard, and then cut or overwritten; JPEGs of which libjpeg warns;
and PackBits of any length. Of a piece in Zstandard that holds other bytes, nothing can tell: it has no checksum.
"""

import lzma
import time
import zlib
from collections.abc import Callable, Iterator

import pyarrow as pa

from rootstock.images import jpeg, tiff, transfers
from rootstock.images.reasons import Reason, Rejected
from rootstock.images.tiff import Directory

WITHOUT_CHECKSUM = (tiff.LZW, tiff.LZMA, tiff.ZSTANDARD)
YCBCR = 6  # photometric interpretation: of colours there are fewer than pixels
PADDING = 3  # bytes behind what is packed: some programs begin each piece at an even place
AT_ONCE = 2**20  # bytes that are unpacked at a time
LZMA_BYTES = 2**28  # that its dictionary may take: its strongest preset takes 65 MiB


def check(data: bytes, seconds: float) -> str:
    """Hold each piece to what can be checked of its compression; returns what is wrong with the first, or nothing.

    Args:
        data: the file.
        seconds: of a core, after which it is given up.

    Raises:
        Rejected: it takes longer.
    """
    says, until = tiff.read(data), time.thread_time() + seconds
    if says.compression == tiff.RAW:
        return ""
    for number, piece in enumerate(_pieces(data, says)):
        if time.thread_time() > until:
            raise Rejected(Reason.TOO_COSTLY, "it takes too long to read")
        if said := _wrong(piece, says, number):
            return f"{'tile' if says.tiled else 'strip'} {number + 1:,}: {said}"
    return transfers.as_text(data)


def scans(data: bytes, most: int) -> int:
    """Count the scans of the JPEG in it that has most; `most` or more is as good as that."""
    says, found = tiff.read(data), 1
    for piece in _pieces(data, says) if says.compression in tiff.JPEGS else ():
        if found < most and piece.count(b"\xff\xda") > found:
            stream = _with_tables(piece, says)
            found = max(found, jpeg.scans(stream, jpeg.read(stream), most))
    return found


def _pieces(data: bytes, says: Directory) -> Iterator[bytes]:
    for at, size in zip(says.offsets, says.sizes, strict=False):
        yield data[at : at + size]


def _wrong(piece: bytes, says: Directory, number: int) -> str:
    if says.compression == tiff.JPEG:
        return _warning(_with_tables(piece, says), says)
    if says.compression in WITHOUT_CHECKSUM and (said := transfers.hole(piece)):
        return said
    most = says.rows(number) * says.row_bytes
    least = most if says.photometric != YCBCR else 1
    if says.compression in UNPACKERS:
        return _unpacks(UNPACKERS[says.compression](piece), least, most)
    if says.compression == tiff.PACKBITS and least == most and not _packs(piece, most):
        return "its runs are not those of its rows"
    return ""


def _with_tables(piece: bytes, says: Directory) -> bytes:
    """Put together the JPEG of a piece: tables that all have in common stand apart, between marks of their own."""
    return says.jpeg_tables[:-2] + piece[2:] if says.jpeg_tables else piece


def _warning(stream: bytes, says: Directory) -> str:
    """Say what libjpeg warns of, or what else is wrong."""
    try:
        header = jpeg.read(stream)
    except Rejected as rejected:
        return str(rejected)
    if header.width > says.piece[0] or header.height > says.piece[1]:
        return "a JPEG larger than its place"
    return jpeg.warning(stream, header) or jpeg.hole(stream, header)


def _inflated(piece: bytes) -> Iterator[bytes]:
    inflate = zlib.decompressobj()
    yield inflate.decompress(piece, AT_ONCE)
    while not inflate.eof and (some := inflate.decompress(inflate.unconsumed_tail, AT_ONCE)):
        yield some
    if not inflate.eof:
        raise EOFError("it is cut")


def _by_lzma(piece: bytes) -> Iterator[bytes]:
    unpack = lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=LZMA_BYTES)
    yield unpack.decompress(piece, AT_ONCE)
    while not unpack.eof:
        if unpack.needs_input:
            raise EOFError("it is cut")
        yield unpack.decompress(b"", AT_ONCE)


def _by_zstandard(piece: bytes) -> Iterator[bytes]:
    with pa.input_stream(pa.BufferReader(piece), compression="zstd") as stream:
        while some := stream.read(AT_ONCE):
            yield some


UNPACKERS: dict[int, Callable[[bytes], Iterator[bytes]]] = {
    **dict.fromkeys(tiff.DEFLATE, _inflated), tiff.LZMA: _by_lzma, tiff.ZSTANDARD: _by_zstandard,
}  # fmt: skip


def _unpacks(unpacked: Iterator[bytes], least: int, most: int) -> str:
    """Unpack no more than `most` bytes, and to the checksum if there are no more; returns what is wrong."""
    found = 0
    try:
        for some in unpacked:
            found += len(some)
            if found > most:
                return ""
    except (zlib.error, lzma.LZMAError, OSError, EOFError) as error:
        return str(error)
    return "it is cut" if found < least else ""


def _packs(piece: bytes, expected: int) -> bool:
    """Walk runs and literals: whether they stand for so many bytes, and fill the piece but for its padding."""
    found, at, end = 0, 0, len(piece)
    while at < end and found < expected:
        head = piece[at]
        if head < 128:
            found += head + 1
            at += head + 2
        else:
            found += 257 - head if head > 128 else 0
            at += 2 if head > 128 else 1
    return found == expected and end - PADDING <= at <= end

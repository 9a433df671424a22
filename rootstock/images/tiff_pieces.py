"""Checks the strips and tiles of a TIFF for damage that libtiff, as used by Pillow, ignores.

It accepts truncated or overwritten Deflate, LZMA and Zstandard data, JPEGs with libjpeg warnings, and PackBits of any
length. Overwritten bytes inside Zstandard data cannot be detected: it has no checksum.
"""

import lzma
import time
import zlib
from collections.abc import Callable, Iterator

import pyarrow as pa

from rootstock.images import jpeg, tiff, transfer_damage
from rootstock.images.reasons import Reason, Rejected
from rootstock.images.tiff import Directory

WITHOUT_CHECKSUM = (tiff.LZW, tiff.LZMA, tiff.ZSTANDARD)
YCBCR = 6  # photometric interpretation: colours may be subsampled
PADDING = 3  # bytes after the compressed data: some programs align pieces
CHUNK_BYTES = 2**20  # unpacked at a time
LZMA_BYTES = 2**28  # memory limit of the decoder: the strongest preset takes 65 MiB


def check(data: bytes, seconds: float) -> str:
    """Check the compressed data of each strip or tile; return the first defect, or "".

    Args:
        data: the file.
        seconds: CPU time limit.

    Raises:
        Rejected: it takes longer.
    """
    directory, until = tiff.read(data), time.thread_time() + seconds
    if directory.compression == tiff.RAW:
        return ""
    for number, piece in enumerate(_pieces(data, directory)):
        if time.thread_time() > until:
            raise Rejected(Reason.TOO_COSTLY, "reading takes too long")
        if defect := _defect(piece, directory, number):
            return f"{'tile' if directory.tiled else 'strip'} {number + 1:,}: {defect}"
    return transfer_damage.find_text_transfer(data)


def count_scans(data: bytes, most: int) -> int:
    """Return the largest number of scans of any JPEG inside the TIFF, up to `most`."""
    directory, found = tiff.read(data), 1
    for piece in _pieces(data, directory) if directory.compression in tiff.JPEGS else ():
        if found < most and piece.count(b"\xff\xda") > found:
            stream = _with_tables(piece, directory)
            found = max(found, jpeg.count_scans(stream, jpeg.read(stream), most))
    return found


def _pieces(data: bytes, directory: Directory) -> Iterator[bytes]:
    for at, size in zip(directory.offsets, directory.sizes, strict=False):
        yield data[at : at + size]


def _defect(piece: bytes, directory: Directory, number: int) -> str:
    if directory.compression == tiff.JPEG:
        return _warning(_with_tables(piece, directory), directory)
    if directory.compression in WITHOUT_CHECKSUM and (defect := transfer_damage.find_hole(piece)):
        return defect
    most = directory.rows(number) * directory.row_bytes
    least = most if directory.photometric != YCBCR else 1
    if directory.compression in UNPACKERS:
        return _unpacks(UNPACKERS[directory.compression](piece), least, most)
    if directory.compression == tiff.PACKBITS and least == most and not _packs(piece, most):
        return "the PackBits data do not match the row size"
    return ""


def _with_tables(piece: bytes, directory: Directory) -> bytes:
    """Return the JPEG of a strip or tile with the shared tables inserted."""
    return directory.jpeg_tables[:-2] + piece[2:] if directory.jpeg_tables else piece


def _warning(stream: bytes, directory: Directory) -> str:
    """Return libjpeg's warning or another defect of a JPEG; "" if there is none."""
    try:
        header = jpeg.read(stream)
    except Rejected as rejected:
        return str(rejected)
    if header.width > directory.piece[0] or header.height > directory.piece[1]:
        return "a JPEG larger than its strip or tile"
    return jpeg.warning(stream, header) or jpeg.find_hole(stream, header)


def _inflated(piece: bytes) -> Iterator[bytes]:
    inflate = zlib.decompressobj()
    yield inflate.decompress(piece, CHUNK_BYTES)
    while not inflate.eof and (some := inflate.decompress(inflate.unconsumed_tail, CHUNK_BYTES)):
        yield some
    if not inflate.eof:
        raise EOFError("truncated")


def _by_lzma(piece: bytes) -> Iterator[bytes]:
    unpack = lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=LZMA_BYTES)
    yield unpack.decompress(piece, CHUNK_BYTES)
    while not unpack.eof:
        if unpack.needs_input:
            raise EOFError("truncated")
        yield unpack.decompress(b"", CHUNK_BYTES)


def _by_zstandard(piece: bytes) -> Iterator[bytes]:
    with pa.input_stream(pa.BufferReader(piece), compression="zstd") as stream:
        while some := stream.read(CHUNK_BYTES):
            yield some


UNPACKERS: dict[int, Callable[[bytes], Iterator[bytes]]] = {
    **dict.fromkeys(tiff.DEFLATE, _inflated), tiff.LZMA: _by_lzma, tiff.ZSTANDARD: _by_zstandard,
}  # fmt: skip


def _unpacks(unpacked: Iterator[bytes], least: int, most: int) -> str:
    """Unpack at most `most` bytes, including the checksum if there are no more; return the defect, or ""."""
    found = 0
    try:
        for some in unpacked:
            found += len(some)
            if found > most:
                return ""
    except (zlib.error, lzma.LZMAError, OSError, EOFError) as error:
        return str(error)
    return "truncated" if found < least else ""


def _packs(piece: bytes, expected: int) -> bool:
    """Whether PackBits runs and literals give the expected number of bytes and fill the piece up to padding."""
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

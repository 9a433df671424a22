"""PNG files, chunk by chunk: integrity, orientation, the file without metadata, and 16-bit values.

Pillow unpacks text and profiles before decoding, and refuses images with many of them or with a wrong checksum there;
so they are removed first.
"""

import io
import re
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, partial

import numpy as np
from PIL import Image, PngImagePlugin

from rootstock.images import orientation
from rootstock.images.deep import Block, DeepImage
from rootstock.images.reasons import Reason, Rejected

START = b"\x89PNG\r\n\x1a\n"
MOST_CHUNKS = 2**18  # a file of 512 MiB in chunks of 8 KiB, as libpng writes them, has 2**16
STRIP_PIXELS = 2**20  # at a time
MOST_UNPACKED = 2**20  # bytes of EXIF or XMP; in other formats EXIF has at most 64 KiB
XMP, RAW_EXIF = b"XML:com.adobe.xmp\0", re.compile(rb"Raw profile type (?:exif|APP1)\0", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Header:
    """The header fields of a PNG; `plain` is the file without metadata chunks."""

    size: tuple[int, int]
    bits: int
    colour: int  # 0 grey, 2 RGB, 3 palette, 4 grey and alpha, 6 RGBA
    orientation: int
    plain: bytes


def _chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Yield type, start and end of each chunk's content, up to IEND or the end of the file."""
    at = len(START)
    for _ in range(MOST_CHUNKS):
        if at + 12 > len(data):
            return
        length, kind = struct.unpack_from(">I4s", data, at)
        if at + 12 + length > len(data):
            return
        yield kind, at + 8, at + 8 + length
        at += 12 + length
        if kind == b"IEND":
            return
    raise Rejected(Reason.TOO_COSTLY, f"more than {MOST_CHUNKS:,} chunks")


def read(data: bytes) -> Header:
    """Read all chunks but the pixels.

    Raises:
        Rejected: there is no header, it is Apple's variant, or there are more chunks than any program writes.
    """
    width = height = bits = colour = 0
    kept, dropped, exif, xmp = [], False, b"", b""
    for kind, start, end in _chunks(data):
        if kind == b"CgBI":
            raise Rejected(Reason.UNSUPPORTED, "Apple's CgBI variant of PNG, which does not follow the standard")
        if kind == b"IHDR" and end - start == 13:
            width, height, bits, colour = struct.unpack_from(">IIBB", data, start)
        if kind[:1].isupper() or kind == b"tRNS":
            kept.append((start - 8, end + 4))
            continue
        dropped = True
        if kind == b"eXIf":
            exif = data[start:end]
        elif kind in (b"tEXt", b"zTXt", b"iTXt"):
            text = data[start:end]
            if text.startswith(XMP):
                xmp = _international(text)
            elif not exif and (named := RAW_EXIF.match(text)):
                exif = _raw_profile(text[named.end() :], kind)
    if not bits:
        raise Rejected(Reason.TRUNCATED)
    plain = START + b"".join(data[start:end] for start, end in kept) if dropped else data
    return Header((width, height), bits, colour, orientation.read(exif, xmp), plain)


def check(data: bytes) -> str:
    """Verify the checksum of every chunk; return the first defect, or "".

    Raises:
        Rejected: it is truncated.
    """
    view, kind = memoryview(data), b""
    for kind, start, end in _chunks(data):
        if zlib.crc32(view[start - 4 : end]) != int.from_bytes(view[end : end + 4], "big"):
            return f"wrong checksum of a {kind.decode('ascii', 'replace')} chunk"
    if kind != b"IEND":
        raise Rejected(Reason.TRUNCATED)
    return ""


def deep(header: Header) -> DeepImage:
    """Return the values of a 16-bit PNG; Pillow alone gives all 16 bits only for grey."""
    layout = {0: "L", 2: "RGB", 4: "LA", 6: "RGBA"}.get(header.colour)
    if layout is None:
        raise Rejected(Reason.UNDECODABLE, "a palette with 16 bits")
    image = cache(partial(_halves, header.plain, layout))
    transparency = [] if b"tRNS" not in header.plain[: header.plain.find(b"IDAT")] else _clear(header.plain)
    clear = tuple(transparency) if len(transparency) == len(layout) else None
    return DeepImage(*header.size, layout, lambda: _strips(*image()), "uint16", None, transparent_value=clear)


def _clear(plain: bytes) -> list[int]:
    at = plain.find(b"tRNS")
    length = int.from_bytes(plain[at - 4 : at], "big")
    return list(struct.unpack_from(f">{length // 2}H", plain, at + 4)) if length in (2, 6) else []


def _halves(plain: bytes, layout: str) -> tuple[Image.Image, ...]:
    """Decode with Pillow: grey directly, grey with alpha as four bytes, colours once per high and low bytes."""
    if layout == "L":
        return (_by_pillow(plain),)
    if layout == "LA":
        return (_by_pillow(plain, "RGBA", "RGBA"),)
    return _by_pillow(plain), _by_pillow(plain, layout, f"{layout};16L")  # 16L swaps high and low byte


def _by_pillow(plain: bytes, mode: str = "", raw: str = "") -> Image.Image:
    image = PngImagePlugin.PngImageFile(io.BytesIO(plain))
    if raw:
        image._mode = mode
        image.tile = [tile._replace(args=raw) for tile in image.tile]
    image.load()
    return image


def _strips(*halves: Image.Image) -> Iterator[Block]:
    width, height = halves[0].size
    rows = max(1, STRIP_PIXELS // width)
    for top in range(0, height, rows):
        parts = [np.asarray(half.crop((0, top, width, min(top + rows, height)))) for half in halves]
        if len(parts) == 2:
            high, low = parts
            yield top, 0, high.astype(np.uint16) << 8 | low
        elif parts[0].ndim == 3:
            four = parts[0].astype(np.uint16)
            yield top, 0, four[..., ::2] << 8 | four[..., 1::2]
        else:
            yield top, 0, parts[0][..., None]


def _international(text: bytes) -> bytes:
    """Return the text of an iTXt chunk: keyword, compression flag, method, language, translated keyword, text."""
    packed, *_, content = (text[len(XMP) : len(XMP) + 1], *text[len(XMP) + 2 :].split(b"\0", 2))
    return _unpacked(content) if packed == b"\1" else content


def _raw_profile(text: bytes, kind: bytes) -> bytes:
    """Return EXIF in ImageMagick's form: name, length, and lines of hexadecimal."""
    lines = (_unpacked(text[1:]) if kind == b"zTXt" else text).split(b"\n")
    try:
        return bytes.fromhex(b"".join(lines[3:]).decode("ascii", "replace"))
    except ValueError:
        return b""


def _unpacked(content: bytes) -> bytes:
    try:
        return zlib.decompressobj().decompress(content, MOST_UNPACKED)
    except zlib.error:
        return b""

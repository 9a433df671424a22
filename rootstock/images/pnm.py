"""Portable maps (PBM, PGM, PPM, PFM) that Pillow parses value by value in Python: read vectorised."""

import re
from collections.abc import Iterator
from functools import partial

import numpy as np
from numpy.typing import NDArray

from rootstock.images.deep import FULL, Block, DeepImage
from rootstock.images.reasons import Reason, Rejected

HEADER_BYTES = 2**16  # including comments
PIECE_BYTES = 2**20  # of text at a time
KINDS = {b"P1": 1, b"P2": 1, b"P3": 3, b"P5": 1, b"P6": 3, b"Pf": 1, b"PF": 3}
BLANK, LINE_END = re.compile(rb"\s"), re.compile(rb"[\r\n]")
COMMENT = re.compile(rb"#[^\r\n]*")
TOKEN = re.compile(rb"(?:\s|#[^\r\n]*[\r\n])*([^\s#]+)")


def read(data: bytes) -> DeepImage | None:
    """Read a map that is slow in Pillow or contains floats; None for one that Pillow reads well.

    Raises:
        Rejected: the header is invalid, or the file is truncated.
    """
    magic = data[:2]
    if magic not in KINDS:
        return None
    head, at, fields = data[:HEADER_BYTES], 2, []
    for _ in range(2 if magic == b"P1" else 3):
        token = TOKEN.match(head, at)
        if token is None or len(token[1]) > 20:
            raise Rejected(
                Reason.TRUNCATED if len(data) < HEADER_BYTES else Reason.UNDECODABLE, "no valid size in the header"
            )
        fields.append(token[1])
        at = token.end()
    try:
        width, height = int(fields[0]), int(fields[1])
        most = 1.0 if magic == b"P1" else float(fields[2])
    except ValueError:
        raise Rejected(Reason.UNDECODABLE, "no valid size in the header") from None
    if magic in (b"P5", b"P6") and most == 255:
        return None
    is_float = magic in (b"Pf", b"PF")
    if min(width, height) < 1 or not (is_float or 0 < most < 65536) or most == 0:
        raise Rejected(Reason.UNDECODABLE, "no valid size in the header")
    blocks = partial(_blocks, data, magic, at, (width, height), most)
    layout = "L" if KINDS[magic] == 1 else "RGB"
    kind = "float32" if is_float else "uint16"
    known_range = (
        None if is_float or most == FULL[1] else (0.0, most)
    )  # 65535 may be declared although fewer bits are used
    return DeepImage(width, height, layout, blocks, kind, known_range, inverted=magic == b"P1")


def _blocks(data: bytes, magic: bytes, at: int, size: tuple[int, int], most: float) -> Iterator[Block]:
    width, height = size
    samples = KINDS[magic]
    count = width * height * samples
    if magic in (b"P1", b"P2", b"P3"):
        values: NDArray[np.generic] = _plain(data, at, count, single=magic == b"P1")
    else:
        kind: np.dtype[np.generic] = np.dtype("u1" if most < 256 else ">u2")
        if magic[1:2] in b"fF":
            kind = np.dtype("<f4" if most < 0 else ">f4")
        if len(data) - at - 1 < count * kind.itemsize:
            raise Rejected(Reason.TRUNCATED)
        values = np.frombuffer(data, kind, count, at + 1)
    if len(values) < count:
        raise Rejected(Reason.TRUNCATED)
    shaped = values[:count].reshape(height, width, samples)
    if magic[1:2] not in b"fF" and shaped.max() > most:
        raise Rejected(Reason.UNDECODABLE, "a value above the declared maximum")
    yield 0, 0, shaped[::-1] if magic[1:2] in b"fF" else shaped  # PFM stores rows bottom to top


def _plain(data: bytes, at: int, count: int, *, single: bool) -> NDArray[np.uint16]:
    """Parse plain-text values, a piece of the text at a time; in a bitmap, every digit is a value."""
    values, done = np.empty(count, np.uint16), 0
    while done < count and at < len(data):
        end = _piece_end(data, at, single=single)
        text, at = COMMENT.sub(b" ", data[at:end]), end
        if single:
            digits = np.frombuffer(text, np.uint8)
            found = digits[digits > ord(" ")].astype(np.int64) - ord("0")
        else:
            words = text.split()
            try:
                found = np.array(words, dtype="S11").astype(np.int64) if words else np.empty(0, np.int64)
            except ValueError as error:
                raise Rejected(Reason.UNDECODABLE, str(error)) from None
        found = found[: count - done]
        if found.size and (found.min() < 0 or found.max() > (1 if single else 65535)):
            raise Rejected(Reason.UNDECODABLE, "a value out of range")
        values[done : done + len(found)] = found
        done += len(found)
    return values[:done]


def _piece_end(data: bytes, at: int, *, single: bool) -> int:
    """Return where a piece of text may end: not inside a number or a comment."""
    end = at + PIECE_BYTES
    if not single:
        blank = BLANK.search(data, end)
        end = blank.end() if blank else len(data)
    comment = data.rfind(b"#", at, end)
    if comment >= 0 and not LINE_END.search(data, comment, end):
        closed = LINE_END.search(data, end)
        end = closed.end() if closed else len(data)
    return end

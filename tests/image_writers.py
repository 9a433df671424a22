"""PNGs and TIFFs of every kind, written byte by byte: Pillow writes only some of them."""

import struct
import zlib
from itertools import accumulate

import numpy as np


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(values: np.ndarray, bits: int, colour: int, *extra: bytes, interlaced: bool = False) -> bytes:
    """Write values (h, w, n), or (h, w), as a PNG."""
    height, width = values.shape[:2]

    def rows(part: np.ndarray) -> bytes:
        part = part.reshape(len(part), -1)
        if bits == 16:
            lines = [row.astype(">u2").tobytes() for row in part]
        else:
            each = np.unpackbits(part.astype(np.uint8)[..., None], axis=-1)[..., 8 - bits :]
            lines = [np.packbits(row.ravel()).tobytes() for row in each]
        return b"".join(b"\0" + line for line in lines)

    adam7 = [(0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1)]
    parts = [values[y::dy, x::dx] for y, x, dy, dx in adam7] if interlaced else [values]
    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, interlaced)
    data = zlib.compress(b"".join(rows(part) for part in parts if part.size))
    middle = b"".join(extra)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + middle + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def tiff(
    values: np.ndarray, bits: int, format: int = 1, photometric: int = 1, order: str = "<", planar: int = 1,
    rows: int | None = None, tile: int | None = None, compression: int = 1, predictor: int = 1,
    extra: tuple[int, ...] = (), more: tuple[tuple[int, int, tuple[int, ...]], ...] = (), big: bool = False,
) -> bytes:  # fmt: skip
    """Write values (h, w, n), or (h, w), as a TIFF, or BigTIFF, in strips or tiles, chunky or in planes."""
    values = values.reshape(*values.shape[:2], -1)
    height, width, samples = values.shape

    def piece(part: np.ndarray) -> bytes:
        if bits < 8 or bits % 8:
            each = [np.unpackbits(row.astype(">u2").view(np.uint8)).reshape(-1, 16)[:, 16 - bits :] for row in part]
            packed = b"".join(np.packbits(row.ravel()).tobytes() for row in each)
        else:
            typed = part.astype(np.dtype(f"{order}{ {1: 'u', 2: 'i', 3: 'f', 4: 'u'}[format] }{bits // 8}"))
            if predictor == 2:
                whole = typed.view(f"{order}u{bits // 8}")
                typed = np.concatenate([whole[:, :1], np.diff(whole, axis=1)], axis=1).astype(whole.dtype)
            packed = np.ascontiguousarray(typed).tobytes()
            if predictor == 3:
                planes = np.ascontiguousarray(part.astype(f">f{bits // 8}")).view(np.uint8)
                planes = planes.reshape(len(part), -1, bits // 8).swapaxes(1, 2).reshape(len(part), -1)
                flat = planes.reshape(len(part), -1, part.shape[2])
                packed = np.concatenate([flat[:, :1], np.diff(flat, axis=1)], axis=1).tobytes()
        return zlib.compress(packed) if compression == 8 else packed

    planes = [values[..., [n]] for n in range(samples)] if planar == 2 else [values]
    pieces = []
    for plane in planes:
        if tile:
            full = np.pad(plane, ((0, -height % tile), (0, -width % tile), (0, 0)))
            for y in range(0, height, tile):
                pieces += [piece(full[y : y + tile, x : x + tile]) for x in range(0, width, tile)]
        else:
            pieces += [piece(plane[y : y + (rows or height)]) for y in range(0, height, rows or height)]
    tags = [
        (256, 4, (width,)), (257, 4, (height,)), (258, 3, (bits,) * samples), (259, 3, (compression,)),
        (262, 3, (photometric,)), (277, 3, (samples,)), (284, 3, (planar,)), (339, 3, (format,) * samples), *more,
    ]  # fmt: skip
    tags += [(317, 3, (predictor,))] * (predictor > 1) + [(338, 3, extra)] * bool(extra)
    number, inline, start = ("Q", 8, 16) if big else ("I", 4, 8)
    where = list(accumulate(map(len, pieces[:-1]), initial=start))
    sizes = tuple(map(len, pieces))
    if tile:
        tags += [(322, 4, (tile,)), (323, 4, (tile,)), (324, 4, tuple(where)), (325, 4, sizes)]
    else:
        tags += [(273, 4, tuple(where)), (278, 4, (rows or height,)), (279, 4, sizes)]
    body = b"".join(pieces)
    body += bytes(len(body) % 2)
    count = struct.pack(f"{order}{'Q' if big else 'H'}", len(tags))
    entries, tail, base = b"", b"", start + len(body) + len(count) + (4 + 2 * inline) * len(tags) + inline
    for tag, kind, given in sorted(tags):
        raw = struct.pack(f"{order}{len(given)}{ {1: 'B', 3: 'H', 4: 'I'}[kind] }", *given)
        if len(raw) > inline:
            raw, tail = struct.pack(f"{order}{number}", base + len(tail)), tail + raw + bytes(len(raw) % 2)
        entries += struct.pack(f"{order}HH{number}", tag, kind, len(given)) + raw.ljust(inline, b"\0")
    head = (b"II" if order == "<" else b"MM") + struct.pack(f"{order}H", 43 if big else 42)
    head += struct.pack(f"{order}HH", 8, 0) if big else b""
    return head + struct.pack(f"{order}{number}", start + len(body)) + body + count + entries + bytes(inline) + tail

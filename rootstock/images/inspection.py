"""What a new file has to be to be taken in: whole, an image of a sensible size, what its name says.

The same checks hold for what a model is asked about (rootstock/model/model.py). They are bounded by what a file is:
memory by a room that all threads share (rootstock/system/memory.py), time by what decoding is known to cost.
"""

import hashlib
import io
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from rootstock.images import jpeg, pixels, tiff_pieces, transfers, wholeness
from rootstock.images.deep import FULL, UINT16, Found, Range
from rootstock.images.orientation import upright
from rootstock.images.perceptual_hash import thumbnail
from rootstock.images.pixels import Opened, format_by_name
from rootstock.images.reasons import Reason, Rejected
from rootstock.system.memory import DECODING_BUDGET

__all__ = ["MAX_FILE_BYTES", "Checks", "NewImage", "Reason", "Rejected", "check", "check_header", "image_id"]

Damaged = Literal["reject", "keep"]
MAX_FILE_BYTES = 512 * 2**20  # no photograph is larger; an archive member that says so is not read
SECONDS_A_FILE = 20.0
HASH_SIDE = 64  # pixels: a JPEG is decoded for its perceptual hash at a fraction of its size that is no less
# Pixels that a scan of a JPEG goes over in a second of a core, at the least that was measured (0.3 to 1.5 billion).
SCAN_PIXELS_A_SECOND = 2 * 10**8
ENDS_EARLY = "Premature end of JPEG file"  # in libjpeg's words


@dataclass(frozen=True, slots=True)
class Checks:
    """What a new file has to satisfy, and the size it is stored at.

    `damaged` says what becomes of files whose pixels can be had though something is wrong with them, `seconds` what
    decoding one may take of a core, and `value_range` which values of a deep image are black and white.
    """

    min_side: int
    max_megapixels: float
    max_side: int | None
    accept_wrong_extension: bool
    damaged: Damaged = "reject"
    seconds: float = SECONDS_A_FILE
    value_range: Range | None = None


@dataclass(frozen=True, slots=True)
class NewImage:
    """A checked file, ready to be packed; `width` and `height` are those of the upright image.

    `thumbnail` (32, 32) uint8 is what its perceptual hash is of; hashes of many are made together. `deep` is what an
    image of more than eight bits held, where its file alone does not tell black and white; `said` what is wrong with a
    damaged one that is kept.
    """

    image_id: str
    data: bytes
    format: str
    width: int
    height: int
    thumbnail: NDArray[np.uint8]
    deep: Found | None = None
    said: str = ""


class RangeUnknown(Rejected):
    """A deep image whose file does not tell which of its values are black and white."""

    def __init__(self, found: Found) -> None:
        super().__init__(Reason.VALUE_RANGE, f"{found.kind} from {found.low:g} to {found.high:g}")
        self.found = found


def image_id(data: bytes) -> str:
    """Name an image after the bytes of its file."""
    return hashlib.sha256(data).hexdigest()


def check(data: bytes, path: str, checks: Checks, name: str | None = None) -> NewImage:
    """Decode a new file once: is it whole, of a sensible size, what its name says; how does it look.

    Args:
        data: the bytes of the file.
        path: its name, for the extension.
        checks: what to hold it to.
        name: its image id, where the caller has it.

    Raises:
        Rejected: with the reason.
    """
    name = name or image_id(data)
    found = check_header(data, path, checks)
    with DECODING_BUDGET.take(found.cost):
        try:
            if found.jpeg:
                return _jpeg(found, data, checks, name)
            said = _accepted(wholeness.check(found.format, data, checks.seconds), checks)
            return _deep(found, checks, name, said) if found.deep else _plain(found, data, checks, name, said)
        except Exception as error:  # Pillow's plug-ins raise whatever the parser met
            raise wholeness.why(error, data) from None


def check_header(data: bytes, path: str, checks: Checks) -> Opened:
    """Check a file as far as its header goes: its size, what its name says, what decoding it would cost.

    Raises:
        Rejected: with the reason.
    """
    try:
        found = pixels.opened(data, checks.seconds)
    except Rejected as rejected:
        if rejected.reason is Reason.NOT_AN_IMAGE and data and format_by_name(path):
            raise wholeness.why(OSError("no image"), data) from None
        raise
    if format_by_name(path) not in (None, found.format) and not checks.accept_wrong_extension:
        raise Rejected(Reason.WRONG_EXTENSION)
    width, height = found.size
    if width * height > checks.max_megapixels * 1e6:
        raise Rejected(Reason.TOO_LARGE)
    if min(width, height) < checks.min_side:
        raise Rejected(Reason.TOO_SMALL)
    if found.jpeg or found.format == "TIFF":
        allowed = int(checks.seconds * SCAN_PIXELS_A_SECOND / (width * height)) + 1
        if _scans(found, allowed) >= allowed:
            raise Rejected(Reason.TOO_COSTLY, f"{allowed:,} scans or more of {width} x {height} pixels")
    return found


def _scans(found: Opened, most: int) -> int:
    return jpeg.scans(found.data, found.jpeg, most) if found.jpeg else tiff_pieces.scans(found.data, most)


def _accepted(said: str, checks: Checks) -> str:
    """Pass on what is wrong with a file whose pixels can be had, if such files are kept.

    Raises:
        Rejected: damaged, and it is not.
    """
    if said and checks.damaged == "reject":
        raise Rejected(Reason.DAMAGED, said)
    return said


def _jpeg(found: Opened, data: bytes, checks: Checks, name: str) -> NewImage:
    # The hash looks at 32x32 grey pixels: a JPEG decoded at a fraction of its size shows them as well, and its
    # whole stream is still read, so that what is wrong with it is found.
    grey, said = _grey(found, data, checks)
    width, height = found.size
    if checks.max_side and max(width, height) > checks.max_side:
        return _stored(_smaller(found, checks.max_side), "JPEG", name, said=said)
    return NewImage(name, data, "JPEG", width, height, thumbnail(grey), said=said)


def _grey(found: Opened, data: bytes, checks: Checks) -> tuple[Image.Image, str]:
    """Decode a JPEG small, upright, and in grey, and say what libjpeg warned of.

    Raises:
        Rejected: it lacks its end, or is damaged, where such files are not kept.
    """
    assert found.jpeg is not None
    grey, said = None, ""
    try:
        if found.jpeg.components in (1, 3):
            grey = upright(Image.fromarray(jpeg.thumbnail(data, found.jpeg, HASH_SIDE)), found.orientation)
        else:
            jpeg.check(data)
    except ValueError as warning:
        said = str(warning)
    if said.startswith(ENDS_EARLY):
        raise Rejected(Reason.TRUNCATED, said)
    if grey is None:
        grey = found.reduced("L", HASH_SIDE)  # raises where Pillow could not give the pixels later
    if not said or jpeg.is_unknown(said):
        said = jpeg.hole(data, found.jpeg) or transfers.as_text(data, found.jpeg.scans_at)
    return grey, _accepted(said, checks)


def _plain(found: Opened, data: bytes, checks: Checks, name: str, said: str) -> NewImage:
    if checks.max_side and max(found.size) > checks.max_side:
        return _stored(_smaller(found, checks.max_side), "PNG", name, said=said)
    seen = found.rgb()
    return NewImage(name, data, found.format, *seen.size, thumbnail(seen), said=said)


def _deep(found: Opened, checks: Checks, name: str, said: str) -> NewImage:
    """Bring a deep image to eight bits: what reads it later need not know what its values meant."""
    assert found.deep is not None
    holds = None if found.deep.told else found.deep.found()
    values_of = found.deep.told or checks.value_range or (FULL if holds and holds.kind == UINT16 else None)
    if values_of is None:
        assert holds is not None
        raise RangeUnknown(holds)
    seen = found.rgb(values_of)
    if checks.max_side:
        seen.thumbnail((checks.max_side, checks.max_side), Image.Resampling.LANCZOS, reducing_gap=2.0)
    return _stored(seen, "PNG", name, holds, said)


def _smaller(found: Opened, max_side: int) -> Image.Image:
    small = found.reduced("RGB", max_side)
    small.thumbnail((max_side, max_side), Image.Resampling.LANCZOS, reducing_gap=2.0)
    return small


def _stored(seen: Image.Image, kind: str, name: str, deep: Found | None = None, said: str = "") -> NewImage:
    stored = io.BytesIO()
    if kind == "JPEG":
        seen.save(stored, "JPEG", quality=95)
    else:
        seen.save(stored, "PNG", compress_level=6 if deep is None else 1)
    # The name stays that of the file that came in: it is how the file is known again, here and in another clone.
    return NewImage(name, stored.getvalue(), kind, *seen.size, thumbnail(seen), deep, said)

"""Checks a new file before it is ingested: complete, decodable, of an accepted size and the format its name says.

The same checks apply to the inputs of a model (rootstock/model/model.py). Memory is bounded by a budget shared by all
threads (rootstock/system/memory.py), time by an estimate of the decoding cost.
"""

import hashlib
import io
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from rootstock.images import integrity, jpeg, pixels, tiff_pieces, transfer_damage
from rootstock.images.deep import FULL, UINT16, ObservedRange, Range
from rootstock.images.orientation import upright
from rootstock.images.perceptual_hash import thumbnail
from rootstock.images.pixels import OpenedFile, format_by_name
from rootstock.images.reasons import Reason, Rejected
from rootstock.system.memory import DECODING_BUDGET

__all__ = ["MAX_FILE_BYTES", "Checks", "NewImage", "Reason", "Rejected", "check", "check_header", "image_id"]

Damaged = Literal["reject", "keep"]
MAX_FILE_BYTES = 512 * 2**20  # no photograph is larger; larger archive members are not read
SECONDS_A_FILE = 20.0
MOST_DECODED_BYTES = 2**26  # of a model's input, held from its check on until it is resized: outside of the budget
HASH_SIDE = 64  # pixels: minimum side at which a JPEG is decoded for its perceptual hash
# Pixels per scan of a JPEG and CPU second: below the slowest measured (0.3 to 1.5 billion).
SCAN_PIXELS_A_SECOND = 2 * 10**8
ENDS_EARLY = "Premature end of JPEG file"  # libjpeg's message


@dataclass(frozen=True, slots=True)
class Checks:
    """The settings of the checks, and the maximum size of stored images.

    `damaged` is what to do with damaged files that can be decoded, `seconds` the CPU time that decoding may take, and
    `value_range` the black and white levels of deep images.
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

    `thumbnail` (32, 32) uint8 is the input of its perceptual hash; hashes are computed in batches. `deep` is the
    observed range of a deep image whose file does not define its black and white levels, `damage` the defect of a
    damaged file that is kept.
    """

    image_id: str
    data: bytes
    format: str
    width: int
    height: int
    thumbnail: NDArray[np.uint8]
    deep: ObservedRange | None = None
    damage: str = ""


class RangeUnknown(Rejected):
    """A deep image whose file does not define its black and white levels."""

    def __init__(self, found: ObservedRange) -> None:
        super().__init__(Reason.VALUE_RANGE, f"{found.kind} from {found.low:g} to {found.high:g}")
        self.found = found

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle it for another process."""
        return type(self), (self.found,)


def image_id(data: bytes) -> str:
    """Return the image id: the SHA-256 of the file's bytes."""
    return hashlib.sha256(data).hexdigest()


def check(data: bytes, path: str, checks: Checks, name: str | None = None) -> NewImage:
    """Decode a new file once, check it, and return the image to pack.

    Args:
        data: the bytes of the file.
        path: its name, for the extension.
        checks: to apply.
        name: its image id, if already computed.

    Raises:
        Rejected: it fails a check.
    """
    name = name or image_id(data)
    found = check_header(data, path, checks)
    with DECODING_BUDGET.take(found.cost):
        try:
            if found.jpeg:
                return _jpeg(found, data, checks, name)
            damage = _accepted(integrity.check(found.format, data, checks.seconds), checks)
            return _deep(found, checks, name, damage) if found.deep else _plain(found, data, checks, name, damage)
        except Exception as error:  # Pillow's plug-ins raise whatever the parser met
            raise integrity.rejection(error, data) from None


def check_input(data: bytes, path: str, checks: Checks, *, in_full: bool) -> OpenedFile:
    """Check a file that a model is about to see, as `check` does; return it as ingest would pack it.

    Args:
        data: the bytes of the file.
        path: its name, for the extension.
        checks: to apply.
        in_full: whether the model decodes images in full: then an intact JPEG has been decoded already.

    Raises:
        Rejected: it fails a check.
    """
    if in_full and pixels.format_of(data) == "JPEG":
        found = check_header(data, path, checks)
        if _decode_intact(found, checks):
            return found
    new = check(data, path, checks)
    if new.deep and new.deep.unclear and not checks.value_range:
        raise RangeUnknown(new.deep)
    return pixels.open_file(new.data)


def _decode_intact(found: OpenedFile, checks: Checks) -> bool:
    """Decode a JPEG that is stored as it is; return False if it is none, large, or damaged in any way."""
    assert found.jpeg is not None
    width, height = found.size
    if found.jpeg.components not in (1, 3) or (checks.max_side and max(width, height) > checks.max_side):
        return False
    if 3 * width * height > MOST_DECODED_BYTES:
        return False
    with DECODING_BUDGET.take(found.cost), suppress(Exception):  # `check` says what is wrong
        decoded = jpeg.decode(found.data)
        if not _unreported_damage(found.data, found.jpeg):
            found.decoded = decoded
            return True
    return False


def check_header(data: bytes, path: str, checks: Checks) -> OpenedFile:
    """Check a file by its header: image size, extension and decoding cost.

    Raises:
        Rejected: it fails a check.
    """
    try:
        found = pixels.open_file(data, checks.seconds)
    except Rejected as rejected:
        if rejected.reason is Reason.NOT_AN_IMAGE and data and format_by_name(path):
            raise integrity.rejection(OSError("no image"), data) from None
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
            raise Rejected(Reason.TOO_COSTLY, f"at least {allowed:,} scans of {width} x {height} pixels")
    return found


def _scans(found: OpenedFile, most: int) -> int:
    return jpeg.count_scans(found.data, found.jpeg, most) if found.jpeg else tiff_pieces.count_scans(found.data, most)


def _accepted(damage: str, checks: Checks) -> str:
    """Return the defect of a file that can be decoded, if damaged files are kept.

    Raises:
        Rejected: it has a defect, and damaged files are rejected.
    """
    if damage and checks.damaged == "reject":
        raise Rejected(Reason.DAMAGED, damage)
    return damage


def _jpeg(found: OpenedFile, data: bytes, checks: Checks, name: str) -> NewImage:
    # The hash needs 32x32 grey pixels, so the JPEG is decoded at a fraction of its size; the whole stream is still
    # read, so damage is found.
    grey, damage = _grey(found, data, checks)
    width, height = found.size
    if checks.max_side and max(width, height) > checks.max_side:
        return _stored(_smaller(found, checks.max_side), "JPEG", name, damage=damage)
    return NewImage(name, data, "JPEG", width, height, thumbnail(grey), damage=damage)


def _grey(found: OpenedFile, data: bytes, checks: Checks) -> tuple[Image.Image, str]:
    """Decode a JPEG at reduced size to upright grey; also return libjpeg's warning.

    Raises:
        Rejected: it is truncated, or damaged while damaged files are rejected.
    """
    assert found.jpeg is not None
    grey, damage = None, ""
    try:
        if found.jpeg.components in (1, 3):
            grey = upright(Image.fromarray(jpeg.thumbnail(data, found.jpeg, HASH_SIDE)), found.orientation)
        else:
            jpeg.check_cmyk(data)
    except ValueError as warning:
        damage = str(warning)
    if damage.startswith(ENDS_EARLY):
        raise Rejected(Reason.TRUNCATED, damage)
    if grey is None:
        grey = found.reduced("L", HASH_SIDE)  # raises if Pillow cannot decode it
    if not damage or jpeg.is_unsupported(damage):
        damage = _unreported_damage(data, found.jpeg)
    return grey, _accepted(damage, checks)


def _unreported_damage(data: bytes, header: jpeg.Header) -> str:
    """Describe damage that libjpeg decodes without a warning; "" if there is none."""
    return (
        jpeg.find_hole(data, header)
        or jpeg.find_missing_scans(data, header)
        or transfer_damage.find_text_transfer(data, header.scans_at)
    )


def _plain(found: OpenedFile, data: bytes, checks: Checks, name: str, damage: str) -> NewImage:
    if checks.max_side and max(found.size) > checks.max_side:
        return _stored(_smaller(found, checks.max_side), "PNG", name, damage=damage)
    seen = found.rgb()
    return NewImage(name, data, found.format, *seen.size, thumbnail(seen), damage=damage)


def _deep(found: OpenedFile, checks: Checks, name: str, damage: str) -> NewImage:
    """Convert a deep image to eight bits, so that later readers need no value range."""
    assert found.deep is not None
    holds = None if found.deep.known_range else found.deep.observed_range()
    value_range = found.deep.known_range or checks.value_range or (FULL if holds and holds.kind == UINT16 else None)
    if value_range is None:
        assert holds is not None
        raise RangeUnknown(holds)
    seen = found.rgb(value_range)
    if checks.max_side:
        seen.thumbnail((checks.max_side, checks.max_side), Image.Resampling.LANCZOS, reducing_gap=2.0)
    return _stored(seen, "PNG", name, holds, damage)


def _smaller(found: OpenedFile, max_side: int) -> Image.Image:
    small = found.reduced("RGB", max_side)
    small.thumbnail((max_side, max_side), Image.Resampling.LANCZOS, reducing_gap=2.0)
    return small


def _stored(seen: Image.Image, kind: str, name: str, deep: ObservedRange | None = None, damage: str = "") -> NewImage:
    stored = io.BytesIO()
    if kind == "JPEG":
        seen.save(stored, "JPEG", quality=95)
    else:
        seen.save(stored, "PNG", compress_level=6 if deep is None else 1)
    # Keeps the image id of the original file, by which it is recognised later, here and in other clones.
    return NewImage(name, stored.getvalue(), kind, *seen.size, thumbnail(seen), deep, damage)

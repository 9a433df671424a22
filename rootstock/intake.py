"""What a new file has to be to be taken in: whole, an image of a sensible size, what its name says."""

import hashlib
import io
from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from rootstock.duplicates import thumbnail
from rootstock.images import EXTENSIONS, format_by_name, to_rgb

ORIENTATION = 0x0112  # EXIF and TIFF
TIFF_PIECES = ((273, 279), (324, 325))  # tags of offsets and sizes: of strips, of tiles
MAX_FILE_BYTES = 512 * 2**20  # no photograph is larger; an archive member that says so is not read


class Reason(StrEnum):
    """Why a file is not in the manifest: the closed list of rejected.parquet."""

    UNDECODABLE = "undecodable"
    TRUNCATED = "truncated"
    TOO_LARGE = "too_large"
    TOO_SMALL = "too_small"
    NOT_AN_IMAGE = "not_an_image"
    WRONG_EXTENSION = "wrong_extension"
    UNREADABLE = "unreadable"
    UNSAFE_PATH = "unsafe_path"
    NO_LABEL = "no_label"
    CONFLICTING_LABEL = "conflicting_label"
    DUPLICATE = "duplicate"
    STRADDLES_SPLITS = "straddles_splits"


class Rejected(Exception):  # noqa: N818 - it is a verdict on a file, not a fault of the program
    """A file that is not taken in, and why."""

    def __init__(self, reason: Reason) -> None:
        super().__init__(reason.value)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Checks:
    """What a new file has to satisfy, and the size it is stored at."""

    min_side: int
    max_megapixels: float
    max_side: int | None
    accept_wrong_extension: bool


@dataclass(frozen=True, slots=True)
class NewImage:
    """A checked file, ready to be packed; `width` and `height` are those of the upright image.

    `thumbnail` (32, 32) uint8 is what its perceptual hash is of; hashes of many are made together.
    """

    image_id: str
    data: bytes
    format: str
    width: int
    height: int
    thumbnail: NDArray[np.uint8]


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
    with _opened(data, path) as image:
        kind = _check_header(image, path, checks)
        try:
            if not checks.max_side or max(image.size) <= checks.max_side:
                return _as_it_is(image, data, kind, name)
            return _scaled_down(image, kind, name, checks.max_side)
        except Exception as error:  # Pillow's plug-ins raise whatever the parser met
            raise Rejected(_why(error, data)) from None


def check_header(data: bytes, path: str, checks: Checks) -> None:
    """Check a file whose bytes are known already: its size, and what its name says.

    Raises:
        Rejected: with the reason.
    """
    with _opened(data, path) as image:
        _check_header(image, path, checks)


def _opened(data: bytes, path: str) -> Image.Image:
    """Read the header of a file; no pixel is decoded."""
    try:
        return Image.open(io.BytesIO(data), formats=list(EXTENSIONS))
    except UnidentifiedImageError as error:
        if data and format_by_name(path):
            raise Rejected(_why(error, data)) from None
        raise Rejected(Reason.NOT_AN_IMAGE) from None
    except Exception as error:
        raise Rejected(_why(error, data)) from None


def _check_header(image: Image.Image, path: str, checks: Checks) -> str:
    """Hold the header to the checks; returns the name of the format."""
    kind = "JPEG" if image.format == "MPO" else str(image.format)
    if format_by_name(path) not in (None, kind) and not checks.accept_wrong_extension:
        raise Rejected(Reason.WRONG_EXTENSION)
    if image.width * image.height > checks.max_megapixels * 1e6:
        raise Rejected(Reason.TOO_LARGE)
    if min(image.size) < checks.min_side:
        raise Rejected(Reason.TOO_SMALL)
    return kind


def _as_it_is(image: Image.Image, data: bytes, kind: str, name: str) -> NewImage:
    # The hash looks at 32x32 grey pixels: a JPEG decoded at a fraction of its size shows them as well, and its
    # whole stream is still read, so that a truncated one is found.
    width, height = image.size
    lies = kind == "JPEG" and image.getexif().get(ORIENTATION, 1) in (5, 6, 7, 8)
    image.draft("L", (64, 64))
    seen = to_rgb(image)
    if kind != "JPEG":
        width, height = seen.size
    elif lies:
        width, height = height, width
    return NewImage(name, data, kind, width, height, thumbnail(seen))


def _scaled_down(image: Image.Image, kind: str, name: str, max_side: int) -> NewImage:
    image.draft("RGB", (max_side, max_side))
    small = to_rgb(image)
    small.thumbnail((max_side, max_side), Image.Resampling.LANCZOS, reducing_gap=2.0)
    stored = io.BytesIO()
    if kind == "JPEG":
        small.save(stored, "JPEG", quality=95)
    else:
        kind = "PNG"
        small.save(stored, "PNG")
    # The name stays that of the file that came in: it is how the file is known again, here and in another clone.
    return NewImage(name, stored.getvalue(), kind, *small.size, thumbnail(small))


def _why(error: Exception, data: bytes) -> Reason:
    """Tell a file that lacks its end from one that is wrong in itself, by what Pillow says or by the format's marks."""
    said = str(error).lower()
    cut = (
        "truncated",
        "eof",
        "unexpected end",
        "not processed",
        "broken png",
        "unrecognized data stream",
        "not enough",
    )
    if isinstance(error, EOFError) or any(word in said for word in cut) or _lacks_its_end(data):
        return Reason.TRUNCATED
    return Reason.UNDECODABLE


def _lacks_its_end(data: bytes) -> bool:
    match data[:4]:
        case b"\x89PNG":
            return b"IEND" not in data[-16:]
        case b"GIF8":
            return not data.endswith(b";")
        case b"RIFF":  # WebP: the size of the rest follows
            return len(data) < 8 + int.from_bytes(data[4:8], "little")
        case b"II*\0" | b"MM\0*":  # TIFF
            return _tiff_lacks_its_end(data)
    return False


def _tiff_lacks_its_end(data: bytes) -> bool:
    """Whether a TIFF's directory, or a strip or tile that it lists, lies behind the end of the file."""
    try:
        with Image.open(io.BytesIO(data), formats=["TIFF"]) as image:
            tags = image.getexif()
    except Exception:
        order: Literal["little", "big"] = "little" if data[:2] == b"II" else "big"
        return int.from_bytes(data[4:8], order) + 2 > len(data)
    pieces = [(tags.get(offsets, ()), tags.get(sizes, ())) for offsets, sizes in TIFF_PIECES]
    return any(np.any(np.add(offsets, sizes) > len(data)) for offsets, sizes in pieces)

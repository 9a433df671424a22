"""What a model is given: paths, bytes of files, arrays or PIL images, one or many; all become the bytes of a file."""

import io
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np
import PIL.Image
from numpy.typing import NDArray
from PIL import ImageOps

from rootstock.images import inspection
from rootstock.images.reasons import Reason, Rejected
from rootstock.system import files

Content = bytes | bytearray | memoryview
Array = NDArray[Any]
Image = str | os.PathLike[str] | Content | Array | PIL.Image.Image
ONE = (str, os.PathLike, Content, PIL.Image.Image)
PNG_MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")  # TIFF has the others
SIDES = 2  # dimensions of an image, without that of its channels
CHANNELS = (1, 3, 4)


def named(images: Image | Iterable[Image]) -> Iterator[tuple[str, Image]]:
    """Yield each image with its name: its path, or its position among all.

    An array of four dimensions is many images.

    Raises:
        TypeError: one is no image.
    """
    is_one = isinstance(images, ONE) or (isinstance(images, np.ndarray) and images.ndim <= SIDES + 1)
    many = cast(Iterable[Image], [images] if is_one else images)
    for number, image in enumerate(many):
        yield _name(image, number), image


def _name(image: Image, number: int) -> str:
    if isinstance(image, (str, os.PathLike)):
        return os.fspath(image)
    if isinstance(image, np.ndarray):
        _check(image, number)
    elif not isinstance(image, (Content, PIL.Image.Image)):
        raise TypeError(
            f"image {number} is of type {type(image).__name__}; expected a path, the bytes of a file, an array or a "
            "PIL image"
        )
    return f"image {number}"


def _check(image: Array, number: int) -> None:
    channels = image.shape[SIDES:]
    is_colour = image.dtype == np.uint8 and image.ndim == SIDES + 1 and channels[0] in CHANNELS
    is_grey = image.dtype in (np.bool_, np.uint8, np.uint16, np.float32) and (image.ndim == SIDES or channels == (1,))
    if not (is_colour or is_grey):
        raise TypeError(
            f"image {number} is an array of shape {image.shape} and dtype {image.dtype}; expected uint8 of shape "
            "(height, width, 3), or 4 with alpha, or (height, width) in bool, uint8, uint16 or float32"
        )


def content(image: Image) -> bytes:
    """Return the bytes of an image's file; arrays and PIL images are written without loss.

    Raises:
        Rejected: it cannot be read, or is too large.
    """
    if isinstance(image, Content):
        data = bytes(image)
    elif isinstance(image, (str, os.PathLike)):
        data = _read(image)
    else:
        data = _encoded(image)
    if len(data) > inspection.MAX_FILE_BYTES:
        raise Rejected(Reason.TOO_LARGE)
    return data


def _read(path: str | os.PathLike[str]) -> bytes:
    try:
        return files.read(Path(path), inspection.MAX_FILE_BYTES)
    except OSError as error:
        raise Rejected(Reason.UNREADABLE, error.strerror or str(error)) from None
    except ValueError as error:  # not a valid file name
        raise Rejected(Reason.UNREADABLE, str(error)) from None


def _encoded(image: Array | PIL.Image.Image) -> bytes:
    """Write an image as a PNG or TIFF without compression, upright.

    Raises:
        Rejected: it has no pixels, or Pillow, which decodes an opened file only now, cannot.
    """
    if isinstance(image, np.ndarray):
        if not image.size:
            raise Rejected(Reason.TOO_SMALL)
        image = PIL.Image.fromarray(image.squeeze(SIDES) if image.shape[SIDES:] == (1,) else image)
    written = io.BytesIO()
    try:
        upright = ImageOps.exif_transpose(image)
        if upright.mode in PNG_MODES:
            upright.save(written, "PNG", compress_level=0)
        else:
            upright.save(written, "TIFF")
    except Exception as error:  # Pillow's plug-ins raise whatever the parser met
        raise Rejected(Reason.UNDECODABLE, str(error)) from None
    return written.getvalue()

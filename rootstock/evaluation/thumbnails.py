"""Small pictures for the report, as WebP: a page with hundreds of them stays under five megabytes."""

import io
import math
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import pandas as pd
from PIL import Image

from rootstock.dataset.shards import Reader
from rootstock.images import pixels

SIDE = 160  # pixels, of the longer side
QUALITY = 75
SPRITE_BYTES, LOWER = 400_000, (60, 40, 20)  # a larger sprite is encoded at lower quality


def of_images(images_dir: Path, rows: pd.DataFrame, side: int = SIDE) -> Iterator[bytes]:
    """Yield a thumbnail of each image of a dataset.

    Args:
        images_dir: the shards.
        rows: of the manifest.
        side: pixels of the longer side.

    Raises:
        DamagedError: the bytes of an image are not those that were packed.
    """
    with Reader(images_dir) as reader:
        for place in zip(*(rows[name] for name in ("shard", "offset", "size", "image_id")), strict=True):
            yield encoded(contained(_decoded(reader, *place), side))


def sprite(images_dir: Path, rows: pd.DataFrame, side: int) -> tuple[bytes, int]:
    """Draw the images of a dataset as one picture, row by row.

    Args:
        images_dir: the shards.
        rows: of the manifest, at least one.
        side: of the square that each is fitted into, in pixels.

    Returns:
        The picture, and how many images a row of it has.
    """
    columns = math.ceil(math.sqrt(len(rows)))
    with Reader(images_dir) as reader:
        places = zip(*(rows[name] for name in ("shard", "offset", "size", "image_id")), strict=True)
        sheet = tiled([contained(_decoded(reader, *place), side) for place in places], side, columns)
    drawn = encoded(sheet)
    for quality in LOWER:
        if len(drawn) > SPRITE_BYTES:
            drawn = encoded(sheet, quality)
    return drawn, columns


def tiled(pictures: Sequence[Image.Image], side: int, columns: int, gap: int = 0) -> Image.Image:
    """Arrange pictures in squares, row by row, on a transparent ground."""
    step = side + gap
    sheet = Image.new("RGBA", (min(columns, len(pictures)) * step - gap, -(-len(pictures) // columns) * step - gap))
    for place, picture in enumerate(pictures):
        left, top = place % columns * step, place // columns * step
        sheet.paste(picture, (left + (side - picture.width) // 2, top + (side - picture.height) // 2))
    return sheet


def _decoded(reader: Reader, shard: str, offset: int, size: int, image_id: str) -> Image.Image:
    return pixels.decode(reader.image(shard, int(offset), int(size), image_id))


def contained(image: Image.Image, side: int) -> Image.Image:
    """Fit an image into a square; tiny ones are enlarged by a whole number."""
    times = side // max(image.size)
    if times > 1:
        image = image.resize((image.width * times, image.height * times), Image.Resampling.NEAREST)
    image.thumbnail((side, side), Image.Resampling.LANCZOS)
    return image


def encoded(image: Image.Image, quality: int = QUALITY) -> bytes:
    """Encode a picture as WebP."""
    drawn = io.BytesIO()
    image.save(drawn, "WEBP", quality=quality)
    return drawn.getvalue()


def within(pictures: Iterable[bytes], budget: int) -> Iterator[bytes]:
    """Yield pictures while together they have at most `budget` bytes."""
    used = 0
    for picture in pictures:
        used += len(picture)
        if used > budget:
            return
        yield picture

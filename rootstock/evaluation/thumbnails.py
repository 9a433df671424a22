"""Small pictures for the report, as WebP: a page with hundreds of them stays under five megabytes."""

import io
import math
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import pandas as pd
from PIL import Image

from rootstock.dataset.shards import Reader
from rootstock.images import decoding
from rootstock.system.parallel import limit_to_one_core, ordered_map

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
    yield from map(encoded, _small(images_dir, rows, side))


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
    sheet = tiled(list(_small(images_dir, rows, side)), side, columns)
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


def _small(images_dir: Path, rows: pd.DataFrame, side: int) -> Iterator[Image.Image]:
    """Yield each image fitted into a square, decoded on all cores, large JPEGs at a fraction of their size."""
    with Reader(images_dir) as reader:

        def small(place: tuple[str, int, int, str]) -> Image.Image:
            shard, offset, size, image_id = place
            decoded = decoding.decode(reader.image(shard, int(offset), int(size), image_id), side)
            return contained(Image.fromarray(decoded.permute(1, 2, 0).numpy()), side)

        places = zip(*(rows[name] for name in ("shard", "offset", "size", "image_id")), strict=True)
        yield from ordered_map(small, places, first=limit_to_one_core)


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

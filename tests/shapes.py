"""Pictures of several shapes at once, each of which is a class, and tables that list them."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image, ImageDraw

SHAPES = ("cross", "disc", "square")
COLOURS = {"cross": (220, 40, 30), "disc": (30, 200, 40), "square": (30, 60, 220)}
SIDE = 48


def picture(labels: list[str], seed: int) -> Image.Image:
    """Draw shapes at random places, sizes and shades, on patches and noise: no two look alike to a perceptual hash."""
    rng = np.random.default_rng([seed, *(SHAPES.index(label) for label in labels)])
    grey = Image.fromarray(rng.integers(70, 190, (6, 6), np.uint8)).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
    patches = grey.convert("RGB")
    draw = ImageDraw.Draw(patches)
    for label in labels:
        half = int(rng.integers(8, 12))
        x, y = (int(at) for at in rng.integers(half, SIDE - half, 2))
        colour = tuple(int(value) for value in np.clip(np.array(COLOURS[label]) + rng.integers(-30, 30, 3), 0, 255))
        box = (x - half, y - half, x + half, y + half)
        if label == "disc":
            draw.ellipse(box, fill=colour)
        elif label == "square":
            draw.rectangle(box, fill=colour)
        else:
            draw.line((x - half, y - half, x + half, y + half), fill=colour, width=5)
            draw.line((x - half, y + half, x + half, y - half), fill=colour, width=5)
    pixels = np.asarray(patches, float) + rng.normal(0, 6, (SIDE, SIDE, 3))
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def drawn_labels(count: int, seed: int = 0) -> list[list[str]]:
    """Draw the labels of some images: each shape is in four of ten, independently of the others."""
    rng = np.random.default_rng(seed)
    return [[shape for shape in SHAPES if rng.random() < 0.4] for _ in range(count)]


def put_shapes(folder: Path, count: int, seed: int = 0) -> Path:
    """Write some pictures and a Parquet table of them, with the columns path and labels; return the table."""
    folder.mkdir(parents=True, exist_ok=True)
    labels = drawn_labels(count, seed)
    for number, own in enumerate(labels):
        picture(own, 1000 * seed + number).save(folder / f"{number:04d}.png")
    table = pa.table({"path": [f"{number:04d}.png" for number in range(count)], "labels": labels})
    pq.write_table(table, folder / f"{folder.name}.parquet")
    return folder / f"{folder.name}.parquet"

"""A contact sheet: some images of every class and domain, each with its label."""

import io
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from matplotlib.font_manager import findfont
from PIL import Image, ImageDraw, ImageFont, ImageOps

from rootstock.dataset.shards import Reader
from rootstock.images.pixels import decode
from rootstock.system import escape

SIDE, CAPTION, GAP = 96, 18, 8  # pixels
LABEL_LENGTH = 14  # characters that fit below an image
COLUMNS, MAX_IMAGES = 8, 32
PAPER, INK = "#ffffff", "#25302c"


def choose(manifest: pd.DataFrame, count: int = MAX_IMAGES) -> pd.DataFrame:
    """Select rows deterministically: the first of every class and domain, then the second of each, and so on."""
    rank = manifest.groupby(["domain", "label"], sort=False).cumcount()
    chosen = manifest.assign(rank=rank).nsmallest(count, "rank", keep="first")
    return chosen.sort_values(["domain", "class_index", "rank"], kind="stable")


def draw(manifest: pd.DataFrame, images_dir: Path) -> bytes:
    """Draw a contact sheet of some images of a manifest, as a PNG."""
    rows = choose(manifest)
    with Reader(images_dir) as reader:
        places = zip(*(rows[name] for name in ("shard", "offset", "size", "image_id", "label")), strict=True)
        pictures = [(decode(reader.image(*place)), str(label)) for *place, label in places]
    return sheet(pictures)


def sheet(pictures: Sequence[tuple[Image.Image, str]]) -> bytes:
    """Arrange labelled images in a grid, as a PNG."""
    columns = min(COLUMNS, len(pictures))
    width, height = SIDE + GAP, SIDE + CAPTION + GAP
    canvas = Image.new("RGB", (columns * width + GAP, -(-len(pictures) // columns) * height + GAP), PAPER)
    draw_on, font = ImageDraw.Draw(canvas), ImageFont.truetype(findfont("DejaVu Sans"), 12)
    for place, (picture, label) in enumerate(pictures):
        left, top = GAP + place % columns * width, GAP + place // columns * height
        small = ImageOps.contain(picture.convert("RGB"), (SIDE, SIDE))
        canvas.paste(small, (left + (SIDE - small.width) // 2, top + (SIDE - small.height) // 2))
        caption = label if len(label) <= LABEL_LENGTH else f"{label[: LABEL_LENGTH - 1]}…"
        draw_on.text((left + SIDE / 2, top + SIDE), escape.printable(caption), INK, font, anchor="ma")
    file = io.BytesIO()
    canvas.save(file, "PNG")
    return file.getvalue()

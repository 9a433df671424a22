"""A picture of a data set: some images of each class, side by side, each with its label below it."""

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
LETTERS = 14  # of a label that fit below an image
COLUMNS, MOST = 8, 32
PAPER, INK = "#ffffff", "#25302c"


def choose(manifest: pd.DataFrame, most: int = MOST) -> pd.DataFrame:
    """Choose rows: the first of every class and domain, then the second of each, and so on; the same every time."""
    turn = manifest.groupby(["domain", "label"], sort=False).cumcount()
    chosen = manifest.assign(turn=turn).nsmallest(most, "turn", keep="first")
    return chosen.sort_values(["domain", "class_index", "turn"], kind="stable")


def draw(manifest: pd.DataFrame, images_dir: Path) -> bytes:
    """Draw a contact sheet of some images of a manifest, as a PNG."""
    rows = choose(manifest)
    with Reader(images_dir) as reader:
        places = zip(*(rows[name] for name in ("shard", "offset", "size", "image_id", "label")), strict=True)
        pictures = [(decode(reader.image(*place)), str(label)) for *place, label in places]
    return sheet(pictures)


def sheet(pictures: Sequence[tuple[Image.Image, str]]) -> bytes:
    """Lay labelled images out in rows, as a PNG."""
    columns = min(COLUMNS, len(pictures))
    width, height = SIDE + GAP, SIDE + CAPTION + GAP
    paper = Image.new("RGB", (columns * width + GAP, -(-len(pictures) // columns) * height + GAP), PAPER)
    draw_on, font = ImageDraw.Draw(paper), ImageFont.truetype(findfont("DejaVu Sans"), 12)
    for place, (picture, label) in enumerate(pictures):
        left, top = GAP + place % columns * width, GAP + place // columns * height
        small = ImageOps.contain(picture.convert("RGB"), (SIDE, SIDE))
        paper.paste(small, (left + (SIDE - small.width) // 2, top + (SIDE - small.height) // 2))
        caption = label if len(label) <= LETTERS else f"{label[: LETTERS - 1]}…"
        draw_on.text((left + SIDE / 2, top + SIDE), escape.printable(caption), INK, font, anchor="ma")
    file = io.BytesIO()
    paper.save(file, "PNG")
    return file.getvalue()

"""Write the embedded samples: two small datasets of digits that need no download.

`digits` is handwriting, light ink on black; `printed` is the domain that arrives later, dark ink on light
paper in the fonts that matplotlib ships. Both are greyscale PNG files of one size, in ten classes.
"""

from collections.abc import Iterator
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING

from rootstock.system import files
from rootstock.system.errors import SourceError

# sklearn takes a second to import, matplotlib a third of one: only imported to write a sample.
if TYPE_CHECKING:
    from PIL.Image import Image
    from PIL.ImageFont import FreeTypeFont

SAMPLES = ("digits", "printed")
SIDE = 96  # pixels; the input size of the network, so that nothing is resized again

COPIES = 4  # of each digit in each font, each with its own jitter: 880 images in 22 fonts
SEED = 1797  # of the jitter, which is part of the sample; no parameter changes it
# TeX's symbol fonts have brackets and operators where other fonts have digits.
SYMBOL_FONTS = ("cmex10", "cmsy10")


def check_name(name: str) -> None:
    """Check that a sample exists.

    Raises:
        SourceError: it does not; the message suggests the nearest name.
    """
    if name not in SAMPLES:
        nearest = get_close_matches(name, SAMPLES, n=1, cutoff=0)[0]
        raise SourceError(
            f"sample:{name} is not an embedded sample; expected sample:{' or sample:'.join(SAMPLES)}. "
            f"Did you mean sample:{nearest}?"
        )


def write_sample(name: str, folder: Path) -> None:
    """Write an embedded sample as `folder`/<class>/<nnnn>.png, atomically.

    Args:
        name: one of `SAMPLES`.
        folder: replaced if it exists. The bytes are reproducible on one machine; `nnnn` counts the images of the
            whole sample.

    Raises:
        SourceError: there is no such sample.

    """
    check_name(name)
    images = _handwritten() if name == "digits" else _printed()
    with files.replacing_folder(folder) as temporary:
        for number, (digit, image) in enumerate(images):
            path = temporary / str(digit) / f"{number:04d}.png"
            path.parent.mkdir(exist_ok=True)
            image.save(path, compress_level=1)  # a third faster than the default, and 8 % larger


def _handwritten() -> Iterator[tuple[int, "Image"]]:
    """Yield scikit-learn's 1,797 digits (8 x 8 pixels, values 0 to 16), enlarged."""
    from PIL import Image
    from sklearn.datasets import load_digits

    digits = load_digits()
    # 16 becomes 254. At this scale and size 75 pairs are within 4 bits of pHash, in groups of 7 at most.
    for pixels, digit in zip((digits.images * 15.9).astype("uint8"), digits.target, strict=True):
        yield int(digit), Image.fromarray(pixels).resize((SIDE, SIDE), Image.Resampling.BICUBIC)


def _printed() -> Iterator[tuple[int, "Image"]]:
    """Yield every digit in every font that has digits, `COPIES` times, all different."""
    import numpy as np
    from PIL import Image, ImageDraw, ImageFilter

    random = np.random.default_rng(SEED)
    for font in _fonts_with_digits():
        for digit in range(10):
            for _ in range(COPIES):
                ink = Image.new("L", (SIDE, SIDE))
                x, y = SIDE / 2 + random.uniform(-0.08, 0.08, 2) * SIDE
                ImageDraw.Draw(ink).text(
                    (x, y),
                    str(digit),
                    fill=255,
                    font=font.font_variant(size=random.uniform(0.55, 0.95) * SIDE),
                    anchor="mm",
                    stroke_width=int(random.integers(0, 2)),  # heavier ink
                )
                ink = ink.rotate(random.uniform(-12, 12), Image.Resampling.BICUBIC)
                ink = ink.filter(ImageFilter.GaussianBlur(random.uniform(0, 0.012) * SIDE))
                dark, light = random.uniform(0, 90), random.uniform(165, 255)
                grain = random.normal(0, random.uniform(0, 6), (SIDE, SIDE))
                grey = light + (dark - light) * np.asarray(ink) / 255 + grain
                yield digit, Image.fromarray(grey.clip(0, 255).round().astype(np.uint8))


def _fonts_with_digits() -> "list[FreeTypeFont]":
    """List matplotlib's fonts that draw ten different digits, sorted by file name."""
    import matplotlib
    from PIL import ImageFont

    fonts = []
    for path in sorted((Path(matplotlib.get_data_path()) / "fonts" / "ttf").glob("*.ttf")):
        font = ImageFont.truetype(path, SIDE)
        # A font without digits draws the same box, or nothing, for each.
        glyphs = {bytes(font.getmask(str(digit))) for digit in range(10)}
        if len(glyphs) == 10 and path.stem not in SYMBOL_FONTS:
            fonts.append(font)
    return fonts

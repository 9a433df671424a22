"""Photos of several things at once, of which any number may be there: mosaics of a folder of classes, with a table.

    python -m benchmarks.mosaics /photos/signs --out /tmp/mosaics
    # then ingest.sources: [{path: /tmp/mosaics/mosaics.parquet, domain: mosaics}], and python -m flows.pipeline

A mosaic has a grid of photos of some classes; the others of its tiles are grey. Its labels are the classes in it.
"""

import argparse
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image, ImageOps

GREY = (128, 128, 128)
EXTENSIONS = {".jpg", ".jpeg", ".png", ".ppm", ".webp"}


def draw(photos: dict[str, list[Path]], images: int, grid: int, side: int, out: Path, seed: int = 0) -> Path:
    """Write mosaics and their table; return the table.

    Args:
        photos: of each class.
        images: how many mosaics.
        grid: tiles along a side.
        side: of a mosaic, in pixels.
        out: folder for them.
        seed: of what is drawn.
    """
    rng, names, tile = np.random.default_rng(seed), sorted(photos), side // grid
    out.mkdir(parents=True, exist_ok=True)
    rows: list[tuple[str, list[str]]] = []
    for number in range(images):
        canvas = Image.new("RGB", (side, side), GREY)
        count = int(rng.integers(0, grid * grid + 1))
        chosen = rng.choice(len(names), count, replace=False) if count <= len(names) else np.arange(len(names))
        for place, index in zip(rng.permutation(grid * grid), chosen, strict=False):
            photo = photos[names[index]][int(rng.integers(len(photos[names[index]])))]
            with Image.open(photo) as opened:
                fitted = ImageOps.fit(opened.convert("RGB"), (tile, tile))
            canvas.paste(fitted, (place % grid * tile, place // grid * tile))
        canvas.save(out / f"{number:05d}.jpg", quality=92)
        rows.append((f"{number:05d}.jpg", [names[index] for index in chosen]))
    paths, labels = zip(*rows, strict=True)
    pq.write_table(pa.table({"path": list(paths), "labels": list(labels)}), out / "mosaics.parquet")
    return out / "mosaics.parquet"


def main() -> None:
    """Draw mosaics of a folder of classes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", type=Path, help="a folder with one subfolder per class")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--images", type=int, default=1500)
    parser.add_argument("--grid", type=int, default=2, help="tiles along a side")
    parser.add_argument("--side", type=int, default=192, help="pixels")
    args = parser.parse_args()
    photos = {
        folder.name: sorted(path for path in folder.rglob("*") if path.suffix.lower() in EXTENSIONS)
        for folder in sorted(args.photos.iterdir())
        if folder.is_dir()
    }
    print(draw(photos, args.images, args.grid, args.side, args.out))


if __name__ == "__main__":
    main()

"""How many wrong labels are found: some labels of a folder with one subfolder per class are turned at random.

    python -m benchmarks.label_issues /photos/signs --size 128 --share 0.05

Prints, for each seed, which share of the turned labels is among as many suspects, worst first; and the test accuracy of
a head that is trained and selected with the turned labels, without the suspects, and with the right labels. Test images
keep their right labels throughout.
"""

import argparse
import time
from pathlib import Path

import numpy as np
import pandas as pd

from benchmarks.photo_features import extracted
from rootstock.config import params
from rootstock.evaluation import label_issues
from rootstock.features.reader import Features
from rootstock.training import head, logistic

HEAD = params.Head()


def accuracy(folder: Path, rows: pd.DataFrame, test: pd.DataFrame, classes: list[str]) -> tuple[float, float]:
    """Train a head on rows and choose its strength on them; return its accuracy on test images, and the strength."""
    train, val = (Features(folder, rows[rows["split"] == split]) for split in ("train", "val"))
    fitted = logistic.fit_logistic_path(train, val, classes, HEAD.l2, HEAD.max_iterations)
    return head.evaluate(fitted, Features(folder, test))[1], fitted.l2


def turned(manifest: pd.DataFrame, share: float, classes: int, seed: int) -> tuple[pd.DataFrame, set[str]]:
    """Relabel some train and validation images; return all rows, and which images these are."""
    rng = np.random.default_rng(seed)
    rows = manifest.copy()
    candidates = np.flatnonzero((rows["split"] != "test").to_numpy())
    chosen = rng.choice(candidates, round(share * len(candidates)), replace=False)
    labels = rows["class_index"].to_numpy().copy()
    labels[chosen] = (labels[chosen] + rng.integers(1, classes, len(chosen))) % classes
    rows["class_index"] = labels
    return rows, set(rows["image_id"].to_numpy()[chosen])


def main() -> None:
    """Measure for each seed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder")
    parser.add_argument("--size", type=int, default=224, help="pixels")
    parser.add_argument("--share", type=float, default=0.05, help="of train and validation labels that are turned")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    args = parser.parse_args()
    with extracted(args.folder, args.size) as photos:
        folder, manifest, classes = photos.folder, photos.manifest, photos.classes
        test = manifest[manifest["split"] == "test"]
        print(
            f"{len(manifest):,} images, {len(classes)} classes, {args.share:.0%} of train and validation labels turned"
        )
        print(
            f"{'seed':>6}{'found':>8}{'suspects':>10}{'seconds':>9}{'with wrong labels':>19}{'without':>9}{'right':>8}"
        )
        right, _ = accuracy(folder, manifest, test, classes)
        for seed in args.seeds:
            rows, wrong = turned(manifest, args.share, len(classes), seed)
            with_wrong, l2 = accuracy(folder, rows, test, classes)
            start = time.perf_counter()
            suspects = label_issues.find(folder, rows, classes, l2, seed)["image_id"]
            seconds = time.perf_counter() - start
            found = len(wrong & set(suspects[: len(wrong)])) / len(wrong)
            cleaned = rows[~rows["image_id"].isin(set(suspects)) | (rows["split"] == "test")]
            without, _ = accuracy(folder, cleaned, test, classes)
            print(
                f"{seed:>6}{found:>8.1%}{len(suspects):>10}{seconds:>9.1f}{with_wrong:>19.1%}{without:>9.1%}{right:>8.1%}"
            )


if __name__ == "__main__":
    main()

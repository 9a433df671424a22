"""The effect of inexact extraction options on a head's accuracy, for a folder with one subfolder per class.

    python -m benchmarks.lossy /photos/signs
    python -m benchmarks.lossy /photos/hymenoptera --size 96

Prints, for each option of `extract`, images/s, the cosine similarity with the exact features (mean, minimum),
and accuracy and log loss of a head on validation and test images together.
"""

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from rootstock.backbones import backbones
from rootstock.config import params
from rootstock.dataset import tables
from rootstock.features import extraction, feature_keys
from rootstock.features.reader import Features
from rootstock.ingest import ingest
from rootstock.system.errors import RootstockError
from rootstock.training import head, logistic

L2 = params.Head().l2
OPTIONS: dict[str, dict[str, Any]] = {
    "exact": {},
    "dtype: float16": {"dtype": "float16"},
    "precision: bf16": {"precision": "bf16"},
    "decode: reduced": {"decode": "reduced"},
    "views: 4, crop": {"views": 4},
    "views: 4, crop_flip": {"views": 4, "view_augment": "crop_flip"},
}


def cosines(one: NDArray[np.float32], other: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return the cosine similarity (n,) of the rows of two sets of features (n, d)."""
    a, b = one.astype(np.float64), other.astype(np.float64)
    cosine: NDArray[np.float64] = (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
    return cosine


def main() -> None:
    """Measure each option."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--size", type=int, default=224, help="pixels")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="seeds of the split; figures are means")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        base = Path(name)
        backbones.prepare(params.Backbone(image_size=args.size), 0, base / "backbone")
        backbone = backbones.load(base / "backbone")
        exact: NDArray[np.float32] | None = None
        for title, option in OPTIONS.items():
            settings = params.Extract(engine="openvino", **option)
            scores, rate, found = [], 0.0, np.empty((0, 0), np.float32)
            for seed in args.seeds:
                work = base / str(seed)
                source = params.Source(path=str(args.folder), domain="photos")
                ingest.ingest(params.Ingest(sources=(source,)), seed, work / "i", work / "d", work / "s")
                begin = time.perf_counter()
                try:
                    done = extraction.extract(backbone, settings, work / "i", base / "features")
                except RootstockError as error:
                    print(f"{title}: {error}")
                    break
                rate = done.computed / (time.perf_counter() - begin) if done.computed else rate
                manifest = tables.load_manifest(work / "d")
                folders = feature_keys.find(backbone.description, settings, base / "features")
                scores.append(score(manifest, folders))
                found = np.concatenate([x for x, _ in Features(folders[0], manifest)])
            if not scores:
                continue
            exact = found if exact is None else exact
            similarity = cosines(found, exact)
            accuracy, loss = np.mean(scores, axis=0)
            print(
                f"{title:22}{rate:7.0f} images/s   cosine {similarity.mean():.5f} ({similarity.min():.4f})"
                f"   accuracy {accuracy:.2%}   log loss {loss:.4f}",
                flush=True,
            )


def score(manifest: pd.DataFrame, folders: list[Path]) -> tuple[float, float]:
    """Train a head, choosing L2 on validation; return accuracy and log loss on validation and test images."""
    held_out = manifest[manifest["split"] != "train"]
    train = Features(folders, manifest[manifest["split"] == "train"])
    val = Features(folders[0], manifest[manifest["split"] == "val"])
    fitted = logistic.fit_logistic_path(train, val, tables.classes_of(manifest), L2)
    loss, accuracy = head.evaluate(fitted, Features(folders[0], held_out))
    return accuracy, loss


if __name__ == "__main__":
    main()

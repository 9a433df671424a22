"""Which images to label first: accuracy on validation and test images after a batch of labels, chosen in several ways.

    python -m benchmarks.labelling /photos/signs --size 128 --labelled 100
    python -m benchmarks.labelling /photos/hymenoptera --size 224 --labelled 40

A head is fitted to some of the training images, drawn at random; of the others it chooses 50, and is fitted to both.
The difference from 50 random images is given with its standard error over the draws.
"""

import argparse
import math

import numpy as np
from numpy.typing import NDArray
from scipy.special import entr
from sklearn.linear_model import LogisticRegression

from benchmarks.photo_features import extracted
from rootstock.evaluation import labelling
from rootstock.evaluation.labelling import BATCH, OUT_OF
from rootstock.features.reader import Features

Array = NDArray[np.float64]
Indices = NDArray[np.int64]
C = 0.01  # of the head on standardised features


def chosen(x: Array, margins: Array, entropies: Array, rng: np.random.Generator) -> dict[str, Indices]:
    """Choose a batch of images (n, d) in each way, by their indices."""
    least = np.argsort(margins)[: OUT_OF * BATCH]
    features = {str(index): x[index].astype(np.float32) for index in least}
    drawn = labelling.draw(list(features), features, int(rng.integers(2**31)))
    return {
        "random": rng.permutation(len(x))[:BATCH],
        "largest entropy": np.argsort(-entropies)[:BATCH],
        "smallest margin": least[:BATCH],
        f"k-means++ of the {OUT_OF * BATCH} smallest margins": np.array(sorted(map(int, drawn))),
    }


def measure(x: Array, y: Indices, test: tuple[Array, Indices], labelled: int, seed: int) -> dict[str, float]:
    """Return the accuracy after labelling a batch, for each way of choosing it."""
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(x))
    known, pool = order[:labelled], order[labelled:]

    def fit(indices: Indices) -> LogisticRegression:
        return LogisticRegression(C=C, max_iter=300).fit(x[indices], y[indices])

    probabilities = fit(known).predict_proba(x[pool])
    best = np.sort(probabilities, axis=1)
    ways = chosen(x[pool], best[:, -1] - best[:, -2], entr(probabilities).sum(axis=1), rng)
    return {name: float(fit(np.concatenate([known, pool[batch]])).score(*test)) for name, batch in ways.items()}


def main() -> None:
    """Print the accuracy of each way, and its difference from random images, as a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder")
    parser.add_argument("--size", type=int, default=224, help="pixels")
    parser.add_argument("--labelled", type=int, default=100, help="images to start with")
    parser.add_argument("--draws", type=int, default=20)
    args = parser.parse_args()
    with extracted(args.folder, args.size) as photos:
        rows = photos.manifest
        features = np.concatenate([part for part, _ in Features(photos.folder, rows)]).astype(np.float64)
    train, labels = (rows["split"] == "train").to_numpy(), rows["class_index"].to_numpy(np.int64)
    features = (features - features[train].mean(0)) / (features[train].std(0) + 1e-6)
    test = features[~train], labels[~train]
    draws = [measure(features[train], labels[train], test, args.labelled, seed) for seed in range(args.draws)]
    print("| 50 images by | accuracy | against random |\n|---|--:|--:|")
    for name in draws[0]:
        accuracy = np.array([draw[name] for draw in draws])
        gain = accuracy - np.array([draw["random"] for draw in draws])
        error = gain.std(ddof=1) / math.sqrt(len(gain))
        print(f"| {name} | {accuracy.mean():.1%} | {100 * gain.mean():+.1f} ± {100 * error:.1f} |")


if __name__ == "__main__":
    main()

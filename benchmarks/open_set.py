"""How well images of no known class are told from test images: area under the ROC curve of several scores.

    python -m benchmarks.open_set /photos/signs /photos/hymenoptera --size 128

Each class of the first folder is left out in turn, and a head is trained on the others. Unknown are the images of that
class (near), then those of the second folder (far). Scores: the energy of the logits (Liu et al. 2020), the largest
probability, and the cosine similarity to the nearest class mean, which models use (rootstock/model/novelty.py); last
the share of the known and of each kind of unknown test images that is above the model's threshold.
"""

import argparse
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from scipy.special import logsumexp
from sklearn.metrics import roc_auc_score

from benchmarks.photo_features import Photos, extracted
from rootstock.config import params
from rootstock.features.reader import Features
from rootstock.model import novelty
from rootstock.training import calibration, head, heads

Array = NDArray[np.float32]


def features(of: Features) -> Array:
    """Return all features of some images (n, d)."""
    return np.concatenate([x for x, _ in of])


def without(photos: Photos, label: int) -> tuple[Photos, Array]:
    """Leave a class out; return the other images, and the features of those of the class."""
    left_out = photos.manifest["class_index"] == label
    rows = photos.manifest[~left_out].copy()
    rows["class_index"] -= (rows["class_index"] > label).astype(int)
    classes = [name for index, name in enumerate(photos.classes) if index != label]
    return replace(photos, manifest=rows, classes=classes), features(Features(photos.folder, photos.manifest[left_out]))


def measure(photos: Photos, unknown: list[Array]) -> dict[str, list[float]]:
    """Return the areas under the curves, one for each set of unknown images, and the shares refused, of known first."""
    train, val, test = (photos.split(name) for name in ("train", "val", "test"))
    fitted = heads.fit(train, val, photos.classes, params.Head(), np.arange(len(val))).head
    temperature = calibration.fit_temperature(head.scores(fitted, val), val.labels)
    means = novelty.fit(train, len(photos.classes))
    known = means.with_threshold(means.score(features(val)))
    scores = {
        "energy": lambda x: -logsumexp(fitted.logits(x), axis=1),
        "largest probability": lambda x: -calibration.probabilities(fitted.logits(x), temperature).max(axis=1),
        "class means": known.score,
    }
    tested = features(test)
    found = {}
    for name, score in scores.items():
        of_known = score(tested)
        found[name] = [
            float(roc_auc_score(np.repeat([0, 1], [len(tested), len(x)]), np.concatenate([of_known, score(x)])))
            for x in unknown
        ]
    found["refused"] = [float((known.score(x) > known.threshold).mean()) for x in [tested, *unknown]]
    return found


def main() -> None:
    """Print the mean over the classes left out, and the smallest, as a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder")
    parser.add_argument("other")
    parser.add_argument("--size", type=int, default=224, help="pixels")
    args = parser.parse_args()
    with extracted(args.folder, args.size) as photos, extracted(args.other, args.size) as other:
        far = features(Features(other.folder, other.manifest))
        each = []
        for label in range(len(photos.classes)):
            part, near = without(photos, label)
            each.append(measure(part, [near, far]))
    print("| score | near: a class left out | far: other photos |\n|---|--:|--:|")
    for name in ("energy", "largest probability", "class means"):
        values = np.array([found[name] for found in each])
        cells = (f"{mean:.3f} ({low:.2f})" for mean, low in zip(values.mean(0), values.min(0), strict=True))
        print(f"| {name} | {' | '.join(cells)} |")
    known, *shares = np.array([found["refused"] for found in each]).mean(0)
    print(f"refused by the threshold: {known:.1%} of known test images, {shares[0]:.1%} near, {shares[1]:.1%} far")


if __name__ == "__main__":
    main()

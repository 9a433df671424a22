"""How close whole groups come to the shares: the splits of Rootstock against scikit-learn's StratifiedGroupKFold.

python -m benchmarks.group_splits [--trials 20]    # prints a table; minutes
"""

import argparse
import time
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from sklearn.model_selection import StratifiedGroupKFold

from rootstock.ingest.drawing import Candidate, draw
from rootstock.ingest.layout import SPLITS

SHARES = {"train": 0.7, "val": 0.15, "test": 0.15}
FOLDS = 20  # of 5 % each: 14 to train, 3 to validate, 3 to test
Images = tuple[NDArray[np.int64], NDArray[np.int64]]  # the class and the group of each image
CLASSES = {  # shares of classes among the images
    "5 equal classes": np.full(5, 0.2),
    "10 classes, the rarest 1 %": np.geomspace(0.3, 0.01, 10) / np.geomspace(0.3, 0.01, 10).sum(),
}
MIXTURES = {"one class": 0.01, "few classes": 0.5, "many classes": 10.0}  # of a group: Dirichlet's concentration


def simulate(rng: np.random.Generator, groups: int, classes: NDArray[np.float64], mixture: float) -> Images:
    """Return images in groups of 1 to some 500, log-normally, each with a mixture of classes of its own."""
    sizes = np.maximum(rng.lognormal(2.3, 1.2, groups).astype(int), 1)
    label = [rng.choice(len(classes), size, p=rng.dirichlet(classes * mixture * len(classes) + 1e-6)) for size in sizes]
    return np.concatenate(label), np.repeat(np.arange(groups), sizes)


def ours(label: NDArray[np.int64], group: NDArray[np.int64], seed: int) -> NDArray[np.int64]:
    """Return the split of each image, as ingest draws it."""
    images = [Candidate(f"{at:064x}", ("domain", str(name))) for at, name in enumerate(label)]
    members: dict[int, list[Candidate]] = {}
    for image, name in zip(images, group.tolist(), strict=True):
        members.setdefault(name, []).append(image)
    draw(list(members.values()), images, SHARES, seed)
    return np.array([SPLITS.index(image.split or "") for image in images])


def folds(label: NDArray[np.int64], group: NDArray[np.int64], seed: int) -> NDArray[np.int64]:
    """Return the split of each image from many small folds."""
    splitter = StratifiedGroupKFold(FOLDS, shuffle=True, random_state=seed)
    fold = np.empty(len(label), np.int64)
    for number, (_, held_out) in enumerate(splitter.split(label, label, group)):
        fold[held_out] = number
    return np.select([fold < 14, fold < 17], [0, 1], 2)


def nested(label: NDArray[np.int64], group: NDArray[np.int64], seed: int) -> NDArray[np.int64]:
    """Return the split of each image: a seventh to test, then a sixth of the rest to validate."""
    split = np.zeros(len(label), np.int64)
    rest, test = next(StratifiedGroupKFold(7, shuffle=True, random_state=seed).split(label, label, group))
    held_out = StratifiedGroupKFold(6, shuffle=True, random_state=seed).split(label[rest], label[rest], group[rest])
    split[test], split[rest[next(held_out)[1]]] = 2, 1
    return split


def deviations(label: NDArray[np.int64], split: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return how far the share of each class in each split is from the wanted one, in points."""
    counts = np.stack([np.bincount(split[label == name], minlength=3) for name in np.unique(label)])
    off: NDArray[np.float64] = counts / counts.sum(axis=1, keepdims=True) - [SHARES[name] for name in SPLITS]
    return 100 * np.abs(off)


def measure(how: Callable[..., NDArray[np.int64]], cases: list[Images]) -> str:
    """Return mean and largest deviation over classes and splits, averaged over cases, empty splits, and seconds."""
    began = time.perf_counter()
    found = [(label, how(label, group, seed)) for seed, (label, group) in enumerate(cases)]
    seconds = (time.perf_counter() - began) / len(cases)
    off = [deviations(label, split) for label, split in found]
    empty = sum(len(set(split[label == name])) < 3 for label, split in found for name in set(label.tolist()))
    return f"{np.mean([x.mean() for x in off]):.1f} / {np.mean([x.max() for x in off]):.1f} / {empty} / {seconds:.2f} s"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=20)
    trials = parser.parse_args().trials
    print("mean / largest deviation in points / classes with an empty split / time")
    for groups in (30, 100, 1000):
        for name, classes in CLASSES.items():
            for mixed, mixture in MIXTURES.items():
                rng = np.random.default_rng(groups)
                cases = [simulate(rng, groups, classes, mixture) for _ in range(trials)]
                results = " | ".join(measure(how, cases) for how in (ours, nested, folds))
                print(f"| {groups} groups of {mixed}, {name} | {results} |", flush=True)


if __name__ == "__main__":
    main()

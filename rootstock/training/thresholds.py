"""The probability from which on an image is said to have a class, where it may have any number of them.

Each class has the threshold with the highest F1 on validation (Lipton et al. 2014, Optimal Thresholding of Classifiers
to Maximize F1 Measure). Of a class with few images that is mostly chance: it is drawn towards the threshold that is
best for all classes together, and the more so the fewer there are (docs/benchmarks.md).
"""

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, logit

PRIOR_IMAGES = 10.0  # images of a class that the common threshold counts like
ENDS = (0.01, 0.99)
DECIMALS = 6  # as model.json has them


def choose(probabilities: NDArray[np.float32], labels: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Choose a threshold for each class (k,) on validation images.

    Args:
        probabilities: calibrated (n, k).
        labels: which classes each image has (n, k).
    """
    common = best_f1(probabilities.ravel(), labels.ravel())
    own = [best_f1(chances, has) for chances, has in zip(probabilities.T, labels.T, strict=True)]
    images = labels.sum(axis=0)
    between = (images * logit(own) + PRIOR_IMAGES * logit(common)) / (images + PRIOR_IMAGES)
    chosen: NDArray[np.float32] = expit(between).round(DECIMALS).astype(np.float32)
    return chosen


def best_f1(chances: NDArray[np.float32], has: NDArray[np.bool_]) -> float:
    """Return the threshold with the highest F1, in the middle between two probabilities; 0.5 where no image has it.

    Args:
        chances: probabilities (n,).
        has: which images are of the class (n,).
    """
    if not has.any():
        return 0.5
    order = np.argsort(-chances, kind="stable")
    falling, hits = chances[order].astype(np.float64), np.cumsum(has[order])
    f1 = 2 * hits / (np.arange(1, len(hits) + 1) + hits[-1])
    after = np.append(falling[1:], 0.0)
    f1[falling == after] = -1.0  # no threshold lies between equal ones
    best = int(f1.argmax())
    return float(np.clip((falling[best] + after[best]) / 2, *ENDS))

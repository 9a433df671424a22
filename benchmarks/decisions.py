"""Error rates of retraining's decision by simulation, and the choice of `retrain.margin`.

    python -m benchmarks.decisions    # the table of docs/retraining.md, in about a minute

tests/rootstock/evaluation/test_error_rates.py holds the default to it.
"""

from collections import Counter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rootstock.config.params import Retrain
from rootstock.evaluation.decision import decide
from rootstock.evaluation.paired_comparison import PairedOutcomes
from rootstock.model.history import PROMOTED, REJECTED, UNDECIDED

TRIALS = 2000
Domain = dict[str, Any]
BETTER: Domain = {"images": 200, "gain": 0.1, "differ": 0.2}  # on a new domain
SCENES: Domain = {"images": 300, "gain": 0.0, "differ": 0.1, "scene": 10}
UNCHANGED: Domain = {"images": 200, "gain": 0.0, "differ": 0.06}
WORSE: Domain = {"gain": -0.1, "differ": 0.14}
CASES: dict[str, dict[str, Domain]] = {
    "equal, 30 scenes of 10 images on either domain": {"old": SCENES, "new": SCENES},
    "10 points lost on 40 older images, 10 gained": {"old": {**WORSE, "images": 40}, "new": BETTER},
    "10 points lost on 100 older images, 10 gained": {"old": {**WORSE, "images": 100}, "new": BETTER},
    "10 points lost on 400 older images, 10 gained": {"old": {**WORSE, "images": 400}, "new": BETTER},
    "10 points lost on 40 older images, 10 gained on 200 more of the domain": {
        "old": {**WORSE, "images": 40},
        "more": BETTER,
    },
    "10 points lost on 100 older images, 10 gained on 200 more of the domain": {
        "old": {**WORSE, "images": 100},
        "more": BETTER,
    },
    "the same of models that differ on 30 % of the 40": {
        "old": {"images": 40, "gain": -0.1, "differ": 0.3},
        "more": BETTER,
    },
    "the same of models that differ on 50 % of the 40": {
        "old": {"images": 40, "gain": -0.1, "differ": 0.5},
        "more": BETTER,
    },
    "nothing lost on 100 older images, 10 gained on 200 more of the domain": {
        "old": {**UNCHANGED, "images": 100},
        "more": BETTER,
    },
    "nothing lost on 400 older images, 10 gained": {"old": {**UNCHANGED, "images": 400}, "new": BETTER},
    "nothing lost on 200 of each of two domains, 10 gained": {"old": UNCHANGED, "older": UNCHANGED, "new": BETTER},
}


def draw(
    rng: np.random.Generator, images: int, gain: float, differ: float, *, scene: int = 1, alike: float = 1
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Draw which of two models is right on test images that come in scenes.

    Args:
        rng: draws.
        images: how many.
        gain: true gain in accuracy.
        differ: share of images of which only one model is right.
        scene: images per scene.
        alike: share of images on which the models differ as on their scene; the others are drawn for themselves.

    Returns:
        The difference (n,): 1, 0 or -1, and the scene (n,) of each image.
    """
    won, lost = (differ + gain) / 2, (differ - gain) / 2
    outcomes, chances = [1, -1, 0], [won, lost, 1 - won - lost]
    differences = rng.choice(outcomes, images // scene, p=chances).repeat(scene)
    if alike < 1:
        by_itself = rng.random(len(differences)) >= alike
        differences[by_itself] = rng.choice(outcomes, by_itself.sum(), p=chances)
    return differences, np.arange(images // scene).repeat(scene)


def outcomes(settings: Retrain, domains: dict[str, Domain], trials: int = TRIALS) -> Counter[str]:
    """Count how often a challenger is promoted, rejected and undecided.

    The domain "new" is new, and "more" are images of the domain "old" that are delivered.
    """
    rng = np.random.default_rng(0)
    counts: Counter[str] = Counter()
    for _ in range(trials):
        drawn = [draw(rng, **arguments) for arguments in domains.values()]
        differences = np.concatenate([values for values, _ in drawn])
        names = np.repeat(np.array(list(domains), object), [len(values) for values, _ in drawn])
        groups = np.concatenate([scenes + 10_000 * number for number, (_, scenes) in enumerate(drawn)])
        labels, known = np.full(len(names), "x", object), np.ones(len(names), bool)
        delivered = (names == "new") | (names == "more")
        names[names == "more"] = "old"
        images = PairedOutcomes(names, labels, groups, known, delivered, delivered, differences <= 0, differences >= 0)
        counts[decide(images, ["new"], settings).outcome] += 1
    return counts


def main() -> None:
    """Print the shares of decisions by margin, as a Markdown table."""
    margins = (0.02, 0.03, 0.04, 0.05)
    print("| promoted / rejected / undecided, in % | " + " | ".join(f"margin {margin}" for margin in margins) + " |")
    print("|---|" + "---|" * len(margins))
    for name, domains in CASES.items():
        cells = []
        for margin in margins:
            counts = outcomes(Retrain(margin=margin), domains)
            cells.append(" / ".join(f"{100 * counts[one] / TRIALS:.1f}" for one in (PROMOTED, REJECTED, UNDECIDED)))
        print(f"| {name} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()

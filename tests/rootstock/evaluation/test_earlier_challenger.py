"""A challenger whose delivery waits is what the next one has to be as good as: so wrong labels that join it tell."""

import numpy as np
import pandas as pd

from rootstock.config.params import Retrain
from rootstock.evaluation import earlier_challenger
from rootstock.evaluation.decision import Decision

TRIALS = 400


def answers(right: np.ndarray, delivered: int, domain="printed") -> pd.DataFrame:
    """What a challenger answered; the last images are those that its delivery brought."""
    n = len(right)
    names = [f"{number:03d}" for number in range(n)]
    return pd.DataFrame({
        "image_id": names, "label": [f"{number % 5}" for number in range(n)], "challenger": right,
        "delivered": np.arange(n) >= n - delivered, "domain": ["handwritten"] * (n - delivered) + [domain] * delivered,
        "group": range(n),
    })  # fmt: skip


def drawn(rng: np.random.Generator, n: int, accuracy: float) -> np.ndarray:
    return rng.random(n) < accuracy


def test_a_challenger_that_is_worse_than_the_one_before_is_not_promoted():
    rng = np.random.default_rng(0)
    earlier = answers(np.concatenate([drawn(rng, 200, 0.97), drawn(rng, 90, 0.95)]), 90)
    now = answers(np.concatenate([drawn(rng, 200, 0.97), drawn(rng, 90, 0.7)]), 90)
    losses = earlier_challenger.find_losses(earlier, now, Retrain())
    assert "on printed" in [one.where for one in losses]
    promoted = Decision("promoted", "It is better.", trade_off=False)
    held = earlier_challenger.hold_back(promoted, losses)
    assert (held.outcome, held.trade_off) == ("undecided", True)
    assert "What has arrived since the last, undecided retraining makes the model worse: " in held.reason
    assert "on printed, 9" in held.reason and "on the same 90 images" in held.reason
    assert held.reason.endswith("Otherwise: It is better.")
    for other in (Decision("rejected", "It is worse."), Decision("undecided", "Too few images.")):
        assert earlier_challenger.hold_back(other, losses) == other
    assert earlier_challenger.hold_back(promoted, []) == promoted


def test_challengers_that_are_equally_good_are_rarely_told_apart():
    rng, found = np.random.default_rng(1), 0
    for _ in range(TRIALS):
        one, other = (answers(drawn(rng, 150, 0.9), 50) for _ in range(2))
        found += bool(earlier_challenger.find_losses(one, other, Retrain()))
    assert found / TRIALS <= 0.05


def test_images_that_joined_since_and_changed_labels_do_not_count():
    earlier = answers(np.ones(100, bool), 40)
    more = answers(np.zeros(160, bool), 100)
    more.loc[:99, "challenger"] = True
    assert earlier_challenger.find_losses(earlier, more, Retrain()) == []
    relabelled = answers(np.zeros(100, bool), 40).assign(label="another")
    assert earlier_challenger.find_losses(earlier, relabelled, Retrain()) == []


def test_a_challenger_whose_delivery_was_taken_out_of_the_inbox_says_nothing():
    earlier, now = answers(np.ones(100, bool), 40), answers(np.zeros(100, bool), 40)
    assert earlier_challenger.find_losses(earlier, now, Retrain())
    assert earlier_challenger.find_losses(earlier, now.iloc[:70], Retrain()) == []
    assert earlier_challenger.find_losses(earlier.assign(delivered=False), now, Retrain()) == []

"""`lr: auto`: a learning-rate range test (Smith 2017) before a stage; a fifth of the rate at which the loss has risen.

Mini-batches are trained on with a rate that rises from step to step, until the loss has risen by a quarter; then the
weights are as they were before. Where the loss falls fastest, or is lowest, which fastai goes by, says little here: the
head is a linear probe, so that the loss hardly falls, and mini-batches differ by more than that.
"""

import logging
from collections.abc import Iterator, Sequence
from itertools import count

import numpy as np
import torch
from torch import Tensor

from rootstock.backbones import state_dicts
from rootstock.training.checkpoints import RatePoint
from rootstock.training.epoch import Run
from rootstock.training.frozen_layers import Trained
from rootstock.training.split_images import mix
from rootstock.training.step import TrainingStep

log = logging.getLogger(__name__)
LOWEST, HIGHEST, STEPS = 1e-5, 0.1, 60  # rates: fifteen to each power of ten
SMOOTHING = 0.9  # of the losses, a moving average over steps
RISEN = 1.25  # times the lowest loss: then the test ends
SHARE = 0.2  # of the rate there


def find(run: Run, stage: int, part: Trained, step: TrainingStep) -> list[RatePoint]:
    """Train with rising rates, and leave the weights as they were.

    Args:
        run: with the seed.
        stage: the number of the stage.
        part: what the stage trains, on what.
        step: whose optimiser has a peak rate of 1, and which mixes no images; it is of no use afterwards.
    """
    before = state_dicts.copied(run.model)  # with batch norm's statistics
    torch.manual_seed(mix(run.seed, stage) + run.batches.ranks.rank)
    step.model.train()
    points: list[RatePoint] = []
    average = 0.0
    rates = np.geomspace(LOWEST, HIGHEST, STEPS)
    for number, (rate, (batch, target, images)) in enumerate(zip(rates, _endless(run, stage, part), strict=False), 1):
        step.set_learning_rate(float(rate))
        loss = run.batches.ranks.sum(step(batch, target, images)).item() / run.batches.ranks.size
        average = SMOOTHING * average + (1 - SMOOTHING) * loss
        points.append(RatePoint(stage, float(rate), average / (1 - SMOOTHING**number)))
        if not np.isfinite(loss) or points[-1].loss > RISEN * min(point.loss for point in points):
            break
    state_dicts.copy_state(run.model, before)
    log.info("fine_tune: a learning rate of %.2g for stage %d, from %d steps", chosen(points), stage + 1, len(points))
    return points


def chosen(points: Sequence[RatePoint]) -> float:
    """Return the learning rate that a range test suggests."""
    return SHARE * points[-1].lr


def _endless(run: Run, stage: int, part: Trained) -> Iterator[tuple[Tensor, Tensor, int]]:
    """Yield mini-batches with their classes and numbers of images, epoch after epoch."""
    for number in count():
        seed = mix(run.seed, stage, number)
        order = np.random.default_rng(seed).permutation(len(part.batches.images.rows))
        targets = part.batches.targets(order, part.batches.device)
        yield from zip(part.batches(order, seed), targets, part.batches.sizes, strict=True)

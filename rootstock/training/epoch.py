"""An epoch of fine-tuning: its training steps, with checkpoints between them, and the validation after it."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rootstock.config import params
from rootstock.system import progress
from rootstock.training import targets
from rootstock.training.batch_norm import folded_once
from rootstock.training.checkpoints import Saver, TrainingState, Within
from rootstock.training.classifier import Classifier, logits_of
from rootstock.training.divergence import check_loss, highest_loss
from rootstock.training.division import TrainedPart
from rootstock.training.frozen_layers import Cache
from rootstock.training.image_sizes import resized, size_in
from rootstock.training.ranks import Ranks
from rootstock.training.split_images import Batches, mix
from rootstock.training.stage_plan import PlannedStage
from rootstock.training.step import TrainingStep

WARM_UP = 0.3  # share of a stage in which the learning rate rises (Smith 2018; torch's default)
START_DIVISOR, END_DIVISOR = 25.0, 1e4
CHECKED_EVERY = 100  # steps on a GPU or in several processes, after which all wait for the loss, to look at it


@dataclass(frozen=True)
class Run:
    """What all stages of a run have in common."""

    model: Classifier
    batches: Batches
    val_batches: Batches
    settings: params.Finetune
    stages: tuple[PlannedStage, ...]
    seed: int
    class_weights: NDArray[np.float32] | None
    activations: Cache | None
    save: Saver
    advance: progress.Advance


def train_epoch(run: Run, step: TrainingStep, batches: Batches, stage: PlannedStage, state: TrainingState) -> float:
    """Train for one epoch in a new random order, or for what is left of it; return the mean training loss.

    Args:
        run: with the seed, and what writes checkpoints.
        step: trains on a mini-batch.
        batches: of the training images, or of their activations.
        stage: with the number of epochs, which the schedule of the learning rate needs.
        state: which epoch it is, and what has been done of it before.

    Raises:
        ExplodedError: the loss was not finite, or rose too high.
    """
    device, sizes, ranks = batches.device, batches.sizes, batches.ranks
    seed, highest = mix(run.seed, state.stage, state.epoch), highest_loss(state.history, len(run.model.head.bias))
    order = np.random.default_rng(seed).permutation(len(batches.images.rows))
    every = checked_every(device, ranks)
    before = state.within or Within()
    _seed(seed, before, ranks.rank)
    step.model.train()
    total = torch.tensor(before.loss, dtype=torch.float64, device=device)
    seen = before.images
    rest = slice(before.steps, None)
    size = size_in(state.epoch, stage.epochs, run.settings.sizes, batches.transform.size)
    pixels = resized(batches(order, seed, before.steps), size)
    examples = zip(pixels, batches.targets(order, device)[rest], sizes[rest], strict=True)
    for number, (batch, target, images) in enumerate(examples, start=before.steps + 1):
        step.set_learning_rate(one_cycle((state.epoch * len(sizes) + number - 1) / (stage.epochs * len(sizes))))
        total += step(batch, target, images) * images
        if step.average:
            step.average.update(state.epoch * len(sizes) + number)
        seen += images
        run.advance(images)
        if number % every == 0 or number == len(sizes):
            whole = ranks.sum(total)
            check_loss(whole / ranks.size, seen, highest, stage, number, state.epoch)
            is_due = run.save.is_due(60 * run.settings.checkpoint_minutes)
            if number < len(sizes) and ranks.first_says(is_due, device):
                state.within = Within(number, whole.item() / ranks.size, seen, _random_states(device))
                step.keep_in(state)
                run.save()
    state.within = None
    return whole.item() / ranks.size / len(order)


def checked_every(device: torch.device, ranks: Ranks) -> int:
    """Return after how many steps the loss is read, for which everything waits that has not been computed."""
    return 1 if device.type == "cpu" and ranks.size == 1 else CHECKED_EVERY


def _seed(seed: int, before: Within, rank: int) -> None:
    """Seed what is random in a step, or go on where the epoch was left."""
    torch.manual_seed(mix(seed, before.steps) + rank if before.steps else seed + rank)
    if before.random and rank == 0:
        torch.set_rng_state(before.random[0].cpu())
        if torch.cuda.is_available() and len(before.random) > 1:
            torch.cuda.set_rng_state(before.random[1].cpu())


def _random_states(device: torch.device) -> list[Tensor]:
    return [torch.get_rng_state(), *([torch.cuda.get_rng_state(device)] if device.type == "cuda" else [])]


def one_cycle(position: float) -> float:
    """Return the factor on the peak learning rate at a position 0..1 of a stage: cosine up, then down (Smith 2018)."""
    if position < WARM_UP:
        low, high, share = 1 / START_DIVISOR, 1.0, position / WARM_UP
    else:
        low, high, share = 1.0, 1 / END_DIVISOR, (position - WARM_UP) / (1 - WARM_UP)
    return float(low + (high - low) * (1 - np.cos(np.pi * share)) / 2)


def validate(
    model: Classifier | TrainedPart, batches: Batches, class_weights: NDArray[np.float32] | None
) -> tuple[float, float]:
    """Compute mean log loss and accuracy; images count by the weights of their classes."""
    device, multi_label = batches.device, model.head.multi_label
    sums = torch.zeros(3, dtype=torch.float64, device=device)  # of losses, hits and weights, read once
    weights = None if class_weights is None else torch.from_numpy(class_weights).to(device)
    with folded_once():
        found = logits_of(model, batches(), batches.batch_size)
        for logits, target in zip(found, batches.targets(device=device), strict=True):
            counted = targets.counted(target, multi_label=multi_label).double()
            if weights is not None:
                counted *= weights[target.clamp(min=0)]
            losses = targets.losses(logits, target, multi_label=multi_label).double()
            correct = targets.accuracies(logits, target, multi_label=multi_label).double()
            sums += torch.stack([losses @ counted, correct @ counted, counted.sum()])
    loss, correct, weight = batches.ranks.sum(sums).tolist()
    return loss / weight, correct / weight

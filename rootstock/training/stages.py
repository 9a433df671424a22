"""A stage of fine-tuning: its epochs, what happens when its loss explodes, whether the next depth is worth trying."""

import logging
import time
from contextlib import nullcontext

import numpy as np
import torch

from rootstock.backbones import state_dicts
from rootstock.config import params
from rootstock.dataset import tables
from rootstock.system.errors import ParamsError
from rootstock.training import epochs, frozen_layers, learning_rate, stage_plan
from rootstock.training.checkpoints import Epoch, TrainingState
from rootstock.training.classifier import Classifier, predict
from rootstock.training.divergence import ExplodedError
from rootstock.training.epoch import Run, train_epoch, validate
from rootstock.training.frozen_layers import Trained
from rootstock.training.paired_losses import calibrated_losses
from rootstock.training.split_images import Batches
from rootstock.training.step import TrainingStep
from rootstock.training.unfreezing import optimiser_of, unfreeze

log = logging.getLogger(__name__)
CHECKPOINT_S = 20.0  # between those of short epochs


def train(run: Run, state: TrainingState, index: int) -> None:
    """Train for the epochs of a stage that are still to come.

    If the loss explodes, the stage goes on with the best weights so far at half the learning rate. If it does so again,
    the stage ends with them.

    Raises:
        ParamsError: the loss exploded twice before any epoch had come to its end.
    """
    start = None if state.best else state_dicts.copied(run.model)
    while True:
        try:
            return _train_epochs(run, state, index)
        except ExplodedError as exploded:
            state_dicts.copy_state(run.model, state.best or start or {})
            state.optimiser, state.within, state.average = None, None, None
            if state.halved == index:
                if not state.history:
                    raise ParamsError(f"{exploded}; expected a lower lr.") from None
                log.warning("%s again: the stage ends with the best weights so far.", exploded)
                state.stage, state.epoch = index, run.stages[index].epochs
                return run.save()
            log.warning("%s: going on with the best weights so far, at half the learning rate.", exploded)
            state.halved = index


def try_next_depth(run: Run, state: TrainingState, index: int, entry: int, *, is_first: bool) -> None:
    """Go back to the best weights, and let the next depth of an `auto` be trained only if this one gained something."""
    assert state.best is not None  # a depth has been trained
    state_dicts.copy_state(run.model, state.best)
    val = run.val_batches
    alone = Batches(val.images, val.reader, val.transform, run.settings.batch_size, val.device)  # in every process
    logits = np.concatenate(list(predict(run.model, alone(), alone.batch_size)))
    losses = calibrated_losses(logits, val.images.labels().numpy(), run.class_weights)
    before, state.losses = state.losses, torch.from_numpy(losses)
    if is_first:
        return
    assert before is not None  # of the depth before
    gain = stage_plan.gain(before.numpy(), losses, tables.group_numbers(val.images.rows))
    log.info("fine_tune: after %s: %s", run.stages[index].name, gain)
    if not gain.is_significant:
        state.ended.append(entry)
    state.stage, state.epoch = index + 1, 0  # or a run that goes on here would compare this depth with itself
    run.save()


def _train_epochs(run: Run, state: TrainingState, index: int) -> None:
    """Train for the epochs of a stage that are still to come, with its learning rate.

    Raises:
        ExplodedError: the loss did.
    """
    stage, first = run.stages[index], state.epoch if index == state.stage else 0
    if first >= stage.epochs:
        return
    begin = time.monotonic()
    unfreeze(run.model, stage)
    layers = frozen_layers.trained(
        run.model, stage, run.settings, run.batches, run.val_batches, run.activations, run.seed
    )
    with layers as part:
        stage = stage.model_copy(update={"lr": _learning_rate(run, state, index, part)})
        step = _step(run, run.settings, state, part, stage)
        if (first or state.within) and state.optimiser:
            step.resume(state)
        unsaved = False
        for epoch in range(first, stage.epochs):
            if epochs.has_stalled(state.history, index, run.settings.patience):
                log.info("fine_tune: stage %r ends after %d epochs: validation has not improved", stage.name, epoch)
                run.advance(0, skip=(stage.epochs - epoch) * len(run.batches.images.rows))
                break
            state.stage, state.epoch = index, epoch
            try:
                loss = train_epoch(run, step, part.batches, stage, state)
            finally:
                state.parts = step.parts
            with step.average.in_place() if step.average else nullcontext():
                val_loss, val_accuracy = validate(part.model, part.val_batches, run.class_weights)
                state.history.append(Epoch(index, stage.name, epoch, loss, val_loss, val_accuracy))
                _keep_best(state, run.model, run.settings.averaging.soup)
            state.epoch = epoch + 1
            state.seconds.append(time.monotonic() - begin)
            begin += state.seconds[-1]
            step.keep_in(state)
            unsaved = not run.save.is_due(CHECKPOINT_S)
            if not unsaved:
                run.save()
        if unsaved:
            run.save()


def _learning_rate(run: Run, state: TrainingState, index: int, part: Trained) -> float:
    """Return a stage's peak learning rate; `auto` is found before its first epoch. After an explosion it is half."""
    rate = run.stages[index].lr
    if isinstance(rate, str):
        if not any(point.stage == index for point in state.rates):
            stage = run.stages[index].model_copy(update={"lr": 1.0})
            # mixed labels would be noise
            unmixed = run.settings.model_copy(update={"regularization": params.Regularization()})
            step = _step(run, unmixed, state, part, stage)
            state.rates += learning_rate.find(run, index, part, step)
        rate = learning_rate.chosen([point for point in state.rates if point.stage == index])
    return rate / 2 if state.halved == index else rate


def _step(
    run: Run, settings: params.Finetune, state: TrainingState, part: Trained, stage: params.Stage
) -> TrainingStep:
    optimiser = optimiser_of(run.model, stage, settings)
    return TrainingStep(part.model, optimiser, settings, state.parts, run.batches.ranks, run.class_weights)


def _keep_best(state: TrainingState, model: Classifier, soup: int) -> None:
    """Keep the weights of the epoch that has just ended if it is among the best, of which a soup needs several."""
    best = epochs.best_first(state.history)[: max(1, soup)]
    if (last := len(state.history) - 1) in best:
        state.kept[last] = state_dicts.copied(model)
    state.kept = {epoch: state.kept[epoch] for epoch in best}

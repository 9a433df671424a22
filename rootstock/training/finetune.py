"""Staged fine-tuning: start from the linear probe (LP-FT, Kumar et al. 2022), then unfreeze blocks stage by stage.

Each stage trains the head and the blocks from a given depth with AdamW on a one-cycle schedule; batch-norm statistics
stay those of the pretrained network. A checkpoint is written after each epoch, and every few minutes. On a CPU, a
resumed run ends with the same bytes as an uninterrupted one.
"""

import json
import logging
import time
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rootstock.backbones import state_dicts
from rootstock.backbones.depths import uncut
from rootstock.config import params
from rootstock.config.architectures import Transform
from rootstock.dataset import tables
from rootstock.dataset.shards import Reader
from rootstock.system import devices, progress
from rootstock.system.errors import ParamsError
from rootstock.system.files import damaged, read_json, reading, replacing_folder, sha256, verify, write
from rootstock.training import averaging, checkpoints, epochs, frozen_layers, ranks, stage_plan
from rootstock.training.averaging import Average, choose_average
from rootstock.training.batch_norm import folded
from rootstock.training.checkpoints import Epoch, TrainingState
from rootstock.training.classifier import WEIGHTS, Classifier, predict, save as save_classifier
from rootstock.training.divergence import ExplodedError
from rootstock.training.epoch import Run, train_epoch, validate
from rootstock.training.paired_losses import calibrated_losses
from rootstock.training.ranks import Ranks
from rootstock.training.split_images import Batches, SplitImages
from rootstock.training.step import TrainingStep
from rootstock.training.stochastic_depth import stochastic_depth
from rootstock.training.unfreezing import check_stages, default_layer_decay, optimiser_of

log = logging.getLogger(__name__)
HISTORY, AVERAGES, DESCRIPTION = "history.parquet", "averages.parquet", "finetuned.json"


@dataclass(frozen=True)
class Course:
    """What happened in a fine-tuning: epochs, averages of weights that were tried after the last, seconds per epoch."""

    history: list[Epoch] = field(default_factory=list)
    averages: list[Average] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list, compare=False)  # in no file: another run takes others

    @property
    def val_accuracy(self) -> float:
        """Return the validation accuracy of the weights that fine-tuning ended with."""
        return (averaging.chosen_of(self.averages) or epochs.best_of(self.history)).val_accuracy


def fine_tune(
    model: Classifier,
    transform: Transform,
    train: SplitImages,
    val: SplitImages,
    settings: params.Finetune,
    seed: int,
    checkpoint: Path,
    fingerprint: str,
    class_weights: NDArray[np.float32] | None = None,
    activations: frozen_layers.Cache | None = None,
) -> Course:
    """Train `model` in place through all stages, and leave it with the weights that are best on validation.

    Args:
        model: backbone and linear probe.
        transform: of the backbone.
        train: training images.
        val: validation images; the best epoch has the highest accuracy, then the lowest log loss.
        settings: the section `finetune` of params.yaml.
        seed: of order, augmentation and dropout.
        checkpoint: written after each epoch; training resumes from it if it exists.
        fingerprint: a digest of all inputs; a checkpoint with another one is ignored.
        class_weights: of classes (k,) in the loss and on validation, averaging to 1 over the training images; None for
            equal ones.
        activations: where those of frozen layers are kept; None to compute them in every epoch.

    Raises:
        ParamsError: a stage names an unknown layer, training diverged, or there is no GPU for each process.
    """
    check_stages(model.backbone, settings)
    if settings.stages and settings.layer_decay is None and (decay := default_layer_decay(model.backbone)) < 1:
        log.info("fine_tune: layer-wise learning-rate decay %g, as is usual for vision transformers", decay)
    if settings.processes > 1 and not ranks.started_by_torchrun():
        # They leave a checkpoint of the last epoch, with which this process comes to the end at once.
        ranks.run_in_processes(
            settings.processes, fine_tune, model, transform, train, val, settings, seed, checkpoint, fingerprint,
            class_weights,
        )  # fmt: skip
    with ranks.joined() as together:
        return _train(
            model, transform, train, val, settings, seed, checkpoint, fingerprint, class_weights, activations, together
        )  # fmt: skip


def _train(
    model: Classifier, transform: Transform, train: SplitImages, val: SplitImages, settings: params.Finetune,
    seed: int, checkpoint: Path, fingerprint: str, class_weights: NDArray[np.float32] | None,
    activations: frozen_layers.Cache | None, together: Ranks,
) -> Course:  # fmt: skip
    """Train as `fine_tune` says, in this process or as one of several; the first one writes the checkpoints."""
    entries = stage_plan.entries(settings.stages)
    settings = settings.model_copy(update={"stages": stage_plan.expanded(settings.stages)})
    device = devices.device()
    model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    probe = _copy(model) if settings.averaging.interpolation else {}
    state = checkpoints.load(checkpoint, fingerprint, model, device)
    total = sum(stage.epochs for stage in settings.stages)
    done = len(state.history) * len(train.rows) + (state.within.images if state.within else 0)
    if done and len(state.history) < total and together.rank == 0:
        log.info("Resuming after epoch %d of stage %d, of %d images in all, from %s",
                 state.epoch, state.stage + 1, done, checkpoint)  # fmt: skip
    with (
        Reader(train.images_dir) as reader,
        stochastic_depth(uncut(model.backbone), settings.regularization.drop_path),
        _faster(model, settings.batch_size, transform.size) if len(state.history) < total else nullcontext(),
        progress.bar("fine_tune", total * len(train.rows)) if together.rank == 0 else progress.silent() as advance,
    ):
        lone = model.frozen_statistics  # else a single image would have no statistics
        batches = Batches(train, reader, transform, settings.batch_size, device, settings.augment, lone, together)
        val_batches = Batches(val, reader, transform, settings.batch_size, device, ranks=together)
        advance(done)
        save = partial(checkpoints.save, checkpoint, fingerprint, state, model) if together.rank == 0 else lambda: None
        run = Run(model, batches, val_batches, settings, seed, class_weights, activations, save, advance)
        for index in range(state.stage, len(settings.stages)):
            if entries[index] in state.ended:
                advance(settings.stages[index].epochs * len(train.rows))
                continue
            _train_stage(run, state, index)
            entry = entries[index]
            if entry is not None and entry in entries[index + 1 :]:
                _try_next_depth(run, state, index, entry, is_first=entries.index(entry) == index)
        if state.best:
            state_dicts.copy_state(model, state.best)
        averages = choose_average(run, state, probe)
    for warning in epochs.warnings(state.history):
        log.warning("%s", warning)
    return Course(state.history, averages, state.seconds)


def _train_stage(run: Run, state: TrainingState, index: int) -> None:
    """Train for the epochs of a stage that are still to come.

    If the loss explodes, the stage goes on with the best weights so far at half the learning rate. If it does so again,
    the stage ends with them.

    Raises:
        ParamsError: the loss exploded twice before any epoch had come to its end.
    """
    start = None if state.best else _copy(run.model)
    while True:
        halved = state.halved == index
        stage = _with_halved_rate(run.settings.stages[index]) if halved else run.settings.stages[index]
        try:
            return _train_epochs(run, state, index, stage)
        except ExplodedError as exploded:
            state_dicts.copy_state(run.model, state.best or start or {})
            if halved:
                if not state.history:
                    raise ParamsError(f"{exploded}; expected a lower lr.") from None
                log.warning("%s again: the stage ends with the best weights so far.", exploded)
                return None
            log.warning("%s: going on with the best weights so far, at half the learning rate.", exploded)
            state.halved, state.optimiser, state.within, state.average = index, None, None, None


def _try_next_depth(run: Run, state: TrainingState, index: int, entry: int, *, is_first: bool) -> None:
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
    log.info("fine_tune: after %s: %s", run.settings.stages[index].name, gain)
    if not gain.is_significant:
        state.ended.append(entry)
    run.save()


def _train_epochs(run: Run, state: TrainingState, index: int, stage: params.Stage) -> None:
    """Train for the epochs of a stage that are still to come, with its learning rate.

    Raises:
        ExplodedError: the loss did.
    """
    first = state.epoch if index == state.stage else 0
    if first >= stage.epochs:
        return
    begin = time.monotonic()
    optimiser = optimiser_of(run.model, stage, run.settings)
    layers = frozen_layers.trained(
        run.model, stage, run.settings, run.batches, run.val_batches, run.activations, run.seed
    )
    with layers as part:
        step = TrainingStep(part.model, optimiser, run.settings, state.parts, run.batches.ranks, run.class_weights)
        if (first or state.within) and state.optimiser:
            step.resume(state)
        for epoch in range(first, stage.epochs):
            if epochs.has_stalled(state.history, index, run.settings.patience):
                log.info("fine_tune: stage %r ends after %d epochs: validation has not improved", stage.name, epoch)
                run.advance((stage.epochs - epoch) * len(run.batches.images.rows))
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
            run.save()


def _with_halved_rate(stage: params.Stage) -> params.Stage:
    return stage.model_copy(update={"lr": stage.lr / 2})


def _copy(model: Classifier) -> dict[str, Tensor]:
    return {name: value.detach().cpu().clone() for name, value in model.state_dict().items()}


def _faster(model: Classifier, batch_size: int, size: int) -> AbstractContextManager[None]:
    """Let the model compute frozen batch norms within convolutions."""
    if not model.frozen_statistics:
        return nullcontext()
    shape = (batch_size, 3, size, size)  # that of training: a GPU plans for it anyway
    return folded(model, torch.randint(256, shape, dtype=torch.uint8).to(model.head.weight.device))


def save(model: Classifier | None, course: Course, folder: Path) -> None:
    """Save a fine-tuned network, the course of its training, and the digests of all files (finetuned.json).

    Without epochs there is no such network, and only the empty history is saved.
    """
    with replacing_folder(folder) as temporary:
        if model and course.history:
            save_classifier(model, temporary / WEIGHTS)
        epochs.write_history(course.history, temporary / HISTORY)
        averaging.write(course.averages, temporary / AVERAGES)
        digests = {path.name: sha256(path) for path in sorted(temporary.iterdir())}
        write(temporary / DESCRIPTION, json.dumps({"digests": digests}, indent=2) + "\n")


def load_course(folder: Path) -> Course:
    """Read the course that `save` wrote, empty if nothing was fine-tuned, and check all files against their digests.

    Raises:
        DamagedError: a file does not match.
    """
    described = read_json(folder / DESCRIPTION)
    with reading(folder / DESCRIPTION):
        digests = {str(name): str(digest) for name, digest in described["digests"].items()}
        digests[HISTORY]
    for name, digest in digests.items():
        verify(folder / name, digest)
    history = epochs.read_history(folder / HISTORY)
    if history and WEIGHTS not in digests:
        raise damaged(folder / DESCRIPTION, f"has no digest of {WEIGHTS}")
    return Course(history, averaging.read(folder / AVERAGES))


def _keep_best(state: TrainingState, model: Classifier, soup: int) -> None:
    """Keep the weights of the epoch that has just ended if it is among the best, of which a soup needs several."""
    best = epochs.best_first(state.history)[: max(1, soup)]
    if (last := len(state.history) - 1) in best:
        state.kept[last] = _copy(model)
    state.kept = {epoch: state.kept[epoch] for epoch in best}

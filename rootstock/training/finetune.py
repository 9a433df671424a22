"""Staged fine-tuning: start from the linear probe (LP-FT, Kumar et al. 2022), then unfreeze blocks stage by stage.

Each stage trains the head and the blocks from a given depth with AdamW on a one-cycle schedule; batch-norm statistics
stay those of the pretrained network. A checkpoint is written after an epoch (of short ones, every 20 s), and every
minute. On a CPU, a resumed run ends with the same bytes as an uninterrupted one.
"""

import logging
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from rootstock.backbones import state_dicts
from rootstock.backbones.depths import uncut
from rootstock.config import params
from rootstock.config.architectures import Transform
from rootstock.dataset.shards import Reader
from rootstock.system import devices, memory, progress
from rootstock.system.errors import ParamsError
from rootstock.system.parallel import rank
from rootstock.training import adapters, checkpoints, epochs, frozen_layers, ranks, stage_plan, stages
from rootstock.training.adapters import Adapters
from rootstock.training.averaging import choose_average
from rootstock.training.batch_norm import folded
from rootstock.training.classifier import Classifier
from rootstock.training.course import Course
from rootstock.training.epoch import Run
from rootstock.training.image_sizes import check_sizes
from rootstock.training.ranks import Ranks
from rootstock.training.split_images import Batches, SplitImages
from rootstock.training.stochastic_depth import stochastic_depth
from rootstock.training.unfreezing import check_stages, default_layer_decay

log = logging.getLogger(__name__)


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
        checkpoint: written now and then; training resumes from it if it exists.
        fingerprint: a digest of all inputs; a checkpoint with another one is ignored.
        class_weights: of classes (k,) in the loss and on validation, averaging to 1 over the training images; None for
            equal ones.
        activations: where those of frozen layers are kept; None to compute them in every epoch.

    Raises:
        ParamsError: a stage names an unknown layer, training diverged, there is no GPU for each process, or several
            processes would train batch norm's statistics.
    """
    check_stages(model.backbone, settings)
    several = max(settings.processes, ranks.world_size()) > 1
    norms = (module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm))
    if several and not model.frozen_statistics and any(norms):
        which = "torchrun has started several" if ranks.world_size() > 1 else "finetune.processes is more than 1"
        raise ParamsError(
            f"params.yaml: {which}, and the backbone has random weights and batch norm, whose statistics would be "
            "those of each process's share of a mini-batch; expected one process."
        )
    check_sizes(model, settings.sizes, transform.size)
    told = settings.processes > 1 and ranks.started_by_torchrun()  # by the process that started this one
    if rank() == 0 and not told:
        _tell(model, settings, len(train.rows))
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


def _tell(model: Classifier, settings: params.Finetune, images: int) -> None:
    """Log what the settings leave to the network and to the number of images, and what does not fit the network."""
    planned = stage_plan.planned(settings, images)
    if planned and settings.layer_decay is None and (decay := default_layer_decay(model.backbone)) < 1:
        log.info("fine_tune: layer-wise learning-rate decay %g, as is usual for vision transformers", decay)
    if any(stage.epochs == params.AUTO for stage in settings.stages):
        epochs_of = ", ".join(f"{stage.name} {stage.epochs}" for stage in planned)
        log.info("fine_tune: epochs, by the number of training images (%d): %s", images, epochs_of)
    if planned and not (model.frozen_statistics or any(stage.unfreeze == "all" for stage in planned)):
        log.warning(
            "fine_tune: the backbone has random weights, and no stage trains all of its layers: the others learn "
            "nothing. Expected unfreeze: all."
        )


def _train(
    model: Classifier, transform: Transform, train: SplitImages, val: SplitImages, settings: params.Finetune,
    seed: int, checkpoint: Path, fingerprint: str, class_weights: NDArray[np.float32] | None,
    activations: frozen_layers.Cache | None, together: Ranks,
) -> Course:  # fmt: skip
    """Train as `fine_tune` says, in this process or as one of several; the first one writes the checkpoints."""
    entries = stage_plan.entries(settings.stages)
    planned = stage_plan.planned(settings, len(train.rows))
    device = devices.device()
    model.to(memory_format=torch.channels_last)
    torch.manual_seed(seed)
    key = adapters.wanted_by(settings)
    added = Adapters(model.backbone, settings.lora_rank, transform.size, key) if key else None
    probe = state_dicts.copied(model) if settings.averaging.interpolation else {}
    state = checkpoints.load(checkpoint, fingerprint, model, device)
    total = sum(stage.epochs for stage in planned)
    done = len(state.history) * len(train.rows) + (state.within.images if state.within else 0)
    if done and len(state.history) < total and together.rank == 0:
        log.info("Resuming after epoch %d of stage %d (%d images seen), from %s",
                 state.epoch, state.stage + 1, done, checkpoint)  # fmt: skip
    with (
        Reader(train.images_dir) as reader,
        stochastic_depth(uncut(model.backbone), settings.regularization.drop_path),
        _faster(model, transform.size) if len(state.history) < total else nullcontext(),
        memory.reused() if device.type == "cpu" else nullcontext(),
        progress.bar("fine_tune", total * len(train.rows)) if together.rank == 0 else progress.silent() as advance,
    ):
        model.to(device)
        lone = model.frozen_statistics  # else a single image would have no statistics
        batches = Batches(train, reader, transform, settings.batch_size, device, settings.augment, lone, together)
        val_batches = Batches(val, reader, transform, settings.batch_size, device, ranks=together)
        if len(state.history) < total and together.rank == 0:
            batches.log_decoding()
        advance(0, skip=done)
        write = partial(checkpoints.save, checkpoint, fingerprint, state, model) if together.rank == 0 else lambda: None
        save = checkpoints.Saver(write)
        run = Run(model, batches, val_batches, settings, planned, seed, class_weights, activations, save, advance)
        for index in range(state.stage, len(planned)):
            if entries[index] in state.ended:
                advance(0, skip=planned[index].epochs * len(train.rows))
                continue
            stages.train(run, state, index)
            entry = entries[index]
            if entry is not None and entry in entries[index + 1 :]:
                stages.try_next_depth(run, state, index, entry, is_first=entries.index(entry) == index)
        if state.best:
            state_dicts.copy_state(model, state.best)
        averages = choose_average(run, state, probe)
    if added:
        added.merge()
    for warning in epochs.warnings(state.history):
        log.warning("%s", warning)
    return Course(state.history, averages, state.rates, state.seconds)


def _faster(model: Classifier, size: int) -> AbstractContextManager[None]:
    """Let a model, which is not on a GPU yet, compute frozen batch norms within convolutions.

    A GPU would plan for float32 and for two images, neither of which it meets in training.
    """
    if not model.frozen_statistics:
        return nullcontext()
    return folded(model, torch.randint(256, (2, size, size, 3), dtype=torch.uint8).permute(0, 3, 1, 2))

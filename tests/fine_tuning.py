"""Fine-tuning of small networks on the small dataset, and what it changes of their weights."""

from pathlib import Path

import torch
from torch import Tensor, nn

from rootstock.backbones import backbones
from rootstock.config.architectures import Transform
from rootstock.config.params import Finetune, Stage
from rootstock.training.checkpoints import Epoch
from rootstock.training.classifier import Classifier
from rootstock.training.course import Course
from rootstock.training.finetune import fine_tune
from rootstock.training.split_images import SplitImages
from tests.small_dataset import classifier_from, small_backbone, small_dataset, small_head

# The first has batch norms, the second dropout, the third both; its state dict carries a version.
SHUFFLENET, SQUEEZENET, MNASNET = "shufflenet_v2_x0_5", "squeezenet1_1", "mnasnet0_5"
TRAIN = 72  # images


def start(base: Path, name: str = SHUFFLENET) -> Classifier:
    """Return the classifier that a run starts from."""
    return classifier_from(small_head(base, name), small_backbone(base, name))


def stages(*given: tuple[str, int | str], lr: float = 1e-3, **others) -> Finetune:
    return Finetune(stages=tuple(Stage(unfreeze=name, epochs=epochs, lr=lr) for name, epochs in given), **others)


def tuned(
    model: Classifier, base: Path, settings: Finetune, checkpoint: Path, seed=0, inputs="these", **given
) -> Course:
    """Fine-tune a model on the small dataset."""
    small = small_dataset(base)
    train, val = (SplitImages(small.split(split), small.images) for split in ("train", "val"))
    transform = Transform.from_dict(backbones.describe(small_backbone(base))["transform"])
    return fine_tune(model, transform, train, val, settings, seed, checkpoint, inputs, **given)


def tune(
    model: Classifier, base: Path, settings: Finetune, checkpoint: Path, seed=0, inputs="these", **given
) -> list[Epoch]:
    """Fine-tune a model on the small dataset; returns its epochs."""
    return tuned(model, base, settings, checkpoint, seed, inputs, **given).history


def copied(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def changed(before: dict[str, Tensor], model: nn.Module) -> set[str]:
    return {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}

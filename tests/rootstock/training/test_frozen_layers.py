"""Frozen layers are computed once for each image, and fine-tuning is the same as if they were computed each time."""

import dataclasses
import itertools
import re
import sys

import numpy as np
import pytest
import torch

from rootstock.backbones import backbones
from rootstock.config.architectures import Transform
from rootstock.images import pixel_store
from rootstock.training import division, finetune, frozen_layers, split_images, stages as stage_module
from rootstock.training.checkpoints import Epoch
from rootstock.training.classifier import Classifier
from rootstock.training.frozen_layers import Cache
from rootstock.training.split_images import SplitImages
from tests.fine_tuning import TRAIN, copied, stages, start
from tests.small_dataset import small_backbone, small_dataset

VAL = 24  # images
ENOUGH = 1.0  # GB


@pytest.fixture
def computed(monkeypatch) -> list[int]:
    """How many images go through frozen layers, in each batch."""
    seen: list[int] = []
    forward = division.FrozenPart.forward
    monkeypatch.setattr(division.FrozenPart, "forward", lambda part, x: (seen.append(len(x)), forward(part, x))[1])
    return seen


def tune(base, folder, settings, most_gb=ENOUGH, model: Classifier | None = None, crops=None) -> tuple:
    small, model = small_dataset(base), model or start(base)
    transform = Transform.from_dict(backbones.describe(small_backbone(base))["transform"])
    train, val = (SplitImages(small.split(split), small.images, crops=crops) for split in ("train", "val"))
    cache = Cache(folder / "activations", most_gb)
    course = finetune.fine_tune(
        model, transform, train, val, settings, 0, folder / "checkpoint", "these", activations=cache
    )
    return model, course.history


def losses(history: list[Epoch]) -> np.ndarray:
    return np.array([(epoch.train_loss, epoch.val_loss) for epoch in history])


@pytest.mark.parametrize("layers", ["head", "last_2_blocks"])
def test_training_from_kept_activations_is_training_from_images(base, tmp_path, layers, computed):
    settings = stages((layers, 3), batch_size=16, lr=1e-4)
    _, history = tune(base, tmp_path / "kept", settings)
    assert sum(computed) == TRAIN + VAL + 16 + frozen_layers.EXAMPLES  # each once, besides the checks
    _, expected = tune(base, tmp_path / "plain", settings.model_copy(update={"frozen_layers": "compute"}))
    assert losses(history) == pytest.approx(losses(expected), rel=1e-3)


def test_a_later_run_and_a_later_stage_with_the_same_frozen_layers_compute_nothing_anew(base, tmp_path, computed):
    tune(base, tmp_path, stages(("last_block", 2), ("last_block", 2)))
    assert sum(computed) == TRAIN + VAL + 4 * frozen_layers.EXAMPLES
    computed.clear()
    (tmp_path / "checkpoint").unlink()
    tune(base, tmp_path, stages(("last_block", 3)))
    assert sum(computed) == 2 * frozen_layers.EXAMPLES


def test_frozen_layers_that_an_earlier_stage_has_trained_are_computed_again(base, tmp_path, computed):
    tune(base, tmp_path, stages(("last_3_blocks", 1), ("last_block", 2)))
    assert sum(computed) == TRAIN + VAL + 2 * frozen_layers.EXAMPLES
    computed.clear()
    (tmp_path / "checkpoint").unlink()
    tune(base, tmp_path, stages(("last_3_blocks", 1), ("last_block", 2), lr=2e-3))
    assert sum(computed) == TRAIN + VAL + 2 * frozen_layers.EXAMPLES


def test_frozen_weights_and_statistics_stay_as_they_were(base, tmp_path):
    model = start(base)
    before = copied(model.backbone)
    tune(base, tmp_path, stages(("last_block", 2)), model=model)
    changed = {name.split(".")[0] for name, value in model.backbone.state_dict().items()
               if not torch.equal(value, before[name])}  # fmt: skip
    assert changed <= {"stage4", "conv5"} and changed


def test_an_interrupted_run_ends_with_the_weights_of_an_uninterrupted_one(base, tmp_path, monkeypatch):
    settings = stages(("last_block", 4))
    whole, _ = tune(base, tmp_path / "whole", settings)
    validate, calls = stage_module.validate, []

    def stop(*given):
        calls.append(None)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return validate(*given)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(stage_module, "validate", stop)
        tune(base, tmp_path / "parts", settings)
    parts, _ = tune(base, tmp_path / "parts", settings)
    assert all(torch.equal(value, parts.state_dict()[name]) for name, value in whole.state_dict().items())


@pytest.mark.parametrize("side", [0, 40])
def test_with_augmentation_the_views_asked_for_are_computed_once_each(base, tmp_path, computed, side):
    settings = stages(("last_block", 5), augment="crop", cached_views=2, store_size=side)
    crops = pixel_store.CropSource(side) if side else None
    _, history = tune(base, tmp_path, settings, crops=crops)
    assert sum(computed) == 2 * TRAIN + VAL + 2 * frozen_layers.EXAMPLES
    assert np.isfinite(losses(history)).all()


@pytest.mark.parametrize(
    ("settings", "most_gb", "why"),
    [
        (stages(("last_block", 2), frozen_layers="compute"), ENOUGH, "finetune.frozen_layers is compute"),
        (stages(("last_block", 2)), 0, "cache.activations_gb is 0"),
        (stages(("last_block", 2)), 1e-6, "their activations would take more than cache.activations_gb"),
        (stages(("last_block", 1)), ENOUGH, "there is one epoch, no more than views"),
        (stages(("last_block", 2), augment="crop"), ENOUGH, r"augmented anew each time \(finetune.cached_views is 0\)"),
        (stages(("last_block", 2), augment="crop", cached_views=2), ENOUGH, "there are 2 epochs, no more than views"),
    ],
)
def test_the_log_says_why_frozen_layers_are_computed_in_every_epoch(
    base, tmp_path, computed, caplog, settings, most_gb, why
):
    with caplog.at_level("DEBUG"):
        tune(base, tmp_path, settings, most_gb)
    [line] = [line for line in caplog.messages if line.startswith("fine_tune: frozen layers")]
    assert re.search(why, line)
    assert sum(computed) in (0, 2 * frozen_layers.EXAMPLES)


def test_the_log_says_nothing_where_no_layer_is_frozen_or_nothing_is_lost(base, tmp_path, caplog):
    with caplog.at_level("INFO"):
        tune(base, tmp_path, stages(("last_block", 1), ("all", 2)))
    assert "frozen layers" not in caplog.text


def test_the_log_says_what_is_computed_once(base, tmp_path, caplog):
    with caplog.at_level("INFO"):
        tune(base, tmp_path, stages(("last_block", 2)))
    assert f"frozen layers of stage 'last_block' are computed once: {TRAIN + VAL} activations of " in caplog.text


def test_activations_are_float16_only_where_that_is_exact_enough(base, tmp_path, monkeypatch):
    tune(base, tmp_path / "half", stages(("last_block", 2)))
    monkeypatch.setattr(frozen_layers, "FLOAT16_ERROR", 0)
    tune(base, tmp_path / "single", stages(("last_block", 2)))
    half, single = (
        sum(path.stat().st_size for path in (tmp_path / name).rglob("*.values")) for name in ("half", "single")
    )
    assert single == 2 * half


def test_activations_beyond_float16_are_not_kept_as_infinities(base, tmp_path, monkeypatch, caplog):
    """As where the first images, which are looked at, are not as extreme as later ones."""
    model = start(base)
    item = frozen_layers._item
    monkeypatch.setattr(frozen_layers, "_item", lambda *given: dataclasses.replace(item(*given), dtype="float16"))
    forward = division.FrozenPart.forward
    calls = itertools.count(1)  # the first two are the checks
    monkeypatch.setattr(
        division.FrozenPart, "forward", lambda part, x: forward(part, x) * (1e6 if next(calls) > 2 else 1)
    )
    with caplog.at_level("INFO"):
        _, history = tune(base, tmp_path, stages(("last_block", 2)), model=model)
    assert "their activations exceed float16" in caplog.text
    assert np.isfinite(losses(history)).all()


def test_on_a_gpu_activations_are_kept_in_its_memory(base, tmp_path, monkeypatch):
    settings = stages(("last_block", 3))
    _, expected = tune(base, tmp_path / "disk", settings)
    monkeypatch.setattr(frozen_layers, "KEEPS_IMAGES", ("cpu",))
    _, history = tune(base, tmp_path / "memory", settings)
    assert losses(history) == pytest.approx(losses(expected), rel=1e-6)


@pytest.mark.parametrize("unfreeze", ["last_block", "all"])
def test_on_a_gpu_later_epochs_copy_nothing_for_each_mini_batch(base, tmp_path, monkeypatch, unfreeze):
    """A copy from memory that is not pinned would wait for all that the GPU has been given to do."""
    for module in (frozen_layers, split_images):
        monkeypatch.setattr(module, "KEEPS_IMAGES", ("cpu",))
    copies, to = [], torch.Tensor.to

    def counted(tensor: torch.Tensor, *given: object, **named: object) -> torch.Tensor:
        by = sys._getframe(1).f_globals["__name__"]  # torch's own clipping asks for where a gradient is already
        copies.extend(by for one in given if isinstance(one, torch.device) and by.startswith("rootstock"))
        return to(tensor, *given, **named)

    def copies_of(epochs: int, batch_size: int) -> int:
        copies.clear()
        tune(base, tmp_path / f"{epochs} {batch_size}", stages((unfreeze, epochs), batch_size=batch_size))
        return len(copies)

    monkeypatch.setattr(torch.Tensor, "to", counted)
    small, large = (copies_of(4, size) - copies_of(2, size) for size in (4, 16))
    assert small == large > 0


def test_a_network_that_cannot_be_divided_is_trained_whole(base, tmp_path, monkeypatch, caplog):
    def refuse(*_: object) -> None:
        raise division.UndividedError("its forward pass cannot be traced")

    monkeypatch.setattr(frozen_layers, "divide", refuse)
    with caplog.at_level("INFO"):
        _, history = tune(base, tmp_path, stages(("last_block", 2)), model=start(base))
    assert "computed in every epoch: its forward pass cannot be traced" in caplog.text
    assert len(history) == 2

"""Fine-tuning: its schedule and mini-batches, what it learns, and which weights it leaves."""

import threading
from dataclasses import dataclass

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, strategies as st
from torch import Tensor, nn

from rootstock.backbones import backbones
from rootstock.config.params import Finetune
from rootstock.dataset import shards
from rootstock.images import loader
from rootstock.system.parallel import cores
from rootstock.training import classifier, epoch, epochs, frozen_layers
from rootstock.training.checkpoints import Epoch, Saver, TrainingState
from rootstock.training.course import as_table
from rootstock.training.epoch import one_cycle
from rootstock.training.frozen_layers import Cache
from rootstock.training.ranks import ALONE, Ranks
from rootstock.training.split_images import Batches, SplitImages
from rootstock.training.step import TrainingStep
from rootstock.training.unfreezing import optimiser_of
from tests.fine_tuning import TRAIN, changed, copied, stages, start, tune
from tests.small_dataset import (
    small_backbone,
)  # fmt: skip

# The schedule


def test_the_learning_rate_rises_to_its_peak_and_falls_to_nearly_zero():
    positions = np.linspace(0, 1, 1001)
    rates = [one_cycle(position) for position in positions]
    peak = int(np.argmax(rates))
    assert (rates[0], rates[peak], rates[-1]) == pytest.approx((1 / 25, 1, 1e-4))
    assert positions[peak] == pytest.approx(epoch.WARM_UP)
    assert (np.diff(rates[: peak + 1]) > 0).all() and (np.diff(rates[peak:]) < 0).all()


@given(st.floats(0, 1))
def test_the_learning_rate_is_never_above_its_peak_or_below_zero(position):
    assert 0 < one_cycle(position) <= 1


# Mini-batches


@pytest.mark.parametrize(("batch_size", "steps"), [(500, 1), (71, 2), (32, 3)])
def test_every_image_is_seen_once_per_epoch_whatever_the_batch_size(base, tmp_path, batch_size, steps):
    """Also with batches larger than the training split, and with a single image."""
    model, sizes = start(base), []
    model.register_forward_hook(lambda module, given, logits: sizes.append((len(logits), module.training)))
    [epoch] = tune(model, base, stages(("last_block", 1), batch_size=batch_size), tmp_path / "checkpoint")
    trained = [size for size, training in sizes if training]
    assert sum(trained) == TRAIN and len(trained) == steps and max(trained) <= batch_size
    assert np.isfinite([epoch.train_loss, epoch.val_loss]).all()


@pytest.mark.parametrize(("batch_size", "expected"), [(71, [72]), (40, [40, 32]), (500, [72])])
def test_training_from_scratch_has_no_batch_of_one_image_which_would_have_no_statistics(
    base, tmp_path, batch_size, expected
):
    model, sizes = start(base), []
    model.frozen_statistics = False
    model.register_forward_hook(lambda module, given, logits: sizes.append((len(logits), module.training)))
    tune(model, base, stages(("all", 1), batch_size=batch_size), tmp_path / "checkpoint")
    assert [size for size, training in sizes if training] == expected


@pytest.mark.parametrize(("unfreeze", "is_warned"), [("last_half", True), ("all", False), ("auto", False)])
def test_a_warning_says_that_the_frozen_layers_of_random_weights_learn_nothing(
    base, tmp_path, caplog, unfreeze, is_warned
):
    model = start(base)
    model.frozen_statistics = False
    tune(model, base, stages((unfreeze, 1)), tmp_path / "checkpoint")
    assert ("random weights, and no stage trains all of its layers" in caplog.text) == is_warned


@given(st.integers(0, 500), st.integers(2, 70))
def test_batches_contain_all_images_and_a_single_last_one_joins_the_batch_before(images, batch_size):
    sizes, joined = loader.batch_sizes(images, batch_size), loader.batch_sizes(images, batch_size, lone=False)
    assert sum(sizes) == sum(joined) == images
    assert images == 1 or 1 not in joined
    assert joined[:-1] == sizes[: len(joined) - 1] and max(joined, default=0) <= batch_size + 1


@pytest.mark.parametrize("keeps_activations", [False, True])
@pytest.mark.parametrize("batch_size", [7, 16, 48])
def test_on_a_gpu_the_network_meets_one_thread_and_shape_and_one_precision(
    base, tmp_path, monkeypatch, caplog, batch_size, keeps_activations
):
    caplog.set_level("INFO")
    monkeypatch.setattr(classifier, "PLAN_FOR_SHAPES", ("cpu",))  # as on a GPU
    monkeypatch.setattr(classifier, "precision_on", lambda device: torch.bfloat16)
    monkeypatch.setattr(frozen_layers, "FLOAT16_ERROR", -1.0)  # a CPU's autocast knows no float16 beside bfloat16
    model, meets, to = start(base), set(), nn.Module.to

    def moved(module: nn.Module, *given: object, **named: object) -> nn.Module:
        if torch.device("cpu") in given:  # what is computed before is not computed there
            meets.clear()
        return to(module, *given, **named)

    monkeypatch.setattr(nn.Module, "to", moved)
    for name in ("conv1.0", "stage4.0.branch2.0"):  # of the frozen layers, and of those that are trained
        model.backbone.get_submodule(name).register_forward_hook(
            lambda _, given, y, name=name: meets.add((name, threading.get_ident(), len(given[0]), y.dtype))
        )
    settings = stages(("last_block", 3), ("all", 2), batch_size=batch_size, augment="none")
    activations = Cache(tmp_path / "activations", 1) if keeps_activations else None
    tune(model, base, settings, tmp_path / "checkpoint", activations=activations)
    assert ("frozen layers of stage 'last_block' are computed once" in caplog.text) == keeps_activations
    assert sorted((name, images, precision) for name, _, images, precision in meets) == [
        ("conv1.0", batch_size, torch.bfloat16),
        ("stage4.0.branch2.0", batch_size, torch.bfloat16),
    ]


def test_weights_and_activations_are_channels_last_in_training_and_validation(base, tmp_path):
    model, meets = start(base), set()
    for module in model.backbone.modules():
        if isinstance(module, nn.Conv2d) and module.kernel_size != (1, 1) and module.groups == 1:
            module.register_forward_pre_hook(
                lambda layer, given: meets.update(
                    (model.training, what.is_contiguous(memory_format=torch.channels_last))
                    for what in (layer.weight, *given)
                )
            )
    tune(model, base, stages(("all", 2), batch_size=16), tmp_path / "checkpoint")
    assert meets == {(True, True), (False, True)}


@dataclass(frozen=True)
class Two(Ranks):
    """The first of two processes; the other one has the same mini-batches."""

    size: int = 2

    def sum(self, value: Tensor) -> Tensor:
        return 2 * value


@pytest.mark.parametrize(("ranks", "looks"), [(ALONE, [*range(1, 37)]), (Two(), [10, 20, 30, 36])])
def test_several_processes_do_not_wait_for_the_loss_of_every_step(base, small, monkeypatch, ranks, looks):
    """To read it costs time: all wait until it is there. On a CPU alone it is there anyway."""
    seen, read, model, check, item = [], [], start(base), epoch.check_loss, Tensor.item

    def check_loss(*given) -> None:
        seen.append(given[4])
        check(*given)

    monkeypatch.setattr(epoch, "CHECKED_EVERY", 10)
    monkeypatch.setattr(epoch, "check_loss", check_loss)
    monkeypatch.setattr(Tensor, "item", lambda tensor: (read.append(len(seen)), item(tensor))[1])
    settings = stages(("head", 1), batch_size=2)
    transform = backbones.load(small_backbone(base)).transform
    step = TrainingStep(model, optimiser_of(model, settings.stages[0], settings), settings)
    step.ranks = ranks
    with shards.Reader(small.images) as reader:
        images = SplitImages(small.split("train"), small.images)
        batches = Batches(images, reader, transform, 2, torch.device("cpu"), ranks=ranks)
        save = Saver(lambda: None)
        run = epoch.Run(model, batches, batches, settings, (), 0, None, None, save, lambda n, **counts: None)
        epoch.train_epoch(run, step, batches, settings.stages[0], TrainingState())
    assert seen == looks
    assert read == [*range(1, len(looks) + 1), len(looks)]  # when it is looked at, and at the end


@pytest.mark.parametrize(
    ("device", "ranks", "every"), [("cpu", ALONE, 1), ("cpu", Two(), 100), ("cuda", ALONE, 100), ("cuda", Two(), 100)]
)
def test_a_gpu_is_not_waited_for_after_every_step(device, ranks, every):
    assert epoch.checked_every(torch.device(device), ranks) == every


def test_fine_tuning_says_how_it_decodes_unless_all_is_done(base, tmp_path, caplog):
    """On a GPU in the run's log, on a CPU for those who look for it."""
    said = f"fine_tune: decoding in {cores()} threads"
    for expected in ([said], []):
        with caplog.at_level("DEBUG"):
            tune(start(base), base, stages(("head", 1)), tmp_path / "checkpoint")
        assert [line for line in caplog.messages if "decoding in" in line] == expected
        caplog.clear()


# Results


def test_training_reduces_the_loss(base, tmp_path):
    model = start(base)
    nn.init.zeros_(model.head.weight)
    history = tune(model, base, stages(("all", 6), lr=3e-3), tmp_path / "checkpoint")
    losses = [epoch.train_loss for epoch in history]
    assert losses[-1] < 0.9 * losses[0]


def test_the_network_ends_with_the_weights_of_its_best_epoch(base, small, tmp_path):
    model = start(base)
    history = tune(model, base, stages(("all", 4), lr=5e-3), tmp_path / "checkpoint")  # too fast
    best = epochs.best_of(history)
    assert len({epoch.val_loss for epoch in history}) == 4
    val, transform = SplitImages(small.split("val"), small.images), backbones.load(small_backbone(base)).transform
    with shards.Reader(small.images) as reader:
        measured = epoch.validate(model, Batches(val, reader, transform, 32, torch.device("cpu")), None)
    assert measured == pytest.approx((best.val_loss, best.val_accuracy), rel=1e-5)


def test_fine_tuning_without_stages_changes_nothing_and_has_an_empty_history(base, tmp_path):
    model = start(base)
    before = copied(model)
    assert tune(model, base, Finetune(stages=()), tmp_path / "checkpoint") == []
    assert not changed(before, model) and not (tmp_path / "checkpoint").exists()
    as_table([], Epoch).to_parquet(tmp_path / "history.parquet", index=False)
    frame = pd.read_parquet(tmp_path / "history.parquet")
    assert list(frame) == ["stage", "unfrozen", "epoch", "train_loss", "val_loss", "val_accuracy"] and frame.empty


@pytest.mark.parametrize("augment", ["crop", "randaugment"])
def test_equal_seeds_give_equal_weights_and_different_ones_do_not(base, tmp_path, augment):
    def weights(seed: int) -> dict[str, Tensor]:
        model = start(base)
        tune(model, base, stages(("last_block", 1), augment=augment), tmp_path / f"{seed}", seed, inputs=f"{seed}")
        (tmp_path / f"{seed}").unlink()
        return copied(model)

    first = weights(1)
    assert all(torch.equal(value, first[name]) for name, value in weights(1).items())
    assert any(not torch.equal(value, first[name]) for name, value in weights(2).items())

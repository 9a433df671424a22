"""Fine-tuning: starts at the head's logits, goes stage by stage, and resumes to the same bytes."""

import threading
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, strategies as st
from torch import Tensor, nn

from rootstock.backbones import backbones
from rootstock.config.architectures import Transform
from rootstock.config.params import Finetune, Stage
from rootstock.dataset import shards
from rootstock.features.reader import Features
from rootstock.images import loader
from rootstock.system import progress
from rootstock.system.errors import ParamsError
from rootstock.training import classifier, epochs, finetune, head, step as step_module
from rootstock.training.checkpoints import Epoch
from rootstock.training.classifier import Classifier
from rootstock.training.finetune import fine_tune, one_cycle
from rootstock.training.split_images import Batches, SplitImages
from rootstock.training.step import TrainingStep
from rootstock.training.unfreezing import optimiser_of, parameters_by_block, unfrozen_from
from tests.small_dataset import (
    classifier_from,
    small_backbone,
    small_dataset,
    small_features,
    small_head,
)  # fmt: skip

# One has batch norms, one dropout, one both, and asks what is loaded for its version.
SHUFFLENET, SQUEEZENET, MNASNET = "shufflenet_v2_x0_5", "squeezenet1_1", "mnasnet0_5"
TRAIN = 72  # images


def start(base: Path, name: str = SHUFFLENET) -> Classifier:
    """Return the classifier that a run starts from."""
    return classifier_from(small_head(base, name), small_backbone(base, name))


def stages(*given: tuple[str, int], lr: float = 1e-3, **others) -> Finetune:
    return Finetune(stages=tuple(Stage(unfreeze=name, epochs=epochs, lr=lr) for name, epochs in given), **others)


def tune(model: Classifier, base: Path, settings: Finetune, checkpoint: Path, seed=0, inputs="these") -> list[Epoch]:
    small = small_dataset(base)
    train, val = (SplitImages(small.split(split), small.images) for split in ("train", "val"))
    transform = Transform.from_dict(backbones.describe(small_backbone(base))["transform"])
    return fine_tune(model, transform, train, val, settings, seed, checkpoint, inputs)


def copied(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def changed(before: dict[str, Tensor], model: nn.Module) -> set[str]:
    return {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}


# The start


@pytest.mark.parametrize("name", [SHUFFLENET, SQUEEZENET])
def test_the_start_is_exactly_the_head_on_the_frozen_features(base, small, name):
    rows = small.split("val").sort_values(["shard", "offset"])
    fitted = head.load(small_head(base, name))
    expected = np.concatenate([fitted.logits(x) for x, _ in Features(small_features(base, name), rows)])
    model, transform = start(base, name), backbones.load(small_backbone(base, name)).transform
    with shards.Reader(small.images) as reader:
        examples = SplitImages(rows, small.images)
        batches = Batches(examples, reader, transform, 8, torch.device("cpu"))
        got = np.concatenate(list(classifier.predict(model, batches(), 8)))
    np.testing.assert_allclose(got, expected, rtol=1e-3, atol=1e-3)
    assert expected.std() > 0.1


# What is trained


def test_a_stage_on_the_last_block_changes_that_and_the_head_alone(base, tmp_path):
    model = start(base)
    before = copied(model)
    tune(model, base, stages(("last_block", 2)), tmp_path / "checkpoint")
    inside = {id(parameter) for parameter in parameters_by_block(model.backbone)[-1][1]}
    trained = {name for name, value in model.named_parameters() if id(value) in inside or name.startswith("head.")}
    assert changed(before, model) == trained and len(trained) > 4


def test_a_stage_on_the_head_changes_the_head_alone(base, tmp_path):
    model = start(base)
    before = copied(model)
    tune(model, base, stages(("head", 1)), tmp_path / "checkpoint")
    assert changed(before, model) == {"head.weight", "head.bias"}


def test_batch_norm_keeps_the_statistics_of_the_pretrained_network(base, tmp_path):
    model = start(base)
    before = copied(model)
    tune(model, base, stages(("all", 2)), tmp_path / "checkpoint")
    after = changed(before, model)
    assert not any(name.endswith(("running_mean", "running_var", "num_batches_tracked")) for name in after)
    assert after == {name for name, _ in model.named_parameters()}


def test_training_switches_dropout_on_and_evaluation_off(base):
    model = start(base, SQUEEZENET).train()
    dropouts = [module for module in model.modules() if isinstance(module, nn.Dropout)]
    assert dropouts and all(module.training for module in dropouts)
    assert not any(module.training for module in model.eval().modules())


@pytest.mark.parametrize(
    ("unfreeze", "first"),
    [
        ("head", None),
        ("last_block", "stage4.3"),
        ("last_2_blocks", "stage4.2"),
        ("last_3_blocks", "stage4.1"),
        ("all", "conv1.0"),
        ("stage4", "stage4.0"),
        ("stage4.2", "stage4.2"),
        ("stage4.2.branch2.0", "stage4.2"),  # within a block: all of it
        ("conv1.1", "conv1.0"),  # a norm belongs to what it follows
        ("conv5", "stage4.3"),
    ],
)
def test_training_begins_at_the_block_that_is_named_or_holds_the_layer_that_is(base, unfreeze, first):
    network = start(base).backbone
    names = [name for name, _ in parameters_by_block(network)]
    assert unfrozen_from(network, unfreeze) == (names.index(first) if first else len(names))


def test_more_blocks_than_there_are_is_all_of_them():
    network = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    assert unfrozen_from(network, "last_3_blocks") == 0


@pytest.mark.parametrize(
    ("unfreeze", "nearest"),
    [("stage4.9", "stage4."), ("stage4.2.branch2.99", "stage4.2")],
)
def test_a_misspelt_layer_stops_before_training_and_names_the_nearest(base, tmp_path, unfreeze, nearest):
    model = start(base)
    before = copied(model)
    with pytest.raises(ParamsError) as error:
        tune(model, base, stages(("head", 1), (unfreeze, 1)), tmp_path / "checkpoint")
    said = str(error.value)
    assert said.startswith(
        f"params.yaml: finetune.stages[1].unfreeze is '{unfreeze}'; expected head, last_block, last_2_blocks, "
        "last_3_blocks, all, or a layer: conv1.0, stage2.0, "
    )
    assert f"Did you mean {nearest}" in said
    assert not changed(before, model) and not (tmp_path / "checkpoint").exists()


def test_a_layer_without_weights_is_not_a_layer_to_train_from(base):
    with pytest.raises(ParamsError, match="is 'maxpool'; expected head, last_block"):
        unfrozen_from(start(base).backbone, "maxpool")


def test_rates_fall_from_block_to_block_and_biases_and_norms_do_not_decay(base):
    model = start(base)
    settings = stages(("last_2_blocks", 1), lr=0.1, layer_decay=0.5, weight_decay=0.03)
    optimiser = optimiser_of(model, settings.stages[0], settings)
    groups = {id(parameter): group for group in optimiser.param_groups for parameter in group["params"]}
    blocks = parameters_by_block(model.backbone)
    for parameters, rate in ((model.head.parameters(), 0.1), (blocks[-1][1], 0.05), (blocks[-2][1], 0.025)):
        for parameter in parameters:
            group = groups.pop(id(parameter))
            assert group["peak"] == pytest.approx(rate)
            assert group["weight_decay"] == (0.03 if parameter.ndim > 1 else 0)
            assert parameter.requires_grad
    assert groups == {}
    assert not any(parameter.requires_grad for _, block in blocks[:-2] for parameter in block)


# The schedule


def test_the_rate_rises_to_its_peak_and_falls_to_nearly_nothing():
    positions = np.linspace(0, 1, 1001)
    rates = [one_cycle(position) for position in positions]
    peak = int(np.argmax(rates))
    assert (rates[0], rates[peak], rates[-1]) == pytest.approx((1 / 25, 1, 1e-4))
    assert positions[peak] == pytest.approx(finetune.WARM_UP)
    assert (np.diff(rates[: peak + 1]) > 0).all() and (np.diff(rates[peak:]) < 0).all()


@given(st.floats(0, 1))
def test_the_rate_is_never_above_its_peak_or_below_zero(position):
    assert 0 < one_cycle(position) <= 1


@pytest.mark.parametrize(("batch_size", "steps"), [(500, 1), (71, 2), (32, 3)])
def test_every_image_is_seen_once_an_epoch_whatever_the_batch_size(base, tmp_path, batch_size, steps):
    """Also with batches larger than the training split, and with a single image."""
    model, sizes = start(base), []
    model.register_forward_hook(lambda module, given, logits: sizes.append((len(logits), module.training)))
    [epoch] = tune(model, base, stages(("last_block", 1), batch_size=batch_size), tmp_path / "checkpoint")
    trained = [size for size, training in sizes if training]
    assert sum(trained) == TRAIN and len(trained) == steps and max(trained) <= batch_size
    assert np.isfinite([epoch.train_loss, epoch.val_loss]).all()


@pytest.mark.parametrize(("batch_size", "expected"), [(71, [72]), (40, [40, 32]), (500, [72])])
def test_from_scratch_no_batch_is_of_one_image_which_has_no_statistics(base, tmp_path, batch_size, expected):
    model, sizes = start(base), []
    model.frozen_statistics = False
    model.register_forward_hook(lambda module, given, logits: sizes.append((len(logits), module.training)))
    tune(model, base, stages(("all", 1), batch_size=batch_size), tmp_path / "checkpoint")
    assert [size for size, training in sizes if training] == expected


@given(st.integers(0, 500), st.integers(2, 70))
def test_batches_hold_all_images_and_a_lone_one_joins_the_batch_before(images, batch_size):
    sizes, joined = loader.batch_sizes(images, batch_size), loader.batch_sizes(images, batch_size, lone=False)
    assert sum(sizes) == sum(joined) == images
    assert images == 1 or 1 not in joined
    assert joined[:-1] == sizes[: len(joined) - 1] and max(joined, default=0) <= batch_size + 1


# Outputs


@pytest.mark.parametrize("batch_size", [16, 32])
def test_training_and_validation_meet_one_thread_and_one_shape(base, tmp_path, monkeypatch, batch_size):
    monkeypatch.setattr(classifier, "PLAN_FOR_SHAPES", ("cpu",))  # as on a GPU
    model, meets = start(base), set()
    model.backbone.register_forward_pre_hook(
        lambda network, given: meets.add((threading.get_ident(), tuple(given[0].shape)))
    )
    tune(model, base, stages(("last_block", 2), ("all", 2), batch_size=batch_size), tmp_path / "checkpoint")
    assert [images for _, (images, *_) in meets] == [batch_size]


class Cramped(nn.Module):
    """A backbone on a device whose memory holds some images at most."""

    def __init__(self, network: nn.Module, images: int) -> None:
        super().__init__()
        self.network, self.images, self.refused = network, images, 0

    def forward(self, batch: Tensor) -> Tensor:
        if len(batch) > self.images and torch.is_grad_enabled():
            self.refused += 1
            raise torch.OutOfMemoryError
        return self.network(batch)


def test_where_memory_is_short_gradients_of_parts_add_up_to_the_same_step(base, small, caplog):
    batch, target = torch.randint(0, 256, (16, 3, 32, 32), dtype=torch.uint8), torch.arange(16) % 3
    settings = stages(("all", 1))
    steps = []
    for images in (16, 5):
        model = start(base).eval()
        optimiser = optimiser_of(model, settings.stages[0], settings)
        model.backbone = Cramped(model.backbone, images)
        step = TrainingStep(model, optimiser, settings)
        losses = [step(batch, target).item() for _ in range(2)]
        steps.append((step, losses, {name: p.grad for name, p in model.named_parameters()}))
    (whole, losses, gradients), (parts, losses_of_parts, gradients_of_parts) = steps
    assert (whole.parts, parts.parts, parts.model.backbone.refused) == (1, 4, 2)  # 16, then 8, then 4 at a time
    assert losses_of_parts == pytest.approx(losses, rel=1e-3)
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradients_of_parts[name], gradient, rtol=5e-2, atol=5e-4)
    assert "not enough memory for a mini-batch of 16 images: computed in 4 parts" in caplog.text


def test_an_image_that_does_not_fit_alone_is_an_error(base):
    model = start(base)
    settings = stages(("all", 1))
    optimiser = optimiser_of(model, settings.stages[0], settings)
    model.backbone = Cramped(model.backbone, 0)
    with pytest.raises(torch.OutOfMemoryError):
        TrainingStep(model, optimiser, settings)(
            torch.zeros(4, 3, 32, 32, dtype=torch.uint8), torch.zeros(4, dtype=torch.long)
        )


def test_training_learns_in_float16_with_a_scaler_whose_state_survives_a_stop(base, tmp_path, monkeypatch):
    for module in (classifier, step_module):
        monkeypatch.setattr(module, "precision_on", lambda device: torch.float16)
    model = start(base)
    nn.init.zeros_(model.head.weight)
    history = tune(model, base, stages(("all", 6), lr=3e-3), tmp_path / "checkpoint")
    assert history[-1].train_loss < 0.95 * history[0].train_loss
    scaler = torch.load(tmp_path / "checkpoint", weights_only=True)["scaler"]
    assert scaler["scale"] > 0 and scaler["_growth_tracker"] > 0
    again = tune(start(base), base, stages(("all", 6), ("all", 1), lr=3e-3), tmp_path / "checkpoint")
    assert again[:6] == history


def test_training_learns(base, tmp_path):
    model = start(base)
    nn.init.zeros_(model.head.weight)
    history = tune(model, base, stages(("all", 6), lr=3e-3), tmp_path / "checkpoint")
    losses = [epoch.train_loss for epoch in history]
    assert losses[-1] < 0.9 * losses[0]


def test_the_network_is_left_as_it_was_after_its_best_epoch(base, small, tmp_path):
    model = start(base)
    history = tune(model, base, stages(("all", 4), lr=0.03), tmp_path / "checkpoint")  # much too fast
    best = epochs.best_of(history)
    assert len({epoch.val_loss for epoch in history}) == 4
    val, transform = SplitImages(small.split("val"), small.images), backbones.load(small_backbone(base)).transform
    with shards.Reader(small.images) as reader:
        measured = finetune._validate(model, Batches(val, reader, transform, 32, torch.device("cpu")))
    assert measured == pytest.approx((best.val_loss, best.val_accuracy), rel=1e-5)


def test_of_epochs_with_equal_accuracy_the_lower_loss_is_better_and_of_equals_the_first():
    def epoch(number: int, accuracy: float, loss: float) -> Epoch:
        return Epoch(0, "all", number, 0.0, loss, accuracy)

    assert (
        epochs.best_of([epoch(0, 0.9, 0.1), epoch(1, 0.95, 0.5), epoch(2, 0.95, 0.4), epoch(3, 0.95, 0.4)]).epoch == 2
    )


def test_without_stages_the_network_stays_as_it_is_and_the_history_is_empty(base, tmp_path):
    model = start(base)
    before = copied(model)
    assert tune(model, base, Finetune(stages=()), tmp_path / "checkpoint") == []
    assert not changed(before, model) and not (tmp_path / "checkpoint").exists()
    epochs.write_history([], tmp_path / "history.parquet")
    frame = pd.read_parquet(tmp_path / "history.parquet")
    assert list(frame) == ["stage", "unfrozen", "epoch", "train_loss", "val_loss", "val_accuracy"] and frame.empty


def test_the_history_has_a_row_an_epoch(base, tmp_path):
    history = tune(start(base), base, stages(("head", 1), ("all", 2)), tmp_path / "checkpoint")
    epochs.write_history(history, tmp_path / "history.parquet")
    frame = pd.read_parquet(tmp_path / "history.parquet")
    assert list(zip(frame["stage"], frame["unfrozen"], frame["epoch"], strict=True)) == [
        (0, "head", 0), (1, "all", 0), (1, "all", 1),
    ]  # fmt: skip
    assert frame["val_accuracy"].between(0, 1).all() and (frame["train_loss"] > 0).all()


@pytest.mark.parametrize("name", [SHUFFLENET, MNASNET])
def test_a_classifier_is_read_as_it_was_written(base, tmp_path, name):
    model, other = start(base, name), start(base, name)
    nn.init.normal_(model.head.weight)
    classifier.save(model, tmp_path / "model.safetensors")
    assert changed(copied(model), other) == {"head.weight"}
    classifier.load(other, tmp_path / "model.safetensors")
    assert not changed(copied(model), other)


@pytest.mark.parametrize("augment", ["crop", "crop_flip"])
def test_equal_seeds_give_equal_weights_and_others_do_not(base, tmp_path, augment):
    def weights(seed: int) -> dict[str, Tensor]:
        model = start(base)
        tune(model, base, stages(("last_block", 1), augment=augment), tmp_path / f"{seed}", seed, inputs=f"{seed}")
        (tmp_path / f"{seed}").unlink()
        return copied(model)

    first = weights(1)
    assert all(torch.equal(value, first[name]) for name, value in weights(1).items())
    assert any(not torch.equal(value, first[name]) for name, value in weights(2).items())


# Interruption


class StoppedError(Exception):
    """Simulates the end of a run."""


@contextmanager
def stopping_after(images: int):
    """Report progress to a caller that stops the run after a number of images."""

    @contextmanager
    def reporter(what: str, total: int, unit: str):
        done = 0

        def advance(n: int) -> None:
            nonlocal done
            done += n
            if done > images:
                raise StoppedError

        yield advance

    with progress.report_to(reporter):
        yield


TWO_STAGES = stages(("last_block", 2), ("all", 2), augment="crop_flip", batch_size=16, layer_decay=0.9)


def result(model: Classifier, history: list[Epoch], folder: Path) -> tuple[bytes, bytes]:
    """Return the bytes of the stage's output."""
    classifier.save(model, folder / "model.safetensors")
    epochs.write_history(history, folder / "history.parquet")
    return (folder / "model.safetensors").read_bytes(), (folder / "history.parquet").read_bytes()


@pytest.mark.parametrize(
    ("name", "stops"),
    [
        pytest.param(SHUFFLENET, [TRAIN + 20], marks=pytest.mark.slow),  # in the second epoch of the first stage
        (SHUFFLENET, [2 * TRAIN, 3 * TRAIN + 1]),  # between the stages, then in the last epoch
        pytest.param(MNASNET, [TRAIN], marks=pytest.mark.slow),  # between the epochs of the first stage
        (SQUEEZENET, [10, 3 * TRAIN]),  # before anything is done, then after the first epoch of the second stage
    ],
)
def test_a_run_that_was_stopped_ends_with_the_bytes_of_an_undisturbed_one(base, tmp_path, name, stops):
    undisturbed = start(base, name)
    expected = result(undisturbed, tune(undisturbed, base, TWO_STAGES, tmp_path / "undisturbed"), tmp_path)
    for stop in stops:
        with stopping_after(stop), pytest.raises(StoppedError):
            tune(start(base, name), base, TWO_STAGES, tmp_path / "stopped")
    resumed, trained = start(base, name), []
    resumed.register_forward_hook(lambda module, given, logits: trained.append(len(logits) * module.training))
    assert result(resumed, tune(resumed, base, TWO_STAGES, tmp_path / "stopped"), tmp_path) == expected
    assert sum(trained) == 4 * TRAIN - stops[-1] // TRAIN * TRAIN  # whole epochs are not done again


def test_a_finished_run_is_not_trained_again_while_its_checkpoint_is_there(base, tmp_path):
    first, again = start(base), start(base)
    history = tune(first, base, stages(("last_block", 1)), tmp_path / "checkpoint")
    again.register_forward_hook(lambda *_: pytest.fail("an image was shown"))
    assert tune(again, base, stages(("last_block", 1)), tmp_path / "checkpoint") == history
    assert not changed(copied(first), again)


def test_a_checkpoint_of_other_inputs_is_not_resumed_from(base, tmp_path):
    expected = start(base)
    history = tune(expected, base, stages(("last_block", 1)), tmp_path / "one", inputs="these")
    with stopping_after(TRAIN), suppress(StoppedError):
        tune(start(base), base, stages(("all", 3)), tmp_path / "two", inputs="others")
    assert (tmp_path / "two").exists()
    model = start(base)
    assert tune(model, base, stages(("last_block", 1)), tmp_path / "two", inputs="these") == history
    assert not changed(copied(expected), model)


def test_progress_is_counted_in_images_and_resumes_with_the_run(base, tmp_path):
    with stopping_after(TRAIN), suppress(StoppedError):
        tune(start(base), base, stages(("last_block", 2)), tmp_path / "checkpoint")
    reported = []

    @contextmanager
    def reporter(what: str, total: int, unit: str):
        reported.append((what, total, unit))
        yield reported.append

    with progress.report_to(reporter):
        tune(start(base), base, stages(("last_block", 2)), tmp_path / "checkpoint")
    assert reported[:2] == [("fine_tune", 2 * TRAIN, "images"), TRAIN]
    assert sum(reported[1:]) == 2 * TRAIN


# Where training ends at a limit


def epochs_with(*losses: float) -> list[Epoch]:
    """Return epochs of one stage; the one with the lowest loss is the most accurate."""
    return [Epoch(0, "all", number, loss, loss, 1 - loss) for number, loss in enumerate(losses)]


@pytest.mark.parametrize(
    ("losses", "says"),
    [
        ((0.2, 0.3, 0.4), "try a lower learning rate"),
        ((0.4, 0.3, 0.2), "try more epochs"),
        ((0.4, 0.21, 0.2), None),  # the rate has run out, and the loss stands
        ((0.4, 0.2, 0.3), None),
        ((0.2, 0.3), None),
        ((), None),
    ],
)
def test_a_best_epoch_that_is_first_or_still_improving_warns(losses, says):
    found = epochs.warnings(epochs_with(*losses))
    assert len(found) == (says is not None)
    assert all(says in warning for warning in found)


def test_a_diverging_loss_stops_the_training_and_names_the_learning_rate(base, tmp_path):
    model = start(base)
    with torch.no_grad():
        model.head.bias[0] = float("inf")
    with pytest.raises(ParamsError, match=r"params.yaml: lr is 0.001 in the stage that unfreezes all.*a lower lr"):
        tune(model, base, stages(("all", 1)), tmp_path / "checkpoint")
    assert not (tmp_path / "checkpoint").exists()

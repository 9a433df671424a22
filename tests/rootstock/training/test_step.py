"""A training step: gradients of parts where memory is short, and the loss scaler of float16."""

from weakref import ReferenceType, ref

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from rootstock.training import classifier, step as step_module
from rootstock.training.checkpoints import TrainingState
from rootstock.training.step import TrainingStep
from rootstock.training.targets import NO_CLASS
from rootstock.training.unfreezing import optimiser_of
from tests.fine_tuning import stages, start, tune


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


def test_gradients_of_parts_add_up_to_the_same_step_where_memory_is_short(base, small, caplog):
    batch, target = torch.randint(0, 256, (16, 3, 32, 32), dtype=torch.uint8), torch.arange(16) % 3
    settings = stages(("all", 1))
    steps = []
    for images in (16, 5):
        model = start(base).eval()
        optimiser = optimiser_of(model, settings.stages[0], settings)
        model.backbone = Cramped(model.backbone, images)
        step = TrainingStep(model, optimiser, settings)
        losses = [step(batch, target).item()]
        gradients = {name: p.grad.clone() for name, p in model.named_parameters()}  # Adam magnifies rounding after it
        steps.append((step, [*losses, step(batch, target).item()], gradients))
    (whole, losses, gradients), (parts, losses_of_parts, gradients_of_parts) = steps
    assert (whole.parts, parts.parts, parts.model.backbone.refused) == (1, 4, 2)  # 16, then 8, then 4 at a time
    assert losses_of_parts == pytest.approx(losses, rel=1e-3)
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradients_of_parts[name], gradient, rtol=1e-3, atol=1e-5)
    assert "not enough memory for a mini-batch of 16 images: computed in 4 parts" in caplog.text


@pytest.mark.parametrize("parts", [1, 4])
def test_class_weights_count_an_image_by_the_weight_of_its_class(base, parts):
    batch, target = torch.randint(0, 256, (16, 3, 32, 32), dtype=torch.uint8), torch.arange(16) % 3
    target[3] = NO_CLASS
    weights, settings, model = np.float32([0.2, 2.0, 0.8]), stages(("all", 1)), start(base).eval()
    optimiser = optimiser_of(model, settings.stages[0], settings)
    losses = functional.cross_entropy(
        model(batch), target, reduction="none", label_smoothing=settings.label_smoothing, ignore_index=NO_CLASS
    )
    counted = target != NO_CLASS
    expected = (losses[counted] * torch.from_numpy(weights)[target[counted]]).mean()
    [gradient] = torch.autograd.grad(expected, [model.head.bias])
    found = TrainingStep(model, optimiser, settings, parts, class_weights=weights)(batch, target)
    assert found.item() == pytest.approx(expected.item(), rel=1e-4)
    ratio = model.head.bias.grad / gradient  # the norm of all gradients is bounded
    torch.testing.assert_close(ratio, ratio[:1].expand(3), rtol=1e-3, atol=0)


def test_a_single_image_that_does_not_fit_into_memory_is_an_error(base):
    model = start(base)
    settings = stages(("all", 1))
    optimiser = optimiser_of(model, settings.stages[0], settings)
    model.backbone = Cramped(model.backbone, 0)
    with pytest.raises(torch.OutOfMemoryError):
        TrainingStep(model, optimiser, settings)(
            torch.zeros(4, 3, 32, 32, dtype=torch.uint8), torch.zeros(4, dtype=torch.long)
        )


def test_a_checkpoint_of_another_kind_of_device_leaves_rates_as_this_one_reads_them(base):
    settings, state = stages(("all", 1)), TrainingState()
    model = start(base)
    optimiser = optimiser_of(model, settings.stages[0], settings)
    step = TrainingStep(model, optimiser, settings)
    batch, target = torch.zeros(4, 3, 32, 32, dtype=torch.uint8), torch.arange(4) % 3
    step(batch, target)
    step.keep_in(state)
    for group in state.optimiser["param_groups"]:  # as a GPU's
        group["lr"], group["capturable"] = torch.tensor(group["lr"]), True
    step.resume(state)
    step.set_learning_rate(0.5)
    assert [group["lr"] for group in optimiser.param_groups] == [group["peak"] / 2 for group in optimiser.param_groups]
    assert not any(group["capturable"] for group in optimiser.param_groups)
    step(batch, target)


def test_memory_that_runs_out_in_an_update_is_an_error_as_half_of_it_may_be_done(base):
    model, settings = start(base), stages(("all", 1))
    optimiser = optimiser_of(model, settings.stages[0], settings)

    def full() -> None:
        raise torch.OutOfMemoryError

    optimiser.step = full
    step = TrainingStep(model, optimiser, settings)
    with pytest.raises(torch.OutOfMemoryError):
        step(torch.zeros(4, 3, 32, 32, dtype=torch.uint8), torch.zeros(4, dtype=torch.long))
    assert step.parts == 1


def test_activations_are_freed_before_a_mini_batch_is_computed_in_parts(base, monkeypatch):
    model, settings, alive = start(base), stages(("all", 1)), []
    optimiser = optimiser_of(model, settings.stages[0], settings)
    held: list[ReferenceType[Tensor]] = []

    class Refuses(nn.Module):
        def __init__(self, network: nn.Module) -> None:
            super().__init__()
            self.network = network

        def forward(self, batch: Tensor) -> Tensor:
            activations = self.network(batch)
            if len(batch) == 4:
                held.append(ref(activations))
                raise torch.OutOfMemoryError
            alive.append(held[0]() is not None)
            return activations

    model.backbone = Refuses(model.backbone)
    TrainingStep(model, optimiser, settings)(
        torch.zeros(4, 3, 32, 32, dtype=torch.uint8), torch.zeros(4, dtype=torch.long)
    )
    assert alive == [False, False]


def test_training_in_float16_learns_and_its_loss_scaler_survives_an_interruption(base, tmp_path, monkeypatch):
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

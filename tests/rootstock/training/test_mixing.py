"""Mixup and CutMix: pixels and labels are mixed in the same shares, and training goes on as from an interruption."""

import numpy as np
import pytest
import torch
from torch.nn import functional

from rootstock.config.params import Regularization
from rootstock.training.mixing import Mixing
from rootstock.training.step import TrainingStep
from rootstock.training.targets import NO_CLASS
from rootstock.training.unfreezing import optimiser_of
from tests.fine_tuning import changed, copied, stages, start, tune
from tests.rootstock.training.test_checkpoints import StoppedError, stopping_after

BOTH = Regularization(mixup=0.4, cutmix=1.0)


def one_value_each(images: int) -> torch.Tensor:
    """Return images (n, 3, 8, 8) whose pixels all have their number as value."""
    return torch.arange(images, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 3, 8, 8)


@pytest.mark.parametrize("settings", [Regularization(mixup=0.4), Regularization(cutmix=1.0)], ids=["mixup", "cutmix"])
def test_labels_are_mixed_in_the_shares_of_the_pixels(settings):
    torch.manual_seed(1)
    mixed_at_all = 0
    for _ in range(20):
        batch, target = Mixing(settings, 6)(one_value_each(6), torch.arange(6))
        assert batch.dtype == target.dtype == torch.float32 and target.shape == (6, 6)
        assert target.sum(1) == pytest.approx(1)
        assert batch.mean((1, 2, 3)).numpy() == pytest.approx((target @ torch.arange(6.0)).numpy(), abs=1e-4)
        mixed_at_all += bool((target.max(1).values < 0.999).any())
    assert mixed_at_all > 10


def test_with_both_each_mini_batch_has_one_of_them():
    torch.manual_seed(0)
    mixing = Mixing(BOTH, 6)
    is_blended = [len(mixing(one_value_each(6), torch.arange(6))[0][1].unique()) == 1 for _ in range(100)]
    assert 30 < sum(is_blended) < 80  # a rectangle leaves two values in an image, or cuts nothing
    assert not Mixing(Regularization(), 6)


@pytest.mark.parametrize("weights", [None, np.float32([0.2, 2.0, 0.8])])
@pytest.mark.parametrize("parts", [1, 3])
def test_the_loss_of_mixed_images_counts_labels_by_their_shares(base, weights, parts):
    model = start(base).eval()
    pixels, target = torch.randint(0, 256, (12, 3, 32, 32), dtype=torch.uint8), torch.arange(12) % 3
    target[4] = NO_CLASS
    settings = stages(("all", 1), regularization=BOTH)
    torch.manual_seed(5)
    mixed, shares = Mixing(BOTH, 3)(pixels, target)
    logs = functional.log_softmax(model(mixed), 1)
    smooth = settings.label_smoothing
    total, of_classes = shares.sum(1), torch.ones(3) if weights is None else torch.from_numpy(weights)
    soft = (1 - smooth) * shares + smooth / 3
    expected = (-(soft * logs).sum(1) * (shares @ of_classes)).sum() / total.sum()
    step = TrainingStep(
        model, optimiser_of(model, settings.stages[0], settings), settings, parts, class_weights=weights
    )
    torch.manual_seed(5)
    assert step(pixels, target).item() == pytest.approx(expected.item(), rel=1e-4)


def test_an_interrupted_run_mixes_as_an_uninterrupted_one(base, tmp_path):
    settings = stages(("last_block", 2), regularization=BOTH, batch_size=16, checkpoint_minutes=0)
    undisturbed, resumed = start(base), start(base)
    expected = tune(undisturbed, base, settings, tmp_path / "undisturbed")
    with stopping_after(100), pytest.raises(StoppedError):
        tune(start(base), base, settings, tmp_path / "stopped")
    assert tune(resumed, base, settings, tmp_path / "stopped") == expected
    assert not changed(copied(undisturbed), resumed)

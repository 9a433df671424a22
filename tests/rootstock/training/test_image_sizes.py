"""Progressive resizing: earlier epochs of a stage have smaller images, the last one the network's own size."""

import pytest
from hypothesis import given, strategies as st
from torch import nn

from rootstock.backbones.networks import build
from rootstock.config.architectures import Transform
from rootstock.images.loader import Normalise
from rootstock.system.errors import ParamsError
from rootstock.training.image_sizes import check_sizes, size_in
from tests.fine_tuning import changed, copied, stages, start, tune
from tests.rootstock.training.test_checkpoints import StoppedError, stopping_after


def of_epochs(epochs: int, sizes: tuple[int, ...], full: int) -> list[int]:
    return [size_in(epoch, epochs, sizes, full) for epoch in range(epochs)]


def test_each_size_has_its_share_of_the_epochs():
    assert of_epochs(5, (64, 80), 96) == [64, 80, 80, 96, 96]
    assert of_epochs(6, (64,), 96) == [64] * 3 + [96] * 3
    assert of_epochs(1, (64, 80), 96) == [96] and of_epochs(2, (64, 80), 96) == [80, 96]
    assert of_epochs(3, (), 96) == [96] * 3


@given(st.integers(1, 40), st.lists(st.integers(8, 95), max_size=6, unique=True).map(sorted))
def test_sizes_never_fall_and_end_with_the_networks_own(epochs, sizes):
    found = of_epochs(epochs, tuple(sizes), 96)
    assert found == sorted(found) and found[-1] == 96 and set(found) <= {*sizes, 96}
    counts = [found.count(size) for size in (*sizes, 96)]
    assert max(counts) - min(counts) <= 1


def test_the_network_is_trained_at_these_sizes_and_validated_at_its_own(base, tmp_path):
    model, seen = start(base), []
    hook = model.register_forward_hook(lambda module, given, _: seen.append((module.training, given[0].shape[-1])))
    tune(model, base, stages(("all", 2), sizes=(24,), batch_size=72), tmp_path / "checkpoint")
    hook.remove()
    assert [size for training, size in seen if training] == [24, 32]
    after = seen[seen.index((True, 24)) :]
    assert {size for training, size in after if not training} == {32}


def test_an_interrupted_run_goes_on_with_the_sizes_of_an_uninterrupted_one(base, tmp_path):
    settings = stages(("all", 3), sizes=(16, 24), batch_size=16, checkpoint_minutes=0)
    undisturbed, resumed = start(base), start(base)
    expected = tune(undisturbed, base, settings, tmp_path / "undisturbed")
    with stopping_after(120), pytest.raises(StoppedError):
        tune(start(base), base, settings, tmp_path / "stopped")
    assert tune(resumed, base, settings, tmp_path / "stopped") == expected
    assert not changed(copied(undisturbed), resumed)


@pytest.mark.parametrize("size", [32, 40])
def test_a_size_that_is_not_below_the_networks_own_is_refused(base, tmp_path, size):
    with pytest.raises(ParamsError, match=f"finetune.sizes has {size}; expected sizes below the network's own: 32"):
        tune(start(base), base, stages(("all", 1), sizes=(16, size)), tmp_path / "checkpoint")


@pytest.mark.parametrize("name", ["resnet18", "timm/vit_tiny_patch16_224"])
def test_a_network_of_a_fixed_size_refuses_other_sizes(name):
    model = nn.Sequential(Normalise(Transform(32, 32, "bilinear", (0.5,) * 3, (0.5,) * 3)), build(name, 32))
    if name == "resnet18":
        check_sizes(model, (16,), 32)
        return
    with pytest.raises(ParamsError, match=r"finetune\.sizes has 16, which the network does not accept"):
        check_sizes(model, (16,), 32)

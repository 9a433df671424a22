"""Which layers a stage trains, and at which learning rates."""

import pytest
import torch
from torch import nn

from rootstock.backbones.networks import build
from rootstock.system.errors import ParamsError
from rootstock.training.unfreezing import default_layer_decay, optimiser_of, parameters_by_block, unfrozen_blocks
from tests.fine_tuning import changed, copied, stages, start, tune


def test_a_stage_on_the_last_block_changes_only_that_block_and_the_head(base, tmp_path):
    model = start(base)
    before = copied(model)
    tune(model, base, stages(("last_block", 2)), tmp_path / "checkpoint")
    inside = {id(parameter) for parameter in parameters_by_block(model.backbone)[-1][1]}
    trained = {name for name, value in model.named_parameters() if id(value) in inside or name.startswith("head.")}
    assert changed(before, model) == trained and len(trained) > 4


def test_a_stage_on_the_head_changes_only_the_head(base, tmp_path):
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


@pytest.mark.parametrize(
    ("unfreeze", "first"),
    [
        ("head", None),
        ("last_block", "stage4.3"),
        ("last_2_blocks", "stage4.2"),
        ("last_3_blocks", "stage4.1"),
        ("last_half", "stage3.4"),  # 8 of 17 blocks
        ("all", "conv1.0"),
        ("stage4", "stage4.0"),
        ("stage4.2", "stage4.2"),
        ("stage4.2.branch2.0", "stage4.2"),  # within a block: all of it
        ("conv1.1", "conv1.0"),  # a norm belongs to what it follows
        ("conv5", "stage4.3"),
    ],
)
def test_training_begins_at_the_named_block_or_at_the_one_that_contains_the_named_layer(base, unfreeze, first):
    network = start(base).backbone
    names = [name for name, _ in parameters_by_block(network)]
    expected = names[names.index(first) :] if first else []
    assert [names[index] for index in unfrozen_blocks(network, unfreeze)] == expected


@pytest.mark.parametrize(
    ("unfreeze", "expected"),
    [
        ("first_block", ["conv1.0"]),
        (("stage4.1", "stage2.0"), ["stage2.0", "stage4.1"]),
        (("first_block", "last_block", "first_block"), ["conv1.0", "stage4.3"]),
        (("stage4", "stage2.0.branch2.0"), ["stage2.0", "stage4.0", "stage4.1", "stage4.2", "stage4.3"]),
    ],
)
def test_only_the_first_block_or_the_listed_ones_are_trained(base, unfreeze, expected):
    """Surgical fine-tuning (Lee et al. 2023): the earlier layers alone, where the images look different."""
    model = start(base)
    blocks = dict(parameters_by_block(model.backbone))
    names = list(blocks)
    settings = stages((unfreeze, 1), lr=0.1, layer_decay=0.5)
    optimiser = optimiser_of(model, settings.stages[0], settings)
    assert [name for name in names if all(parameter.requires_grad for parameter in blocks[name])] == expected
    assert not any(parameter.requires_grad for name in names if name not in expected for parameter in blocks[name])
    rates = {id(parameter): group["peak"] for group in optimiser.param_groups for parameter in group["params"]}
    for name in expected:
        assert rates[id(blocks[name][0])] == pytest.approx(0.1 * 0.5 ** (len(names) - names.index(name)))


def test_training_the_first_block_changes_nothing_above_it_but_the_head(base, tmp_path):
    model = start(base)
    before = copied(model)
    [epoch] = tune(model, base, stages((("first_block",), 1)), tmp_path / "checkpoint")
    assert epoch.unfrozen == "first_block"
    assert {name.split(".")[1] for name in changed(before, model) if name.startswith("backbone")} == {"conv1"}


def test_a_list_that_names_no_block_is_refused_and_the_nearest_is_suggested(base):
    with pytest.raises(ParamsError) as error:
        unfrozen_blocks(start(base).backbone, ("stage4.1", "stage5.1"), "finetune.stages[0].unfreeze")
    assert str(error.value).startswith(
        "params.yaml: finetune.stages[0].unfreeze is 'stage5.1'; expected first_block, last_block, or a layer: conv1.0"
    )
    assert "Did you mean stage" in str(error.value)


def test_unfreezing_more_blocks_than_there_are_unfreezes_all():
    network = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    assert list(unfrozen_blocks(network, "last_3_blocks")) == [0, 1]


@pytest.mark.parametrize(
    ("unfreeze", "nearest"),
    [("stage4.9", "stage4."), ("stage4.2.branch2.99", "stage4.2")],
)
def test_a_misspelt_layer_is_refused_before_training_and_the_nearest_is_suggested(base, tmp_path, unfreeze, nearest):
    model = start(base)
    before = copied(model)
    with pytest.raises(ParamsError) as error:
        tune(model, base, stages(("head", 1), (unfreeze, 1)), tmp_path / "checkpoint")
    said = str(error.value)
    assert said.startswith(
        f"params.yaml: finetune.stages[1].unfreeze is '{unfreeze}'; expected head, last_block, last_2_blocks, "
        "last_3_blocks, last_half, all, first_block, lora, auto, or a layer: conv1.0, stage2.0, "
    )
    assert f"Did you mean {nearest}" in said
    assert not changed(before, model) and not (tmp_path / "checkpoint").exists()


def test_a_layer_without_weights_is_refused(base):
    with pytest.raises(ParamsError, match="is 'maxpool'; expected head, last_block"):
        unfrozen_blocks(start(base).backbone, "maxpool")


def test_learning_rates_fall_from_block_to_block_and_biases_and_norms_have_no_weight_decay(base):
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


def test_all_parameters_are_updated_by_one_fused_kernel(base):
    model, settings = start(base), stages(("all", 1))
    optimiser = optimiser_of(model, settings.stages[0], settings)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    with torch.profiler.profile() as profile:
        optimiser.step()
    calls = {event.key: event.count for event in profile.key_averages() if "adam" in event.key.lower()}
    assert calls.get("aten::_fused_adamw_") == len(optimiser.param_groups)


@pytest.mark.parametrize(
    ("name", "expected"),
    [("vit_b_32", 0.75), ("timm/vit_tiny_patch16_224", 0.75), ("swin_t", 1.0), ("resnet18", 1.0), ("maxvit_t", 1.0)],
)
def test_earlier_blocks_of_vision_transformers_learn_more_slowly_by_default(name, expected):
    with torch.device("meta"):
        assert default_layer_decay(build(name, 224)) == expected

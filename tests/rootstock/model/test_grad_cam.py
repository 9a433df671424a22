"""Grad-CAM finds where the evidence for a class lies, whatever the architecture and the kind of head."""

import numpy as np
import pytest
import torch
from captum.attr import LayerGradCam

from rootstock.backbones import backbones, depths
from rootstock.backbones.backbones import transform_of
from rootstock.backbones.networks import build
from rootstock.config.params import Backbone
from rootstock.features.feature_spec import FeatureSpec
from rootstock.model import grad_cam
from rootstock.model.model import Model
from rootstock.training.classifier import Classifier
from rootstock.training.head import Head
from tests.small_dataset import small_backbone

SIZE, CLASSES = 64, ["a", "b", "c"]


def head(width: int, kind: str = "logistic") -> Head:
    draw = np.random.default_rng(0)
    if kind == "knn":
        exemplars = {"exemplar_classes": np.arange(30) % 3, "center": np.zeros(width, np.float32), "neighbours": 5}
        weight = draw.normal(size=(30, width)).astype(np.float32)
        return Head(weight, np.zeros(3, np.float32), CLASSES, 0.0, kind="knn", **exemplars)
    weight = draw.normal(size=(3, width)).astype(np.float32)
    center = np.zeros(width, np.float32) if kind == "prototype" else None
    return Head(weight, np.zeros(3, np.float32), CLASSES, 1.0, kind=kind, center=center)


def model(name: str, layer: str = "penultimate", pooling: str = "avg", kind: str = "logistic") -> Model:
    torch.manual_seed(0)
    transform = transform_of(Backbone(name=name, image_size=SIZE))
    network = depths.cut(build(name, SIZE, None).eval(), name, layer, pooling).eval()
    width = depths.feature_width(network, SIZE)
    return Model(Classifier(network, transform, head(width, kind)), FeatureSpec(transform, layer, pooling), CLASSES)


def images(count: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, 3, SIZE, SIZE), np.uint8)


@pytest.mark.parametrize(
    ("name", "layer", "pooling", "explained"),
    [
        ("resnet18", "penultimate", "avg", "layer4"),
        ("squeezenet1_1", "penultimate", "avg", "features.12"),
        ("resnet18", "low", "gem", "layer1"),
        ("swin_t", "penultimate", "avg", "norm"),
        ("timm/vit_tiny_patch16_224", "penultimate", "avg", "blocks.11.norm1"),  # by its class token
        ("timm/vit_tiny_patch16_224", "mid", "cls", "blocks.8.norm1"),
        ("timm/vit_tiny_patch16_224", "mid", "avg", "blocks.8"),
    ],
)
def test_every_family_is_explained_by_its_last_layer_that_the_scores_depend_on(name, layer, pooling, explained):
    asked = model(name, layer, pooling)
    cam = grad_cam.start(asked, name)
    assert cam.layer == explained
    maps = cam(images(3), [0, 1, 2])
    assert maps.shape == (3, SIZE, SIZE) and maps.dtype == np.float32
    assert maps.min() >= 0 and set(maps.max((1, 2)).round(5)) <= {0, 1} and maps.max() == 1
    assert not cam.network.backbone.training
    hooks = [module for module in cam.network.modules() if module._forward_hooks]
    assert len(hooks) == (layer != "penultimate")  # the cut alone
    assert asked.network.training and cam.network.head.weight is asked.network.head.weight


def test_the_maps_are_captums_for_the_layer_itself():
    asked, pixels = model("resnet18"), images(2)
    network = asked.network.eval()
    inputs = network.normalise(torch.from_numpy(pixels)).requires_grad_()

    def centred(x: torch.Tensor) -> torch.Tensor:
        logits = network.head(network.backbone(x))
        return logits - logits.mean(1, keepdim=True)

    layer = LayerGradCam(centred, network.backbone.layer4)
    own = layer.attribute(inputs, target=torch.tensor([0, 2]), relu_attributions=True).detach()
    expected = torch.nn.functional.interpolate(own, (SIZE, SIZE), mode="bilinear")[:, 0].numpy()
    expected /= np.maximum(expected.max((1, 2), keepdims=True), 1e-30)
    np.testing.assert_allclose(grad_cam.start(asked, "resnet18")(pixels, [0, 2]), expected, atol=1e-5)


@pytest.mark.parametrize("kind", ["ridge", "prototype", "knn"])
def test_every_kind_of_head_is_explained_for_each_class(kind):
    cam = grad_cam.start(model("resnet18", kind=kind), "resnet18")
    maps = cam(np.repeat(images(1), 3, axis=0), [0, 1, 2])
    assert len(np.unique(maps.round(3), axis=0)) == 3


def test_the_score_of_nearest_neighbours_is_the_similarity_to_the_nearest_image_of_a_class():
    own = head(6, "knn")
    features = np.random.default_rng(1).normal(size=(4, 6)).astype(np.float32)
    similarity = features / np.linalg.norm(features, axis=1, keepdims=True) @ own.weight.T
    expected = np.stack([similarity[:, own.exemplar_classes == k].max(1) for k in range(3)], 1).clip(-1)
    layer = Classifier(torch.nn.Identity(), transform_of(Backbone(name="resnet18")), own).head
    np.testing.assert_allclose(layer.scores(torch.from_numpy(features)).detach().numpy(), expected, rtol=1e-5)


def test_evidence_lies_where_the_image_has_what_the_class_is_about(base):
    """A head that weighs bright channels: the evidence is where the image is not black."""
    backbone = backbones.load(small_backbone(base, "resnet18", SIZE), "low", "avg")
    pixels = np.zeros((1, 3, SIZE, SIZE), np.uint8)
    pixels[..., 40:, 40:] = np.random.default_rng(0).integers(0, 256, (3, 24, 24))
    with torch.inference_mode():
        there = Classifier(backbone.network, backbone.transform, head(backbone.width)).eval()
        lit, dark = (there.backbone(there.normalise(torch.from_numpy(x))) for x in (pixels, np.zeros_like(pixels)))
    weight = np.stack([(lit - dark)[0].numpy(), (dark - lit)[0].numpy(), np.zeros(backbone.width)]).astype(np.float32)
    own = Head(weight, np.zeros(3, np.float32), CLASSES, 1.0)
    asked = Model(Classifier(backbone.network, backbone.transform, own), FeatureSpec(backbone.transform), CLASSES)
    [evidence] = grad_cam.start(asked, "resnet18")(pixels, [0])
    assert evidence[40:, 40:].mean() > 3 * evidence[:32, :32].mean()


def test_a_head_that_depends_on_nothing_has_no_explanation():
    asked = model("resnet18")
    torch.nn.init.zeros_(asked.network.head.weight)
    assert grad_cam.start(asked, "resnet18") is None


class InMapping(torch.nn.Module):
    """A layer that returns no tensor, as some of timm's do."""

    def __init__(self):
        super().__init__()
        self.conv = torch.nn.Conv2d(8, 8, 3, padding=1)

    def forward(self, maps):
        return {"maps": self.conv(maps)}


class Odd(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.blocks = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3, padding=1), InMapping())

    def forward(self, images):
        return self.blocks(images)["maps"].mean((2, 3))


def test_a_layer_that_returns_no_tensor_is_passed_over():
    torch.manual_seed(0)
    transform = transform_of(Backbone(name="resnet18", image_size=SIZE))
    asked = Model(Classifier(Odd(), transform, head(8)), FeatureSpec(transform), CLASSES)
    cam = grad_cam.start(asked, "timm/odd")
    assert cam.layer == "blocks.0" and cam(images(1), [0]).max() == 1

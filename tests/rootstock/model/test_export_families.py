"""Vision transformers and other families are exported as they compute here."""

import numpy as np
import pytest

from rootstock.backbones import depths
from rootstock.backbones.networks import build
from rootstock.config.architectures import Transform
from rootstock.features.feature_spec import FeatureSpec
from rootstock.model.export import checking, exporting
from rootstock.model.model import Model
from rootstock.training.classifier import Classifier
from rootstock.training.head import Head

SIZE = 32


def untrained(name: str, width: int) -> Model:
    network = depths.cut(build(name, SIZE, None).eval(), name, "penultimate", "avg")
    transform = Transform(SIZE, SIZE, "bilinear", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    weight = np.random.default_rng(0).normal(0, 0.3, (3, width)).astype(np.float32)
    head = Head(weight, np.zeros(3, np.float32), list("abc"), 1.0)
    return Model(Classifier(network, transform, head), FeatureSpec(transform), list("abc"))


@pytest.mark.parametrize(
    ("name", "width", "format"),
    [
        ("timm/vit_tiny_patch16_224", 192, "onnx"),
        ("timm/vit_tiny_patch16_224", 192, "openvino"),
        ("timm/vit_tiny_patch16_224", 192, "torch"),
        ("swin_t", 768, "onnx"),
        ("timm/convnext_atto", 320, "onnx"),
    ],
)
def test_every_family_is_exported_with_the_same_answers(name, width, format, tmp_path, monkeypatch):
    monkeypatch.setattr(checking, "TIMED_SECONDS", 0.05)
    done = exporting.export(untrained(name, width), "abc", format, tmp_path / "out", None)
    [version] = done.versions
    assert version.agreement.same_class == version.agreement.images == checking.NOISE_IMAGES
    assert version.agreement.largest_difference < 1e-3

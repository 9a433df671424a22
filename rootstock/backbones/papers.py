"""Published figures of the classic networks, and why the implementations here differ.

The numbers are those of the papers; backbone.json and docs/backbones.md show the measured ones beside them.
"""

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Paper:
    """A network as its paper describes it; `layers` counts those with weights."""

    title: str
    layers: int
    parameters: str
    idea: str
    differs: str

    def as_dict(self) -> dict[str, Any]:
        """Return a JSON-serialisable dictionary."""
        return asdict(self)


_VGG = "Simonyan, Zisserman: Very Deep Convolutional Networks for Large-Scale Image Recognition. ICLR 2015"
_RESNET = "He, Zhang, Ren, Sun: Deep Residual Learning for Image Recognition. CVPR 2016"
_NO_COUNT = "The paper reports multiply-adds, but no parameter count."

PAPERS = {
    "lenet5": Paper(
        title="LeCun, Bottou, Bengio, Haffner: Gradient-Based Learning Applied to Document Recognition. 1998",
        layers=5,
        parameters="60 thousand (60,000 trainable, 340,908 connections)",
        idea="convolutions, trainable sub-sampling, a partly connected third layer",
        differs="Equal without the output, which in the paper compares with drawn bitmaps (84 fixed values per "
        "class) and here is linear, with 85 parameters per class. The average-pooling variant has no trainable "
        "sub-sampling, and 900 more weights in its fully connected C3: 61,706 with an output of 10 classes. "
        "Multiply-accumulates include C3's missing connections, which are computed as zeros. The paper counts "
        "seven layers: five convolutional and fully connected ones, and two of sub-sampling.",
    ),
    "alexnet": Paper(
        title="Krizhevsky, Sutskever, Hinton: ImageNet Classification with Deep Convolutional Neural Networks. NIPS"
        " 2012",
        layers=8,
        parameters="60 million",
        idea="ReLU and dropout, on two GPUs",
        differs="torchvision's is the single-column network of 'One weird trick' (Krizhevsky 2014): first layers of 64 "
        "and 192 maps instead of 96 and 256, third to fifth of 384, 256, 256 instead of 384, 384, 256, not split "
        "over two GPUs, without local response normalisation.",
    ),
    "vgg16": Paper(
        title=_VGG,
        layers=16,
        parameters="138 million (about 500 MB)",
        idea="3x3 convolutions throughout",
        differs="Equal with the output for 1,000 classes: 138,357,544 parameters of 4 bytes are 528 MiB. 124 million "
        "of them are in the three fully connected layers.",
    ),
    "vgg19": Paper(
        title=_VGG,
        layers=19,
        parameters="144 million",
        idea="3x3 convolutions throughout",
        differs="Equal with the output for 1,000 classes: 143,667,240.",
    ),
    "googlenet": Paper(
        title="Szegedy, Liu, Jia, Sermanet, Reed, Anguelov, Erhan, Vanhoucke, Rabinovich: Going Deeper with "
        "Convolutions. CVPR 2015",
        layers=22,
        parameters="6.8 million (the sum of the column in its table 1; 5 million is often quoted)",
        idea="1x1 convolutions before the expensive ones: a 5x5 from 256 to 32 maps has 204,800 weights, but 67,584"
        " via 64 maps",
        differs="torchvision's has batch norm, and 3x3 instead of 5x5 convolutions in the third branch of its "
        "modules; the two auxiliary classifiers, used only in training, are omitted.",
    ),
    "resnet34": Paper(
        title=_RESNET,
        layers=34,
        parameters="not given (3.6 G multiply-adds)",
        idea="shortcuts: layers learn the residual to their input",
        differs=_NO_COUNT + " torchvision's has the paper's option B.",
    ),
    "plain34": Paper(
        title=_RESNET,
        layers=34,
        parameters="not given (3.6 G multiply-adds)",
        idea="the layers of ResNet-34 without shortcuts: the baseline for shortcuts",
        differs=_NO_COUNT + " Of ResNet-34's parameters it lacks those of the three projection shortcuts.",
    ),
}

"""Why a class: where in an image the evidence for it lies, by Grad-CAM (Selvaraju et al. 2017), from captum.

The score that is explained is the class's logit less the mean of all: what raises all logits alike changes no
probability. Where nearest neighbours vote, whose votes have no gradient when they agree, similarities to the nearest
training image of each class take the place of logits.
"""

import copy
import logging
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from captum.attr import LayerGradCam
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import interpolate

from rootstock.backbones.depths import first_tensor, uncut
from rootstock.backbones.feature_maps import Layout, layers_to_explain
from rootstock.model.model import Model
from rootstock.system.errors import ParamsError
from rootstock.training.classifier import Classifier

log = logging.getLogger(__name__)
Floats = NDArray[np.float32]
AT_ONCE = 8  # images in a pass: more would take memory and gain nothing on a CPU
MOST_TRIED = 8  # layers: a network of which none of these explains anything has no such layer


@dataclass(frozen=True)
class GradCam:
    """Explains a network's scores by the feature maps of a layer; for one thread at a time."""

    network: Classifier
    layer: str

    def __call__(self, pixels: NDArray[np.uint8], classes: Sequence[int]) -> Floats:
        """Compute where the evidence for a class lies in each image.

        Args:
            pixels: as the network sees them, (n, 3, size, size).
            classes: of the images, one each (n,).

        Returns:
            Maps (n, size, size) from 0 to 1, the largest value of each; all zeros where nothing speaks for the class.
            With two views (`evaluate.views`), they are of the image itself.
        """
        size = pixels.shape[-1]
        found = [np.empty((0, size, size), np.float32)]
        for start in range(0, len(pixels), AT_ONCE):
            part = slice(start, start + AT_ONCE)
            coarse = _attribute(self.network, self.layer, pixels[part], classes[part]).sum(1, keepdim=True).relu()
            maps = interpolate(coarse, (size, size), mode="bilinear", align_corners=False)
            peak = maps.amax((2, 3), keepdim=True)
            found.append((maps / peak.clamp(min=torch.finfo(peak.dtype).tiny))[:, 0].cpu().numpy())
        return np.concatenate(found)


def start(model: Model, name: str) -> GradCam | None:
    """Find the last layer with feature maps that the scores depend on.

    Args:
        model: any. Its network may go on computing on other threads: the hooks are on a copy with the same weights.
        name: the architecture of its backbone.

    Returns:
        None if there is no such layer, or a score depends on nothing.
    """
    network, size = _with_own_hooks(model.network).eval(), model.spec.transform.size
    noise = np.random.default_rng(0).integers(0, 256, (1, 3, size, size), np.uint8)
    for layer in layers_to_explain(network.backbone, name)[:MOST_TRIED]:
        try:
            maps = _attribute(network, layer, noise, [0])
        except (LookupError, RuntimeError, ParamsError) as error:  # no maps, no gradient, or no tensor
            log.debug("%s cannot be explained by %s: %s", name, layer, error)
            continue
        if maps[0, 0].numel() > 1 and bool(maps.any()):
            return GradCam(network, layer)
    return None


def _with_own_hooks(network: Classifier) -> Classifier:
    """Copy a network's modules, but neither its parameters nor its buffers."""
    shared = [*network.parameters(), *network.buffers()]
    return copy.deepcopy(network, {id(tensor): tensor for tensor in shared})


def _attribute(network: Classifier, layer: str, pixels: NDArray[np.uint8], classes: Sequence[int]) -> Tensor:
    """Return the layer's maps (n, c, h, w), each channel times the mean gradient of the scores for it.

    Raises:
        LookupError: the layer is not reached, or has no maps.
    """
    probe, layout = nn.Identity(), Layout.of(network.backbone)
    reached: list[str] = []

    def through_probe(_: nn.Module, __: object, output: object) -> object:
        """Pass the layer's output through the probe, where captum sees it as maps whatever its layout."""
        tensor = first_tensor(output)
        maps = layout.maps(tensor)
        if maps is None or reached:
            return output
        reached.append(layer)
        new = layout.restored(probe(maps), tensor)
        return (new, *output[1:]) if isinstance(output, tuple) else new

    hook = uncut(network.backbone).get_submodule(layer).register_forward_hook(through_probe, prepend=True)
    try:
        device = next(network.parameters()).device
        images = network.normalise(torch.from_numpy(pixels).to(device)).requires_grad_()

        def scores(images: Tensor) -> Tensor:
            reached.clear()
            found = network.head.scores(network.backbone(images).float())
            if not reached:
                raise LookupError(layer)
            return found - found.mean(1, keepdim=True)

        target = torch.as_tensor(classes, device=device)
        found: Tensor = LayerGradCam(scores, probe).attribute(images, target=target, attr_dim_summation=False)
        return found.detach()
    finally:
        hook.remove()

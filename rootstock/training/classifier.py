"""The classifier: a backbone with a head, as it is fine-tuned, saved and used for prediction."""

from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from rootstock.backbones import state_dicts
from rootstock.backbones.blocks import NORMS, blocks
from rootstock.backbones.depths import uncut
from rootstock.config.architectures import Transform
from rootstock.images.loader import Normalise
from rootstock.system.files import reading, replacing
from rootstock.training.head import Head
from rootstock.training.head_layer import HeadLayer

WEIGHTS = "model.safetensors"
PLAN_FOR_SHAPES = ("cuda",)  # kinds of devices


class Classifier(nn.Module):
    """Map uint8 pixels (n, 3, size, size) to logits (n, k) float32.

    Args:
        backbone: maps images to features.
        transform: the backbone's input transform.
        head: initialises the last layer.
        frozen_statistics: keep batch-norm statistics during training; False for training from random weights.
    """

    def __init__(
        self, backbone: nn.Module, transform: Transform, head: Head, *, frozen_statistics: bool = True
    ) -> None:
        super().__init__()
        self.frozen_statistics = frozen_statistics
        self.normalise = Normalise(transform)
        self.backbone = backbone
        self.head = HeadLayer(head)

    def forward(self, pixels: Tensor) -> Tensor:
        """Compute the logits of a batch; the head runs in float32 even where the backbone is in mixed precision."""
        return self.classify(self.backbone(self.normalise(pixels)))

    def classify(self, features: Tensor) -> Tensor:
        """Compute logits from the backbone's features (n, width)."""
        with torch.autocast(features.device.type, enabled=False):  # bf16 has three digits; calibration needs more
            logits: Tensor = self.head(features.float())
        return logits

    def train(self, mode: bool = True) -> "Classifier":
        """Set training mode, but leave frozen blocks in evaluation mode, without dropout and stochastic depth.

        So is batch norm if its statistics are frozen: on small data, batch statistics invalidate the features the head
        was fitted to (docs/benchmarks.md).
        """
        super().train(mode)
        for _, modules in blocks(uncut(self.backbone)) if mode else ():
            parameters = [parameter for module in modules for parameter in module.parameters()]
            if not any(parameter.requires_grad for parameter in parameters):
                for module in modules:
                    module.eval()
        for module in self.modules():
            if self.frozen_statistics and isinstance(module, NORMS):
                module.eval()
        return self


def save(model: Classifier, path: Path) -> None:
    """Save a model's weights as safetensors."""
    with replacing(path) as temporary:
        save_file({name: value.cpu().contiguous() for name, value in model.state_dict().items()}, temporary)


def load(model: Classifier, path: Path) -> None:
    """Load a model's weights.

    Raises:
        DamagedError: the file is damaged or holds another architecture.
    """
    with reading(path):
        state_dicts.assign_state(model, load_file(path))


def predict(model: nn.Module, batches: Iterable[Tensor], batch_size: int) -> Iterator[NDArray[np.float32]]:
    """Yield the logits (n, k) float32 of each batch on the model's device; sets evaluation mode."""
    return (logits.cpu().numpy() for logits in logits_of(model, batches, batch_size))


def logits_of(model: nn.Module, batches: Iterable[Tensor], batch_size: int) -> Iterator[Tensor]:
    """Yield the logits (n, k) float32 of each batch, left on the device, which is not waited for.

    On a GPU, batches are filled up to `batch_size`: cuDNN plans anew for each shape (features/gpu.py).
    """
    model.eval()
    device = next(model.parameters()).device
    with torch.inference_mode(), mixed_precision(device):
        for batch in batches:
            logits: Tensor = model(filled(batch, batch_size))
            yield logits[: len(batch)].float()


def filled(batch: Tensor, batch_size: int) -> Tensor:
    """Fill a batch up with copies of its first image, on a device that plans for each shape."""
    missing = batch_size - len(batch)
    if batch.device.type not in PLAN_FOR_SHAPES or missing <= 0:
        return batch
    return torch.cat([batch, batch[:1].expand(missing, *batch.shape[1:])])


def mixed_precision(device: torch.device) -> torch.autocast:
    """Return an autocast context for `precision_on` a device."""
    precision = precision_on(device)
    # Every weight is used once in a pass, so that a cache of cast ones would only be in the way of CUDA graphs.
    return torch.autocast(device.type, precision, enabled=precision is not torch.float32, cache_enabled=False)


def precision_on(device: torch.device) -> torch.dtype:
    """Return the precision to train in: on a GPU bfloat16, or float16 before Ampere (T4, V100); float32 on a CPU."""
    if device.type != "cuda":
        return torch.float32
    return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16

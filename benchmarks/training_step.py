"""A step of fine-tuning, all layers, on a batch that is there: what fused AdamW and folded batch norms save.

python -m benchmarks.training_step [efficientnet_lite0 resnet18] [--size 96] [--batch 32] [--seconds 8]
"""

import argparse
import time
from contextlib import nullcontext

import numpy as np
import torch

from rootstock.backbones.networks import build
from rootstock.config import params
from rootstock.config.architectures import Transform
from rootstock.system import devices
from rootstock.training.batch_norm import folded
from rootstock.training.classifier import Classifier
from rootstock.training.head import Head
from rootstock.training.step import TrainingStep
from rootstock.training.unfreezing import optimiser_of

CLASSES, WARM_UP, ROUNDS = 10, 3, 3


def classifier(name: str, size: int) -> Classifier:
    """Build a backbone with random weights and a head of zeros, on the GPU if there is one."""
    network = build(name, size)
    with torch.inference_mode():
        width = network.eval()(torch.zeros(2, 3, size, size)).shape[1]
    head = Head(np.zeros((CLASSES, width), np.float32), np.zeros(CLASSES, np.float32), list("0123456789"), 1.0)
    model = Classifier(network, Transform(size, size, "bilinear", (0.5,) * 3, (0.5,) * 3), head)
    return model.to(devices.device(), memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]


def rate(step: TrainingStep, batch: torch.Tensor, target: torch.Tensor, seconds: float) -> float:
    """Return images/s."""
    for _ in range(WARM_UP):
        step(batch, target).item()
    begin, images = time.perf_counter(), 0
    while time.perf_counter() - begin < seconds:
        step(batch, target).item()
        images += len(batch)
    return images / (time.perf_counter() - begin)


def main() -> None:
    """Measure each combination in turn, several rounds, and print the medians."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", default=["efficientnet_lite0", "resnet18"])
    parser.add_argument("--size", type=int, default=96)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=8.0)
    given = parser.parse_args()
    stage = params.Stage(unfreeze="all", epochs=1, lr=1e-4)
    for name in given.names:
        model = classifier(name, given.size).train()
        shape = (given.batch, 3, given.size, given.size)
        batch = torch.randint(256, shape, dtype=torch.uint8).to(devices.device())
        target = (torch.arange(given.batch) % CLASSES).to(devices.device())
        found: dict[tuple[bool, bool], list[float]] = {}
        for _ in range(ROUNDS):
            for fused, fold in ((False, False), (True, False), (True, True)):
                optimiser = optimiser_of(model, stage, params.Finetune())
                for group in optimiser.param_groups:
                    group["fused"] = fused
                with folded(model, batch) if fold else nullcontext():
                    step = TrainingStep(model, optimiser, params.Finetune(batch_size=given.batch))
                    found.setdefault((fused, fold), []).append(rate(step, batch, target, given.seconds))
        for (fused, fold), rates in found.items():
            what = f"{'fused AdamW' if fused else 'AdamW'}{', folded batch norms' if fold else ''}"
            print(f"{name:<20}{what:<34}{np.median(rates):8.1f} images/s")


if __name__ == "__main__":
    main()

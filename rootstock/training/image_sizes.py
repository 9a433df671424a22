"""Smaller images first (progressive resizing, Howard 2018; FFCV's recipes): earlier epochs of a stage cost less.

The last epoch of a stage is always of the network's own size, at which all are validated.
"""

from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor, nn

from rootstock.system.errors import ParamsError


def size_in(epoch: int, epochs: int, sizes: Sequence[int], full: int) -> int:
    """Return the size of training images in an epoch of a stage; each size has an equal share of the epochs.

    Args:
        epoch: from 0.
        epochs: of the stage.
        sizes: in the order of training, without the last.
        full: the network's own, the last.
    """
    every = [*sizes, full]
    return every[len(every) - 1 - (epochs - 1 - epoch) * len(every) // epochs]


def resized(batches: Iterable[Tensor], size: int) -> Iterator[Tensor]:
    """Yield mini-batches of images (n, 3, s, s) uint8 as (n, 3, size, size), and activations (floats) as they are."""
    for batch in batches:
        if batch.dtype == torch.uint8 and batch.shape[-1] > size:
            from torchvision.transforms.v2 import functional as F  # takes 1.5 s to import

            batch = F.resize(batch, [size, size], antialias=True)
        yield batch


def check_sizes(model: nn.Module, sizes: Sequence[int], full: int) -> None:
    """Check that a model takes images of these sizes.

    Args:
        model: maps pixels (n, 3, size, size) to any output.
        sizes: finetune.sizes.
        full: the network's own size.

    Raises:
        ParamsError: a size is not below `full`, or the network accepts no other than its own.
    """
    for size in sizes:
        if size >= full:
            raise ParamsError(f"params.yaml: finetune.sizes has {size}; expected sizes below the network's own: {full}")
        device, training = next(model.parameters()).device, model.training
        try:
            with torch.no_grad():
                model.eval()(torch.zeros(1, 3, size, size, dtype=torch.uint8, device=device))
        except (RuntimeError, AssertionError, ValueError) as error:
            raise ParamsError(
                f"params.yaml: finetune.sizes has {size}, which the network does not accept "
                f"({str(error).splitlines()[0].rstrip('.')}); expected [] for a network of a fixed size."
            ) from None
        finally:
            model.train(training)

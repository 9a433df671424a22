"""What long passes over the features found stays on disk: a fit that was stopped goes on after the last one.

L-BFGS asks for the same points again, to the bit, as its answers are the same; so the head is that of a fit that was
never stopped, and nothing of the optimiser's own state has to be kept.
"""

import hashlib
import logging
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from rootstock.features.reader import Features
from rootstock.system.files import replacing

log = logging.getLogger(__name__)
LONG_S = 5.0  # a shorter pass is repeated sooner than written and read


class KeptPasses:
    """What passes over one training set found.

    Args:
        root: folder for them; those of another training set are removed.
        train: features and labels.
        weights: of classes (k,); None for equal ones.
    """

    def __init__(self, root: Path, train: Features, weights: NDArray[np.float32] | None) -> None:
        self.images = len(train)
        self.folder = root / _digest_of(train, weights)
        for other in root.iterdir() if root.exists() else ():
            if other != self.folder:
                shutil.rmtree(other)
        self._kept = len(list(self.folder.glob("*.safetensors")))
        if self._kept:
            log.info("train_head: resuming after %d passes over the features of an interrupted run", self._kept)

    def recall(self, name: str, compute: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
        """Return what was kept under a name; else compute it, and keep it if that took long."""
        path = self.folder / f"{name}.safetensors"
        if path.exists():
            try:
                return load_file(path)
            except (OSError, SafetensorError):
                log.warning("%s is damaged: computed again", path)
        start = time.monotonic()
        found = compute()
        seconds = time.monotonic() - start
        if seconds >= LONG_S:
            self._kept += 1
            log.info("train_head: pass %d over %s images, %.0f s", self._kept, f"{self.images:,}", seconds)
            self._keep(path, found)
        return found

    def _keep(self, path: Path, found: dict[str, Tensor]) -> None:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with replacing(path) as temporary:
                save_file({key: value.contiguous() for key, value in found.items()}, temporary)
        except (OSError, SafetensorError) as error:
            log.warning("%s: not written, so that a run that is stopped repeats it: %s", path, error)


def _digest_of(train: Features, weights: NDArray[np.float32] | None) -> str:
    """Return a digest of what features and labels are; feature files are named after their contents."""
    digest = hashlib.sha256(" ".join(folder.name for folder in train.folders).encode())
    for name in train.rows["image_id"]:
        digest.update(name.encode())
    digest.update(train.labels.tobytes())
    if weights is not None:
        digest.update(weights.tobytes())
    return digest.hexdigest()[:16]

"""What passes over the features found stays on disk: a fit that was stopped goes on where it was, 20 s before.

L-BFGS asks for the same points again, to the bit, as its answers are the same; so the head is that of a fit that was
never stopped, and nothing of the optimiser's own state has to be kept. Once a strength is fitted, its solution takes
the place of its passes.
"""

import hashlib
import logging
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from rootstock.features.reader import Features
from rootstock.system.files import remove_others, replacing
from rootstock.system.packages import installed_versions
from rootstock.system.phrases import counted

log = logging.getLogger(__name__)
EVERY_S, EVERY_BYTES = 20.0, 2**28  # after which what was found is written, whichever comes first
RESULTS, PASSES = "results", "passes"  # of which passes are dropped as soon as there is a result
AXES = "axes"  # the first result
FORMAT = 2
Tensors = dict[str, Tensor]


class KeptPasses:
    """What passes over one training set found, and what came of them, by name.

    Args:
        root: folder for them; those of another training set are removed.
        train: features and labels.
        weights: of classes (k,); None for equal ones.
        stage: name for a log line that says what was found; None for none.
    """

    def __init__(
        self, root: Path, train: Features, weights: NDArray[np.float32] | None, stage: str | None = None
    ) -> None:
        self.folder = root / _digest_of(train, weights)
        remove_others(self.folder)
        self._file_of: dict[str, Path] = {}
        self._new: dict[str, dict[str, Tensors]] = {RESULTS: {}, PASSES: {}}
        self._waiting, self._written = 0, time.monotonic()  # bytes that are not on disk yet
        self._find_files()
        if stage and self._file_of:
            passes = sum(path.stem.startswith(PASSES) for path in self._file_of.values())
            strengths = len(self._file_of) - passes - (AXES in self._file_of)
            log.info(
                "%s: resuming an interrupted run: %s fitted, passes over the features for the next one: %d",
                stage, counted(strengths, "L2 strength"), passes,
            )  # fmt: skip

    def _find_files(self) -> None:
        paths = sorted(path for kind in (RESULTS, PASSES) for path in self.folder.glob(f"{kind}-*.safetensors"))
        self._number = 1 + max((int(path.stem.rpartition("-")[2]) for path in paths), default=0)
        for path in paths:
            try:
                with safe_open(path, "pt") as file:
                    self._file_of |= {key.rpartition("/")[0]: path for key in file.keys()}  # noqa: SIM118  not a dict
            except (OSError, SafetensorError):
                log.warning("%s is damaged: computed again", path)
                path.unlink(missing_ok=True)

    def __contains__(self, name: str) -> bool:
        return name in self._file_of or any(name in kept for kept in self._new.values())

    def find(self, name: str) -> Tensors | None:
        """Return what was kept under a name."""
        for kept in self._new.values():
            if name in kept:
                return kept[name]
        path = self._file_of.get(name)
        try:
            if path is not None:
                with safe_open(path, "pt") as file:
                    own = [key for key in file.keys() if key.rpartition("/")[0] == name]  # noqa: SIM118
                    return {key.rpartition("/")[2]: file.get_tensor(key) for key in own}
        except (OSError, SafetensorError):
            log.warning("%s is damaged: computed again", path)
        return None

    def recall(self, name: str, compute: Callable[[], Tensors], kind: str = PASSES) -> Tensors:
        """Return what was kept under a name; else compute and keep it."""
        found = self.find(name)
        if found is None:
            found = self._new[kind][name] = compute()
            self._waiting += sum(tensor.nbytes for tensor in found.values())
            if time.monotonic() - self._written >= EVERY_S or self._waiting >= EVERY_BYTES:
                self._write()
        return found

    def finish(self, name: str, result: Tensors) -> None:
        """Keep the result of all passes so far, which are not needed any more."""
        self._new[PASSES].clear()
        self._new[RESULTS][name] = result
        done = {path for path in self._file_of.values() if path.stem.startswith(PASSES)}
        if done or time.monotonic() - self._written >= EVERY_S:
            self._write()
        if name in self._file_of:  # not if the disk is full
            for path in done:
                path.unlink(missing_ok=True)
            self._file_of = {key: path for key, path in self._file_of.items() if path not in done}

    def _write(self) -> None:
        for kind, kept in self._new.items():
            if not kept:
                continue
            path = self.folder / f"{kind}-{self._number}.safetensors"
            if save(path, {f"{name}/{key}": value for name, own in kept.items() for key, value in own.items()}):
                self._file_of |= dict.fromkeys(kept, path)
                self._number += 1
            kept.clear()
        self._waiting, self._written = 0, time.monotonic()


def save(path: Path, tensors: Tensors) -> bool:
    """Write tensors to a file, in a folder that is made; if that fails, warn and return False."""
    contiguous = {name: value.clone(memory_format=torch.contiguous_format) for name, value in tensors.items()}
    try:  # clones, as two may be the same one
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as temporary:
            save_file(contiguous, temporary)
    except (OSError, SafetensorError) as error:
        log.warning("%s: not written, so that a run that is stopped repeats it: %s", path, error)
        return False
    return True


def _digest_of(train: Features, weights: NDArray[np.float32] | None) -> str:
    """Return a digest of features, labels and libraries; feature files are named after their contents."""
    digest = hashlib.sha256(f"{FORMAT} {installed_versions('torch', 'scipy', 'numpy')}".encode())
    digest.update(" ".join(folder.name for folder in train.folders).encode())
    for name in train.rows["image_id"]:
        digest.update(name.encode())
    digest.update(train.labels.tobytes())
    if weights is not None:
        digest.update(weights.tobytes())
    return digest.hexdigest()[:16]

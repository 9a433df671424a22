"""What heads found that are fitted to be measured stays on disk for a while: an evaluation that was stopped goes on.

A learning curve, label issues and repeated splits fit up to some dozens of them, which takes minutes where there are
many classes.
"""

import hashlib
import json
import logging
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file

from rootstock.config.params import Params
from rootstock.dataset import tables
from rootstock.evaluation.model_pair import Inputs
from rootstock.system.files import digest, remove, remove_others
from rootstock.system.packages import installed_versions
from rootstock.system.phrases import counted
from rootstock.training.kept_passes import Tensors, save

log = logging.getLogger(__name__)
FORMAT = 1
LEAST_S = 1.0  # what takes less is not worth a file
SUFFIX = ".safetensors"


@dataclass(frozen=True)
class KeptHeads:
    """What heads found, by the name of each; without a folder nothing is kept."""

    folder: Path | None = None

    def recall(self, name: str, compute: Callable[[], Tensors]) -> Tensors:
        """Return what was kept under a name, which becomes that of a file; else compute and keep it.

        Several threads may do so at once, under different names. What is in the folder of `passes` is removed then.
        """
        if self.folder is None:
            return compute()
        path = self.folder / f"{name}{SUFFIX}"
        try:
            return load_file(path)
        except FileNotFoundError:
            pass
        except (OSError, SafetensorError):
            log.warning("%s is damaged: computed again", path)
            remove(path)
        start = time.monotonic()
        found = compute()
        if time.monotonic() - start >= LEAST_S:
            save(path, found)
        shutil.rmtree(self.folder / name, ignore_errors=True)
        return found

    def passes(self, name: str) -> Path | None:
        """Return the folder for what passes over the features find until the head of that name is fitted."""
        return None if self.folder is None else self.folder / name


NONE_KEPT = KeptHeads()


def opened(root: Path, inputs: Inputs, params: Params) -> KeptHeads:
    """Open what an evaluation of the same inputs, parameters and libraries has kept; that of others is removed."""
    how = (
        FORMAT, digest(tables.files_of(inputs.dataset / tables.MANIFEST)), digest(sorted(inputs.head.rglob("*.*"))),
        params.extract.model_dump_json(), params.head.model_dump_json(), params.seed,
        installed_versions("torch", "scipy", "numpy", "scikit-learn"),
    )  # fmt: skip
    key = hashlib.sha256(json.dumps(how, sort_keys=True).encode()).hexdigest()[:16]
    folder = root / key
    remove_others(folder)
    if there := len(list(folder.glob(f"*{SUFFIX}"))):
        log.info("evaluate: resuming an interrupted run: %s fitted", counted(there, "head"))
    return KeptHeads(folder)

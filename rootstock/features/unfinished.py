"""Features of a shard that is not finished are kept from time to time: a stopped extraction goes on where it was.

A shard of large photos takes a slow network many minutes. What is kept are the first images of the shard, in files of
some seconds' work each, outside of the feature cache, which has whole files only.
"""

import logging
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from rootstock.system.files import replacing

log = logging.getLogger(__name__)
EVERY_S = 20.0  # work that is lost at most
HELD_BYTES = 2**26  # features are kept before they take more memory
SHORT_S = 5.0  # if they would be sooner, the shard is soon finished, and nothing more of it is kept


@dataclass(frozen=True)
class Part:
    """Images in their order: ids, records for the digest of the shard, and features (n, width) float32."""

    ids: list[str]
    records: list[bytes]
    features: NDArray[np.float32]


class Unfinished:
    """What is kept of one shard; of no folder, nothing."""

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder
        self.paths = _following(folder) if folder else []
        self.images = _last(self.paths[-1]) if self.paths else 0
        self._held: list[Part] = []
        self._bytes, self._begun = 0, 0.0
        self._is_short = folder is None

    def parts(self) -> Iterator[Part]:
        """Yield what an earlier run has kept."""
        for path in self.paths:
            with safe_open(path, "numpy") as file:
                lines = file.metadata()["records"].splitlines(keepends=True)
                ids = [line.partition(".")[0] for line in lines]
                yield Part(ids, [line.encode() for line in lines], file.get_tensor("features"))

    def add(self, part: Part) -> None:
        """Keep it, with what has been added before, once that is some seconds' work."""
        if self._is_short:
            return
        if not self._held:
            self._bytes, self._begun = 0, time.monotonic()
        self._held.append(part)
        self._bytes += part.features.nbytes
        seconds = time.monotonic() - self._begun
        if self._bytes < HELD_BYTES and seconds < EVERY_S:
            return
        if seconds >= SHORT_S:
            self._keep(self._held)
        else:
            self._is_short = True
        self._held = []

    def _keep(self, parts: Sequence[Part]) -> None:
        assert self.folder is not None
        end = self.images + sum(len(part.ids) for part in parts)
        records = b"".join(record for part in parts for record in part.records).decode()
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with replacing(self.folder / f"{self.images:09d}-{end:09d}.safetensors") as temporary:
                features = np.concatenate([part.features for part in parts])
                save_file({"features": features}, temporary, {"records": records})
        except (OSError, SafetensorError) as error:
            log.warning("%s: not written, so that a run that is stopped repeats it: %s", self.folder, error)
            self._is_short = True
            return
        self.images = end

    def remove(self) -> None:
        """Remove what is kept: the feature file is there, or the shard is damaged."""
        if self.folder:
            shutil.rmtree(self.folder, ignore_errors=True)


def _following(folder: Path) -> list[Path]:
    """Return the intact files of a folder that follow one another from the first image on."""
    found, at = [], 0
    for path in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(path, "numpy") as file:
                whole = file.get_slice("features").get_shape()[0] == _last(path) - at
        except (OSError, SafetensorError):
            break
        if int(path.stem.partition("-")[0]) != at or not whole:
            break
        found.append(path)
        at = _last(path)
    return found


def _last(path: Path) -> int:
    return int(path.stem.partition("-")[2])

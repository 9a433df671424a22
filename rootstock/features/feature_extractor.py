"""The feature extractor: image files in, features out, by one path for extraction, evaluation, drift and prediction.

    extractor = start_as_measured(spec, backbone)
    for kept, features in extractor.features(groups, prepare): ...

On a CPU each core takes a group of images from bytes to features (engines.py says why). For a GPU the cores decode, and
two threads feed it.
"""

import logging
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from rootstock.backbones.backbones import Backbone
from rootstock.config.section import Augment
from rootstock.dataset.shards import Reader
from rootstock.features import engines
from rootstock.features.engines import Engine
from rootstock.features.feature_spec import FeatureSpec
from rootstock.images import gpu_decoding, loader
from rootstock.system import causes
from rootstock.system.parallel import cores, grouped, ordered_map

log = logging.getLogger(__name__)
Array = NDArray[np.float32]
Prepared = NDArray[np.uint8] | bytes  # an image as the engine takes it; encoded if the GPU decodes it
Group = TypeVar("Group")
Kept = TypeVar("Kept")
Prepare = Callable[[Group], tuple[Kept, list[Prepared]]]
GPU_BATCHES = 2  # in flight on the GPU: one is copied while the other is computed
# By how much probabilities change with another engine or decoder (docs/extraction.md, "Where a model is loaded").
MAY_DIFFER = {"f32": "by less than 0.0001", "bf16": "by more than 0.1 for one image in a hundred"}
DECODING_MAY_DIFFER = "a little"


@dataclass(frozen=True)
class FeatureExtractor:
    """Computes features (n, width) float32 as a spec says, with an engine that runs on this machine."""

    spec: FeatureSpec
    engine: Engine
    width: int

    def prepare(self, data: bytes, augment: Augment = "none", seed: int | None = None) -> Prepared:
        """Decode an accepted file and resize it to (3, size, size) uint8; return it as it is if the GPU decodes.

        Augmented views (those with a seed) are always decoded in full, on the CPU.
        """
        if self.spec.decode == "gpu" and seed is None:
            return data
        pixels: NDArray[np.uint8] = loader.view(data, self.spec.transform, augment, seed, self.spec.decode).numpy()
        return pixels

    def features(self, groups: Iterable[Group], prepare: Prepare[Group, Kept]) -> Generator[tuple[Kept, Array]]:
        """Yield the features of each group, rounded as those in feature files are, in order.

        Args:
            groups: of at most `engine.batch_size` images each; iterated in the caller's thread.
            prepare: called with a group, on any thread; returns what to yield beside its features, and its images.
        """
        yield from self._pipeline(groups, prepare, self.features_of, None)

    def unrounded(
        self, groups: Iterable[Group], prepare: Prepare[Group, Kept], threads: int | None = None
    ) -> Generator[tuple[Kept, Array]]:
        """Yield features like `features`, for a file whose writer rounds them and says if they do not fit."""
        yield from self._pipeline(groups, prepare, self._forward, threads)

    def features_of(self, images: Sequence[Prepared]) -> Array:
        """Compute the features of prepared images (n, width) on this thread, rounded as those in feature files are."""
        parts = [self._forward(part) for part in grouped(images, self.engine.batch_size)]
        features = np.concatenate([np.empty((0, self.width), np.float32), *parts])
        limit = np.finfo(self.spec.dtype).max
        rounded: Array = np.clip(features, -limit, limit).astype(self.spec.dtype).astype(np.float32)
        return rounded

    def _pipeline(
        self, groups: Iterable[Group], prepare: Prepare[Group, Kept], compute: Callable[[Sequence[Prepared]], Array],
        threads: int | None,
    ) -> Generator[tuple[Kept, Array]]:  # fmt: skip
        def computed(ready: tuple[Kept, list[Prepared]]) -> tuple[Kept, Array]:
            return ready[0], compute(ready[1])

        if self.engine.on_each_core:
            each = ordered_map(lambda group: computed(prepare(group)), groups, threads, first=engines.limit_to_one_core)
            yield from each
            return
        ready = ordered_map(prepare, groups, threads, (threads or cores()) + GPU_BATCHES)
        with torch.backends.cudnn.flags(enabled=True, benchmark=True, allow_tf32=False):  # TF32 is torch's default
            yield from ordered_map(computed, ready, threads=GPU_BATCHES, window=GPU_BATCHES)

    def _forward(self, images: Sequence[Prepared]) -> Array:
        """Compute the unrounded features of prepared images, at least one and at most `engine.batch_size`."""
        if not isinstance(images[0], bytes):
            pixels: NDArray[np.uint8] = np.stack([image for image in images if not isinstance(image, bytes)])
            return self.engine.forward(pixels)
        device = loader.device()
        seen = gpu_decoding.views([image for image in images if isinstance(image, bytes)], self.spec.transform, device)
        if seen.is_cuda:
            torch.cuda.synchronize(device)  # the network runs on another stream
        return self.engine.forward(seen)

    def of_images(self, rows: pd.DataFrame, images_dir: Path) -> Generator[Array]:
        """Yield the features of images of a dataset, a few at a time.

        Args:
            rows: of the manifest (image_id, shard, offset, size), in the order wanted.
            images_dir: the shards.

        Raises:
            DamagedError: the bytes of an image are not those that were packed.
        """
        places = zip(*(rows[name] for name in ("shard", "offset", "size", "image_id")), strict=True)
        with Reader(images_dir) as reader:

            def prepare(group: list[tuple[str, int, int, str]]) -> tuple[None, list[Prepared]]:
                contents = (reader.image(shard, int(offset), int(size), name) for shard, offset, size, name in group)
                return None, [self.prepare(content) for content in contents]

            with closing(self.features(grouped(places, self.engine.batch_size), prepare)) as groups:
                yield from (features for _, features in groups)


def start_as_measured(spec: FeatureSpec, backbone: Backbone) -> FeatureExtractor:
    """Start what computed a model's features; where this machine cannot, the nearest there is, with one warning.

    Args:
        spec: of the features that the model was fitted to and measured with.
        backbone: its network, in evaluation mode.
    """
    missing, differ = [], ""
    if spec.decode == "gpu" and loader.device().type == "cpu":
        missing.append("their images were decoded on a GPU, and this machine has none: they are decoded on the CPU")
        differ, spec = DECODING_MAY_DIFFER, replace(spec, decode="full")
    try:
        engine = _start(spec, backbone)
    except Exception as error:  # exporter and runtime raise anything for an unsupported operation
        if spec.engine == "eager":
            raise
        missing.append(f"{spec.engine} computed them, but {causes.first_line(error)}: torch computes them")
        differ = MAY_DIFFER[spec.precision]
        spec = replace(spec, engine="eager", precision="f32")  # as near to another engine's bf16 as bf16 is, and faster
        engine = _start(spec, backbone)
    if missing:
        log.warning(
            "The features of this model cannot be computed as they were when it was measured: %s. Probabilities may "
            "differ %s from those of its report.", "; ".join(missing), differ,
        )  # fmt: skip
    return FeatureExtractor(spec, engine, backbone.width)


def _start(spec: FeatureSpec, backbone: Backbone) -> Engine:
    on_cpu = spec.engine == "openvino"  # what it computed, it computed there
    # Images come one at a time, too. In bf16 the rounding may depend on the batch size, so there it is extraction's.
    batch_size = 1 if on_cpu and spec.precision == "f32" else None
    return engines.start(spec.engine, backbone, spec.precision, batch_size, None if on_cpu else loader.device())

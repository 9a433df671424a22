"""The feature extractor: image files in, features out, by one path for extraction, evaluation, drift and prediction.

    extractor = start_as_measured(spec, backbone)
    for kept, features in extractor.features(groups, prepare): ...

On a CPU each core takes a group of images from bytes to features (engines.py says why). For a GPU the cores decode, and
what they have decoded is put together to batches of one size, which run on over the borders of groups and shards.
"""

import logging
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from rootstock.backbones.backbones import Backbone
from rootstock.config.section import Augment
from rootstock.dataset.shards import Reader
from rootstock.features import engines, preparing
from rootstock.features.engines import Engine, Stream
from rootstock.features.feature_spec import FeatureSpec
from rootstock.features.preparing import InMemoryOrder, Prepared, kept_or_prepared
from rootstock.images import gpu_decoding, inspection, integrity
from rootstock.images.array_store import ArrayStore
from rootstock.images.inspection import Checks
from rootstock.images.pixels import OpenedFile
from rootstock.system import causes, devices
from rootstock.system.parallel import ahead, cores, grouped, limit_to_one_core, ordered_map
from rootstock.system.processes import ordered_map_in_processes

log = logging.getLogger(__name__)
Array = NDArray[np.float32]
Group = TypeVar("Group")
Kept = TypeVar("Kept")
Prepare = Callable[[Group], tuple[Kept, list[Prepared]]]
BATCHES_AHEAD = 2  # put together for a GPU, or decoded by it, beside those that it computes
GROUPS_AHEAD = 64  # computed by a GPU before they are asked for: writing files takes a core
# By how much probabilities change with another engine or decoder (docs/extraction.md, "Where a model is loaded").
MAY_DIFFER = {"f32": "by less than 0.0001", "bf16": "by more than 0.1 for one image in a hundred"}
DECODING_MAY_DIFFER = "a little"


class Mirrored(nn.Module):
    """The mean of a network's features (n, width) of images (n, 3, size, size) and of their mirror images.

    For a linear head that is the mean of the logits, as of two of the ten views of Krizhevsky et al. 2012.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        """Compute the features."""
        features: Tensor = (self.network(images) + self.network(images.flip(-1))) / 2
        return features


@dataclass(frozen=True)
class FeatureExtractor:
    """Computes features (n, width) float32 as a spec says, with an engine that runs on this machine."""

    spec: FeatureSpec
    engine: Engine
    width: int

    def prepare(self, data: bytes, augment: Augment = "none", seed: int | None = None) -> Prepared:
        """Prepare an accepted file for the engine (see `preparing.prepare`)."""
        return preparing.prepare(self.spec, data, augment, seed)

    def prepare_input(self, name: str, data: bytes, checks: Checks) -> Prepared:
        """Check the bytes of an image file, as ingest does, and prepare it; it need not have been ingested.

        Raises:
            Rejected: it fails a check, or cannot be decoded.
        """
        file = inspection.check_input(data, name, checks, in_full=self.spec.decode == "full")
        try:
            return preparing.prepare(self.spec, file)
        except MemoryError:
            raise
        except Exception as error:  # Pillow's plug-ins raise whatever the parser met, if only the second time
            raise integrity.rejection(error, file.data) from None

    def features(self, groups: Iterable[Group], prepare: Prepare[Group, Kept]) -> Generator[tuple[Kept, Array]]:
        """Yield the features of each group, rounded as those in feature files are, in order.

        Args:
            groups: of at most `engine.batch_size` images each (on a GPU better of `engine.group_size`); iterated in
                the caller's thread.
            prepare: called with a group, on any thread; returns what to yield beside its features, and its images.
        """
        for kept, features in self.unrounded(groups, prepare):
            yield kept, self._rounded(features)

    def unrounded(
        self, groups: Iterable[Group], prepare: Prepare[Group, Kept], threads: int | None = None,
        processes: bool = False,
    ) -> Generator[tuple[Kept, Array]]:  # fmt: skip
        """Yield features like `features`, for a file whose writer rounds them and says if they do not fit.

        With `processes`, images for a GPU are prepared in processes, to which groups and `prepare` are pickled.
        """
        if self.engine.stream is None:

            def computed(group: Group) -> tuple[Kept, Array]:
                kept, images = prepare(group)
                return kept, self._forward(images) if images else self._no_features()

            yield from ordered_map(computed, groups, threads, first=limit_to_one_core)
        else:
            yield from ahead(self._on_gpu(groups, prepare, self.engine.stream, threads, processes), GROUPS_AHEAD)

    def features_of(self, images: Sequence[Prepared]) -> Array:
        """Compute the features of prepared images (n, width) on this thread, rounded as those in feature files are."""
        parts = [self._forward(part) for part in grouped(images, self.engine.batch_size)]
        return self._rounded(np.concatenate([self._no_features(), *parts]))

    def _no_features(self) -> Array:
        return np.empty((0, self.width), np.float32)

    def _rounded(self, features: Array) -> Array:
        """Round features as those in feature files are."""
        limit = np.finfo(self.spec.dtype).max
        rounded: Array = np.clip(features, -limit, limit).astype(self.spec.dtype).astype(np.float32)
        return rounded

    def _on_gpu(
        self, groups: Iterable[Group], prepare: Prepare[Group, Kept], stream: Stream, threads: int | None,
        processes: bool,
    ) -> Generator[tuple[Kept, Array]]:  # fmt: skip
        """Decode groups on all cores, and compute their images in batches of one size.

        An error while groups are read or decoded is raised once what came before it has been yielded.
        """
        size = self.engine.batch_size
        waiting: deque[tuple[Kept, int]] = deque()
        errors: list[Exception] = []

        def images() -> Iterator[Prepared]:
            try:
                for kept, few in self._prepared(groups, prepare, threads or cores(), processes):
                    waiting.append((kept, len(few)))
                    yield from few
            except Exception as error:
                errors.append(error)

        there = self._no_features()
        batches = ordered_map(self._batch, grouped(images(), size), BATCHES_AHEAD, BATCHES_AHEAD, limit_to_one_core)
        for computed in stream(batches):
            there = np.concatenate([there, computed])
            while waiting and waiting[0][1] <= len(there):
                kept, count = waiting.popleft()
                yield kept, there[:count]
                there = there[count:]
        yield from ((kept, self._no_features()) for kept, _ in waiting)  # groups without images
        if errors:
            raise errors[0]

    def _prepared(
        self, groups: Iterable[Group], prepare: Prepare[Group, Kept], threads: int, processes: bool
    ) -> Iterator[tuple[Kept, Sequence[Prepared]]]:
        window = threads + BATCHES_AHEAD * -(-self.engine.batch_size // self.engine.group_size)
        if not processes:
            yield from ordered_map(prepare, groups, threads, window, limit_to_one_core)
            return
        bytes_each = self.engine.group_size * 3 * self.spec.transform.size**2
        in_memory_order = InMemoryOrder(prepare)
        for kept, few in ordered_map_in_processes(
            in_memory_order, groups, bytes_each, window, limit_to_one_core, count=threads
        ):
            yield kept, [image.transpose(2, 0, 1) for image in few]

    def _forward(self, images: Sequence[Prepared]) -> Array:
        """Compute the unrounded features of prepared images, at least one and at most `engine.batch_size`."""
        return self.engine.forward(self._batch(images))

    def _batch(self, images: Sequence[Prepared]) -> NDArray[np.uint8] | Tensor:
        """Put images together; those that are still files are decoded on the GPU."""
        files = [image for image in images if isinstance(image, OpenedFile)]
        decoded = [image for image in images if not isinstance(image, OpenedFile)]
        if not files:
            return np.stack(decoded)
        seen = gpu_decoding.views(files, self.spec.transform, devices.device())
        if not decoded:
            return seen
        is_file = torch.tensor([isinstance(image, OpenedFile) for image in images], device=seen.device)
        both = seen.new_empty((len(images), *seen.shape[1:]))
        both[is_file] = seen
        both[~is_file] = torch.from_numpy(np.stack(decoded)).to(seen.device)
        return both

    def pixels(self, images: Sequence[Prepared]) -> NDArray[np.uint8]:
        """Return prepared images as the network sees them (n, 3, size, size); those still files are decoded."""
        batch = self._batch(images)
        return batch.cpu().numpy() if isinstance(batch, Tensor) else batch

    def of_images(self, rows: pd.DataFrame, images_dir: Path, store: ArrayStore | None = None) -> Generator[Array]:
        """Yield the features of images of a dataset, a few at a time.

        Args:
            rows: of the manifest (image_id, shard, offset, size), in the order wanted.
            images_dir: the shards.
            store: has images that have been decoded before, and keeps the others; None keeps none.

        Raises:
            DamagedError: the bytes of an image are not those that were packed.
        """
        kept = store if self.spec.decode == "full" else None
        places = zip(*(rows[name] for name in ("shard", "offset", "size", "image_id")), strict=True)
        with Reader(images_dir) as reader:

            def prepare(group: list[tuple[str, int, int, str]]) -> tuple[None, list[Prepared]]:
                return None, [image(*place) for place in group]

            def image(shard: str, offset: int, size: int, name: str) -> Prepared:
                return kept_or_prepared(
                    kept, shard, offset, lambda: self.prepare(reader.image(shard, int(offset), int(size), name))
                )

            with closing(self.features(grouped(places, self.engine.group_size), prepare)) as groups:
                yield from (features for _, features in groups)


def start_as_measured(spec: FeatureSpec, backbone: Backbone, *, many: bool = False) -> FeatureExtractor:
    """Start what computed a model's features; where this machine cannot, the nearest there is, with one warning.

    Args:
        spec: of the features that the model was fitted to and measured with.
        backbone: its network, in evaluation mode.
        many: images come in batches, not one at a time.
    """
    missing, differ = [], ""
    if spec.mirror:
        backbone = replace(backbone, network=Mirrored(backbone.network))
    if spec.decode == "gpu" and devices.device().type == "cpu":
        missing.append("their images were decoded on a GPU, and this machine has none: they are decoded on the CPU")
        differ, spec = DECODING_MAY_DIFFER, replace(spec, decode="full")
    try:
        engine = _start(spec, backbone, many=many)
    except Exception as error:  # exporter and runtime raise anything for an unsupported operation
        if spec.engine == "eager":
            raise
        missing.append(f"{spec.engine} computed them, but {causes.first_line(error)}: torch computes them")
        differ = MAY_DIFFER[spec.precision]
        spec = replace(spec, engine="eager", precision="f32")  # as near to another engine's bf16 as bf16 is, and faster
        engine = _start(spec, backbone, many=many)
    if missing:
        log.warning(
            "The features of this model cannot be computed as they were when it was measured: %s. Probabilities may "
            "differ %s from those of its report.", "; ".join(missing), differ,
        )  # fmt: skip
    return FeatureExtractor(spec, engine, backbone.width)


def _start(spec: FeatureSpec, backbone: Backbone, *, many: bool) -> Engine:
    on_cpu = spec.engine == "openvino"  # what it computed, it computed there
    # A batch that is not full is padded. In bf16 the rounding may depend on its size, so there it is extraction's.
    batch_size = 1 if on_cpu and spec.precision == "f32" and not many else None
    return engines.start(spec.engine, backbone, spec.precision, batch_size, None if on_cpu else devices.device())

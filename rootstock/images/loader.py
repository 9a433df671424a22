"""The data loader: reads, decodes, resizes and crops images on threads, in order and in bounded memory."""

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from rootstock.config.architectures import Transform
from rootstock.config.section import Augment
from rootstock.dataset.shards import Reader
from rootstock.images import augmentation, decoding, pixels
from rootstock.images.array_store import ArrayStore
from rootstock.images.decoding import Decode, resize_and_crop
from rootstock.images.pixel_store import CropSource
from rootstock.images.pixels import OpenedFile
from rootstock.system.memory import DECODING_BUDGET
from rootstock.system.parallel import cores, grouped, limit_to_one_core, ordered_map
from rootstock.system.processes import ordered_map_in_processes

DECODED_TOGETHER = 8  # images that a thread decodes at a time


@dataclass(frozen=True, slots=True)
class Ref:
    """The position of an image in a shard, the seed of its augmentation (None: no augmentation), and its shape."""

    shard: str
    offset: int
    size: int
    seed: int | None = None
    image_id: str = ""  # to verify the bytes against; empty: not verified
    shape: tuple[int, int] = (0, 0)  # width and height, for crops from a store


class Normalise(nn.Module):
    """Normalises uint8 pixels (n, 3, h, w) to float32, on their device."""

    scale: Tensor
    shift: Tensor

    def __init__(self, transform: Transform) -> None:
        super().__init__()
        mean, std = torch.tensor(transform.mean), torch.tensor(transform.std)
        self.register_buffer("scale", (1 / (255 * std)).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("shift", (-mean / std).view(1, 3, 1, 1), persistent=False)

    def forward(self, pixels: Tensor) -> Tensor:
        """Normalise a batch."""
        return pixels.float() * self.scale + self.shift


@dataclass(frozen=True)
class Decoding:
    """Reads images and decodes them as `view` does, on a thread or in a process of its own.

    Random crops are cut from the images that `crops` keeps, if it is given.
    """

    reader: Reader
    transform: Transform
    augment: Augment = "none"
    crops: CropSource | None = None

    def __call__(self, refs: Sequence[Ref]) -> list[NDArray[np.uint8]]:
        """Return each image, (size, size, 3) uint8."""
        return [self._image(ref) for ref in refs]

    def _image(self, ref: Ref) -> NDArray[np.uint8]:
        if self.crops is None or self.augment == "none" or ref.seed is None:
            return prepare(self._read(ref), self.transform, self.augment, ref.seed)
        store = self.crops.store
        whole = store.get(ref.shard, ref.offset) if store else None
        if whole is None:
            file = pixels.open_file(self._read(ref))
            with DECODING_BUDGET.take(file.cost):
                image = augmentation.squashed(_decoded(file), self.crops.side, self.transform.interpolation)
            whole = np.array(image)
            if store:
                store.put(ref.shard, ref.offset, whole)
        return augmentation.random_crop(Image.fromarray(whole), ref.shape, self.transform, self.augment, ref.seed)

    def _read(self, ref: Ref) -> bytes:
        place = (ref.shard, ref.offset, ref.size)
        return self.reader.image(*place, ref.image_id) if ref.image_id else self.reader.read(*place)


def batches(
    reader: Reader,
    refs: Sequence[Ref],
    transform: Transform,
    sizes: Sequence[int],
    augment: Augment = "none",
    threads: int | None = None,
    store: ArrayStore | None = None,
    processes: bool = False,
    crops: CropSource | None = None,
) -> Iterator[Tensor]:
    """Yield the images in order as uint8 batches (n, 3, size, size) of the given sizes, channels last in memory.

    Images without augmentation are taken from the store and left there, those with it are cut from `crops`.
    With `processes` they are decoded in as many processes instead of threads. Two batches are read ahead, or two groups
    of images per thread if these are more.
    """
    decode = Decoding(reader, transform, augment, crops)
    kept = None if augment != "none" and any(ref.seed is not None for ref in refs) else store
    window = max(2 * (threads or cores()), 2 * max(sizes, default=0) // DECODED_TOGETHER)
    loaded = _loaded(decode, refs, threads, window, kept, processes)
    for size in sizes:
        yield torch.from_numpy(np.stack(list(islice(loaded, size)))).permute(0, 3, 1, 2)


def _loaded(
    decode: Decoding, refs: Sequence[Ref], threads: int | None, window: int, store: ArrayStore | None, processes: bool
) -> Iterator[NDArray[np.uint8]]:
    pending: deque[tuple[list[Ref], list[NDArray[np.uint8] | None]]] = deque()

    def missing() -> Iterator[list[Ref]]:
        for group in grouped(refs, DECODED_TOGETHER):
            images = [store.get(ref.shard, ref.offset) if store else None for ref in group]
            pending.append((group, images))
            yield [ref for ref, image in zip(group, images, strict=True) if image is None]

    if processes:
        bytes_each = DECODED_TOGETHER * 3 * decode.transform.size**2
        found = ordered_map_in_processes(decode, missing(), bytes_each, window, limit_to_one_core, count=threads)
    else:
        found = ordered_map(decode, missing(), threads, window, limit_to_one_core)
    for decoded in found:
        fresh = iter(decoded)
        for ref, image in zip(*pending.popleft(), strict=True):
            if image is not None:
                yield image
                continue
            new = next(fresh)
            if store:
                store.put(ref.shard, ref.offset, new)
            yield new


def on_device(batches: Iterable[Tensor], device: torch.device) -> Iterator[Tensor]:
    """Copy batches to a device; to a GPU from pinned memory, each while the one before is computed."""
    if device.type != "cuda":
        yield from batches
        return
    copying = torch.cuda.Stream(device)
    copied: tuple[Tensor, torch.cuda.Event] | None = None
    for batch in batches:
        before = copied
        with torch.cuda.stream(copying):  # torch keeps pinned memory and gives it out again
            copied = batch.pin_memory().to(device, non_blocking=True), copying.record_event()
        if before:
            yield _arrived(*before)
    if copied:
        yield _arrived(*copied)


def _arrived(batch: Tensor, there: "torch.cuda.Event") -> Tensor:
    computing = torch.cuda.current_stream(batch.device)
    computing.wait_event(there)
    batch.record_stream(computing)
    return batch


def batch_sizes(images: int, batch_size: int, lone: bool = True) -> list[int]:
    """Return the size of each batch.

    Args:
        images: total number.
        batch_size: of all batches but the last.
        lone: whether the last batch may hold a single image; else it is merged into the batch before, since batch
            norm needs more than one image in training.
    """
    sizes = [min(batch_size, images - start) for start in range(0, images, batch_size)]
    if not lone and len(sizes) > 1 and sizes[-1] == 1:
        sizes[-2:] = [batch_size + 1]
    return sizes


def prepare(data: bytes, transform: Transform, augment: Augment = "none", seed: int | None = None) -> NDArray[np.uint8]:
    """Decode and resize one image, as `view` does, to (size, size, 3) uint8."""
    seen: NDArray[np.uint8] = view(data, transform, augment, seed).permute(1, 2, 0).contiguous().numpy()
    return seen


def view(
    image: bytes | OpenedFile, transform: Transform, augment: Augment = "none", seed: int | None = None,
    decode: Decode = "full",
) -> Tensor:  # fmt: skip
    """Decode one image and resize it to the network's input size.

    Args:
        image: an accepted file, its bytes or opened.
        transform: what the backbone expects.
        augment: a random resized crop instead of the centre crop; needs a seed.
        seed: of the augmentation; None for none.
        decode: reduced is faster for large JPEGs but not exact; random crops are always taken at full resolution.

    Returns:
        (3, size, size) uint8, channels last in memory: torchvision's resize and centre crop of the upright image.
    """
    file = pixels.open_file(image) if isinstance(image, bytes) else image
    with DECODING_BUDGET.take(file.cost):
        if augment == "none" or seed is None:
            shorter = transform.resize if decode == "reduced" else None
            seen = resize_and_crop(decoding.decode_opened(file, shorter), transform).permute(1, 2, 0)
            return seen.contiguous().permute(2, 0, 1)  # a view would keep the whole image in memory
        whole = _decoded(file)
        return torch.from_numpy(augmentation.random_crop(whole, whole.size, transform, augment, seed)).permute(2, 0, 1)


def _decoded(file: OpenedFile) -> Image.Image:
    return Image.fromarray(decoding.decode_opened(file).permute(1, 2, 0).contiguous().numpy())

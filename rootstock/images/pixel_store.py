"""Decoded images on disk, which the first pass that decodes leaves for others.

They are uint8 pixels as the network takes them, or whole images at a somewhat larger size, from which random crops are
cut.
"""

import hashlib
import json
from collections.abc import Collection, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from rootstock.config.architectures import Transform
from rootstock.images import array_store
from rootstock.images.array_store import ArrayStore, Item
from rootstock.system.errors import ParamsError
from rootstock.system.packages import installed_versions

SETTING = "cache.pixels_gb"
FORMAT = 2


def key_of(transform: Transform) -> str:
    """Return the key of decoded images: equal for equal pixels."""
    return _key(replace(transform, mean=(0.0,) * 3, std=(1.0,) * 3).as_dict())


def _key(*fields: object) -> str:
    libraries = installed_versions("torch", "simplejpeg", "pillow")
    return hashlib.sha256(json.dumps([*fields, libraries, FORMAT], sort_keys=True).encode()).hexdigest()[:12]


def opened(
    root: Path, transform: Transform, images_dir: Path, names: Collection[str], most_gb: float | None
) -> AbstractContextManager[ArrayStore | None]:
    """Open the store of images (size, size, 3) uint8 for the shards named, as `array_store.opened` does.

    The key stands for the transform without its normalisation, and for the libraries that decode and resize.
    """
    item = Item((transform.size, transform.size, 3), "uint8", "decoded images", SETTING)
    return array_store.opened(root, key_of(transform), item, images_dir, names, most_gb)


@dataclass(frozen=True)
class CropSource:
    """Whole images that random crops are cut from, resized to squares of `side` pixels; `store` keeps them."""

    side: int
    store: ArrayStore | None = None


@contextmanager
def opened_for_crops(
    root: Path, side: int, transform: Transform, images_dir: Path, names: Collection[str], most_gb: float | None,
    beside: ArrayStore | None,
) -> Iterator[CropSource | None]:  # fmt: skip
    """Open the store of whole images (side, side, 3) uint8, beside the other one; yield None if `side` is 0.

    Raises:
        ParamsError: `side` is below the network's input size.
    """
    if not side:
        yield None
        return
    if side < transform.size:
        raise ParamsError(
            f"params.yaml: finetune.store_size is {side}; expected 0, or at least the network's input size of "
            f"{transform.size} pixels"
        )
    item = Item((side, side, 3), "uint8", "decoded images for random crops", SETTING)
    key = _key("whole", side, transform.interpolation)
    with array_store.opened(root, key, item, images_dir, names, most_gb, [beside] if beside else []) as store:
        yield CropSource(side, store)

"""Do not pay for frozen layers: their activations are computed once for each image and kept, and training starts there.

They are kept on disk under a key that stands for all that they depend on (rootstock/images/array_store.py), so that a
resumed or repeated run, and a later stage with the same frozen layers, has them already.
"""

import hashlib
import json
import logging
from collections.abc import Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rootstock.config import params
from rootstock.images import array_store, loader, pixel_store
from rootstock.images.array_store import ArrayStore, Item
from rootstock.system import progress
from rootstock.system.parallel import grouped
from rootstock.training.classifier import Classifier, filled, mixed_precision
from rootstock.training.division import Division, TrainedPart, UndividedError, divide
from rootstock.training.split_images import KEEPS_IMAGES, Batches, fits_into_memory, mix
from rootstock.training.stage_plan import PlannedStage
from rootstock.training.unfreezing import unfrozen_blocks

log = logging.getLogger(__name__)
SETTING = "cache.activations_gb"
READ_TOGETHER = 64  # images whose activations are copied to a GPU at once
EXAMPLES = 32  # images, or more, on which float16 must be exact enough
FLOAT16_ERROR = 1e-3  # most of it, as a share of the largest logit


@dataclass(frozen=True)
class Cache:
    """Where activations are kept, and most bytes of all of them, in units of 10**9."""

    root: Path
    most_gb: float


@dataclass(frozen=True)
class Trained:
    """What a stage trains, and on what: a classifier on images, or its trained part on activations."""

    model: Classifier | TrainedPart
    batches: Batches
    val_batches: Batches


class ActivationBatches(Batches):
    """Mini-batches of the activations of a split, in place of its images; see `Batches`.

    Args:
        of: the images.
        stores: of their activations; with several, each is of an augmented view, and an epoch with a seed takes one of
            them at random for each image.
    """

    def __init__(self, of: Batches, stores: Sequence[ArrayStore]) -> None:
        super().__init__(of.images, of.reader, of.transform, of.batch_size, of.device, of.augment)
        self.stores = stores
        rows = of.images.rows
        self._places = list(zip(rows["shard"].tolist(), rows["offset"].tolist(), strict=True))

    def __call__(
        self, order: NDArray[np.int64] | None = None, seed: int | None = None, skip: int = 0
    ) -> Iterator[Tensor]:
        """Yield the activations (n, ...) of all images once, in a given order, but for the first mini-batches."""
        views = np.zeros(len(self._places), np.int64)
        if seed is not None:
            views = np.random.default_rng(seed).integers(len(self.stores), size=len(views))
        shares = self._shares(order)[skip:]
        batches = (self._read(indices, views) for indices, _ in shares)
        if self.device.type in KEEPS_IMAGES:
            kept = self._on_device()
            flat = views * len(self._places) + np.arange(len(self._places))
            chosen = torch.from_numpy(flat[np.concatenate([indices for indices, _ in shares])]).to(self.device)  # once
            batches = (kept[part] for part in chosen.split([len(indices) for indices, _ in shares]))
        for batch in batches:
            yield batch.permute(0, 3, 1, 2) if batch.ndim == 4 else batch

    def _read(self, indices: NDArray[np.int64], views: NDArray[np.int64]) -> Tensor:
        found = [self.stores[views[index]].get(*self._places[index]) for index in indices]
        return torch.from_numpy(np.stack([values for values in found if values is not None]))

    def _on_device(self) -> Tensor:
        """Return the activations of all views, one view after the other, read in pieces."""
        if self._kept is None:
            n, item = len(self._places), self.stores[0].item
            shape = (len(self.stores) * n, *item.shape)
            self._kept = torch.empty(shape, dtype=getattr(torch, item.dtype), device=self.device)
            for view in range(len(self.stores)):
                for some in np.array_split(np.arange(n), -(-n // READ_TOGETHER)):
                    at = view * n + some[0]
                    self._kept[at : at + len(some)] = self._read(some, np.full(n, view)).to(self.device)
        return self._kept


@contextmanager
def trained(
    model: Classifier, stage: PlannedStage, settings: params.Finetune, batches: Batches, val_batches: Batches,
    cache: Cache | None, seed: int,
) -> Iterator[Trained]:  # fmt: skip
    """Yield what a stage trains: on activations of its frozen layers where that saves time, and the log says why.

    Args:
        model: with the stage's parameters unfrozen.
        stage: how many epochs there are.
        settings: frozen_layers, cached_views and augment.
        batches: training images.
        val_batches: validation images.
        cache: where activations are kept, if anywhere.
        seed: of augmented views.
    """
    found = Trained(model, batches, val_batches)
    with ExitStack() as stack:
        if 0 not in unfrozen_blocks(model.backbone, stage.unfreeze):
            try:
                found = stack.enter_context(_on_activations(model, stage, settings, batches, val_batches, cache, seed))
            except UndividedError as why:
                level = logging.DEBUG if stage.epochs == 1 else logging.INFO  # nothing is lost with one epoch
                log.log(level, "fine_tune: frozen layers of stage %r are computed in every epoch: %s", stage.name, why)
        yield found


@contextmanager
def _on_activations(
    model: Classifier, stage: PlannedStage, settings: params.Finetune, batches: Batches, val_batches: Batches,
    cache: Cache | None, seed: int,
) -> Iterator[Trained]:  # fmt: skip
    views = settings.cached_views if settings.augment != "none" else 1
    if cache is None or not cache.most_gb:
        raise UndividedError(f"{SETTING} is 0")
    _check_that_it_pays(model, stage, settings, batches, views)
    examples = _examples(batches)
    division = divide(model, examples[0])
    item = _item(division, examples)
    count = len(batches.images.rows) * views + len(val_batches.images.rows)
    if not fits_into_memory(count * item.bytes, batches.device):
        raise UndividedError("their activations would not fit into the GPU's memory")
    with ExitStack() as stack:
        opened = partial(_opened, stack, cache, item, division.fingerprint(), batches, val_batches)
        plain = opened("", [])
        _fill(plain, division, val_batches, None)
        stores: list[ArrayStore] = []
        if settings.augment == "none":
            stores = [plain]
            _fill(plain, division, batches, None)
        else:
            drawn = f"{_digest_of_rows(batches)} {settings.augment} {settings.store_size} {seed}"
            for view in range(views):
                stores.append(opened(f"{drawn} {view}", [plain, *stores]))
                _fill(stores[-1], division, batches, mix(seed, view))
        log.info(
            "fine_tune: frozen layers of stage %r are computed once: %d activations of %.3g kB", stage.name, count,
            item.bytes / 1000,
        )  # fmt: skip
        yield Trained(
            division.trained, ActivationBatches(batches, stores), ActivationBatches(val_batches, [plain])
        )  # fmt: skip


def _check_that_it_pays(
    model: Classifier, stage: PlannedStage, settings: params.Finetune, batches: Batches, views: int
) -> None:
    """Check what can be known without a look at the network.

    Raises:
        UndividedError: why it does not pay.
    """
    if settings.frozen_layers == "compute":
        raise UndividedError("finetune.frozen_layers is compute")
    if not model.frozen_statistics:
        raise UndividedError("batch norm's statistics are trained")
    if settings.regularization.mixup or settings.regularization.cutmix:
        raise UndividedError("images are mixed anew in every mini-batch")
    if settings.sizes:
        raise UndividedError("earlier epochs have smaller images")
    if batches.ranks.size > 1:
        raise UndividedError("several processes share the images")
    if settings.augment != "none" and not views:
        raise UndividedError("images are augmented anew each time (finetune.cached_views is 0)")
    if stage.epochs <= views:
        count = "is one epoch" if stage.epochs == 1 else f"are {stage.epochs} epochs"
        raise UndividedError(f"there {count}, no more than views of an image")


def _examples(batches: Batches) -> list[Tensor]:
    """Return the first training images on the device, in mini-batches of the shape that the network meets anyway."""
    size = batches.batch_size
    refs = batches.images.refs(np.arange(min(-(-EXAMPLES // size) * size, len(batches.images.rows))))
    decoded = loader.batches(
        batches.reader, refs, batches.transform, loader.batch_sizes(len(refs), size), store=batches.images.store,
        crops=batches.images.crops,
    )  # fmt: skip
    return [filled(images.to(batches.device), size) for images in decoded]


def _item(division: Division, examples: Sequence[Tensor]) -> Item:
    """Return the shape of an image's activations, and float16 if that is exact enough for the logits."""
    division.trained.eval()
    largest, error = torch.zeros(2)
    for images in examples:
        with torch.inference_mode(), mixed_precision(images.device):
            exact = division.frozen(images).float()
            logits, rounded = (division.trained(values) for values in (exact, exact.half().float()))
        largest, error = largest.maximum(logits.abs().max().cpu()), error.maximum((rounded - logits).abs().max().cpu())
    dtype = "float16" if error <= FLOAT16_ERROR * largest.clamp_min(1e-6) else "float32"
    shape = tuple(_as_stored(exact).shape[1:])
    return Item(shape, dtype, "activations of frozen layers", SETTING)


def _as_stored(activations: Tensor) -> Tensor:
    """Return feature maps (n, c, h, w) as (n, h, w, c): so they are channels last where they are read."""
    return activations.permute(0, 2, 3, 1) if activations.ndim == 4 else activations


def _opened(
    stack: ExitStack, cache: Cache, item: Item, fingerprint: str, batches: Batches, val_batches: Batches, view: str,
    beside: Collection[ArrayStore],
) -> ArrayStore:  # fmt: skip
    """Open the store of a view of the images, or of the images as they are, whose `view` is empty."""
    transform = json.dumps(batches.transform.as_dict(), sort_keys=True)
    fields = (pixel_store.key_of(batches.transform), transform, fingerprint, item.dtype, view)
    key = hashlib.sha256(json.dumps(fields).encode()).hexdigest()[:12]
    splits = [batches] if view else [batches, val_batches]
    names = {shard for split in splits for shard in split.images.rows["shard"]}
    store = stack.enter_context(
        array_store.opened(cache.root, key, item, batches.images.images_dir, names, cache.most_gb, beside)
    )
    if store is None:
        raise UndividedError(f"their activations would take more than {SETTING}, or than the disk has")
    return store


def _digest_of_rows(batches: Batches) -> str:
    """Return a digest of the images in their order, on which augmentation depends."""
    return hashlib.sha256("".join(batches.images.rows["image_id"]).encode()).hexdigest()


def _fill(store: ArrayStore, division: Division, batches: Batches, seed: int | None) -> None:
    """Compute the activations that are not there yet."""
    refs = [ref for ref in batches.images.refs(seed=seed) if store.get(ref.shard, ref.offset) is None]
    together = batches.batch_size  # the shape of training: a GPU plans anew for any other
    sizes = loader.batch_sizes(len(refs), together)
    decoded = loader.batches(
        batches.reader, refs, batches.transform, sizes, batches.augment, None, batches.images.store,
        batches.in_processes, batches.images.crops,
    )  # fmt: skip
    division.frozen.eval()
    with (
        torch.inference_mode(),
        mixed_precision(batches.device),
        progress.bar("fine_tune, frozen layers", len(refs)) if refs else progress.silent() as advance,
    ):
        for group, images in zip(grouped(refs, together), loader.on_device(decoded, batches.device), strict=True):
            activations = _as_stored(division.frozen(filled(images, together))[: len(group)].float())
            values = activations.to(getattr(torch, store.item.dtype)).cpu().numpy()
            if not np.isfinite(values).all():
                raise UndividedError(f"their activations exceed {store.item.dtype}")
            for ref, own in zip(group, values, strict=True):
                store.put(ref.shard, ref.offset, own)
            advance(len(group))

"""Features of a fine-tuned network stay on disk for a while: an evaluation that was stopped goes on where it was."""

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rootstock.backbones import backbones
from rootstock.config.params import Params
from rootstock.dataset import shards
from rootstock.evaluation.model_pair import Inputs
from rootstock.images import array_store
from rootstock.images.array_store import ArrayStore, Item
from rootstock.system.files import sha256
from rootstock.system.packages import installed_versions
from rootstock.training import classifier, head


@contextmanager
def opened(root: Path, inputs: Inputs, params: Params) -> Iterator[ArrayStore | None]:
    """Open the store of features (width,) float32 of the fine-tuned network, as `array_store.opened` does.

    The key stands for the weights, for how an image becomes features, and for the libraries that compute them. Yields
    None if nothing was fine-tuned.
    """
    weights = inputs.finetuned / classifier.WEIGHTS
    if not weights.exists():
        yield None
        return
    probe = head.load_linear(inputs.head)
    how = (
        sha256(weights), backbones.describe(inputs.backbone)["transform"], probe.layer, probe.pooling,
        params.evaluate.views, installed_versions("torch", "timm", "simplejpeg", "pillow"),
    )  # fmt: skip
    key = hashlib.sha256(json.dumps(how, sort_keys=True).encode()).hexdigest()[:12]
    item = Item(probe.weight.shape[1:], "float32", "features of the fine-tuned network", "cache.activations_gb")
    names = shards.names(inputs.images)
    with array_store.opened(root, key, item, inputs.images, names, params.cache.activations_gb) as store:
        yield store

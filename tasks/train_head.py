"""train_head: cached features in, a classifier out.

python -m tasks.train_head
"""

import shutil
from dataclasses import replace

from rootstock.config.params import Params
from rootstock.system.phrases import percent
from tasks.bridge.stage import Summary, stage
from tasks.bridge.workspace import BACKBONE, DATASET, FEATURES, HEAD, PASSES


@stage
def train_head(params: Params) -> Summary:
    """Fit the head; the validation split selects its L2 strength, and its kind if that is auto."""
    from rootstock.backbones import backbones
    from rootstock.dataset import tables
    from rootstock.features import feature_keys
    from rootstock.features.reader import Features
    from rootstock.training import head, heads

    manifest = tables.load_manifest(DATASET)
    images, *views = feature_keys.find(backbones.describe(BACKBONE), params.extract, FEATURES)
    classes = tables.classes_of(manifest)
    train = Features([images, *views], manifest[manifest["split"] == "train"], classes)
    rows = tables.in_shard_order(manifest, "val")
    val = Features(images, rows, classes)
    fitted = heads.fit(train, val, classes, params.head, tables.group_numbers(rows), "train_head", passes=PASSES)
    layer, pooling = params.extract.layer, params.extract.pooling
    chosen, linear = (replace(one, layer=layer, pooling=pooling) for one in (fitted.head, fitted.linear))
    facts = {"features": images.name, "images": {"train": len(train), "val": len(val)}}
    head.save(chosen, HEAD, facts, linear if chosen.kind == "knn" else None)
    shutil.rmtree(PASSES, ignore_errors=True)
    return Summary(len(train) + len(val), f"{chosen.describe()}, validation {percent(chosen.val_accuracy)}")


if __name__ == "__main__":
    train_head.main()

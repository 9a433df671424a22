"""train_head: cached features in, a linear classifier out.

python -m tasks.train_head
"""

from dataclasses import replace

from rootstock.config.params import Params
from tasks.bridge.stage import Summary, stage
from tasks.bridge.workspace import BACKBONE, DATASET, FEATURES, HEAD


@stage
def train_head(params: Params) -> Summary:
    """Fit logistic regression along a path of L2 strengths; the validation split selects one."""
    from rootstock.backbones import backbones
    from rootstock.dataset import tables
    from rootstock.features import feature_keys
    from rootstock.features.reader import Features
    from rootstock.training import head, logistic

    manifest = tables.load_manifest(DATASET)
    images, *views = feature_keys.find(backbones.describe(BACKBONE), params.extract, FEATURES)
    train = Features([images, *views], manifest[manifest["split"] == "train"])
    val = Features(images, manifest[manifest["split"] == "val"])
    fitted = logistic.fit_logistic_path(
        train, val, tables.classes_of(manifest), params.head.l2, params.head.max_iterations
    )
    fitted = replace(fitted, layer=params.extract.layer, pooling=params.extract.pooling)
    head.save(fitted, HEAD, {"features": images.name, "images": {"train": len(train), "val": len(val)}})
    accuracy = next(entry["val_accuracy"] for entry in fitted.path if entry["l2"] == fitted.l2)
    return Summary(len(train) + len(val), f"L2 {fitted.l2:g}, validation {accuracy:.1%}")


if __name__ == "__main__":
    train_head.main()

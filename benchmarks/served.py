"""By how much probabilities change if a model is served with another engine than its features were computed with.

python -m benchmarks.served    # the embedded samples at 96 px; a head for each engine and precision

Prints, for each pair, the largest change of a probability of a test image, the change that one image in a hundred
exceeds, and the share of images whose predicted class changes.
"""

import tempfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from rootstock.backbones import backbones
from rootstock.config import params
from rootstock.dataset import tables
from rootstock.features import extraction
from rootstock.features.reader import Features
from rootstock.ingest.ingest import ingest
from rootstock.training import calibration, head, logistic

SAMPLES = ("sample:digits", "sample:printed")
WAYS = [(engine, precision) for engine in ("openvino", "eager") for precision in ("f32", "bf16")]


def logits_of(fitted: head.Head, features: Features) -> NDArray[np.float32]:
    """Return the logits (n, k) of all features."""
    return np.concatenate([fitted.logits(x) for x, _ in features])


def main() -> None:
    """Fit a head to the features of each engine and precision, and apply it to those of the others."""
    with tempfile.TemporaryDirectory() as name:
        base = Path(name)
        sources = tuple(params.Source(path=sample, domain=sample.partition(":")[2]) for sample in SAMPLES)
        ingest(params.Ingest(sources=sources), 0, base / "images", base / "dataset", base / "scratch")
        backbones.prepare(params.Backbone(image_size=96, crop_fraction=1.0), 0, base / "backbone")
        backbone, manifest = backbones.load(base / "backbone"), tables.load_manifest(base / "dataset")
        features: dict[tuple[str, str], dict[str, Features]] = {}
        for engine, precision in WAYS:
            settings = params.Extract.model_validate({"engine": engine, "precision": precision})
            key = extraction.extract(backbone, settings, base / "images", base / "features").key
            features[engine, precision] = {
                split: Features(base / "features" / key, manifest[manifest["split"] == split])
                for split in ("train", "val", "test")
            }
        for own in WAYS:
            train, val = features[own]["train"], features[own]["val"]
            fitted = logistic.fit_logistic_path(train, val, tables.classes_of(manifest), params.Head().l2)
            temperature = calibration.fit_temperature(logits_of(fitted, val), np.concatenate([y for _, y in val]))
            served = {
                way: calibration.probabilities(logits_of(fitted, features[way]["test"]), temperature) for way in WAYS
            }
            for way in WAYS:
                change = np.abs(served[way] - served[own]).max(1)
                flips = (served[way].argmax(1) != served[own].argmax(1)).mean()
                print(
                    f"{' '.join(own):<14} served by {' '.join(way):<14} at most {change.max():.5f}, "
                    f"one in a hundred more than {np.quantile(change, 0.99):.5f}, another class {flips:.1%}"
                )


if __name__ == "__main__":
    main()

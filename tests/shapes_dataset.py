"""A small dataset whose images have any number of classes (tests/shapes.py), and models of it, made once a session."""

from functools import cache
from pathlib import Path

from rootstock.backbones import backbones
from rootstock.config import params
from rootstock.dataset import tables
from rootstock.evaluation.model_pair import Inputs
from rootstock.features import extraction
from rootstock.features.reader import Features
from rootstock.training import finetune, head, heads
from rootstock.training.course import save_course
from rootstock.training.split_images import SplitImages
from tests.evaluations import Done, run
from tests.shapes import SHAPES, put_shapes
from tests.small_dataset import Small, classifier_from, ingested, small_backbone

IMAGES = 120  # of each of two domains
PARAMS = params.Params(evaluate=params.Evaluate(mistakes=5, repeats=1))


@cache
def shapes_dataset(base: Path) -> Small:
    """Ingest two tables."""
    desk, wall = (put_shapes(base / "shapes" / name, IMAGES, seed) for seed, name in enumerate(["desk", "wall"]))
    return ingested(base / "shapes", (desk, "desk"), (wall, "wall"))


@cache
def shapes_inputs(base: Path) -> Inputs:
    """Extract features, fit a head and fine-tune for some epochs."""
    small, backbone = shapes_dataset(base), small_backbone(base, "squeezenet1_1")
    folder = base / "shapes"
    done = extraction.extract(backbones.load(backbone), params.Extract(), small.images, folder / "features")
    features = folder / "features" / done.key
    train, val = (Features(features, small.split(name), SHAPES) for name in ("train", "val"))
    groups = tables.group_numbers(tables.in_shard_order(small.manifest, "val"))
    head.save(heads.fit(train, val, list(SHAPES), params.Head(l2=(10.0, 1.0)), groups).head, folder / "head", {})
    model = classifier_from(folder / "head", backbone)
    images = [SplitImages(small.split(name), small.images, classes=SHAPES) for name in ("train", "val")]
    settings = params.Finetune(stages=(params.Stage(unfreeze="all", epochs=8, lr=2e-3),), batch_size=16)
    transform = backbones.load(backbone).transform
    course = finetune.fine_tune(model, transform, *images, settings, 0, folder / "checkpoint", "")
    save_course(model, course, folder / "finetuned")
    return Inputs(small.images, small.dataset, backbone, folder / "features", folder / "head", folder / "finetuned")


@cache
def shapes_evaluated(base: Path) -> Done:
    """Evaluate both models."""
    return run(shapes_inputs(base), base / "shapes" / "evaluated", PARAMS)

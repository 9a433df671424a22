"""Evaluated models of the small dataset: a head on frozen features, and a fine-tuned network."""

import dataclasses
from pathlib import Path

import pytest
import torch

from rootstock.config.params import Evaluate, Params
from rootstock.evaluation import evaluate
from rootstock.evaluation.evaluate import Inputs
from rootstock.training import head
from rootstock.training.course import load_course, save_course
from rootstock.training.head import Head
from tests.small_dataset import (
    CLASSES,
    classifier_from,
    small_backbone,
    small_dataset,
    small_features,
    small_finetuned,
    small_head,
)


def inputs_where(winner: str, base: Path, folder: Path) -> Inputs:
    """Disable one of the two models, so that the other wins."""
    small = small_dataset(base)
    inputs = Inputs(
        small.images, small.dataset, small_backbone(base), small_features(base).parent, small_head(base),
        small_finetuned(base),
    )  # fmt: skip
    if winner == "head":
        useless = classifier_from(small_head(base), small_backbone(base))
        torch.nn.init.zeros_(useless.head.weight)
        save_course(useless, load_course(inputs.finetuned), folder / "finetuned")
        return dataclasses.replace(inputs, finetuned=folder / "finetuned")
    fitted = head.load(inputs.head)
    head.save(Head(0 * fitted.weight, fitted.bias, CLASSES, 1.0, fitted.path), folder / "head", {})
    return dataclasses.replace(inputs, head=folder / "head")


def evaluated_model(winner: str, base: Path, folder: Path) -> Path:
    """Make one of the two models win; returns the folder that holds model/ and report/."""
    params = Params(evaluate=Evaluate(mistakes=0, label_issues=0, learning_curve=False, explain=False))
    evaluate.evaluate(inputs_where(winner, base, folder), params, folder / "model", folder / "report", list)
    return folder


@pytest.fixture(scope="session", params=["head", "finetuned"])
def evaluated(request, tmp_path_factory) -> tuple[str, Path]:
    """A winner, and the folder that holds model/ and report/."""
    base = tmp_path_factory.getbasetemp()
    return request.param, evaluated_model(request.param, base, tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="session")
def head_model(tmp_path_factory) -> Path:
    """The folder of a model, a head on frozen features; nothing writes to it."""
    base = tmp_path_factory.getbasetemp()
    return evaluated_model("head", base, tmp_path_factory.mktemp("served")) / "model"


@pytest.fixture(scope="session")
def photos(base) -> list[tuple[str, bytes]]:
    """Twelve images of the dataset: the name of each, and the bytes of its file."""
    rows = small_dataset(base).manifest.iloc[::10]
    paths = [base / "small" / source / path for source, path in zip(rows["source"], rows["path"], strict=True)]
    return [(path.name, path.read_bytes()) for path in paths]

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


@pytest.fixture(scope="session", params=["head", "finetuned"])
def evaluated(request, tmp_path_factory) -> tuple[str, Path]:
    """A winner, and the folder that holds model/ and report/."""
    folder = tmp_path_factory.mktemp(request.param)
    inputs = inputs_where(request.param, tmp_path_factory.getbasetemp(), folder)
    params = Params(evaluate=Evaluate(mistakes=0, label_issues=0, learning_curve=False, explain=False))
    evaluate.evaluate(inputs, params, folder / "model", folder / "report", list)
    return request.param, folder

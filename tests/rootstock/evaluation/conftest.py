"""What tests of the evaluation share: its inputs, and one evaluation of them."""

import pandas as pd
import pytest

from rootstock.evaluation.model_pair import Inputs
from tests.evaluations import PARAMS, Done, run
from tests.small_dataset import (
    small_backbone,
    small_dataset,
    small_features,
    small_finetuned,
    small_head,
)


@pytest.fixture(scope="session")
def inputs(base) -> Inputs:
    small = small_dataset(base)
    return Inputs(
        small.images, small.dataset, small_backbone(base), small_features(base).parent, small_head(base),
        small_finetuned(base),
    )  # fmt: skip


@pytest.fixture(scope="session")
def done(inputs, tmp_path_factory) -> Done:
    """One evaluation, shared by the tests."""
    return run(inputs, tmp_path_factory.mktemp("evaluated"), PARAMS)


@pytest.fixture(scope="session")
def predictions(done) -> pd.DataFrame:
    return pd.read_parquet(done.report / "predictions.parquet")

"""The weights that the tests of weights share."""

import pytest
import torch
from torch import Tensor
from torchvision.models import get_model

from tests.squeezenet import NAME


@pytest.fixture(scope="session")
def state() -> dict[str, Tensor]:
    """The weights of a SqueezeNet for five classes."""
    torch.manual_seed(7)
    return dict(get_model(NAME, num_classes=5).state_dict())


@pytest.fixture(scope="session")
def expected(state) -> dict[str, Tensor]:
    """The same without its last layer, which is for other classes."""
    return {name: value for name, value in state.items() if not name.startswith("classifier.")}

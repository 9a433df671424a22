"""Transfer learning for image classification, in torch, pyarrow and pandas; it knows neither Prefect nor DVC.

import rootstock
rootstock.load_model("data/model").predict(["photo.jpg"])
"""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rootstock.model.model import Model


def load_model(folder: "Path | str") -> "Model":
    """Load a model: `data/model`, or a copy of that folder anywhere.

    Raises:
        DamagedError: a file is damaged or does not match its digest.
    """
    from rootstock.model.model import load  # torch takes seconds, and not every part of Rootstock needs it

    return load(folder)

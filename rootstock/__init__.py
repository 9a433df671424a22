"""Transfer learning for image classification, in torch, pyarrow and pandas; it knows neither Prefect nor DVC.

import rootstock

model = rootstock.load_model("data/model")
model.predict(["photo.jpg"])[0].label
model.embed(["photo.jpg"]).shape  # (1, 1280)
manifest = rootstock.read_manifest("data/dataset")
rootstock.read_features("data/features", manifest[manifest["split"] == "train"])
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # these take seconds to import, and not every part of Rootstock needs them
    import numpy as np
    import pandas as pd
    from numpy.typing import NDArray

    from rootstock.model.model import Model as Model

__all__ = ["Model", "load_model", "read_features", "read_manifest"]


def load_model(folder: "Path | str") -> "Model":
    """Load a model: `data/model`, or a copy of that folder anywhere.

        rootstock.load_model("data/model").predict(["photo.jpg"])[0].label

    Raises:
        DamagedError: a file is damaged or does not match its digest.
    """
    from rootstock.model.model import load

    return load(folder)


def read_manifest(folder: "Path | str") -> "pd.DataFrame":
    """Read the manifest of a dataset, `data/dataset`: one row per image, with label, class_index, domain and split.

        rootstock.read_manifest("data/dataset").groupby(["split", "label"]).size()

    Raises:
        DamagedError: a file is damaged.
        SourceError: there is no manifest in the folder.
    """
    from rootstock.dataset.tables import load_manifest

    return load_manifest(Path(folder))


def read_features(folder: "Path | str", rows: "pd.DataFrame") -> "NDArray[np.float32]":
    """Read cached features (n, width) of images, in the order of the rows.

        manifest = rootstock.read_manifest("data/dataset")
        features = rootstock.read_features("data/features", manifest)

    Args:
        folder: `data/features`, or one of the folders in it, if it has features of several kinds.
        rows: of the manifest.

    Raises:
        DamagedError: a file is damaged.
        SourceError: there are no features of an image, or several kinds of them.
    """
    from rootstock.features.reader import read

    return read(Path(folder), rows)


def __getattr__(name: str) -> Any:  # noqa: ANN401
    """Import the class of models when it is asked for."""
    if name == "Model":
        from rootstock.model.model import Model

        return Model
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

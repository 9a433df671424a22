"""The model as MLflow's pyfunc: MLflow stores this file beside the model's folder, and runs it to load the model.

    model = mlflow.pyfunc.load_model("runs:/<run>/model")
    model.predict(["photo.jpg"])    # paths, or the bytes of image files; also a table of one column
    mlflow models serve -m runs:/<run>/model    # takes the bytes of image files, in base64

It needs rootstock/ alone, which MLflow stores, too. Where it is served, a text is never taken for a path: whoever may
ask for predictions should not therefore be able to read the server's files.
"""

import sys

import mlflow
import pandas as pd
from mlflow.pyfunc.model import PythonModel, PythonModelContext

import rootstock

FOLDER = "model"  # key of the model's folder among the artifacts
SERVER = "mlflow.pyfunc.scoring_server.app"  # the module that answers requests


class ImageClassifier(PythonModel):
    """A trained model, loaded from its folder; predicts what `Model.predict` does."""

    def load_context(self, context: PythonModelContext) -> None:
        """Load the model from its folder."""
        self.model = rootstock.load_model(context.artifacts[FOLDER])

    def predict(self, context: PythonModelContext, model_input: pd.DataFrame, params: object = None) -> pd.DataFrame:
        """Classify images, in order.

        Args:
            context: unused.
            model_input: a column of n paths (str) or contents of image files (bytes); MLflow makes it of a list, too.
            params: unused; MLflow passes it.

        Returns:
            A row per image: label and probability of the most probable class, unknown, novelty, reason, detail (of
            `rootstock.model.Prediction`), and probabilities, a dict of all classes. For a rejected image, label is
            empty and probability 0. Of a model for any number of classes per image, labels are those predicted.
        """
        images = model_input.iloc[:, 0].tolist()
        if SERVER in sys.modules:
            images = [image.encode() if isinstance(image, str) else image for image in images]
        found = self.model.predict(images)
        best = [max(one.probabilities, key=one.probabilities.__getitem__, default="") for one in found]
        labels = {"labels": [list(one.labels) for one in found]} if self.model.multi_label else {}
        return pd.DataFrame(
            {
                "label": best,
                **labels,
                "probability": [one.probabilities.get(label, 0.0) for one, label in zip(found, best, strict=True)],
                "unknown": [one.unknown for one in found],
                "novelty": [one.novelty for one in found],
                "reason": [str(one.reason or "") for one in found],
                "detail": [one.detail for one in found],
                "probabilities": [one.probabilities for one in found],
            }
        )


mlflow.models.set_model(ImageClassifier())

"""The model card, README.md of the model's folder: what the model is, how good it is, and what it cannot do.

It begins with the metadata that the Hugging Face Hub reads, so that the folder can be uploaded there as it is.
"""

import re
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from rootstock.dataset import summaries
from rootstock.evaluation import figures
from rootstock.system.escape import markdown

# As the Hub spells them; with what else a licence says, it is "other" there.
LICENCES = {"Apache-2.0": "apache-2.0", "BSD-3-Clause": "bsd-3-clause", "MIT": "mit"}
OF_LABELS = """
- **Labels**: any number per image. Each class has a probability of its own, and an image has those classes whose
  probability reaches their threshold (model.json). Accuracy is the overlap of predicted and true labels"""
MEASURED = {"accuracy": "accuracy", "macro_f1": "f1"}  # the Hub's names of metrics


def card(described: dict[str, Any], why: str, test: dict[str, Any], summary: dict[str, Any]) -> str:
    """Format the model card: what the model is, its training data, test figures, limits (Mitchell et al. 2019)."""
    backbone, splits = described["backbone"], summary["splits"]
    rows = "\n".join(
        f"| {name} | {figures.value(metric, test[metric])} | {figures.ends(metric, test[metric])} |"
        for metric, name in figures.shown(test).items()
    )
    domains = "\n".join(
        f"| {markdown(name)} | {score['images']:,} | {figures.percent(score['accuracy']['value'])} "
        f"| {figures.percents(score['accuracy'])} |"
        for name, score in test["domains"].items()
    )
    without = summaries.describe_missing_classes(summary)
    note = f"\n**Note: {markdown(without)}.** The figures below do not cover them.\n" if without else ""
    mirrored = "\n- **Mirror images**: the features of each image are averaged with those of its mirror image"
    views = mirrored if described["features"]["mirror"] else ""
    labels = OF_LABELS if described.get("head", {}).get("multi_label") else ""
    return f"""---
{_metadata(described, test)}
---

# {markdown(backbone["name"])}: {len(described["classes"])} classes

{markdown(why)}
{note}
- **Backbone**: {markdown(backbone["name"])}, {backbone["parameters"]:,} parameters, {markdown(backbone["origin"])}
- **Licence of its weights**: {markdown(backbone["licence"])}
- **Images**: {splits["train"]:,} for training, {splits["val"]:,} for validation, {splits["test"]:,} for testing
- **Classes**: {", ".join(map(markdown, described["classes"]))}
- **Probabilities** are calibrated on the validation split (temperature {described["temperature"]:.3f}){labels}{views}

| metric on the test images, not used for any choice | value | 95 % interval |
|---|---|---|
{rows}

| domain | test images | accuracy | 95 % interval |
|---|---|---|---|
{domains}

Expect lower accuracy on images of other domains. To use the model:

```python
import rootstock

rootstock.load_model("data/model").predict(["photo.jpg"])
```
"""


def _metadata(described: dict[str, Any], test: dict[str, Any]) -> str:
    """Format the metadata of the Hub as YAML; the licence is that of the weights the model was made from."""
    backbone = described["backbone"]
    licence = LICENCES.get(backbone["licence"], "other")
    several = ["multi-label"] if described.get("head", {}).get("multi_label") else []
    data = ModelCardData(
        model_name=str(backbone["name"]),
        license=licence,
        license_name=_slug(backbone["licence"]) if licence == "other" else None,
        library_name="rootstock",
        pipeline_tag="image-classification",
        tags=["image-classification", *several, "transfer-learning", str(backbone["name"])],
        eval_results=[
            EvalResult(
                task_type="image-classification",
                dataset_type="images",
                dataset_name=", ".join(sorted(test["domains"])) or "images",
                dataset_split="test",
                metric_type=hub_name,
                metric_value=test[metric]["value"],
            )
            for metric, hub_name in MEASURED.items()
            if metric in test and not (metric == "accuracy" and described.get("head", {}).get("multi_label"))
        ],
    )
    text: str = data.to_yaml()
    return text


def _slug(text: str) -> str:
    return "-".join(re.findall(r"[a-z0-9.]+", text.lower())) or "unknown"

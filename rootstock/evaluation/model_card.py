"""The model card, README.md of the model's folder: what the model is, how good it is, and what it cannot do."""

from typing import Any

from rootstock.dataset import tables
from rootstock.evaluation import figures
from rootstock.system.escape import markdown


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
    without = tables.describe_missing_classes(summary)
    note = f"\n**Note: {markdown(without)}.** The figures below do not cover them.\n" if without else ""
    mirrored = "\n- **Mirror images**: the features of each image are averaged with those of its mirror image"
    views = mirrored if described["features"]["mirror"] else ""
    return f"""# {markdown(backbone["name"])}: {len(described["classes"])} classes

{markdown(why)}
{note}
- **Backbone**: {markdown(backbone["name"])}, {backbone["parameters"]:,} parameters, {markdown(backbone["origin"])}
- **Licence of its weights**: {markdown(backbone["licence"])}
- **Images**: {splits["train"]:,} for training, {splits["val"]:,} for validation, {splits["test"]:,} for testing
- **Classes**: {", ".join(map(markdown, described["classes"]))}
- **Probabilities** are calibrated on the validation split (temperature {described["temperature"]:.3f}){views}

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

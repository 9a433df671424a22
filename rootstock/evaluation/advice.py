"""What to do next, each with its reason: from validation and training. Test images have a say in which labels to check.

How many of them there are is no figure of a model.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

import pandas as pd

from rootstock.evaluation import figures, verdict
from rootstock.evaluation.learning_curve import WORTH_IT, LearningCurve
from rootstock.system.phrases import listed
from rootstock.training import epochs
from rootstock.training.checkpoints import Epoch

MOST = 5  # pieces of advice
NAMED = 3  # classes that one names
FEW_TEST, FEW_TRAINING = 100, 30  # images: of all classes, of a class
ALL = "all"  # finetune.stages[].unfreeze: nothing is left frozen
GOOD = 0.99  # validation accuracy from which nothing is worth a day's work


@dataclass(frozen=True)
class Advice:
    """What to do, why, and the part of the page that shows it."""

    what: str
    why: str
    link: str


@dataclass(frozen=True)
class Grounds:
    """What advice is given on.

    Args:
        winner: the model chosen, "head" or "finetuned".
        validation: figures of each model on the validation images, as returned by `metrics.score`.
        by_class: images of each class by split, from the dataset's summary.
        test_images: how many there are.
        suspects: labels that are probably wrong, as returned by `label_issues.find`; None if not looked for.
        curve: whether more images would help, if it was measured.
        history: the epochs of fine-tuning.
        backbone: that the models have.
        compared: rows of data/compare of the same dataset (see `compare_table.Row`); may be empty.
        few_groups: how many groups the test images come in, if these are too few for an interval.
    """

    winner: str
    validation: Mapping[str, Any]
    by_class: Mapping[str, Mapping[str, int]]
    test_images: int
    suspects: pd.DataFrame | None = None
    curve: LearningCurve | None = None
    history: list[Epoch] = field(default_factory=list)
    backbone: str = ""
    compared: pd.DataFrame = field(default_factory=pd.DataFrame)
    few_groups: int | None = None

    @property
    def own(self) -> Mapping[str, Any]:
        """Return the figures of the winner on validation."""
        figures_of: Mapping[str, Any] = self.validation[self.winner]
        return figures_of

    @property
    def gain(self) -> float | None:
        """Return by how much twice as many images are expected to raise the accuracy; None if that is not known."""
        if self.curve is None:
            return None
        return fmean(self.curve.doubled) - fmean(self.curve.accuracy[-1])


def give(grounds: Grounds) -> list[Advice]:
    """Return what to do next, the most useful first, at most MOST."""
    parts = (_labels, _classes, _more_images, _domains, _deeper, _backbone, _test_images)
    return [advice for part in parts for advice in part(grounds)][:MOST]


def _labels(grounds: Grounds) -> Iterator[Advice]:
    if grounds.suspects is None or grounds.suspects.empty:
        return
    pairs = grounds.suspects.groupby(["label", "suggested"]).size().sort_values(ascending=False, kind="stable")
    label, suggested = pairs.index[0]
    often = f", most often {label} that is rather {suggested} ({pairs.iloc[0]:,})" if pairs.iloc[0] > 1 else ""
    count = len(grounds.suspects)
    yield Advice(
        f"Check {count:,} label{'s' if count > 1 else ''}",
        f"Models that had not seen the label of an image disagree with it{often}. A wrong label costs accuracy twice: "
        "in training, and in every figure.",
        "labels",
    )


def _classes(grounds: Grounds) -> Iterator[Advice]:
    classes, low = grounds.own["classes"], grounds.own["accuracy"].get("low")
    weak = verdict.below(classes, "recall", low) if low is not None else []
    few = sorted(name for name, counts in grounds.by_class.items() if counts.get("train", 0) < FEW_TRAINING)
    few.sort(key=lambda name: grounds.by_class[name].get("train", 0))
    if weak:
        named = [f"{name} ({figures.percent(classes[name]['recall']['value'])})" for name in weak[:NAMED]]
        yield Advice(
            f"Add images of {', '.join(weak[:NAMED])}",
            f"Validation finds the fewest of these classes: {', '.join(named)} of their images, "
            f"{figures.percent(grounds.own['accuracy']['value'])} of all.",
            "classes",
        )
    elif few and len(few) < len(grounds.by_class):
        named = [f"{name} ({grounds.by_class[name].get('train', 0):,})" for name in few[:NAMED]]
        yield Advice(
            f"Add images of {listed(few, NAMED)}",
            f"They have fewer than {FEW_TRAINING} training images: {', '.join(named)}.",
            "data",
        )


def _more_images(grounds: Grounds) -> Iterator[Advice]:
    if grounds.gain is not None and grounds.gain >= WORTH_IT and grounds.curve:
        yield Advice(
            "Collect more images like these",
            f"Twice as many ({2 * grounds.curve.images[-1]:,} for training) would raise the accuracy of the head on "
            f"frozen features by about {100 * grounds.gain:.1f} points.",
            "training",
        )


def _domains(grounds: Grounds) -> Iterator[Advice]:
    domains, low = grounds.own["domains"], grounds.own["accuracy"].get("low")
    weak = verdict.below(domains, "accuracy", low) if low is not None and len(domains) > 1 else []
    if weak:
        share = figures.percent(domains[weak[0]]["accuracy"]["value"])
        yield Advice(f"Add images of the domain {weak[0]}", f"Validation accuracy is lowest there: {share}.", "domains")


def _deeper(grounds: Grounds) -> Iterator[Advice]:
    accuracy = grounds.own["accuracy"]["value"]
    if not grounds.history:
        if accuracy < GOOD:
            yield Advice(
                "Fine-tune the later layers (finetune.stages)",
                "Nothing was fine-tuned: the backbone has seen none of these images.",
                "training",
            )
        return
    best = epochs.best_of(grounds.history)
    deepest = max(epoch.stage for epoch in grounds.history)
    if grounds.winner == "finetuned" and best.stage == deepest and best.unfrozen != ALL and accuracy < 1:
        yield Advice(
            f"Unfreeze more than {best.unfrozen} (finetune.stages: another stage, or unfreeze: auto)",
            f"The deepest stage gave the best weights: validation accuracy {figures.percent(accuracy)}, the head on "
            f"frozen features {figures.percent(grounds.validation['head']['accuracy']['value'])}.",
            "training",
        )


def _backbone(grounds: Grounds) -> Iterator[Advice]:
    measured = grounds.compared
    if len(measured):
        frozen = measured[(measured["reason"] == "") & (measured["trained"] == "frozen")]
        others = frozen[frozen["backbone"] != grounds.backbone].dropna(subset=["accuracy", "accuracy_low"])
        head = grounds.validation["head"]["accuracy"]["value"]
        better = others[others["accuracy_low"] > head].sort_values("accuracy", ascending=False, kind="stable")
        if len(better):
            best = better.iloc[0]
            yield Advice(
                f"Take {best['backbone']} as the backbone",
                f"On the same validation images, a head on its frozen features (layer {best['layer']}, "
                f"{best['image_size']:.0f} px) reaches {figures.percent(best['accuracy'])}, on those of "
                f"{grounds.backbone} {figures.percent(head)}.",
                "model",
            )
        return
    flat = grounds.gain is not None and grounds.gain < WORTH_IT
    if flat and grounds.own["accuracy"]["value"] < GOOD:
        yield Advice(
            "Compare other backbones (python -m flows.compare small)",
            "More images like these would change little, so the features are what limits the accuracy.",
            "model",
        )


def _test_images(grounds: Grounds) -> Iterator[Advice]:
    if grounds.test_images < FEW_TEST:
        so_few = "the intervals are wide whatever the model does"
        groups = ""
        if grounds.few_groups:
            groups, so_few = figures.in_groups(grounds.test_images, grounds.few_groups), "too few groups for intervals"
        yield Advice("Add test images", f"There are only {grounds.test_images:,}{groups}: {so_few}.", "figures")
    elif grounds.few_groups:
        yield Advice(
            "Add test images of other groups",
            f"There are {figures.count_images(grounds.test_images, grounds.few_groups)}, too few groups for intervals: "
            "whatever the model does, nobody can say how good it is.",
            "figures",
        )

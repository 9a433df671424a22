"""The sections of params.yaml that only flows use and no stage depends on: comparison, retraining and export."""

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from rootstock.config.architectures import FEATURE_LEVELS, GROUPS, PENULTIMATE, check_name, check_variant
from rootstock.config.group_pattern import GroupPattern
from rootstock.config.section import Augment, Section, Share, reject_near_miss, warn_once
from rootstock.system.addresses import Address

ExportFormat = Literal["onnx", "openvino", "torch", "torchscript"]


class Compare(Section):
    """Which backbones to compare on the dataset, and at which layers; no stage depends on it."""

    backbones: Annotated[tuple[str, ...], Field(strict=False)] = Field(
        default=("small",),
        description="Backbones to compare, frozen and with a linear head: names, <name>:<variant>, or the groups "
        f"{', '.join(GROUPS)}.",
    )
    depths: Annotated[tuple[str, ...], Field(min_length=1, strict=False)] = Field(
        default=(PENULTIMATE,), description="Layers to compare: low, mid, high, penultimate, or module names."
    )
    image_size: Annotated[int, Field(ge=16, le=1024)] | None = Field(
        default=None, description="Input size, in pixels; null is backbone.image_size, or else the network's default."
    )
    scratch: Annotated[tuple[str, ...], Field(strict=False)] = Field(
        default=(), description="Backbones to train from scratch, all layers, as a baseline for transfer learning."
    )
    epochs: Annotated[int, Field(ge=1)] = Field(default=60, description="Epochs of training from scratch.")
    lr: Annotated[float, Field(gt=0, lt=1)] = Field(
        default=5e-3, title="Learning rate", description="Peak learning rate of training from scratch."
    )
    augment: Augment = Field(
        default="crop", description="Data augmentation when training from scratch; see finetune.augment."
    )

    @field_validator("backbones", "scratch", mode="before")
    @classmethod
    def _replace_former_names(cls, names: Any) -> Any:  # noqa: ANN401
        if isinstance(names, list | tuple) and "seed" in names:
            warn_once("compare: the group seed was renamed to classics; change it to classics")
            return ["classics" if name == "seed" else name for name in names]
        return names

    @field_validator("backbones", "scratch")
    @classmethod
    def _exist(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        for entry in names:
            name, _, variant = entry.partition(":")
            check_name(name, GROUPS)
            if variant:
                check_variant(name, variant)
        return names

    @field_validator("depths")
    @classmethod
    def _are_not_misspelt(cls, depths: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(reject_near_miss(depth, (*FEATURE_LEVELS, PENULTIMATE), "a module name") for depth in depths)


class Export(Section):
    """How a model is written for other runtimes; no stage depends on it."""

    max_loss: Annotated[float, Field(ge=0, le=1)] = Field(
        default=0.01,
        description="Largest loss of validation accuracy with which an int8 version is kept (0.01 is one percentage "
        "point).",
    )


class Retrain(Section):
    """How deliveries in the inbox are ingested, and when a model trained on them replaces the champion."""

    inbox: Address = Field(
        default="data/inbox",
        description="Where deliveries arrive, as domain/class/image (domain/_unlabelled/image if not labelled yet): a "
        "folder or any fsspec URL.",
    )
    group: GroupPattern = Field(
        default=None,
        description="Regular expression on domain/class/image that finds which images of a delivery belong together, "
        "like ingest.sources[].group.",
    )
    after: Literal["keep", "archive", "delete"] = Field(
        default="keep",
        description="What to do with ingested files: keep them in place, archive them to _taken in the inbox, or "
        "delete them. Unless kept, images of a rejected delivery move to _rejected.",
    )
    settle_seconds: Annotated[float, Field(ge=0, le=3600)] = Field(
        default=5,
        description="Seconds between two checks of a file; one that changes in between is left for the next run.",
    )
    min_new: Annotated[int, Field(ge=1)] = Field(
        default=20, description="Minimum number of new images; with fewer, nothing is trained yet."
    )
    max_rejected: Share = Field(
        default=0.5, description="Reject a delivery as a whole if more than this share of its files is unusable."
    )
    measure: Literal["accuracy", "balanced_accuracy"] = Field(
        default="accuracy",
        description="What champion and challenger are compared by; balanced: all classes count alike.",
    )
    margin: Annotated[float, Field(ge=0, lt=1)] = Field(
        default=0.04,
        description="Largest loss of accuracy on an older domain that counts as being as good (0.04 is four percentage "
        "points); the challenger has to be shown to lose less.",
    )
    alpha: Share = Field(
        default=0.05, description="Significance level of the one-sided test that the challenger is better somewhere."
    )
    undecided: Literal["wait", "ask", "promote"] = Field(
        default="wait",
        description="What to do if the test images are too few to decide: wait for more deliveries, pause the run and "
        "ask, or promote.",
    )
    min_gain: Annotated[float, Field(ge=0, lt=1)] = Field(
        default=0.0,
        description="Minimum gain in accuracy for promotion, overall or on the new domain (0.01 is one percentage "
        "point).",
    )
    new_class_accuracy: Annotated[float, Field(ge=0, le=1)] = Field(
        default=0.5,
        description="Promote for a class that the champion does not know if the lower end of its accuracy's 95 % "
        "interval is above this.",
    )
    drift_auc: Annotated[float, Field(ge=0.5, lt=1)] = Field(
        default=0.7,
        description="Drift is significant if a domain classifier separates unlabelled images from training images with "
        "an AUC whose confidence interval lies above this.",
    )
    git: Literal["none", "commit", "push"] = Field(
        default="none",
        description="How to record a promotion in git: not at all, commit dvc.lock and params.yaml, or also push the "
        "commit and the data.",
    )

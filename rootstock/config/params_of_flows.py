"""The sections of params.yaml that no stage depends on: what is compared, and what takes the champion's place."""

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from rootstock.config.architectures import FEATURE_LEVELS, GROUPS, PENULTIMATE, check_name, check_variant
from rootstock.config.section import Augment, Section, Share, not_nearly, warn_once
from rootstock.system.addresses import Address


class Compare(Section):
    """Which backbones are tried on the data set, at which depths; no stage depends on it."""

    backbones: Annotated[tuple[str, ...], Field(strict=False)] = Field(
        default=("small",), description=f"Frozen, with a linear head: names, <name>:<variant>, or {', '.join(GROUPS)}."
    )
    depths: Annotated[tuple[str, ...], Field(min_length=1, strict=False)] = Field(
        default=(PENULTIMATE,), description="Each at low, mid, high, penultimate, or at modules by their names."
    )
    image_size: Annotated[int, Field(ge=16, le=1024)] | None = Field(
        default=None, description="What they see, in pixels; null is backbone.image_size, or the network's own."
    )
    scratch: Annotated[tuple[str, ...], Field(strict=False)] = Field(
        default=(), description="Trained from random weights, all layers: what transfer is measured against."
    )
    epochs: Annotated[int, Field(ge=1)] = Field(default=60, description="Of training from scratch.")
    lr: Annotated[float, Field(gt=0, lt=1)] = Field(
        default=5e-3, title="Learning rate", description="Peak learning rate of training from scratch."
    )
    augment: Augment = Field(default="crop", description="Of training from scratch, as finetune.augment.")

    @field_validator("backbones", "scratch", mode="before")
    @classmethod
    def _have_their_new_names(cls, names: Any) -> Any:  # noqa: ANN401
        if isinstance(names, list | tuple) and "seed" in names:
            warn_once("compare: the group seed is called classics now; write that instead")
            return [{"seed": "classics"}.get(name, name) if isinstance(name, str) else name for name in names]
        return names

    @field_validator("backbones", "scratch")
    @classmethod
    def _are_there(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        for entry in names:
            name, _, variant = entry.partition(":")
            check_name(name, GROUPS)
            if variant:
                check_variant(name, variant)
        return names

    @field_validator("depths")
    @classmethod
    def _are_no_misspellings(cls, depths: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(not_nearly(depth, (*FEATURE_LEVELS, PENULTIMATE), "the name of a module") for depth in depths)


class Retrain(Section):
    """What arrives in the inbox, and when a model trained on it takes the champion's place."""

    inbox: Address = Field(
        default="data/inbox",
        description="Where deliveries arrive, as domain/class/image (domain/_unlabelled/image for what nobody has "
        "labelled yet): a folder, or any URL that fsspec reaches.",
    )
    after: Literal["keep", "archive", "delete"] = Field(
        default="keep",
        description="What becomes of files that were taken in: they stay, go to _taken in the inbox, or are deleted. "
        "But for keep, images of a rejected delivery go to _rejected.",
    )
    settle_seconds: Annotated[float, Field(ge=0, le=3600)] = Field(
        default=5, description="A file that changes between two looks so far apart is left for the next time."
    )
    min_new: Annotated[int, Field(ge=1)] = Field(
        default=20, description="Fewer new images than this wait for more; nothing is trained."
    )
    max_rejected: Share = Field(
        default=0.5, description="A delivery of which a larger share cannot be used is rejected whole."
    )
    alpha: Share = Field(default=0.05, description="Level of McNemar's test: what counts as significant.")
    min_gain: Annotated[float, Field(ge=0, lt=1)] = Field(
        default=0.0, description="By how much accuracy has to rise at least, overall or on the new domain (0.01: 1 %)."
    )
    new_class_accuracy: Annotated[float, Field(ge=0, le=1)] = Field(
        default=0.5, description="Accuracy on classes that the champion does not know, at least, to be promoted."
    )
    drift_auc: Annotated[float, Field(ge=0.5, lt=1)] = Field(
        default=0.7,
        description="Unlabelled images have drifted where a domain classifier tells them from the training images "
        "with an AUC surely above this.",
    )
    git: Literal["none", "commit", "push"] = Field(
        default="none",
        description="Record a promotion in git: commit dvc.lock and params.yaml, and push them and the data, or not.",
    )

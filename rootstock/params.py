"""All parameters as a typed model: what there is, what it may be, what it is for.

params.yaml is read into it (rootstock/params_file.py), and it is the parameter of the flow, so its titles,
descriptions, limits and choices are the form in the Prefect UI.
"""

import re
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator

from rootstock import packages
from rootstock.architectures import (
    DEPTHS as LAYERS,
    GROUPS,
    NAMES,
    PENULTIMATE,
    TIMM,
    Variant,
    check_name,
    check_variant,
)

Augment = Literal["none", "crop", "crop_flip"]
Share = Annotated[float, Field(gt=0, lt=1)]
DEPLOYMENT = r"^(here|[^/]+/[^/]+)$"  # where to fine-tune
DEPTHS = ("head", "last_block", "last_2_blocks", "last_3_blocks", "all")


def _not_nearly(given: str, names: tuple[str, ...], other: str) -> str:
    """Refuse what is nearly, but not quite, one of some names."""
    if given not in names and (near := get_close_matches(given, names, n=1, cutoff=0.75)):
        raise ValueError(f"is {given!r}; expected {', '.join(names)}, or {other}. Did you mean {near[0]}?")
    return given


class Section(BaseModel):
    """A part of params.yaml: no unknown keys, no silent conversion of types, no change after reading."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class Source(Section):
    """Images to take in: a folder, an archive, a manifest, a torchvision data set or an embedded sample."""

    path: Annotated[str, Field(min_length=1)] = Field(
        description="A folder with a sub-folder a class (or train/val/test above those), a zip or tar of one, a CSV or "
        "Parquet manifest, torchvision:Flowers102 or the like, sample:digits or sample:printed; any may be a URL."
    )
    domain: Annotated[str, Field(min_length=1)] = Field(description="Where the images come from, e.g. handwritten.")
    name: str | None = Field(
        default=None,
        description="What the data call this source; by default its path, or the last part of an absolute one.",
    )

    def title(self) -> str:
        """Name the source in the data: never an absolute path, which would differ between two machines."""
        place = self.path.removeprefix("file://").removeprefix("local://")
        return self.name or (Path(place).name if Path(place).is_absolute() else place)

    @model_validator(mode="after")
    def _holds_no_secret(self) -> "Source":
        if "://" in self.path and urlsplit(self.path).password:
            raise ValueError("a password in a URL would be recorded with every run; set it in the environment")
        return self


class Split(Section):
    """Shares of the images to hold out, where a source does not say itself."""

    val: Share = Field(default=0.15, description="Share held out to choose between models.")
    test: Share = Field(default=0.15, description="Share held out for the final figures alone.")

    @model_validator(mode="after")
    def _leaves_something_to_train_on(self) -> "Split":
        if self.val + self.test >= 1:
            raise ValueError(f"val + test is {self.val + self.test:g}; expected less than 1")
        return self


class Ingest(Section):
    """Which images are taken in, how they are checked, split and packed."""

    sources: Annotated[tuple[Source, ...], Field(min_length=1, strict=False)] = Field(
        default=(Source(path="sample:digits", domain="handwritten"),), description="What to take images in from."
    )
    split: Split = Split()
    shard_mb: Annotated[float, Field(gt=0, le=4096)] = Field(
        default=256, description="Size of a shard, in 2**20 bytes."
    )
    max_side: Annotated[int, Field(ge=32)] | None = Field(
        default=None,
        description="Store larger images scaled down to this longer side, in pixels; null keeps them as they are.",
    )
    min_side: Annotated[int, Field(ge=1)] = Field(
        default=8, description="Reject images with a side below this, in pixels."
    )
    max_megapixels: Annotated[float, Field(gt=0)] = Field(default=100, description="Reject larger images unread.")
    accept_wrong_extension: bool = Field(default=False, description="Take in a PNG that is named .jpg, say.")
    near_duplicate_bits: Annotated[int, Field(ge=0, le=8)] = Field(
        default=4, description="Images whose 64-bit perceptual hashes differ in at most so many bits share a split."
    )
    allow_shrink: bool = Field(default=False, description="Go on where a source lost more than half of its images.")

    @model_validator(mode="after")
    def _has_distinct_sources(self) -> "Ingest":
        titles = [source.title() for source in self.sources]
        if twice := {title for title in titles if titles.count(title) > 1}:
            raise ValueError(f"two sources are called {min(twice)!r}; give one of them a `name`")
        return self


class Backbone(Section):
    """The pretrained network that is kept frozen as a feature extractor."""

    name: str = Field(
        default="efficientnet_lite0",
        description="Architecture: torchvision's names, lenet5, plain34, efficientnet_lite0, or timm/<name>.",
        json_schema_extra={
            "anyOf": [
                {"type": "string", "title": "Name", "enum": [*NAMES]},
                {"type": "string", "title": "timm", "pattern": f"^{TIMM}"},
            ]
        },
    )
    variant: Variant | None = Field(
        default=None,
        description="lenet5: average_pooling; resnet34: shortcut_a, shortcut_b or shortcut_c, the paper's three; "
        "null is the usual one.",
    )
    weights: Annotated[str, Field(min_length=1)] = Field(
        default="pretrained",
        description="pretrained (from torchvision, timm, or the package that ships them), random, the path of a "
        ".safetensors or .pth file or of an earlier run's data/model, or package:<name>/<file>.",
    )
    image_size: Annotated[int, Field(ge=16, le=1024)] | None = Field(
        default=None,
        description="Side of the square the network sees, in pixels; null is the network's own (mostly 224).",
    )
    crop_fraction: Annotated[float, Field(gt=0, le=1)] | None = Field(
        default=None,
        description="Share of the resized shorter side that the central crop keeps; null is the network's own.",
    )

    @field_validator("name")
    @classmethod
    def _is_there(cls, name: str) -> str:
        check_name(name)
        return name

    @field_validator("weights")
    @classmethod
    def _is_a_file_of_a_package(cls, weights: str) -> str:
        if weights.startswith(packages.PREFIX):
            packages.check(weights)
        return weights

    @field_validator("variant")
    @classmethod
    def _is_a_variant_of_it(cls, variant: Variant | None, info: ValidationInfo) -> Variant | None:
        if "name" in info.data:
            check_variant(info.data["name"], variant)
        return variant


class Extract(Section):
    """How the frozen features are computed and stored."""

    layer: Annotated[str, Field(min_length=1)] = Field(
        default=PENULTIMATE,
        description="Where features are taken: low (edges and textures), mid (parts), high (whole objects), "
        "penultimate (what the network's own classification layer sees), or the name of one of its modules.",
    )
    pooling: Literal["avg", "max", "avgmax", "gem", "cls"] = Field(
        default="avg",
        description="How the map of a layer becomes a vector (penultimate has its own); cls: a transformer's class "
        "token.",
    )
    dtype: Literal["float32", "float16"] = Field(
        default="float32", description="Type in the Parquet files; float16 takes 60 % of the space."
    )
    engine: Literal["auto", "eager", "compile", "onnxruntime", "openvino"] = Field(
        default="auto",
        description="What computes: auto is the fastest here for so many images, its start included, and stays what "
        "it was.",
    )
    precision: Literal["f32", "bf16"] = Field(
        default="f32",
        description="bf16 computes in 16 bits: twice as fast where the processor knows it, and not exact.",
    )
    decode: Literal["full", "reduced", "gpu"] = Field(
        default="full",
        description="reduced decodes large JPEGs at a half, a quarter or an eighth of their size, gpu on the GPU; "
        "neither is exact.",
    )
    views: Annotated[int, Field(ge=0, le=64)] = Field(
        default=0, description="Augmented views of each image that the head is trained on, beside the image itself."
    )
    view_augment: Literal["crop", "crop_flip"] = Field(
        default="crop", description="What these are: random resized crops, and left-right flips."
    )
    batch_size: Annotated[int, Field(ge=1, le=4096)] | None = Field(
        default=None, description="Images a forward pass; null is what was fastest for images of that size."
    )
    runner: Literal["local", "dask", "ray"] = Field(
        default="local", description="Who works on shards: this process, or workers of a Dask or Ray (docs/scale.md)."
    )
    workers: Annotated[int, Field(ge=1)] = Field(
        default=2, description="Processes of a Dask or Ray that is started here; a cluster has its own."
    )
    cluster: str | None = Field(
        default=None, description="Address of a Dask or Ray that runs; null starts one on this machine."
    )
    store: str | None = Field(
        default=None,
        description="URL through which its workers get images and return features; null where they see this folder.",
    )

    def recipe(self) -> dict[str, Any]:
        """Give what the result depends on: everything but where, and how many at a time, it is computed."""
        where = {"batch_size", "runner", "workers", "cluster", "store"}
        return self.model_dump(mode="json", exclude=where)

    @field_validator("layer")
    @classmethod
    def _is_no_misspelling(cls, layer: str) -> str:
        """Refuse what looks like a depth at once; whether a module is there only the network knows."""
        return _not_nearly(layer, (*LAYERS, PENULTIMATE), "the name of a module")


class Head(Section):
    """The linear classifier on the frozen features."""

    l2: Annotated[tuple[Annotated[float, Field(gt=0)], ...], Field(min_length=1, strict=False)] = Field(
        default=(1000.0, 100.0, 30.0, 10.0, 3.0, 1.0, 0.3, 0.1),
        description="L2 strengths to try (1/C in scikit-learn's terms); the validation split chooses.",
    )
    max_iterations: Annotated[int, Field(ge=1)] = Field(
        default=300, description="L-BFGS iterations a strength, at most."
    )


class Stage(Section):
    """One stage of fine-tuning: what is trained, for how long, how fast."""

    unfreeze: Annotated[str, Field(min_length=1)] = Field(
        description="head, last_block, last_2_blocks, last_3_blocks, all, or the name of a layer to train from."
    )
    epochs: Annotated[int, Field(ge=1)] = Field(description="Passes over the training images.")
    lr: Annotated[float, Field(gt=0, lt=1)] = Field(
        title="Learning rate", description="Peak learning rate of the one-cycle schedule."
    )

    @field_validator("unfreeze")
    @classmethod
    def _is_no_misspelling(cls, unfreeze: str) -> str:
        """Refuse what looks like a depth at once; whether a layer is there only the network knows."""
        return _not_nearly(unfreeze, DEPTHS, "a layer name")


class Finetune(Section):
    """Unfreezing later layers in stages, from the linear head's weights (LP-FT, Kumar et al. 2022)."""

    stages: Annotated[tuple[Stage, ...], Field(strict=False)] = Field(
        default=(Stage(unfreeze="last_block", epochs=1, lr=3e-4), Stage(unfreeze="all", epochs=5, lr=5e-4)),
        description="In order; none leaves the backbone as it is.",
    )
    batch_size: Annotated[int, Field(ge=2, le=4096)] = Field(default=32, description="Images a step.")
    weight_decay: Annotated[float, Field(ge=0)] = Field(default=0.01, description="AdamW's; none on biases and norms.")
    layer_decay: Annotated[float, Field(gt=0, le=1)] = Field(
        default=1.0,
        description="Layer-wise learning-rate decay: each block's rate is this times that of the block above.",
    )
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = Field(
        default=0.1, description="Spread over the other classes."
    )
    augment: Augment = Field(
        default="none", description="Random resized crops, and left-right flips where a mirror image keeps its class."
    )
    where: str = Field(
        default="here",
        description="here, or the deployment of a worker elsewhere, e.g. fine-tune/gpu.",
        json_schema_extra={"pattern": DEPLOYMENT},  # for the form; the words below are for params.yaml
    )
    if_no_worker: Literal["wait", "here", "fail"] = Field(
        default="wait", description="Where that deployment has no worker online: wait for one, train here, or give up."
    )

    @field_validator("where")
    @classmethod
    def _is_here_or_a_deployment(cls, where: str) -> str:
        if not re.fullmatch(DEPLOYMENT, where):
            raise ValueError(f"is {where!r}; expected here, or a deployment as <flow>/<name>, e.g. fine-tune/gpu")
        return where

    def recipe(self) -> dict[str, Any]:
        """Give what the result depends on: everything but where it is computed."""
        return self.model_dump(mode="json", exclude={"where", "if_no_worker"})


class Evaluate(Section):
    """How the models are compared and reported."""

    resamples: Annotated[int, Field(ge=100, le=100_000)] = Field(
        default=1000, description="Bootstrap draws an interval."
    )
    mistakes: Annotated[int, Field(ge=0, le=500)] = Field(
        default=24, description="Worst mistakes to show in the report."
    )


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
        return tuple(_not_nearly(depth, (*LAYERS, PENULTIMATE), "the name of a module") for depth in depths)


class Retrain(Section):
    """What arrives in the inbox, and when a model trained on it takes the champion's place."""

    inbox: Annotated[str, Field(min_length=1)] = Field(
        default="data/inbox",
        description="Where deliveries arrive, as domain/class/image (domain/_unlabelled/image for what nobody has "
        "labelled yet): a folder, or any URL that fsspec reaches.",
    )
    after: Literal["keep", "archive", "delete"] = Field(
        default="keep",
        description="What becomes of files that were taken in: they stay, go to _taken in the inbox, or are deleted. "
        "But for keep, rejected ones go to _rejected.",
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


class Params(Section):
    """All of params.yaml."""

    seed: Annotated[int, Field(ge=0, lt=2**32)] = Field(default=0, description="Of everything random.")
    ingest: Ingest = Ingest()
    backbone: Backbone = Backbone()
    extract: Extract = Extract()
    head: Head = Head()
    finetune: Finetune = Finetune()
    evaluate: Evaluate = Evaluate()
    compare: Compare = Compare()
    retrain: Retrain = Retrain()

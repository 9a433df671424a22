"""All parameters as a typed model: what there is, what it may be, what it is for.

params.yaml is read into it (rootstock/config/params_file.py), and it is the parameter of the flow, so its titles,
descriptions, limits and choices are the form in the Prefect UI.
"""

import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationInfo, field_validator, model_validator

from rootstock.config.architectures import (
    FEATURE_LEVELS,
    NAMES,
    PENULTIMATE,
    TIMM,
    Variant,
    check_name,
    check_variant,
)
from rootstock.config.params_of_flows import Compare as Compare, Retrain as Retrain
from rootstock.config.section import Augment, Section as Section, Share, not_nearly, warn_once
from rootstock.system import packages
from rootstock.system.addresses import Address

DEPLOYMENT = r"^(here|[^/]+/[^/]+)$"  # where to fine-tune
SPLITS = ("train", "val", "test")
UNFREEZE_CHOICES = ("head", "last_block", "last_2_blocks", "last_3_blocks", "all")


class Source(Section):
    """Images to take in: a folder, an archive, a manifest, a torchvision data set or an embedded sample."""

    path: Address = Field(
        description="A folder with a sub-folder a class (or train/val/test above those), a zip or tar of one, a CSV or "
        "Parquet manifest, torchvision:Flowers102 or the like, sample:digits or sample:printed; any may be a URL."
    )
    domain: Annotated[str, Field(min_length=1)] = Field(description="Where the images come from, e.g. handwritten.")
    name: str | None = Field(
        default=None,
        description="What the data call this source; by default its path, or the last part of an absolute one.",
    )
    layout: Literal["auto", "class_folders", "split_folders"] = Field(
        default="auto",
        description="How its folders are read: a sub-folder a class, or splits above those. auto decides once, says "
        "how in the log, and keeps it; it stops where it cannot tell.",
    )
    classes_at: str | None = Field(
        default=None,
        description="The folder whose sub-folders are the classes, e.g. photos/2023; `.` is the source itself, `*` "
        "stands for any one folder (`*`: in each of its folders).",
    )
    splits: dict[str, str] | None = Field(
        default=None,
        description="Which folders are splits, with classes below them, e.g. {training_set: train, test_set: test}.",
    )

    value_range: Annotated[tuple[float, ...], Field(min_length=2, max_length=2, strict=False)] | None = Field(
        default=None,
        description="Black and white of its images of more than 8 bits or of floats, e.g. [0, 4095]; null where these "
        "fill 16 bits.",
    )

    @field_validator("value_range")
    @classmethod
    def _rises(cls, value_range: tuple[float, ...] | None) -> tuple[float, ...] | None:
        if value_range and not value_range[0] < value_range[1]:
            raise ValueError(
                f"is {list(value_range)}; expected two numbers, black and white, the first below the second"
            )
        return value_range

    def title(self) -> str:
        """Name the source in the data: never an absolute path, which would differ between two machines."""
        place = self.path.removeprefix("file://").removeprefix("local://")
        return self.name or (Path(place).name if Path(place).is_absolute() else place)

    def layout_given(self) -> dict[str, Any]:
        """Return what a person says of its layout; nothing where that is left to be decided."""
        return self.model_dump(include={"layout", "classes_at", "splits"}, exclude_defaults=True)

    @field_validator("classes_at")
    @classmethod
    def _is_named(cls, folder: str | None) -> str | None:
        return folder or None  # a form's empty field says nothing

    @field_validator("splits")
    @classmethod
    def _are_splits(cls, splits: dict[str, str] | None) -> dict[str, str] | None:
        for folder, split in (splits or {}).items():
            if split not in SPLITS:
                raise ValueError(f"is {split!r} for {folder!r}; expected {', '.join(SPLITS)}")
        return splits or None


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
        default=(), description="What to take images in from."
    )  # a whole params.yaml has to name some (params_file.check_whole): no code knows whose images these should be
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
    damaged: Literal["reject", "keep"] = Field(
        default="reject",
        description="What becomes of images whose pixels can be had though something is wrong with their files.",
    )
    seconds_a_file: Annotated[float, Field(gt=0, le=3600)] = Field(
        default=20, description="Reject what takes longer to decode, in seconds of a core."
    )
    accept_wrong_extension: bool = Field(default=False, description="Take in a PNG that is named .jpg, say.")
    near_duplicate_bits: Annotated[int, Field(ge=0, le=8)] = Field(
        default=4, description="Images whose 64-bit perceptual hashes differ in at most so many bits share a split."
    )
    allow_shrink: bool = Field(default=False, description="Go on where a source lost more than half of its images.")
    allow_relabel: bool = Field(
        default=False, description="Go on where many known images of a source, or all of a class, get another label."
    )

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
    weights: Address = Field(
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
    engine: Literal["auto", "eager", "openvino"] = Field(
        default="auto",
        description="What computes: auto is OpenVINO from 256 images on, else eager (torch), and stays what it was.",
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
    cluster: Address | None = Field(
        default=None, description="Address of a Dask or Ray that runs; null starts one on this machine."
    )
    store: Address | None = Field(
        default=None,
        description="URL through which its workers get images and return features; null where they see this folder.",
    )

    @field_validator("engine", mode="before")
    @classmethod
    def _is_still_there(cls, engine: Any) -> Any:  # noqa: ANN401
        if engine in ("onnxruntime", "compile"):
            warn_once(f"extract.engine: {engine} is no longer there, and is read as auto; write that instead")
            return "auto"
        return engine

    def recipe(self) -> dict[str, Any]:
        """Return what the result depends on: everything but where, and how many at a time, it is computed."""
        where = {"batch_size", "runner", "workers", "cluster", "store"}
        return self.model_dump(mode="json", exclude=where)

    @field_validator("layer")
    @classmethod
    def _is_no_misspelling(cls, layer: str) -> str:
        """Refuse what looks like a depth at once; whether a module is there only the network knows."""
        return not_nearly(layer, (*FEATURE_LEVELS, PENULTIMATE), "the name of a module")


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
        return not_nearly(unfreeze, UNFREEZE_CHOICES, "a layer name")


class Finetune(Section):
    """Unfreezing later layers in stages, from the linear head's weights (LP-FT, Kumar et al. 2022)."""

    stages: Annotated[tuple[Stage, ...], Field(strict=False)] = Field(
        default=(Stage(unfreeze="last_block", epochs=1, lr=3e-4), Stage(unfreeze="all", epochs=5, lr=5e-4)),
        description="In order; none leaves the backbone as it is.",
    )
    batch_size: Annotated[int, Field(ge=2, le=4096)] = Field(default=32, description="Mini-batch size.")
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
        """Return what the result depends on: everything but where it is computed."""
        return self.model_dump(mode="json", exclude={"where", "if_no_worker"})


class Evaluate(Section):
    """How the models are compared and reported."""

    resamples: Annotated[int, Field(ge=100, le=100_000)] = Field(
        default=1000, description="Bootstrap draws an interval."
    )
    mistakes: Annotated[int, Field(ge=0, le=500)] = Field(
        default=24, description="Worst mistakes to show in the report."
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

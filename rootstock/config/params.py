"""All parameters as a typed pydantic model.

params.yaml is read into it (rootstock/config/params_file.py). It is also the parameter of the flow, so its titles,
descriptions, limits and choices make up the form in the Prefect UI.
"""

from importlib.util import find_spec
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, ValidationInfo, field_validator

from rootstock.config.architectures import (
    FEATURE_LEVELS,
    NAMES,
    PENULTIMATE,
    TIMM,
    Variant,
    check_name,
    check_variant,
)
from rootstock.config.flow_params import Compare as Compare, Export as Export, Retrain as Retrain
from rootstock.config.ingest_params import SPLITS as SPLITS, Ingest as Ingest, Source as Source, Split as Split
from rootstock.config.section import Section as Section, reject_near_miss, warn_once
from rootstock.config.training_params import (
    AUTO as AUTO,
    DEPLOYMENT as DEPLOYMENT,
    UNFREEZE_CHOICES as UNFREEZE_CHOICES,
    Averaging as Averaging,
    ClassWeight as ClassWeight,
    Finetune as Finetune,
    Head as Head,
    Regularization as Regularization,
    Stage as Stage,
)
from rootstock.system import packages
from rootstock.system.addresses import Address


class Backbone(Section):
    """The pretrained network, kept frozen as a feature extractor."""

    name: str = Field(
        default="efficientnet_lite0",
        description="Architecture: a torchvision name, lenet5, plain34, efficientnet_lite0, or timm/<name>.",
        json_schema_extra={
            "anyOf": [
                {"type": "string", "title": "Name", "enum": [*NAMES]},
                {"type": "string", "title": "timm", "pattern": f"^{TIMM}"},
            ]
        },
    )
    variant: Variant | None = Field(
        default=None,
        description="lenet5: average_pooling; resnet34: shortcut_a, shortcut_b or shortcut_c (options A, B and C of "
        "the ResNet paper); null is the standard variant.",
    )
    weights: Address = Field(
        default="pretrained",
        description="pretrained (from torchvision, timm or the package that ships them), random, the path of a "
        ".safetensors or .pth file or of an earlier run's data/model, or package:<name>/<file>.",
    )
    image_size: Annotated[int, Field(ge=16, le=1024)] | None = Field(
        default=None,
        description="Side length of the network's square input, in pixels; null is the network's default (usually "
        "224).",
    )
    crop_fraction: Annotated[float, Field(gt=0, le=1)] | None = Field(
        default=None,
        description="Fraction of the resized shorter side that the centre crop keeps; null is the network's default.",
    )

    @field_validator("name")
    @classmethod
    def _exists(cls, name: str) -> str:
        check_name(name)
        return name

    @field_validator("weights")
    @classmethod
    def _is_valid_package_file(cls, weights: str) -> str:
        if weights.startswith(packages.PREFIX):
            packages.check(weights)
        return weights

    @field_validator("variant")
    @classmethod
    def _fits_architecture(cls, variant: Variant | None, info: ValidationInfo) -> Variant | None:
        if "name" in info.data:
            check_variant(info.data["name"], variant)
        return variant


class Extract(Section):
    """How the frozen features are computed and stored."""

    layer: Annotated[str, Field(min_length=1)] = Field(
        default=PENULTIMATE,
        description="Layer whose output becomes the features: low (edges and textures), mid (parts), high (whole "
        "objects), penultimate (the input of the network's own classification layer), or a module name.",
    )
    pooling: Literal["avg", "max", "avgmax", "gem", "cls"] = Field(
        default="avg",
        description="How a feature map is pooled into a vector (penultimate uses the network's own pooling); cls is a "
        "transformer's class token.",
    )
    dtype: Literal["float32", "float16"] = Field(
        default="float32", description="Data type in the Parquet files; float16 takes 60 % of the space."
    )
    engine: Literal["auto", "eager", "openvino"] = Field(
        default="auto",
        description="Inference engine: auto is OpenVINO from 256 images on, else eager (PyTorch); once chosen, it "
        "stays.",
    )
    precision: Literal["f32", "bf16"] = Field(
        default="f32",
        description="bf16 computes in bfloat16: twice as fast on CPUs that support it, but not exact.",
    )
    decode: Literal["full", "reduced", "gpu"] = Field(
        default="full",
        description="reduced decodes large JPEGs at 1/2, 1/4 or 1/8 of their size, gpu decodes on the GPU; neither is "
        "exact.",
    )
    views: Annotated[int, Field(ge=0, le=64)] = Field(
        default=0, description="Augmented views per image to train the head on, in addition to the image itself."
    )
    view_augment: Literal["crop", "crop_flip"] = Field(
        default="crop", description="Augmentation of the views: random resized crops, with or without horizontal flips."
    )
    batch_size: Annotated[int, Field(ge=1, le=4096)] | None = Field(
        default=None,
        description="Images per forward pass; null is the batch size that was fastest for the input size. It does not "
        "apply to eager bf16 on a CPU, whose values would depend on it.",
    )
    runner: Literal["local", "dask", "ray"] = Field(
        default="local",
        description="Where shards are processed: in this process, or by Dask or Ray workers (docs/scale.md).",
    )
    workers: Annotated[int, Field(ge=1)] = Field(
        default=2, description="Worker processes if Dask or Ray is started here; a running cluster has its own."
    )
    cluster: Address | None = Field(
        default=None, description="Address of a running Dask or Ray cluster; null starts one on this machine."
    )
    store: Address | None = Field(
        default=None,
        description="URL through which workers fetch images and return features; null if they share this folder.",
    )

    @field_validator("engine", mode="before")
    @classmethod
    def _replace_removed_engine(cls, engine: Any) -> Any:  # noqa: ANN401
        if engine in ("onnxruntime", "compile"):
            warn_once(f"extract.engine: {engine} was removed and is read as auto; change it to auto")
            return "auto"
        return engine

    def recipe(self) -> dict[str, Any]:
        """Return the settings that the features depend on: all but where, and in what batches, they are computed."""
        where = {"batch_size", "runner", "workers", "cluster", "store"}
        return self.model_dump(mode="json", exclude=where)

    @field_validator("layer")
    @classmethod
    def _is_not_misspelt(cls, layer: str) -> str:
        """Refuse a misspelt level early; whether a module exists is only known once the network is built."""
        return reject_near_miss(layer, (*FEATURE_LEVELS, PENULTIMATE), "a module name")


class Evaluate(Section):
    """How the models are evaluated and reported."""

    retired_keys: ClassVar = {"resamples": "intervals are computed without resampling"}

    views: Literal[1, 2] = Field(
        default=1,
        description="Views of each image that the features are averaged over, in evaluation and in prediction: 1, the "
        "image, or 2, the image and its mirror image, if a mirrored image keeps its class.",
    )
    mistakes: Annotated[int, Field(ge=0, le=500)] = Field(
        default=24, description="Number of misclassified images shown in the report, worst first."
    )
    label_issues: Annotated[int, Field(ge=0, le=500)] = Field(
        default=24,
        description="Number of images shown in the report whose label is probably wrong, worst first (0: not looked "
        "for).",
    )
    learning_curve: bool = Field(
        default=True,
        description="Measure heads on some of the training images, and tell whether more images would help.",
    )
    explain: bool = Field(
        default=True,
        description="Explain the winner in the report: where the evidence in mistakes and sure hits lies (Grad-CAM), "
        "what the layers of its backbone see, and a map of its features.",
    )
    repeats: Annotated[int, Field(ge=0, le=100)] = Field(
        default=0,
        description="How often all images are split anew into five folds, to measure the frozen-feature head on each: "
        "5 for a few hundred images or few groups, whose test split is too small (0: not at all).",
    )
    probabilities: Literal["auto", "all"] = Field(
        default="auto",
        description="Which probabilities `data/report/predictions.parquet` has: auto, those of all classes if there "
        "are at most 100, else of the five most probable ones and the label's; or all.",
    )


class Cache(Section):
    """What is kept on this machine to be computed once; no result depends on it."""

    pixels_gb: Annotated[float, Field(ge=0)] = Field(
        default=10.0,
        description="Decoded images under .rootstock/pixels, in GB at most, which fine-tuning and evaluation read "
        "instead of decoding them again in every epoch (0: none).",
    )
    activations_gb: Annotated[float, Field(ge=0)] = Field(
        default=10.0,
        description="Activations of frozen layers under .rootstock/activations, in GB at most, from which fine-tuning "
        "starts instead of computing them in every epoch (0: none).",
    )


Track = Literal["none", "mlflow", "wandb"]
TRACKERS = {"mlflow": "MLflow", "wandb": "Weights & Biases"}


UNRECORDED = {"retrain", "compare", "export", "cache", "track"}  # sections on which no stage's outputs depend


class Params(Section):
    """All parameters: the contents of params.yaml."""

    seed: Annotated[int, Field(ge=0, lt=2**32)] = Field(default=0, description="Random seed.")
    ingest: Ingest = Ingest()
    backbone: Backbone = Backbone()
    extract: Extract = Extract()
    head: Head = Head()
    finetune: Finetune = Finetune()
    evaluate: Evaluate = Evaluate()
    compare: Compare = Compare()
    retrain: Retrain = Retrain()
    export: Export = Export()
    cache: Cache = Cache()
    track: Track = Field(
        default="none",
        description="Where each run is tracked besides DVC: mlflow, wandb (Weights & Biases), or none "
        "(docs/tracking.md).",
    )

    @field_validator("track")
    @classmethod
    def _is_installed(cls, track: Track) -> Track:
        """Refuse a tracker that is not installed before any work starts."""
        found = find_spec(track) if track in TRACKERS else None
        if track in TRACKERS and (found is None or found.origin is None):  # a mere folder of that name has no origin
            raise ValueError(
                f"is {track}, which needs {TRACKERS[track]}: pip install -c constraints.txt -e '.[{track}]'"
            )
        return track

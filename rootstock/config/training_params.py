"""The sections of params.yaml on training: the head, and fine-tuning in stages."""

import re
import reprlib
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, ValidationInfo, ValidatorFunctionWrapHandler, field_validator
from pydantic.config import JsonDict

from rootstock.config.section import Augment, Section, reject_near_miss

DEPLOYMENT = r"^(here|[^/]+/[^/]+)$"  # where to fine-tune
Name = Annotated[str, Field(min_length=1)]
ClassWeight = Literal["none", "balanced"]
UNFREEZE_CHOICES = ("head", "last_block", "last_2_blocks", "last_3_blocks", "last_half", "all", "first_block", "lora")
AUTO: Literal["auto"] = "auto"
# The titles of alternatives are those of tabs in the Prefect UI's forms.
AUTOMATIC: JsonDict = {"type": "string", "title": "auto", "enum": [AUTO]}


class Head(Section):
    """The classifier on the frozen features."""

    kind: Literal["logistic", "ridge", "prototype", "knn", "auto"] = Field(
        default="logistic",
        description="Kind of head: logistic regression, ridge regression, class prototypes (for few images), nearest "
        "neighbours, or auto: the simplest within one standard error of the best on validation.",
    )
    class_weight: ClassWeight = Field(
        default="none",
        description="Weight of each class in the loss of the head and of fine-tuning: none, or balanced, with which "
        "every class counts the same however few images it has.",
    )
    l2: Annotated[tuple[Annotated[float, Field(gt=0)], ...], Field(min_length=1, strict=False)] = Field(
        default=(1000.0, 100.0, 30.0, 10.0, 3.0, 1.0, 0.3, 0.1),
        description="L2 strengths to try (1/C in scikit-learn); chosen on the validation split.",
    )
    max_iterations: Annotated[int, Field(ge=1)] = Field(
        default=300, description="Maximum L-BFGS iterations per L2 strength."
    )


class Stage(Section):
    """One fine-tuning stage: what is unfrozen, for how many epochs, and the learning rate."""

    unfreeze: Name | Annotated[tuple[Name, ...], Field(min_length=1, strict=False)] = Field(
        description="What to train: head, last_block, last_2_blocks, last_3_blocks, last_half (the later half of the "
        "blocks), all, first_block, a layer name (that layer and all later ones), a list of blocks, lora "
        "(low-rank adapters beside the linear layers, which stay frozen: for vision transformers), or auto: "
        "last_block, last_half and all in turn, each for these epochs, until one lowers the log loss on validation no "
        "longer significantly.",
        json_schema_extra={
            "anyOf": [
                {"type": "string", "title": "Name", "minLength": 1},
                {
                    "type": "array",
                    "title": "List of blocks",
                    "items": {"type": "string", "minLength": 1},
                    "minItems": 1,
                },
            ]
        },
    )
    epochs: Annotated[int, Field(ge=1)] | Literal["auto"] = Field(
        description="Number of epochs (passes over the training images), or auto: more the fewer images there are, "
        "from 5 down to 3.",
        json_schema_extra={"anyOf": [{"type": "integer", "title": "Number", "minimum": 1}, AUTOMATIC]},
    )
    lr: Annotated[float, Field(gt=0, lt=1)] | Literal["auto"] = Field(
        title="Learning rate",
        description="Peak learning rate of the one-cycle schedule, or auto: found by a range test of 60 steps before "
        "the stage.",
        json_schema_extra={
            "anyOf": [{"type": "number", "title": "Number", "exclusiveMinimum": 0, "exclusiveMaximum": 1}, AUTOMATIC]
        },
    )

    @field_validator("epochs", "lr", mode="wrap")
    @classmethod
    def _is_number_or_auto(cls, value: object, validated: ValidatorFunctionWrapHandler, info: ValidationInfo) -> object:
        """Report one error, not one for a number and one for `auto`."""
        try:
            return validated(value)
        except ValidationError:
            number = {"epochs": "a whole number of at least 1", "lr": "a number above 0 and below 1"}
            expected = number[str(info.field_name)]
            raise ValueError(f"is {reprlib.repr(value)}; expected {expected}, or auto.") from None

    @field_validator("unfreeze", mode="wrap")
    @classmethod
    def _is_name_or_names(cls, unfreeze: object, validated: ValidatorFunctionWrapHandler) -> object:
        """Report one error, not one for a name and one for a list."""
        try:
            return validated(unfreeze)
        except ValidationError:
            said = f"is {reprlib.repr(unfreeze)}; expected {', '.join(UNFREEZE_CHOICES)}, {AUTO}, a layer name"
            raise ValueError(f"{said}, or a list of blocks.") from None

    @field_validator("unfreeze")
    @classmethod
    def _is_not_misspelt(cls, unfreeze: str | tuple[str, ...]) -> str | tuple[str, ...]:
        """Refuse a misspelt choice early; whether a layer exists is only known once the network is built."""
        for name in (unfreeze,) if isinstance(unfreeze, str) else unfreeze:
            reject_near_miss(name, (*UNFREEZE_CHOICES, AUTO), "a layer name")
        return unfreeze

    @property
    def name(self) -> str:
        """Return what is trained, as it is shown."""
        return self.unfreeze if isinstance(self.unfreeze, str) else ", ".join(self.unfreeze)


class Averaging(Section):
    """Averages of weights, which cost no time where the model is used; what is best on validation is kept."""

    interpolation: Annotated[int, Field(ge=0, le=100)] = Field(
        default=0,
        description="Points tried between the weights of the linear probe and the fine-tuned ones (WiSE-FT), a pass "
        "over the validation images each (0: none).",
    )
    soup: Annotated[int, Field(ge=0, le=100)] = Field(
        default=0,
        description="Best epochs whose weights are averaged, one after the other, where that validates no worse "
        "(greedy soup; 0: none).",
    )
    ema: Annotated[float, Field(ge=0, lt=1)] = Field(
        default=0.0,
        description="Decay of an exponential moving average of the weights over training steps, which takes their "
        "place on validation and in the model, e.g. 0.99 (0: none).",
    )


class Regularization(Section):
    """What keeps a network from learning its training images by heart."""

    mixup: Annotated[float, Field(ge=0, le=100)] = Field(
        default=0.0,
        description="Alpha of the beta distribution by which each image of a mini-batch is blended with another, and "
        "its label alike (mixup), e.g. 0.2 (0: none).",
    )
    cutmix: Annotated[float, Field(ge=0, le=100)] = Field(
        default=0.0,
        description="The same for a rectangle cut from another image (CutMix), e.g. 1.0; with both, one of them at "
        "random for each mini-batch (0: none).",
    )
    drop_path: Annotated[float, Field(ge=0, lt=1)] = Field(
        default=0.0,
        description="Rate at which residual branches of the last block are left out in training, falling linearly to 0 "
        "in the first (stochastic depth), e.g. 0.1 (0: as the network has it).",
    )


class Finetune(Section):
    """Unfreezes later layers in stages, starting from the linear head's weights (LP-FT, Kumar et al. 2022)."""

    stages: Annotated[tuple[Stage, ...], Field(strict=False)] = Field(
        default=(Stage(unfreeze="last_half", epochs="auto", lr=5e-4),),
        description="Fine-tuning stages, in order; an empty list leaves the backbone frozen.",
    )
    batch_size: Annotated[int, Field(ge=2, le=4096)] = Field(
        default=32, description="Mini-batch size; one that does not fit into memory is computed in parts."
    )
    weight_decay: Annotated[float, Field(ge=0)] = Field(
        default=0.01, description="AdamW weight decay; not applied to biases and normalisation layers."
    )
    layer_decay: Annotated[float, Field(gt=0, le=1)] | None = Field(
        default=None,
        description="Layer-wise learning-rate decay: each block's learning rate is this factor times that of the block "
        "above (empty: 0.75 for vision transformers, 1 for other networks).",
    )
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = Field(
        default=0.1, description="Label smoothing of the cross-entropy loss."
    )
    augment: Augment = Field(
        default="none",
        description="Data augmentation: random resized crops (crop), with horizontal flips (crop_flip) if a mirrored "
        "image keeps its class, and with random changes of shape and colour besides (randaugment).",
    )
    lora_rank: Annotated[int, Field(ge=1, le=1024)] = Field(
        default=8, description="Rank of the adapters of unfreeze: lora, merged into the weights after training."
    )
    sizes: Annotated[tuple[Annotated[int, Field(ge=8, le=4096)], ...], Field(strict=False)] = Field(
        default=(),
        description="Image sizes in pixels of the earlier epochs of each stage, in this order and below the network's "
        "own, which is that of its last epochs (progressive resizing; empty: all epochs have the network's own).",
    )
    patience: Annotated[int, Field(ge=0)] = Field(
        default=0,
        description="Epochs without better validation accuracy or log loss after which a stage ends (0: never).",
    )
    regularization: Regularization = Field(default=Regularization(), description="Regularization.")
    averaging: Averaging = Field(default=Averaging(), description="Averages of weights.")
    store_size: Annotated[int, Field(ge=0, le=4096)] = Field(
        default=0,
        description="Side in pixels at which whole images are kept for random crops, somewhat above the network's "
        "input size, so that each is decoded once (0: crops are cut from the image itself, decoded in every epoch).",
    )
    frozen_layers: Literal["auto", "compute"] = Field(
        default="auto",
        description="Activations of frozen layers: computed once for each image where that saves time (auto), or in "
        "every epoch (compute).",
    )
    cached_views: Annotated[int, Field(ge=0, le=1000)] = Field(
        default=0,
        description="With data augmentation, the number of views of each image for which the activations of frozen "
        "layers are kept; each epoch takes one at random (0: images are augmented anew in every epoch).",
    )
    where: str = Field(
        default="here",
        description="Where to fine-tune: here, or a deployment on another worker, e.g. fine-tune/gpu.",
        json_schema_extra={"pattern": DEPLOYMENT},  # for the form; the validator below has the message for params.yaml
    )
    if_no_worker: Literal["wait", "here", "fail"] = Field(
        default="wait",
        description="What to do if that deployment has no worker online: wait for one, train here, or fail.",
    )

    @field_validator("where")
    @classmethod
    def _is_here_or_deployment(cls, where: str) -> str:
        if not re.fullmatch(DEPLOYMENT, where):
            raise ValueError(f"is {where!r}; expected here, or a deployment as <flow>/<name>, e.g. fine-tune/gpu")
        return where

    processes: Annotated[int, Field(ge=1, le=1024)] = Field(
        default=1,
        description="Number of processes that share each mini-batch: one per GPU of the machine that trains.",
    )

    checkpoint_minutes: Annotated[float, Field(ge=0)] = Field(
        default=1.0,
        description="Minutes of training that a killed run loses at most, between checkpoints within an epoch.",
    )

    def recipe(self) -> dict[str, Any]:
        """Return the settings that the result depends on: all but where it is computed."""
        return self.model_dump(mode="json", exclude={"where", "if_no_worker", "processes", "checkpoint_minutes"})

"""params.yaml as a typed model: read once, checked whole, and an error names the key and what it may be.

The same model is the parameter of the flow, so its titles, descriptions, limits and choices are the form in the
Prefect UI.
"""

from difflib import get_close_matches
from io import StringIO
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import ErrorDetails
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from rootstock.architectures import BackboneName
from rootstock.errors import ParamsError
from rootstock.files import write

Share = Annotated[float, Field(gt=0, lt=1)]


class Section(BaseModel):
    """A part of params.yaml: no unknown keys, no silent conversion of types, no change after reading."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Source(Section):
    """Images to take in: a folder, an archive, a manifest, a torchvision data set or an embedded sample."""

    path: Annotated[str, Field(min_length=1)] = Field(
        description="A folder with a sub-folder a class (or train/val/test above those), a zip or tar of one, a CSV or "
        "Parquet manifest, torchvision:<DataSet>, sample:digits or sample:printed; any of them may be an fsspec URL."
    )
    domain: Annotated[str, Field(min_length=1)] = Field(description="Where the images come from, e.g. handwritten.")
    name: str | None = Field(
        None,
        description="What the data call this source; by default its path, or the last part of an absolute one.",
    )

    def title(self) -> str:
        """Name the source in the data: never an absolute path, which would differ between two machines."""
        return self.name or (Path(self.path).name if Path(self.path).is_absolute() else self.path)


class Split(Section):
    """Shares of the images to hold out, where a source does not say itself."""

    val: Share = Field(0.15, description="Share held out to choose between models.")
    test: Share = Field(0.15, description="Share held out for the final figures alone.")

    @model_validator(mode="after")
    def _leaves_something_to_train_on(self) -> "Split":
        if self.val + self.test >= 1:
            raise ValueError(f"val + test is {self.val + self.test:g}; expected less than 1")
        return self


class Ingest(Section):
    """Which images are taken in, how they are checked, split and packed."""

    sources: Annotated[tuple[Source, ...], Field(min_length=1, strict=False)] = (
        Source(path="sample:digits", domain="handwritten"),
    )
    split: Split = Split()
    shard_mb: Annotated[float, Field(gt=0, le=4096)] = Field(256, description="Size of a shard, in 2**20 bytes.")
    max_side: Annotated[int, Field(ge=32)] | None = Field(
        None,
        description="Store larger images scaled down to this longer side, in pixels; null keeps them as they are.",
    )
    min_side: Annotated[int, Field(ge=1)] = Field(8, description="Reject images with a side below this, in pixels.")
    max_megapixels: Annotated[float, Field(gt=0)] = Field(100, description="Reject larger images unread.")
    accept_wrong_extension: bool = Field(False, description="Take in a PNG that is named .jpg, say.")
    near_duplicate_bits: Annotated[int, Field(ge=0, le=8)] = Field(
        4, description="Images whose 64-bit perceptual hashes differ in at most so many bits share a split."
    )
    allow_shrink: bool = Field(False, description="Go on where a source lost more than half of its images.")

    @model_validator(mode="after")
    def _has_distinct_sources(self) -> "Ingest":
        titles = [source.title() for source in self.sources]
        if twice := {title for title in titles if titles.count(title) > 1}:
            raise ValueError(f"two sources are called {min(twice)!r}; give one of them a `name`")
        return self


class Backbone(Section):
    """The pretrained network that is kept frozen as a feature extractor."""

    name: BackboneName = Field("efficientnet_lite0", description="Architecture, in torchvision's names.")
    weights: Annotated[str, Field(min_length=1)] = Field(
        "pretrained",
        description="pretrained (from torchvision, or the package that ships them), random, "
        "or the path of a .safetensors or .pth file.",
    )
    image_size: Annotated[int, Field(ge=16, le=1024)] | None = Field(
        None,
        description="Side of the square the network sees, in pixels; null is the network's own (mostly 224).",
    )
    crop_fraction: Annotated[float, Field(gt=0, le=1)] | None = Field(
        None,
        description="Share of the resized shorter side that the central crop keeps; null is the network's own.",
    )


class Extract(Section):
    """How the frozen features are computed and stored."""

    dtype: Literal["float32", "float16"] = Field("float32", description="Type in the Parquet files; float16 is half.")
    batch_size: Annotated[int, Field(ge=1, le=4096)] = Field(64, description="Images a forward pass.")


class Head(Section):
    """The linear classifier on the frozen features."""

    l2: Annotated[tuple[Annotated[float, Field(gt=0)], ...], Field(min_length=1, strict=False)] = Field(
        (1000.0, 100.0, 10.0, 1.0, 0.1),
        description="L2 strengths to try (1/C in scikit-learn's terms); the validation split chooses.",
    )
    max_iterations: Annotated[int, Field(ge=1)] = Field(300, description="L-BFGS iterations a strength, at most.")


class Stage(Section):
    """One stage of fine-tuning: what is trained, for how long, how fast."""

    unfreeze: Annotated[str, Field(min_length=1)] = Field(
        description="head, last_block, last_2_blocks, last_3_blocks, all, or the name of a layer to train from."
    )
    epochs: Annotated[int, Field(ge=1)] = Field(description="Passes over the training images.")
    lr: Annotated[float, Field(gt=0, lt=1)] = Field(description="Peak learning rate of the one-cycle schedule.")


class Finetune(Section):
    """Unfreezing later layers in stages, from the linear head's weights (LP-FT, Kumar et al. 2022)."""

    stages: Annotated[tuple[Stage, ...], Field(strict=False)] = Field(
        (Stage(unfreeze="last_block", epochs=1, lr=1e-3), Stage(unfreeze="all", epochs=3, lr=2e-4)),
        description="In order; none leaves the backbone as it is.",
    )
    batch_size: Annotated[int, Field(ge=2, le=4096)] = Field(32, description="Images a step.")
    weight_decay: Annotated[float, Field(ge=0)] = Field(0.01, description="AdamW's; none on biases and norms.")
    layer_decay: Annotated[float, Field(gt=0, le=1)] = Field(
        1.0,
        description="Layer-wise learning-rate decay: each block's rate is this times that of the block above.",
    )
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = Field(0.0, description="Spread over the other classes.")
    augment: Literal["none", "crop", "crop_flip"] = Field(
        "none", description="Random resized crops, and left-right flips where a mirror image keeps its class."
    )


class Evaluate(Section):
    """How the models are compared and reported."""

    resamples: Annotated[int, Field(ge=100, le=100_000)] = Field(1000, description="Bootstrap draws an interval.")
    mistakes: Annotated[int, Field(ge=0, le=500)] = Field(24, description="Worst mistakes to show in the report.")


class Params(Section):
    """All of params.yaml."""

    seed: Annotated[int, Field(ge=0, lt=2**32)] = Field(0, description="Of everything random.")
    ingest: Ingest = Ingest()
    backbone: Backbone = Backbone()
    extract: Extract = Extract()
    head: Head = Head()
    finetune: Finetune = Finetune()
    evaluate: Evaluate = Evaluate()


def load(path: Path) -> Params:
    """Read and check a parameter file.

    Raises:
        ParamsError: the file is missing, is not YAML, or a key is unknown, of the wrong type or impossible.
    """
    try:
        raw = YAML(typ="safe").load(path)
    except FileNotFoundError:
        raise ParamsError(f"{path}: not found. Start Rootstock in the folder that holds it.") from None
    except YAMLError as error:
        raise ParamsError(f"{path}: not valid YAML: {error}") from None
    try:
        return Params.model_validate(raw or {})
    except ValidationError as error:
        raise ParamsError("\n".join(_say(path.name, problem) for problem in error.errors())) from None


def save(path: Path, params: Params) -> None:
    """Write `params` to a parameter file, keeping the comments and the order of what is there."""
    yaml = YAML()  # round trip: YAML 1.2, as DVC reads it
    yaml.indent(mapping=2, sequence=4, offset=2)
    document = yaml.load(path) if path.exists() else None
    document = _merge(document, params.model_dump(mode="json"))
    text = StringIO()
    yaml.dump(document, text)
    write(path, text.getvalue())


def _merge(old: Any, new: Any) -> Any:  # noqa: ANN401
    """Put the values of `new` into `old`, leaving what is equal, and so its comments, alone."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in [key for key in old if key not in new]:
            del old[key]
        for key, value in new.items():
            old[key] = _merge(old.get(key), value)
        return old
    if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        for index, value in enumerate(new):
            old[index] = _merge(old[index], value)
        return old
    return old if old == new and type(old) is type(new) else new


def _say(file: str, problem: ErrorDetails) -> str:
    """Put one of pydantic's findings into words: the key, what it is, what was expected, the nearest spelling."""
    key = ""
    for part in problem["loc"]:
        if isinstance(part, int):
            key += f"[{part}]"
        elif part.isidentifier() or not key:  # leaves out pydantic's names for the branches of a union
            key += f".{part}" if key else str(part)
    given = problem["input"]
    if problem["type"] == "extra_forbidden":
        known = _keys_beside(problem["loc"])
        return (
            f"{file}: unknown key {key}; expected one of {', '.join(known)}.{_nearest(str(problem['loc'][-1]), known)}"
        )
    if problem["type"] == "missing":
        return f"{file}: {key} is missing."
    if problem["type"] == "literal_error":
        allowed = _choices(problem)
        listed = ", ".join(allowed) if len(allowed) <= 12 else f"one of {len(allowed)} names (see docs/backbones.md)"
        return f"{file}: {key} is {given!r}; expected {listed}.{_nearest(str(given), allowed)}"
    if problem["type"] == "value_error":
        return f"{file}: {key or 'params'}: {problem['msg'].removeprefix('Value error, ')}."
    expected = problem["msg"].removeprefix("Input should be ").removeprefix("a valid ")
    return f"{file}: {key} is {given!r}; expected {expected}."


def _choices(problem: ErrorDetails) -> list[str]:
    """List what a Literal allows, from the model itself: pydantic's message is one long sentence."""
    model, names = Params, [part for part in problem["loc"] if isinstance(part, str)]
    for name in names[:-1]:
        model = _section_in(model.model_fields[name].annotation) or model
    return [str(choice) for choice in get_args(model.model_fields[names[-1]].annotation)]


def _keys_beside(location: tuple[int | str, ...]) -> list[str]:
    """List the keys that are known where an unknown one was found."""
    model: type[BaseModel] = Params
    for part in location[:-1]:
        if isinstance(part, str):
            model = _section_in(model.model_fields[part].annotation) or model
    return list(model.model_fields)


def _section_in(annotation: Any) -> type[Section] | None:  # noqa: ANN401
    """Find the section that a field holds, alone or in a tuple."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return annotation
    return next((found for part in get_args(annotation) if (found := _section_in(part))), None)


def _nearest(given: str, allowed: list[str]) -> str:
    near = get_close_matches(given.lower(), allowed, n=2, cutoff=0.5)
    return f" Did you mean {' or '.join(near)}?" if near else ""

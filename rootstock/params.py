"""params.yaml as a typed model: read once, checked whole, and an error names the key and what it may be.

The same model is the parameter of the flow, so its titles, descriptions, limits and choices are the form in the
Prefect UI.
"""

from difflib import get_close_matches
from io import StringIO
from pathlib import Path
from typing import Annotated, Any, Literal, get_args
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import ErrorDetails
from ruamel.yaml import YAML, ScalarNode
from ruamel.yaml.error import YAMLError
from ruamel.yaml.representer import RoundTripRepresenter
from ruamel.yaml.scalarfloat import ScalarFloat

from rootstock.architectures import BackboneName
from rootstock.errors import ParamsError
from rootstock.files import write

Share = Annotated[float, Field(gt=0, lt=1)]
EXPECTED = {  # by pydantic's names of errors, where its own words are not for the person who writes YAML
    "bool_type": "true or false",
    "float_type": "a number",
    "int_type": "a whole number",
    "string_too_short": "text",
    "string_type": "text (in quotes, if it looks like a number or a date)",
    "tuple_type": "a list",
}


class Section(BaseModel):
    """A part of params.yaml: no unknown keys, no silent conversion of types, no change after reading."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class Source(Section):
    """Images to take in: a folder, an archive, a manifest, a torchvision data set or an embedded sample."""

    path: Annotated[str, Field(min_length=1)] = Field(
        description="A folder with a sub-folder a class (or train/val/test above those), a zip or tar of one, a CSV or "
        "Parquet manifest, torchvision:<DataSet>, sample:digits or sample:printed; any of them may be an fsspec URL."
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

    name: BackboneName = Field(default="efficientnet_lite0", description="Architecture, in torchvision's names.")
    weights: Annotated[str, Field(min_length=1)] = Field(
        default="pretrained",
        description="pretrained (from torchvision, or the package that ships them), random, "
        "or the path of a .safetensors or .pth file.",
    )
    image_size: Annotated[int, Field(ge=16, le=1024)] | None = Field(
        default=None,
        description="Side of the square the network sees, in pixels; null is the network's own (mostly 224).",
    )
    crop_fraction: Annotated[float, Field(gt=0, le=1)] | None = Field(
        default=None,
        description="Share of the resized shorter side that the central crop keeps; null is the network's own.",
    )


class Extract(Section):
    """How the frozen features are computed and stored."""

    dtype: Literal["float32", "float16"] = Field(
        default="float32", description="Type in the Parquet files; float16 is half."
    )
    batch_size: Annotated[int, Field(ge=1, le=4096)] = Field(default=64, description="Images a forward pass.")


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
    lr: Annotated[float, Field(gt=0, lt=1)] = Field(description="Peak learning rate of the one-cycle schedule.")


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
    augment: Literal["none", "crop", "crop_flip"] = Field(
        default="none", description="Random resized crops, and left-right flips where a mirror image keeps its class."
    )


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


def load(path: Path) -> Params:
    """Read and check a parameter file.

    Raises:
        ParamsError: the file is missing, is not YAML, or a key is unknown, missing, of the wrong type or impossible.
    """
    try:
        raw = YAML(typ="safe").load(path)
    except FileNotFoundError:
        raise ParamsError(f"{path}: not found. Start Rootstock in the folder that holds it.") from None
    except OSError as error:
        raise ParamsError(f"{path}: cannot be read: {error.strerror}.") from None
    except YAMLError as error:
        raise ParamsError(f"{path}: not valid YAML: {error}") from None
    try:
        return Params.model_validate({} if raw is None else raw)
    except ValidationError as error:
        raise ParamsError("\n".join(_say(path.name, problem) for problem in _causes(error))) from None


def save(path: Path, params: Params) -> None:
    """Write `params` to a parameter file, keeping the comments and the order of what is there.

    Only what differs is written: a key that is left to its default stays away, and DVC sees no change in it.
    """
    yaml = YAML()  # round trip: YAML 1.2, as DVC reads it
    yaml.Representer = _ExactFloats
    yaml.indent(mapping=2, sequence=4, offset=2)
    yaml.width = 10_000  # no line is broken that was not
    yaml.preserve_quotes = True
    document = yaml.load(path) if path.exists() else None
    before = load(path).model_dump(mode="json") if document else None
    document = _merge(document, before, params.model_dump(mode="json"))
    text = StringIO()
    yaml.dump(document, text)
    write(path, text.getvalue())


class _ExactFloats(RoundTripRepresenter):
    """Writes a float in the style that it had, but for one of many digits, whose last one that would change."""

    def represent_scalar_float(self, data: ScalarFloat) -> ScalarNode:
        node: ScalarNode = super().represent_scalar_float(data)
        return node if float(node.value) == data else self.represent_float(float(data))


_ExactFloats.add_representer(ScalarFloat, _ExactFloats.represent_scalar_float)


def _merge(old: Any, before: Any, new: Any) -> Any:  # noqa: ANN401
    """Put into `old`, the document, what of `new` is not as `before`; the rest, and so its comments, is left alone."""
    if new == before:
        return old
    if isinstance(old, dict) and isinstance(new, dict):
        for key, value in new.items():
            if value != before[key]:
                old[key] = _merge(old.get(key), before[key], value)
        return old
    if isinstance(old, list) and isinstance(new, list) and new:
        while len(old) > len(new):
            old.pop()
        for index in range(len(old)):
            old[index] = _merge(old[index], before[index], new[index])
        old.extend(new[len(old) :])
        return old
    return new


def _causes(error: ValidationError) -> list[ErrorDetails]:
    """List what is wrong, but not that a list is too short only because its entries are wrong."""
    found = error.errors()
    inside = {problem["loc"][:depth] for problem in found for depth in range(len(problem["loc"]))}
    return [problem for problem in found if problem["type"] != "too_short" or problem["loc"] not in inside]


def _say(file: str, problem: ErrorDetails) -> str:
    """Put one of pydantic's findings into words: the key, what it is, what was expected, the nearest spelling."""
    location, given = problem["loc"], problem["input"]
    section, last = _section_of(location), str(location[-1]) if location else ""
    key = _key(location) or "the file"
    match problem["type"]:
        case "extra_forbidden" | "invalid_key":
            known = list(section.model_fields)
            key = ".".join(filter(None, (_key(location[:-1]), last)))
            return f"{file}: unknown key {key}; expected one of {', '.join(known)}.{_nearest(last, known)}"
        case "missing":
            return f"{file}: {key} is missing; expected: {section.model_fields[last].description}"
        case "literal_error":
            allowed = [str(choice) for choice in get_args(section.model_fields[last].annotation)]
            few = len(allowed) <= 12
            expected = ", ".join(allowed) if few else f"one of {len(allowed)} names (see docs/backbones.md)"
            return f"{file}: {key} is {_shown(given)}; expected {expected}.{_nearest(str(given), allowed)}"
        case "value_error":
            return f"{file}: {key}: {problem['msg'].removeprefix('Value error, ')}."
        case "too_short":
            return f"{file}: {key} is empty; expected at least {problem['ctx']['min_length']} entry."
        case "model_type":
            expected = f"the keys {', '.join(_section_of((*location, '')).model_fields)}"
        case kind:
            expected = EXPECTED.get(kind) or problem["msg"].removeprefix("Input should be ")
    return f"{file}: {key} is {_shown(given)}; expected {expected}."


def _key(location: tuple[int | str, ...]) -> str:
    """Write a location as a person would: finetune.stages[1].unfreeze."""
    key = ""
    for part in location:
        if isinstance(part, int):
            key += f"[{part}]"
        elif part.isidentifier() or not key:  # leaves out pydantic's names for the branches of a union
            key += f".{part}" if key else str(part)
    return key


def _shown(given: object) -> str:
    """Show a value, but never all of a section: a source's address may hold what is nobody's business."""
    match given:
        case None:
            return "empty"
        case dict():
            return "a mapping"
        case list():
            return "a list"
        case bool():
            return str(given).lower()
    return repr(given)


def _section_of(location: tuple[int | str, ...]) -> type[BaseModel]:
    """Find the section in which the last part of a location stands, or should."""
    section: type[BaseModel] = Params
    for part in location[:-1]:
        if isinstance(part, str) and part in section.model_fields:
            section = section_in(section.model_fields[part].annotation) or section
    return section


def section_in(annotation: Any) -> type[Section] | None:  # noqa: ANN401
    """Find the section that a field holds, alone or in a tuple."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return annotation
    return next((found for part in get_args(annotation) if (found := section_in(part))), None)


def _nearest(given: str, allowed: list[str]) -> str:
    near = get_close_matches(given.lower(), allowed, n=1, cutoff=0.5)
    return f" Did you mean {near[0]}?" if near else ""

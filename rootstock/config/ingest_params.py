"""The section `ingest` of params.yaml: sources of images, splits, checks and packing."""

from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from rootstock.config.group_pattern import GroupPattern
from rootstock.config.section import Section, Share
from rootstock.system.addresses import Address

SPLITS = ("train", "val", "test")


class Source(Section):
    """A source of images: a folder, an archive, a manifest, a torchvision dataset or an embedded sample."""

    path: Address = Field(
        description="Folder with one subfolder per class (optionally below train/val/test folders), a zip or tar "
        "archive of one, a CSV or Parquet manifest, a torchvision dataset such as torchvision:Flowers102, or "
        "sample:digits or sample:printed. May be a URL."
    )
    domain: Annotated[str, Field(min_length=1)] = Field(description="Where the images come from, e.g. handwritten.")
    name: str | None = Field(
        default=None,
        description="Name of this source in the dataset; default: its path, or the last component of an absolute path.",
    )
    layout: Literal["auto", "class_folders", "split_folders"] = Field(
        default="auto",
        description="How folders are read: one subfolder per class, or split folders above the class folders. auto "
        "decides once, logs the decision and keeps it; it stops if the layout is ambiguous.",
    )
    classes_at: str | None = Field(
        default=None,
        description="Folder whose subfolders are the classes, e.g. photos/2023. `.` is the source itself; `*` matches "
        "any one folder, so `*` alone means every folder of the source.",
    )
    splits: dict[str, str] | None = Field(
        default=None,
        description="Split of each folder that holds class folders, e.g. {training_set: train, test_set: test}.",
    )
    group: GroupPattern = Field(
        default=None,
        description="Regular expression on an image's path in the source that finds which images belong together, such "
        "as all of a patient, in a group named group, e.g. (?P<group>patient_\\d+). Images of a group share a split.",
    )
    value_range: Annotated[tuple[float, ...], Field(min_length=2, max_length=2, strict=False)] | None = Field(
        default=None,
        description="Black and white levels of images with more than 8 bits per channel or float values, e.g. "
        "[0, 4095]; null if they use the full 16-bit range.",
    )

    @field_validator("value_range")
    @classmethod
    def _is_increasing(cls, value_range: tuple[float, ...] | None) -> tuple[float, ...] | None:
        if value_range and not value_range[0] < value_range[1]:
            raise ValueError(f"is {list(value_range)}; expected two numbers, the black level below the white level")
        return value_range

    def title(self) -> str:
        """Return the name of the source in the dataset: never an absolute path, which differs between machines."""
        place = self.path.removeprefix("file://").removeprefix("local://")
        return self.name or (Path(place).name if Path(place).is_absolute() else place)

    def layout_given(self) -> dict[str, Any]:
        """Return the layout settings that were given; empty if the layout is detected."""
        return self.model_dump(include={"layout", "classes_at", "splits"}, exclude_defaults=True)

    @field_validator("classes_at")
    @classmethod
    def _empty_is_none(cls, folder: str | None) -> str | None:
        return folder or None  # the form sends an empty string for an empty field

    @field_validator("splits")
    @classmethod
    def _are_known_splits(cls, splits: dict[str, str] | None) -> dict[str, str] | None:
        for folder, split in (splits or {}).items():
            if split not in SPLITS:
                raise ValueError(f"is {split!r} for {folder!r}; expected {', '.join(SPLITS)}")
        return splits or None


class Split(Section):
    """Held-out shares of the images, for sources without splits of their own."""

    val: Share = Field(default=0.15, description="Share of images held out for model selection.")
    test: Share = Field(default=0.15, description="Share of images held out for the final evaluation only.")

    @model_validator(mode="after")
    def _leaves_training_images(self) -> "Split":
        if self.val + self.test >= 1:
            raise ValueError(f"val + test is {self.val + self.test:g}; expected less than 1")
        return self


class Ingest(Section):
    """Which images are ingested, and how they are checked, split and packed into shards."""

    former_keys: ClassVar = {"seconds_a_file": "max_decode_seconds"}

    sources: Annotated[tuple[Source, ...], Field(min_length=1, strict=False)] = Field(
        default=(), description="Image sources to ingest."
    )  # no default makes sense: params_file.check_complete requires at least one
    split: Split = Split()
    shard_mb: Annotated[float, Field(gt=0, le=4096)] = Field(
        default=256, title="Shard size", description="Shard size, in MiB (2**20 bytes)."
    )
    max_side: Annotated[int, Field(ge=32)] | None = Field(
        default=None,
        description="Downscale larger images to this longer side, in pixels, before storing them; null stores them "
        "unchanged.",
    )
    min_side: Annotated[int, Field(ge=1)] = Field(
        default=8, description="Reject images whose shorter side is below this, in pixels."
    )
    max_megapixels: Annotated[float, Field(gt=0)] = Field(
        default=100, description="Reject larger images without decoding them."
    )
    damaged: Literal["reject", "keep"] = Field(
        default="reject",
        description="What to do with damaged files that can still be decoded.",
    )
    max_decode_seconds: Annotated[float, Field(gt=0, le=3600)] = Field(
        default=20, description="Reject files that take longer than this to decode, in CPU seconds."
    )
    accept_wrong_extension: bool = Field(
        default=False, description="Accept files whose extension does not match their format, e.g. a PNG named .jpg."
    )
    near_duplicate_bits: Annotated[int, Field(ge=0, le=8)] = Field(
        default=4,
        description="Images whose 64-bit perceptual hashes differ in at most this many bits are near duplicates and "
        "share a split.",
    )
    allow_shrink: bool = Field(default=False, description="Continue if a source has lost more than half of its images.")
    allow_relabel: bool = Field(
        default=False,
        description="Continue if many known images of a source, or all images of a class, change their label.",
    )

    @model_validator(mode="after")
    def _has_distinct_sources(self) -> "Ingest":
        titles = [source.title() for source in self.sources]
        if twice := {title for title in titles if titles.count(title) > 1}:
            raise ValueError(f"two sources are called {min(twice)!r}; give one of them a `name`")
        return self

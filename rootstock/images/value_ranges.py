"""The black and white levels of deep images: one value range per source, given, inferred or requested from the user.

All images of a source are mapped alike. The range is recorded in the dataset's summary, for later images and for models
that predict on such files (rootstock/model/model.py).
"""

from collections.abc import Iterable, Mapping
from typing import Any

from rootstock.config import params
from rootstock.images.deep import ObservedRange, Range
from rootstock.system.errors import SourceError

KEY = "value_range"


def recorded(summary: Mapping[str, Any]) -> dict[str, Range]:
    """Return the ranges recorded in a dataset's summary, by source; only sources with deep images have one."""
    found = {source["name"]: range_in(source) for source in summary.get("sources", [])}
    return {name: value_range for name, value_range in found.items() if value_range}


def range_in(described: Mapping[str, Any]) -> Range | None:
    """Return the range recorded for a source or a model; None if there is none."""
    return (float(described[KEY][0]), float(described[KEY][1])) if KEY in described else None


def common(ranges: Iterable[Range]) -> Range | None:
    """Return the common range; None if there is none, or if ranges differ."""
    several = set(ranges)
    return several.pop() if len(several) == 1 else None


def of_sources(specs: Iterable[params.Source], before: Mapping[str, Range], heir: str) -> dict[str, Range]:
    """Return the range of each source that has one, given or recorded.

    Args:
        specs: the sources.
        before: the recorded ranges.
        heir: the inbox, which uses the common range of the other sources.

    Raises:
        SourceError: a given range differs from the one that its images were packed with.
    """
    ranges = dict(before)
    for spec in specs:
        title = spec.title()
        if spec.value_range is None:
            continue
        given = (spec.value_range[0], spec.value_range[1])
        if ranges.setdefault(title, given) != given:
            raise SourceError(
                f"ingest.sources: value_range of {spec.path} is {_format(given)}, but its images were packed with "
                f"{_format(ranges[title])}, which cannot be changed. Set it back, or start over: remove data/images, "
                "data/dataset and .rootstock."
            )
    own = common(ranges.values())
    return {heir: own, **ranges} if own else ranges


def unknown_range_error(spec: params.Source, found: ObservedRange, examples: list[str], *, heir: bool) -> SourceError:
    """Return the error that asks for the value range of a source.

    Args:
        spec: the source.
        found: the observed range of all its images.
        examples: paths of images whose type leaves the range open; empty if all are 16-bit.
        heir: whether it is the inbox.
    """
    if examples:
        what = f"{len(examples):,} images, e.g. {examples[0]}, have"
        why = "files of this kind do not define which values are black and white"
    else:
        what, why = "its 16-bit images have", "they may have 10 to 14 bits, or be dark 16-bit images"
    where = "the sources (the inbox uses their common range)" if heir else "this source"
    return SourceError(
        f"ingest.sources: {spec.path}: {what} values ({found.kind}) from {found.low:g} to {found.high:g}; {why}. Set "
        f"value_range of {where} to the black and white levels of all its images, e.g. [0, 255], [0, 4095] or "
        "[0, 65535]."
    )


def describe_clipping(title: str, found: ObservedRange, value_range: Range) -> str:
    """Describe that values of a source lie outside its range and are clipped; "" if none do.

    Args:
        title: of the source.
        found: the observed range of all its images.
        value_range: its black and white levels.
    """
    if value_range[0] <= found.low and found.high <= value_range[1]:
        return ""
    return (
        f"{title}: its deep images have values ({found.kind}) from {found.low:g} to {found.high:g}, but value_range is "
        f"{_format(value_range)}: values outside are clipped to black or white."
    )


def _format(value_range: Range) -> str:
    return f"[{value_range[0]:g}, {value_range[1]:g}]"

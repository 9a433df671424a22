"""Which values of deep images are black and white: one range a source, given, seen in its values, or asked for.

A source's images are all mapped alike. Its range is recorded in the data set's summary, for what comes later, and for a
model that is asked about such files (rootstock/model/model.py).
"""

from collections.abc import Iterable, Mapping
from typing import Any

from rootstock.config import params
from rootstock.images.deep import Found, Range
from rootstock.system.errors import SourceError

KEY = "value_range"


def recorded(summary: Mapping[str, Any]) -> dict[str, Range]:
    """Recall the ranges that a data set was built with, by source; only sources with deep images have one."""
    found = {source["name"]: range_in(source) for source in summary.get("sources", [])}
    return {name: values_of for name, values_of in found.items() if values_of}


def range_in(described: Mapping[str, Any]) -> Range | None:
    """Read the range that is recorded of a source or a model; None where there is none."""
    return (float(described[KEY][0]), float(described[KEY][1])) if KEY in described else None


def common(ranges: Iterable[Range]) -> Range | None:
    """Give the range that is everybody's; None where there are none, or several."""
    several = set(ranges)
    return several.pop() if len(several) == 1 else None


def of_sources(specs: Iterable[params.Source], before: Mapping[str, Range], heir: str) -> dict[str, Range]:
    """Say the range of each source that has one: as given, or as recorded.

    Args:
        specs: the sources.
        before: what is recorded.
        heir: the inbox, which cannot be given one: it has that of all others.

    Raises:
        SourceError: one was given that is not the one by which its images were packed.
    """
    ranges = dict(before)
    for spec in specs:
        title = spec.title()
        if spec.value_range is None:
            continue
        given = (spec.value_range[0], spec.value_range[1])
        if ranges.setdefault(title, given) != given:
            raise SourceError(
                f"ingest.sources: value_range of {spec.path} is {_words(given)}, and its images are packed with "
                f"{_words(ranges[title])}, which stays as it is. Put that back, or start over: remove data/images, "
                "data/dataset and .rootstock."
            )
    own = common(ranges.values())
    return {heir: own, **ranges} if own else ranges


def ask(spec: params.Source, found: Found, examples: list[str], *, heir: bool) -> SourceError:
    """Ask for the range of a source.

    Args:
        spec: the source.
        found: what its images hold, all together.
        examples: paths of those whose type leaves the range open; none where all are of 16 bits.
        heir: whether it is the inbox.
    """
    if examples:
        what = f"{len(examples):,} images, such as {examples[0]}, hold"
        why = "files of that kind do not say which of these is black and which is white"
    else:
        what, why = "its 16-bit images hold", "they may be of 10 to 14 bits, or dark ones of 16"
    where = "the sources (the inbox has that of all)" if heir else "this source"
    return SourceError(
        f"ingest.sources: {spec.path}: {what} values ({found.kind}) from {found.low:g} to {found.high:g}; {why}. Set "
        f"value_range of {where} to what is black and white in all its images, such as [0, 255], [0, 4095] or "
        "[0, 65535]."
    )


def beyond(title: str, found: Found, values_of: Range) -> str:
    """Say that a source's values lie beyond its range; nothing where they do not.

    Args:
        title: of the source.
        found: what its images hold, all together.
        values_of: which of these are black and white.
    """
    if values_of[0] <= found.low and found.high <= values_of[1]:
        return ""
    return (
        f"{title}: its deep images hold values ({found.kind}) from {found.low:g} to {found.high:g}, and value_range is "
        f"{_words(values_of)}: what lies beyond is black, or white."
    )


def _words(values_of: Range) -> str:
    return f"[{values_of[0]:g}, {values_of[1]:g}]"

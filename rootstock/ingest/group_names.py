"""Name the group of each image of a source: in a column of its table, or by a regular expression on its path."""

import re
import unicodedata
from collections.abc import Iterable, Sequence
from itertools import chain

from rootstock.config.group_pattern import GROUP
from rootstock.ingest.items import ROWS, Item, Items
from rootstock.ingest.labels import clean
from rootstock.system.errors import SourceError
from rootstock.system.parallel import grouped

ASCII_ONLY = re.compile(r"(?<!\\)(?:\\\\)*\\[wWbB]")  # in RE2, these know no other letters


def name_groups(items: Sequence[Item], expression: str | None, where: str) -> Sequence[Item]:
    r"""Name the groups of items by a regular expression; a name from the column of a table stays.

    pyarrow searches with RE2, in linear time whatever the expression; Python's `re` may take hours for one path.

    Args:
        items: of one source.
        expression: searched in the paths; its group named `group` is the name. None: only the column counts.
        where: the parameter, for error messages.

    Raises:
        SourceError: the expression has \w or \b, which are about ASCII letters, and a path has others.
    """
    if expression is None or not items:
        return items
    named = chain.from_iterable(_named(some, expression, where) for some in grouped(items, ROWS))
    return Items.of(named) if isinstance(items, Items) else list(named)


def _named(items: Sequence[Item], expression: str, where: str) -> list[Item]:
    import pyarrow as pa
    import pyarrow.compute as pc

    paths = [unicodedata.normalize("NFC", item.path) for item in items]
    if ASCII_ONLY.search(expression) and (other := next((path for path in paths if not path.isascii()), None)):
        raise SourceError(
            rf"{where} is {expression!r}, where \w and \b know only ASCII letters, but there are others, e.g. in "
            rf"{other}; expected [^/]+ or [\pL\d_]+ instead of \w+"
        )
    found = pc.struct_field(pc.extract_regex(pa.array(paths, pa.string()), pattern=expression), GROUP).to_pylist()
    return [item._replace(group=item.group or clean(name or "")) for item, name in zip(items, found, strict=True)]


def describe_groups(items: Iterable[Item]) -> str:
    """Describe how many groups are named, and how many images are in none of them; "" if none is named."""
    if isinstance(items, Items) and items.groups is None:
        return ""
    names: set[str] = set()
    images, alone, example = 0, 0, ""
    for item in items:
        if item.problem:
            continue
        images += 1
        if item.group:
            names.add(item.group)
        else:
            alone, example = alone + 1, example or item.path
    without = f"; {alone:,} of {images:,} images are in none (e.g. {example})" if alone else ""
    return f"{len(names):,} named group{'s' if len(names) > 1 else ''}{without}" if names else ""


def describe_mismatch(items: Iterable[Item], expression: str | None, where: str) -> str:
    """Describe that an expression matches no path of an image at all; "" if one does, or there is nothing to match."""
    if not expression:
        return ""
    images, example = 0, ""
    for item in items:
        if item.problem:
            continue
        if item.group:
            return ""
        images, example = images + 1, example or item.path
    if not images:
        return ""
    return (
        f"{where} is {expression!r}, which matches none of {images:,} paths (e.g. {example}); expected a "
        r"regular expression that finds the group in them, e.g. (?P<group>patient_\d+) in scans/patient_12/3.png."
    )

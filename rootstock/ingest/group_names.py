"""Name the group of each image of a source: in a column of its table, or by a regular expression on its path."""

import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import replace

from rootstock.config.group_pattern import GROUP
from rootstock.ingest.labels import clean
from rootstock.ingest.layout import Item
from rootstock.system.errors import SourceError

ASCII_ONLY = re.compile(r"(?<!\\)(?:\\\\)*\\[wWbB]")  # in RE2, these know no other letters


def name_groups(items: Sequence[Item], expression: str | None, where: str) -> list[Item]:
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
        return list(items)
    import pyarrow as pa
    import pyarrow.compute as pc

    paths = [unicodedata.normalize("NFC", item.path) for item in items]
    if ASCII_ONLY.search(expression) and (other := next((path for path in paths if not path.isascii()), None)):
        raise SourceError(
            rf"{where} is {expression!r}, where \w and \b know only ASCII letters, but there are others, e.g. in "
            rf"{other}; expected [^/]+ or [\pL\d_]+ instead of \w+"
        )
    found = pc.struct_field(pc.extract_regex(pa.array(paths, pa.string()), pattern=expression), GROUP).to_pylist()
    return [replace(item, group=item.group or clean(name or "")) for item, name in zip(items, found, strict=True)]


def describe_groups(items: Iterable[Item]) -> str:
    """Describe how many groups are named, and how many images are in none of them; "" if none is named."""
    images = [item for item in items if not item.problem]
    names = {item.group for item in images if item.group}
    alone = [item.path for item in images if not item.group]
    without = f"; {len(alone):,} of {len(images):,} images are in none (e.g. {alone[0]})" if alone else ""
    return f"{len(names):,} named group{'s' if len(names) > 1 else ''}{without}" if names else ""


def describe_mismatch(items: Iterable[Item], expression: str | None, where: str) -> str:
    """Describe that an expression matches no path of an image at all; "" if one does, or there is nothing to match."""
    images = [item for item in items if not item.problem]
    if not expression or not images or any(item.group for item in images):
        return ""
    return (
        f"{where} is {expression!r}, which matches none of {len(images):,} paths (e.g. {images[0].path}); expected a "
        r"regular expression that finds the group in them, e.g. (?P<group>patient_\d+) in scans/patient_12/3.png."
    )

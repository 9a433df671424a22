"""Looking into files: read and checked on all cores, in order, in bounded memory."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import chain

from rootstock import intake
from rootstock.intake import Checks, NewImage, Reason, Rejected
from rootstock.layout import Item, Loader
from rootstock.parallel import grouped, ordered_map

# Small files go to a thread, and their looks are hashed, together: for one alone, that takes as long as decoding it.
TOGETHER_BYTES = 2**20
TOGETHER = 64


@dataclass(frozen=True, slots=True)
class Inspected:
    """A file that was looked into.

    `result` is the new image in it, None where the image is known, or why the file is rejected. `image_id` names the
    bytes that came in; `data` are those to be stored of a new image, the same ones or a smaller copy.
    """

    item: Item
    result: NewImage | Reason | None
    image_id: str | None = None
    data: bytes | None = None


def inspect(wanted: Iterable[tuple[Item, Loader]], known: set[str], checks: Checks) -> Iterator[Inspected]:
    """Read files, and check those whose bytes are not a known image's; yields them in their order.

    Args:
        wanted: files, and what gives the bytes of each.
        known: ids of images, which may grow on the way.
        checks: what to hold the others to.
    """

    def weigh(entry: tuple[Item, Loader]) -> int:
        return max(entry[0].size or TOGETHER_BYTES, TOGETHER_BYTES // TOGETHER)

    def inspect_some(group: list[tuple[Item, Loader]]) -> list[Inspected]:
        read = [_read(item, load, known, checks) for item, load in group]
        new = [(one.item.path, one.data) for one in read if one.data is not None]
        results = iter(intake.check(new, checks))
        return [one if one.data is None else _checked(one, next(results)) for one in read]

    return chain.from_iterable(ordered_map(inspect_some, grouped(wanted, TOGETHER_BYTES, weigh)))


def _checked(read: Inspected, result: NewImage | Reason) -> Inspected:
    if isinstance(result, Reason):
        return Inspected(read.item, result)
    # An image's name stays that of the bytes that came in: by it the file is known again, here and in another clone.
    return replace(read, result=result, data=result.smaller or read.data)


def _read(item: Item, load: Loader, known: set[str], checks: Checks) -> Inspected:
    """Read one file; what has `data` then is still to be checked."""
    try:
        data = load()
        if len(data) > intake.MAX_FILE_BYTES:
            return Inspected(item, Reason.TOO_LARGE)
        name = intake.image_id(data)
        if name not in known:
            return Inspected(item, None, name, data)
        intake.check_header(data, item.path, checks)  # the pixels are known, this file's name is not
        return Inspected(item, None, name)
    except Rejected as rejected:
        return Inspected(item, rejected.reason)

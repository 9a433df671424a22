"""The base class of all sections of params.yaml, and what several of them share."""

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from difflib import get_close_matches
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

log = logging.getLogger(__name__)
Augment = Literal["none", "crop", "crop_flip", "randaugment"]
Share = Annotated[float, Field(gt=0, lt=1)]


def reject_near_miss(given: str, names: tuple[str, ...], other: str) -> str:
    """Return `given`, unless it looks like a misspelling of one of `names`.

    Raises:
        ValueError: it does, with the nearest name; `other` says what else is allowed.
    """
    if given not in names and (near := get_close_matches(given, names, n=1, cutoff=0.75)):
        raise ValueError(f"is {given!r}; expected {', '.join(names)}, or {other}. Did you mean {near[0]}?")
    return given


warned: set[str] = set()  # by this process
_is_silent = ContextVar("_is_silent", default=False)


def warn_once(message: str) -> None:
    """Log a warning about params.yaml once per process, however often the file is read."""
    if message not in warned and not _is_silent.get():
        warned.add(message)
        log.warning("params.yaml: %s", message)


@contextmanager
def without_warnings() -> Iterator[None]:
    """Read params.yaml without warnings in this block: they are left to the next reader."""
    before = _is_silent.set(True)
    try:
        yield
    finally:
        _is_silent.reset(before)


class Section(BaseModel):
    """A section of params.yaml: immutable, without unknown keys or implicit type conversion."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False, hide_input_in_errors=True)
    former_keys: ClassVar[Mapping[str, str]] = {}  # of earlier versions, and what they are called now
    retired_keys: ClassVar[Mapping[str, str]] = {}  # of earlier versions, and why they are no longer needed

    @model_validator(mode="before")
    @classmethod
    def _read_former_keys(cls, values: Any) -> Any:  # noqa: ANN401
        """Read a key under its former name, with a warning; that value wins, since a run may be given it.

        A key that is no longer needed is ignored, with a warning.
        """
        if not isinstance(values, Mapping):
            return values
        found = dict(values)
        for former in cls.former_keys.keys() & found.keys():
            key, value = cls.former_keys[former], found.pop(former)
            warn_once(f"{cls.__name__.lower()}.{former} was renamed to {key}; change it to {key}")
            if value is not None:  # as for any key: a null changes nothing
                found[key] = value
        for retired in cls.retired_keys.keys() & found.keys():
            del found[retired]
            warn_once(f"{cls.__name__.lower()}.{retired} is ignored: {cls.retired_keys[retired]}; remove it")
        return found

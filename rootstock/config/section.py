"""What every section of params.yaml has in common: strict reading, and types that several of them use."""

import logging
from difflib import get_close_matches
from functools import cache
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

log = logging.getLogger(__name__)
Augment = Literal["none", "crop", "crop_flip"]
Share = Annotated[float, Field(gt=0, lt=1)]


def not_nearly(given: str, names: tuple[str, ...], other: str) -> str:
    """Refuse what is nearly, but not quite, one of some names."""
    if given not in names and (near := get_close_matches(given, names, n=1, cutoff=0.75)):
        raise ValueError(f"is {given!r}; expected {', '.join(names)}, or {other}. Did you mean {near[0]}?")
    return given


@cache
def warn_once(message: str) -> None:
    """Log what a person should change in params.yaml: once a process, however often that is read."""
    log.warning("params.yaml: %s", message)


class Section(BaseModel):
    """A part of params.yaml: no unknown keys, no silent conversion of types, no change after reading."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False, hide_input_in_errors=True)

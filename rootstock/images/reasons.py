"""The reasons for rejecting a file, and the exception that carries one."""

from enum import StrEnum
from typing import Any


class Reason(StrEnum):
    """Why a file was rejected: the values of `reason` in rejected.parquet."""

    UNDECODABLE = "undecodable"
    TRUNCATED = "truncated"
    DAMAGED = "damaged"
    UNSUPPORTED = "unsupported"
    VALUE_RANGE = "value_range"
    TOO_LARGE = "too_large"
    TOO_SMALL = "too_small"
    TOO_COSTLY = "too_costly"
    NOT_AN_IMAGE = "not_an_image"
    WRONG_EXTENSION = "wrong_extension"
    UNREADABLE = "unreadable"
    UNSAFE_PATH = "unsafe_path"
    NO_LABEL = "no_label"
    CONFLICTING_LABEL = "conflicting_label"
    DUPLICATE = "duplicate"
    STRADDLES_SPLITS = "straddles_splits"


class Rejected(Exception):  # noqa: N818 - a verdict on a file, not a program error
    """A file is rejected; `detail` is the decoder's message or another explanation, if there is one."""

    def __init__(self, reason: Reason, detail: str = "") -> None:
        super().__init__(f"{reason.value}: {detail}" if detail else reason.value)
        self.reason, self.detail = reason, detail

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle it for another process."""
        return type(self), (self.reason, self.detail)

"""Why a file is not taken in: a closed list, and the verdict that carries one of them."""

from enum import StrEnum


class Reason(StrEnum):
    """Why a file is not in the manifest: the closed list of rejected.parquet."""

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


class Rejected(Exception):  # noqa: N818 - it is a verdict on a file, not a fault of the program
    """A file that is not taken in, and why; `said` is what a decoder said of it, where one did."""

    def __init__(self, reason: Reason, said: str = "") -> None:
        super().__init__(f"{reason.value}: {said}" if said else reason.value)
        self.reason, self.said = reason, said

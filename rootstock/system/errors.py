"""Exceptions with a message for the user: what is at fault, what was expected, what to do."""

from rootstock.system.redaction import redacted


class RootstockError(Exception):
    """A run cannot continue; entry points print the message, secrets redacted, without a traceback."""

    def __init__(self, message: str = "") -> None:
        super().__init__(redacted(message))


class ParamsError(RootstockError):
    """A parameter is invalid; the message names its key, the allowed values and the nearest valid spelling."""


class SourceError(RootstockError):
    """A source of images cannot be listed or read, or has too few images to train on."""


class DamagedError(RootstockError):
    """A file is not what was written: truncated, empty, in another format, or replaced."""


class WeightsError(RootstockError):
    """Weights cannot be loaded, or do not fit the architecture."""

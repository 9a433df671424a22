"""Errors for the person who reads them: what is at fault, what was expected, what to do."""

from rootstock.system.redaction import redacted


class RootstockError(Exception):
    """A run cannot go on, and the message says why in words, and no secret; a door prints it without a traceback."""

    def __init__(self, message: str = "") -> None:
        super().__init__(redacted(message))


class ParamsError(RootstockError):
    """A parameter is at fault; the message names its key, what is allowed and the nearest valid spelling."""


class SourceError(RootstockError):
    """A source of images cannot be listed or read, or holds too little to train on."""


class DamagedError(RootstockError):
    """A file is not what was written: cut short, emptied, of another kind, or another one under its name."""


class WeightsError(RootstockError):
    """Weights cannot be had, or do not fit the architecture."""

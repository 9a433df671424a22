"""Errors for the person who reads them: what is at fault, what was expected, what to do."""


class RootstockError(Exception):
    """A run cannot go on, and the message says why in words; a door prints it without a traceback."""


class ParamsError(RootstockError):
    """A parameter is at fault; the message names its key, what is allowed and the nearest valid spelling."""


class SourceError(RootstockError):
    """A source of images cannot be listed or read, or holds too little to train on."""


class WeightsError(RootstockError):
    """Weights cannot be had, or do not fit the architecture."""

"""Tells temporary unavailability of a store (missing, network down) from errors that need fixing."""

import errno
import re
import socket
import ssl

# Errors of a mounted folder while its disk or network is unavailable.
UNAVAILABLE = frozenset(
    {
        errno.ENOENT, errno.EIO, errno.ENXIO, errno.ENODEV, errno.ESTALE, errno.ENOTCONN, errno.ETIMEDOUT,
        errno.ECONNRESET, errno.ECONNREFUSED, errno.ECONNABORTED, errno.EHOSTDOWN, errno.EHOSTUNREACH,
        errno.ENETDOWN, errno.ENETUNREACH, errno.EREMOTEIO, errno.EPIPE,
        errno.EBUSY,
    }
)  # fmt: skip
# The driver packages of stores, the names of their network errors, and (below) the HTTP statuses that may pass, besides
# 5xx.
DRIVERS = frozenset(
    {
        "adlfs", "aiobotocore", "aiohttp", "asyncssh", "azure", "botocore", "gcsfs", "google", "httpcore", "httpx",
        "paramiko", "requests", "s3fs", "urllib3", "webdav4",
    }
)  # fmt: skip
OF_NETWORK = re.compile(
    "Connect|Disconnect|Timeout|Closed|Retry|Retries|Network|Transport|Endpoint|DNS|Proxy|SSL|SSH|Payload|"
    "IncompleteRead|Unavailable|HTTPClient|ServiceRe"
)
FAULT_OF_SERVER = 500
MISSING, PASSING = (404, 410), (404, 408, 425, 429)


def is_unavailable(error: BaseException) -> bool:
    """Whether an error means that something is missing or the network does not answer, and not that it needs fixing."""
    if isinstance(error, PermissionError):  # does not pass by itself
        return False
    if isinstance(error, FileNotFoundError) and (status := _status_of(error.__cause__)):
        return _may_pass(status)  # fsspec raises this for every HTTP error status
    if isinstance(error, FileNotFoundError | ConnectionError | TimeoutError | socket.gaierror | ssl.SSLError):
        return True
    if type(error).__module__.partition(".")[0] in DRIVERS:
        if status := _status_of(error):
            return _may_pass(status)
        if OF_NETWORK.search(type(error).__name__):
            return True
    return isinstance(error, OSError) and error.errno in UNAVAILABLE


def is_missing(error: FileNotFoundError) -> bool:
    """Whether a file does not exist (404, 410), rather than not being accessible: for fsspec that is the same error."""
    cause = error.__cause__
    return cause is None or isinstance(cause, FileNotFoundError) or _status_of(cause) in MISSING


def is_timeout(error: BaseException | None) -> bool:
    """Whether an error, or one that it hides, means that there was no answer in time."""
    while error and not isinstance(error, TimeoutError):
        error = error.__cause__ or error.__context__
    return error is not None


def _may_pass(status: int) -> bool:
    return status in PASSING or status >= FAULT_OF_SERVER


def _status_of(error: BaseException | None) -> int | None:
    """Return the HTTP status in a driver's error, if there is one."""
    response = getattr(error, "response", None)
    status = response.get("ResponseMetadata", {}).get("HTTPStatusCode") if isinstance(response, dict) else None
    names = ("status", "status_code", "code")  # some drivers have the last one as a string
    found = status or next((value for name in names if (value := getattr(error, name, None))), None)
    return int(str(found)) if str(found).isdecimal() else None

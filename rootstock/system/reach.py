"""Whether an error says that a store cannot be reached now: the one place that draws the line."""

import errno
import re
import socket
import ssl

# What a mounted folder answers while its disk or its network is away.
AWAY = frozenset(
    {
        errno.ENOENT, errno.EIO, errno.ENXIO, errno.ENODEV, errno.ESTALE, errno.ENOTCONN, errno.ETIMEDOUT,
        errno.ECONNRESET, errno.ECONNREFUSED, errno.ECONNABORTED, errno.EHOSTDOWN, errno.EHOSTUNREACH,
        errno.ENETDOWN, errno.ENETUNREACH, errno.EREMOTEIO, errno.EPIPE,
        errno.EBUSY,
    }
)  # fmt: skip
# The packages that speak with a store, what their errors are called where it was the network, and what a server answers
# that may answer otherwise tomorrow, beside 5xx.
DRIVERS = frozenset(
    {
        "aiohttp", "aiobotocore", "botocore", "s3fs", "gcsfs", "google", "adlfs", "azure", "paramiko",
        "asyncssh", "requests", "urllib3"
    }
)  # fmt: skip
OF_NETWORK = re.compile(
    "Connect|Disconnect|Timeout|Closed|Retry|Retries|Network|Transport|Endpoint|DNS|Proxy|SSL|SSH|Payload|"
    "IncompleteRead|Unavailable|HTTPClient|ServiceRe"
)
FAULT_OF_SERVER = 500
MISSING, PASSING = 404, (404, 408, 425, 429)


def is_away(error: BaseException) -> bool:
    """Whether something is not there, or a network does not answer; whatever else went wrong is there to be mended."""
    if isinstance(error, PermissionError):  # it will be so tomorrow, too
        return False
    if isinstance(error, FileNotFoundError) and (status := _status_of(error.__cause__)):
        return _may_pass(status)  # fsspec says so of every answer of a web server
    if isinstance(error, FileNotFoundError | ConnectionError | TimeoutError | socket.gaierror | ssl.SSLError):
        return True
    if type(error).__module__.partition(".")[0] in DRIVERS:
        if status := _status_of(error):
            return _may_pass(status)
        if OF_NETWORK.search(type(error).__name__):
            return True
    return isinstance(error, OSError) and error.errno in AWAY


def is_missing(error: FileNotFoundError) -> bool:
    """Whether nothing is there, and not only nothing to be had: fsspec makes no difference for a web server."""
    cause = error.__cause__
    return cause is None or isinstance(cause, FileNotFoundError) or _status_of(cause) == MISSING


def _may_pass(status: int) -> bool:
    return status in PASSING or status >= FAULT_OF_SERVER


def _status_of(error: BaseException | None) -> int | None:
    """Read off an error of a driver what the server answered, if it did."""
    response = getattr(error, "response", None)
    said = response.get("ResponseMetadata", {}).get("HTTPStatusCode") if isinstance(response, dict) else None
    names = ("status", "status_code", "code")  # the last one is a number as text for some
    found = said or next((value for name in names if (value := getattr(error, name, None))), None)
    return int(str(found)) if str(found).isdecimal() else None

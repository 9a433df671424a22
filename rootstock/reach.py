"""Whether an error says that a store cannot be reached now: the one place that draws the line."""

import errno
import socket
import ssl

# What a mounted folder answers while its disk or its network is away.
AWAY = frozenset(
    {
        errno.ENOENT, errno.EIO, errno.ENXIO, errno.ENODEV, errno.ESTALE, errno.ENOTCONN, errno.ETIMEDOUT,
        errno.ECONNRESET, errno.ECONNREFUSED, errno.ECONNABORTED, errno.EHOSTDOWN, errno.EHOSTUNREACH,
        errno.ENETDOWN, errno.ENETUNREACH, errno.EREMOTEIO, errno.EPIPE,
    }
)  # fmt: skip
# The packages whose errors are those of a network, of whatever kind they are.
DRIVERS = frozenset(
    {
        "aiohttp", "aiobotocore", "botocore", "s3fs", "gcsfs", "google", "adlfs", "azure", "paramiko",
        "asyncssh", "requests", "urllib3", "fsspec"
    }
)  # fmt: skip


def is_away(error: Exception) -> bool:
    """Whether something is not there, or a network does not answer; whatever else went wrong is there to be mended."""
    match error:
        case PermissionError():  # it will be so tomorrow, too
            return False
        case FileNotFoundError() | ConnectionError() | TimeoutError() | socket.gaierror() | ssl.SSLError():
            return True
        case OSError() if error.errno is not None:
            return error.errno in AWAY
    return type(error).__module__.partition(".")[0] in DRIVERS

"""Addresses in parameters: paths or fsspec URLs, validated to contain no secret."""

import re
from dataclasses import dataclass
from typing import Annotated

from pydantic import AfterValidator, Field

from rootstock.system.redaction import NO_SECRET, kind_of_secret

LOCAL = ("file", "local")
ON_THE_WEB = ("http", "https")  # one store for all hosts
# The extra in pyproject.toml that installs a protocol's driver.
EXTRA_OF = {
    "s3": "s3", "s3a": "s3", "gs": "gs", "gcs": "gs", "abfs": "azure", "abfss": "azure", "az": "azure",
    "http": "http", "https": "http", "sftp": "sftp", "ssh": "sftp",
}  # fmt: skip
# Prefixes of a chained URL: zip://inside.csv::s3://bucket/file.zip
WRAPPERS = ("zip", "tar", "simplecache", "filecache")
PROTOCOLS = (*LOCAL, *EXTRA_OF, "memory", *WRAPPERS)
# The environment variables that hold the credentials of a store.
OPENED_BY = {
    "s3": "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE",
    "gs": "GOOGLE_APPLICATION_CREDENTIALS",
    "azure": "AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY, or AZURE_STORAGE_SAS_TOKEN",
    "http": """FSSPEC_HTTP='{"headers": {"Authorization": ...}}'""",
    "sftp": "FSSPEC_SFTP_PASSWORD, an SSH agent or a key in ~/.ssh",
}


@dataclass(frozen=True)
class Link:
    """One part of a chained URL, or a whole plain one; `address` includes the protocol, as written."""

    protocol: str
    address: str


def links(address: str) -> list[Link]:
    """Split a chained URL as fsspec does: zip://a.csv::s3://bucket/b.zip is a file in an archive in a store."""
    parts = address.split("::")
    return [_link(part, chained=len(parts) > 1) for part in parts]


def _link(part: str, *, chained: bool) -> Link:
    protocol, there, _ = part.partition("://")
    if there and len(protocol) > 1:  # fsspec treats a single letter as a drive
        return Link(protocol, part)
    if part.startswith(("data:", "file:", "local:")):
        return Link(part.partition(":")[0], part)
    if chained and re.fullmatch("[a-z][a-z0-9_+-]*", part):
        return Link(part, part)
    return Link("file", part)


def store_of(address: str) -> tuple[str, str]:
    """Return what tells stores apart: the protocol, and the host or bucket."""
    protocol, separator, rest = address.partition("://")
    if not separator:
        return "", ""
    return (ON_THE_WEB[0], "") if protocol in ON_THE_WEB else (protocol, rest.partition("/")[0])


def check_protocols(address: str) -> None:
    """Check that every part of a URL has a supported protocol.

    fsspec knows many more; some start processes, never end, or follow whatever a file refers to.

    Raises:
        ValueError: one is not supported.
    """
    for link in links(address):
        if link.protocol not in PROTOCOLS:
            raise ValueError(f"{link.protocol!r} is not one of the supported protocols: {', '.join(PROTOCOLS)}")


def _without_secret(address: str) -> str:
    """Return an address if it contains no secret; the error does not show it.

    Raises:
        ValueError: it contains a secret or a control character.
    """
    if any(ord(character) < ord(" ") or character == "\x7f" for character in address):
        raise ValueError("contains a control character; expected a path or a URL")
    if kind := kind_of_secret(address):
        extras = dict.fromkeys(EXTRA_OF[link.protocol] for link in links(address) if link.protocol in EXTRA_OF)
        by = "; ".join(OPENED_BY[extra] for extra in extras) or "FSSPEC_<PROTOCOL>_<OPTION>"
        raise ValueError(f"a {kind} in a URL would be recorded with every run; set it in the environment: {by}")
    return address


Address = Annotated[str, Field(min_length=1, json_schema_extra={"pattern": NO_SECRET}), AfterValidator(_without_secret)]

"""Where something lies, as a parameter says it: a path, or a URL that fsspec reaches, and no secret in either."""

import re
from dataclasses import dataclass
from typing import Annotated

from pydantic import AfterValidator, Field

from rootstock.system.redaction import NO_SECRET, kind_of_secret

LOCAL = ("file", "local")
# The extra of pyproject.toml that brings a protocol's driver.
EXTRA_OF = {
    "s3": "s3", "s3a": "s3", "gs": "gs", "gcs": "gs", "abfs": "azure", "abfss": "azure", "az": "azure",
    "http": "http", "https": "http", "sftp": "sftp", "ssh": "sftp",
}  # fmt: skip
# In front of one of these: zip://inside.csv::s3://bucket/file.zip
WRAPPERS = ("zip", "tar", "simplecache", "filecache")
PROTOCOLS = (*LOCAL, *EXTRA_OF, "memory", *WRAPPERS)
# What opens a store without a secret in its address.
OPENED_BY = {
    "s3": "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE",
    "gs": "GOOGLE_APPLICATION_CREDENTIALS",
    "azure": "AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY, or AZURE_STORAGE_SAS_TOKEN",
    "http": """FSSPEC_HTTP='{"headers": {"Authorization": ...}}'""",
    "sftp": "FSSPEC_SFTP_PASSWORD, an SSH agent or a key in ~/.ssh",
}


@dataclass(frozen=True)
class Link:
    """One part of a chained URL, or all of a plain one; `address` is as written, its protocol included."""

    protocol: str
    address: str


def links(address: str) -> list[Link]:
    """Take a URL apart as fsspec does: zip://a.csv::s3://bucket/b.zip is a file in an archive in a store."""
    parts = address.split("::")
    return [_link(part, chained=len(parts) > 1) for part in parts]


def _link(part: str, *, chained: bool) -> Link:
    protocol, there, _ = part.partition("://")
    if there and len(protocol) > 1:  # fsspec takes a single letter for a drive
        return Link(protocol, part)
    if part.startswith(("data:", "file:", "local:")):
        return Link(part.partition(":")[0], part)
    if chained and re.fullmatch("[a-z][a-z0-9_+-]*", part):
        return Link(part, part)
    return Link("file", part)


def check_protocols(address: str) -> None:
    """Check that each part of a URL is of a protocol that is read.

    fsspec knows many more; some start processes, run for ever, or reach whatever a file names.

    Raises:
        ValueError: one is not.
    """
    for link in links(address):
        if link.protocol not in PROTOCOLS:
            raise ValueError(f"{link.protocol!r} is none of the protocols that are read: {', '.join(PROTOCOLS)}")


def _without_secret(address: str) -> str:
    """Refuse an address with a secret in it; the message does not show it.

    Raises:
        ValueError: it holds one, or is no address at all.
    """
    if any(ord(character) < ord(" ") or character == "\x7f" for character in address):
        raise ValueError("holds a control character; expected a path or a URL")
    if kind := kind_of_secret(address):
        extras = dict.fromkeys(EXTRA_OF[link.protocol] for link in links(address) if link.protocol in EXTRA_OF)
        by = "; ".join(OPENED_BY[extra] for extra in extras) or "FSSPEC_<PROTOCOL>_<OPTION>"
        raise ValueError(f"a {kind} in a URL would be recorded with every run; set it in the environment: {by}")
    return address


Address = Annotated[str, Field(min_length=1, json_schema_extra={"pattern": NO_SECRET}), AfterValidator(_without_secret)]

"""Hosts that accept requests and answer none: each would keep a run waiting, 64 addresses at a time, for hours."""

import logging
from collections import Counter
from urllib.parse import urlsplit

log = logging.getLogger(__name__)
MOST_IN_A_ROW = 128  # two rounds of the requests that are made at once


class SilentHosts:
    """Counts requests that were not answered in time, in a row; a host of many is not asked again in this run.

    May be used from several threads: a count that is off by a few does no harm.
    """

    def __init__(self) -> None:
        self._in_a_row: Counter[str] = Counter()
        self._silent: set[str] = set()

    def __contains__(self, address: str) -> bool:
        return bool(self._silent) and _host_of(address) in self._silent

    def answered(self, address: str) -> None:
        """Note that a host has answered, if only that there is no such file."""
        if self._in_a_row:
            self._in_a_row.pop(_host_of(address), None)

    def timed_out(self, address: str) -> None:
        """Note that a host has not answered in time."""
        host = _host_of(address)
        self._in_a_row[host] += 1
        if self._in_a_row[host] >= MOST_IN_A_ROW and host not in self._silent:
            self._silent.add(host)
            log.warning(
                "%s has not answered %d requests in a row (e.g. for %s): its other addresses are not asked for, and "
                "count as those that cannot be reached",
                host or "the store", MOST_IN_A_ROW, address,
            )  # fmt: skip


def _host_of(address: str) -> str:
    return urlsplit(address).netloc if "://" in address else ""

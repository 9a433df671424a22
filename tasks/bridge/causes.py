"""Describe errors of DVC, git and Prefect's server in one sentence; rootstock/system/causes.py has all others.

Prefect logs the error that ends a run with its stack trace, more than once. `keep_stacks_off` replaces the stack trace
with the sentence, whoever logs it.
"""

import logging
import sys
import tempfile
import textwrap
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache, partial
from typing import Any

from httpx import HTTPError, HTTPStatusError
from prefect.settings import PREFECT_API_URL, PREFECT_HOME

from rootstock.system import causes, entry_points
from rootstock.system.errors import RootstockError
from rootstock.system.redaction import redacted
from tasks.bridge import connection, terminal, versions

UNAUTHORIZED = 401
ABOUT = 80  # maximum length of the log message before the sentence: some hold a whole event
# Background services of Prefect, which log each time that the server does not answer.
BESIDE_THE_RUN = ("prefect.events.clients", "prefect._internal.concurrency")


def describe(error: BaseException) -> str | None:
    """Describe the cause of an error and what to do; None for an error that can only be a bug."""
    match error:
        case RootstockError():
            return str(error)
        case HTTPError():
            return _of_server(error)
        case RuntimeError(__cause__=HTTPError() as cause) if "reach API" in str(error):
            return _of_server(cause)
        case RuntimeError() if "reach API" in str(error) or "ephemeral Prefect API" in str(error):
            return _of_server(error)
        case _ if isinstance(error, versions.ERRORS):
            return _of_dvc(error)
    return causes.describe(error)


described = partial(causes.described, describe)


@contextmanager
def entry_point(name: str, *, needs_server: bool = False, verbose: bool = False) -> Iterator[None]:
    """Run a command that uses Prefect: a known error ends it with one sentence, wherever in the engine it is raised.

    Args:
        name: of the command; the sentence starts with it.
        needs_server: refuse to run with a temporary server.
        verbose: print all that its runs log.
    """
    keep_stacks_off()
    terminal.show_lines(verbose=verbose)
    with entry_points.entry_point(name, describe):
        connection.join_ui()
        if needs_server and not PREFECT_API_URL.value():
            raise RootstockError("PREFECT_API_URL is not set; it names the server, e.g. http://127.0.0.1:4200/api")
        check_home()
        connection.guard_own_server()
        yield


def _of_server(error: BaseException) -> str:
    address = PREFECT_API_URL.value()
    if not address:
        return (
            f"Prefect's temporary server does not answer. Its database is in {PREFECT_HOME.value()}: check that there "
            "is space and that this user may write there, or set PREFECT_HOME to another folder."
        )
    address = redacted(address)
    if isinstance(error, HTTPStatusError):
        if error.response.status_code == UNAUTHORIZED:
            return f"The Prefect server at {address} requires a password: set PREFECT_API_AUTH_STRING."
        status = f"{error.response.status_code} {error.response.reason_phrase}".strip()
        return f"The Prefect server at {address} answers {status}; see its log."
    why = causes.first_line(error) or type(error).__name__
    return (
        f"The Prefect server at {address} (PREFECT_API_URL, or `make ui` here) does not answer: {why}. Start it, or "
        "unset PREFECT_API_URL, and run again: finished work is kept."
    )


def _of_dvc(error: BaseException) -> str:
    """Return DVC's message, and that of the system error behind it, if any."""
    behind = error.__cause__ or error.__context__
    system = causes.describe(behind) if isinstance(behind, OSError) else None
    return f"DVC: {causes.first_line(error)}. {system}" if system else f"DVC: {causes.first_line(error)}."


def check_home() -> None:
    """Check that Prefect can write its database if a flow starts its own server, whose errors would fill the terminal.

    Raises:
        RootstockError: Prefect cannot write there.
    """
    if PREFECT_API_URL.value():
        return
    home = PREFECT_HOME.value()
    try:
        home.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=home) as file:
            file.write(bytes(2**20))
    except OSError as error:
        error.filename = str(home)
        raise RootstockError(
            f"Prefect cannot write its database in {home}. {describe(error)} Set PREFECT_HOME to another folder."
        ) from error


class _Once(logging.Filter):
    """Pass a message only if no earlier one started in the same way."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[str] = set()

    def filter(self, record: logging.LogRecord) -> bool:
        start = record.getMessage()[: ABOUT // 2]
        is_new = start not in self.seen
        self.seen.add(start)
        return is_new


@cache
def keep_stacks_off() -> None:
    """Log every known error in this process as one sentence without a stack trace."""
    factory, in_thread, unraisable = logging.getLogRecordFactory(), threading.excepthook, sys.unraisablehook

    def record(*args: Any, **kwargs: Any) -> logging.LogRecord:  # noqa: ANN401
        made = factory(*args, **kwargs)
        if made.exc_info and made.exc_info[1] and (sentence := describe(made.exc_info[1])):
            about = textwrap.shorten(causes.first_line(made.getMessage()), ABOUT, placeholder=" ...")
            made.msg, made.args, made.exc_info = f"{about}: {sentence}", None, None
        return made

    logging.setLogRecordFactory(record)
    for name in BESIDE_THE_RUN:
        logging.getLogger(name).addFilter(_Once())
    threading.excepthook = lambda args: None if args.exc_value and describe(args.exc_value) else in_thread(args)
    sys.unraisablehook = lambda args: None if args.exc_value and describe(args.exc_value) else unraisable(args)

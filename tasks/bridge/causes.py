"""What DVC, git and Prefect's server can bring about, in a sentence; the rest of it is in rootstock/system/causes.py.

Prefect logs what ends a run with its stack, in more than one place and more than once. `keep_stacks_off` puts the
sentence in the stack's place, whoever logs it.
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
from tasks.bridge import connection, versions

UNAUTHORIZED = 401
ABOUT = 80  # characters of a message that a sentence follows: some have a whole event in them
# What Prefect does beside a run, again and again: of a server that is away it says so each time.
BESIDE_THE_RUN = ("prefect.events.clients", "prefect._internal.concurrency")


def say(error: BaseException) -> str | None:
    """Say what brought an error about, and what to do; nothing where it can only be a mistake of this program."""
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
    return causes.say(error)


in_words = partial(causes.in_words, say)


@contextmanager
def entry_point(name: str, *, needs_server: bool = False) -> Iterator[None]:
    """Run a command that takes Prefect: what is known to end it is one sentence, wherever in the engine it is raised.

    Args:
        name: of the command, which its sentence begins with.
        needs_server: whether it is of no use with a server that ends with it.
    """
    keep_stacks_off()
    with entry_points.entry_point(name, say):
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
            f"Prefect's temporary server does not answer. Its database is in {PREFECT_HOME.value()}: see that there is "
            "space, and that this user may write to it, or set PREFECT_HOME to another folder."
        )
    address = redacted(address)
    if isinstance(error, HTTPStatusError):
        if error.response.status_code == UNAUTHORIZED:
            return f"The Prefect server at {address} asks for a password: set PREFECT_API_AUTH_STRING."
        status = f"{error.response.status_code} {error.response.reason_phrase}".strip()
        return f"The Prefect server at {address} answers {status}; see its log."
    why = causes.first_line(error) or type(error).__name__
    return (
        f"The Prefect server at {address} (PREFECT_API_URL, or `make ui` here) does not answer: {why}. Start it, or "
        "unset PREFECT_API_URL, and run again: what has been finished is kept."
    )


def _of_dvc(error: BaseException) -> str:
    """Give DVC's words, and the system's where these are behind them."""
    behind = error.__cause__ or error.__context__
    system = causes.say(behind) if isinstance(behind, OSError) else None
    return f"DVC: {causes.first_line(error)}. {system}" if system else f"DVC: {causes.first_line(error)}."


def check_home() -> None:
    """Check that Prefect can keep its database, where a flow starts its own server: that would fill the terminal.

    Raises:
        RootstockError: it cannot.
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
            f"Prefect keeps its database in {home}, and cannot. {say(error)} PREFECT_HOME names another folder."
        ) from error


class _Once(logging.Filter):
    """Lets a message through that begins unlike all before."""

    def __init__(self) -> None:
        super().__init__()
        self.said: set[str] = set()

    def filter(self, record: logging.LogRecord) -> bool:
        begins = record.getMessage()[: ABOUT // 2]
        is_news = begins not in self.said
        self.said.add(begins)
        return is_news


@cache
def keep_stacks_off() -> None:
    """Have everything in this process that logs a known cause, or dies of it, say so in a sentence without a stack."""
    factory, in_thread, unraisable = logging.getLogRecordFactory(), threading.excepthook, sys.unraisablehook

    def record(*args: Any, **kwargs: Any) -> logging.LogRecord:  # noqa: ANN401
        made = factory(*args, **kwargs)
        if made.exc_info and made.exc_info[1] and (sentence := say(made.exc_info[1])):
            about = textwrap.shorten(causes.first_line(made.getMessage()), ABOUT, placeholder=" ...")
            made.msg, made.args, made.exc_info = f"{about}: {sentence}", None, None
        return made

    logging.setLogRecordFactory(record)
    for name in BESIDE_THE_RUN:
        logging.getLogger(name).addFilter(_Once())
    threading.excepthook = lambda args: None if args.exc_value and say(args.exc_value) else in_thread(args)
    sys.unraisablehook = lambda args: None if args.exc_value and say(args.exc_value) else unraisable(args)

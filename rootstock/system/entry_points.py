"""What commands have in common: an error is one sentence and exit status 1, Ctrl-C one word, a closed pipe nothing.

Output and log lines contain file names, which may hold terminal control sequences: these are escaped.
"""

import argparse
import atexit
import gc
import logging
import os
import select
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout, suppress
from functools import partial
from typing import Any

from rootstock.system import causes, escape
from rootstock.system.errors import RootstockError

DETAIL = {"detail": True}  # `extra` of a log record that is for the UI and --verbose
STOP_S = 5.0  # after which a stopped command has ended


def add_verbose(parser: argparse.ArgumentParser) -> None:
    """Add the option that every flow's command has."""
    parser.add_argument("--verbose", action="store_true", help="print all that the run logs")


def end_quickly() -> None:
    """Have this process end without a last search for garbage, which takes two seconds once torch has been imported."""
    atexit.unregister(gc.freeze)
    atexit.register(gc.freeze)


def end_within(seconds: float, status: int) -> None:
    """Have this process end soon although threads still wait for a network, which Python would wait for."""
    watch = threading.Timer(seconds, os._exit, [status])
    watch.daemon = True
    watch.start()


@contextmanager
def entry_point(name: str, describe: causes.Describe = causes.describe) -> Iterator[None]:
    """Run a command; only bugs of this program show a traceback.

    Args:
        name: of the command, the prefix of its error message.
        describe: returns the description of an error, or None.
    """
    end_quickly()
    try:
        logging.setLogRecordFactory(partial(_record, logging.getLogRecordFactory()))
        with causes.described(describe), redirect_stdout(_EscapedStream(sys.stdout)):
            yield
            sys.stdout.flush()
    except KeyboardInterrupt:
        print(f"{name}: stopped", file=sys.stderr)
        end_within(STOP_S, 128 + signal.SIGINT)
        sys.exit(128 + signal.SIGINT)
    except RootstockError as error:
        if isinstance(error.__cause__, BrokenPipeError) and _is_pipe_closed():
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else Python flushes to it at exit
            sys.exit(128 + signal.SIGPIPE)
        sys.exit(_escaped(f"{name}: {error}"))


def _escaped(text: str) -> str:
    return escape.printable(text, keep="\n\t")


class _EscapedStream:
    """A text stream that escapes terminal control sequences."""

    def __init__(self, stream: Any) -> None:  # noqa: ANN401
        self.stream = stream

    def write(self, text: str) -> int:
        self.stream.write(_escaped(text))
        return len(text)

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401
        return getattr(self.stream, name)


def _record(make: Callable[..., logging.LogRecord], *args: Any, **kwargs: Any) -> logging.LogRecord:  # noqa: ANN401
    record = make(*args, **kwargs)
    with suppress(TypeError, ValueError):  # a format string that does not match its arguments: left to the handlers
        message = record.getMessage()
        if (escaped := _escaped(message)) != message:
            record.msg, record.args = escaped, ()
    return record


def _is_pipe_closed() -> bool:
    """Whether the reader of the output has exited (`| head`)."""
    poll = select.poll()
    poll.register(sys.stdout.fileno(), select.POLLOUT)
    return any(event & select.POLLERR for _, event in poll.poll(0))

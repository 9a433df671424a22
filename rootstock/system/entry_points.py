"""What a command of a terminal ends with: one sentence and exit status 1, one word after Ctrl-C, nothing for a pipe.

What it prints and logs has names of files in it, which may hold what a terminal obeys: that is shown, and not sent.
"""

import logging
import os
import select
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout, suppress
from functools import partial
from typing import Any

from rootstock.system import causes, escape
from rootstock.system.errors import RootstockError


@contextmanager
def entry_point(name: str, say: causes.Say = causes.say) -> Iterator[None]:
    """Run a command; mistakes of this program alone keep their stack.

    Args:
        name: of the command, which its sentence begins with.
        say: knows the sentences for what others bring about.
    """
    try:
        logging.setLogRecordFactory(partial(_record, logging.getLogRecordFactory()))
        with causes.in_words(say), redirect_stdout(_Shown(sys.stdout)):
            yield
            sys.stdout.flush()
    except KeyboardInterrupt:
        print(f"{name}: stopped", file=sys.stderr)
        sys.exit(128 + signal.SIGINT)
    except RootstockError as error:
        if isinstance(error.__cause__, BrokenPipeError) and _nobody_reads():
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else Python writes to it once more
            sys.exit(128 + signal.SIGPIPE)
        sys.exit(_shown(f"{name}: {error}"))


def _shown(text: str) -> str:
    return escape.printable(text, keep="\n\t")


class _Shown:
    """A stream of text to which nothing goes that a terminal would obey."""

    def __init__(self, stream: Any) -> None:  # noqa: ANN401
        self.stream = stream

    def write(self, text: str) -> int:
        self.stream.write(_shown(text))
        return len(text)

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401
        return getattr(self.stream, name)


def _record(make: Callable[..., logging.LogRecord], *args: Any, **kwargs: Any) -> logging.LogRecord:  # noqa: ANN401
    record = make(*args, **kwargs)
    with suppress(TypeError, ValueError):  # a message that does not fit its values is for the handlers to complain of
        said = record.getMessage()
        if (shown := _shown(said)) != said:
            record.msg, record.args = shown, ()
    return record


def _nobody_reads() -> bool:
    """Whether the reader of the output has gone (`| head`)."""
    poll = select.poll()
    poll.register(sys.stdout.fileno(), select.POLLOUT)
    return any(event & select.POLLERR for _, event in poll.poll(0))

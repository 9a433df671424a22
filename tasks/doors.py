"""What a command of a terminal ends with: one sentence and exit status 1, one word after Ctrl-C, nothing for a pipe."""

import os
import select
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from rootstock import causes
from rootstock.errors import RootstockError


@contextmanager
def door(name: str, say: causes.Say = causes.say) -> Iterator[None]:
    """Run a command; mistakes of this program alone keep their stack.

    Args:
        name: of the command, which its sentence begins with.
        say: knows the sentences for what others bring about.
    """
    try:
        with causes.in_words(say):
            yield
            sys.stdout.flush()
    except KeyboardInterrupt:
        print(f"{name}: stopped", file=sys.stderr)
        sys.exit(128 + signal.SIGINT)
    except RootstockError as error:
        if isinstance(error.__cause__, BrokenPipeError) and _nobody_reads():
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else Python writes to it once more
            sys.exit(128 + signal.SIGPIPE)
        sys.exit(f"{name}: {error}")


def _nobody_reads() -> bool:
    """Whether the reader of the output has gone (`| head`)."""
    poll = select.poll()
    poll.register(sys.stdout.fileno(), select.POLLOUT)
    return any(event & select.POLLERR for _, event in poll.poll(0))

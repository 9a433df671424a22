"""What a command shows on its terminal: one line per stage, warnings and notes; with --verbose, all that is logged."""

import logging
from pathlib import Path

import prefect
from prefect.logging.handlers import PrefectConsoleHandler
from tqdm import tqdm

ENGINE = str(Path(prefect.__file__).parent)
HEADER = f"{'stage':<12}{'seconds':>8}  result"
show_record = PrefectConsoleHandler.filter
# What Prefect's engine says of how a run ended, which the command says itself in a sentence, and that its log is still
# being sent.
ACCOUNTS = (
    "Finished in state", "Task run failed with state", "Execution was aborted by an interrupt signal",
    "Task run cancelled by the task runner", "Still processing items",
)  # fmt: skip
_header: list[str] | None = None  # still to be printed; None unless a command shows its runs


def show_lines(*, verbose: bool) -> None:
    """Show runs of this process on its terminal: a line per stage on standard output, notes on standard error."""
    global _header
    _header = [HEADER]
    if not verbose:
        # Else Prefect writes, at each batch of logs that a server does not take, half a line to the terminal.
        logging.raiseExceptions = False
        PrefectConsoleHandler.filter = _is_for_everybody  # type: ignore[assignment,method-assign]
        PrefectConsoleHandler.format = _plain  # type: ignore[assignment,method-assign]


def show_stage(stage: str, seconds: float, result: str) -> None:
    """Print the line of a stage that has ended, the first one below a header."""
    if _header is not None:
        lines = [*_header, f"{stage:<12}{seconds:>8.1f}  {result}"]
        _header.clear()
        tqdm.write("\n".join(lines))  # bars of running stages stay below


def _is_for_everybody(handler: logging.Handler, record: logging.LogRecord) -> bool:
    """Whether a record is more than Prefect's accounts of states and servers, or a detail of ours."""
    is_account = record.levelno < logging.WARNING or any(part in record.getMessage() for part in ACCOUNTS)
    if is_account and record.pathname.startswith(ENGINE):
        return False
    return not getattr(record, "detail", False) and bool(show_record(handler, record))


def _plain(handler: logging.Handler, record: logging.LogRecord) -> str:
    """Format a record as a sentence, after the stage that it is of."""
    stage, message = getattr(record, "task_run_name", ""), record.getMessage()
    about = f"{stage}: " if stage and not message.startswith(f"{stage}: ") else ""
    level = f"{record.levelname.lower()}: " if record.levelno >= logging.WARNING else ""
    return f"{level}{about}{message}"

"""What a command shows on its terminal: one line per stage, warnings and notes; with --verbose, all that is logged."""

import argparse
import logging
from pathlib import Path

import prefect
from prefect.logging.handlers import PrefectConsoleHandler
from tqdm import tqdm

DETAIL = {"detail": True}  # `extra` of a log record that is for the UI, and for --verbose
ENGINE = str(Path(prefect.__file__).parent)
show_record, format_record = PrefectConsoleHandler.filter, PrefectConsoleHandler.format
_shown: list[str] = []  # lines of stages; empty where nobody looks


def add_verbose(parser: argparse.ArgumentParser) -> None:
    """Add the option that every flow's command has."""
    parser.add_argument("--verbose", action="store_true", help="show all that the run logs, as Prefect formats it")


def show_lines(*, verbose: bool) -> None:
    """Show runs of this process on its terminal: a line per stage on standard output, notes on standard error."""
    _shown.append(f"{'stage':<12}{'seconds':>8}  result")
    if not verbose:
        PrefectConsoleHandler.filter = _is_for_everybody  # type: ignore[assignment,method-assign]
        PrefectConsoleHandler.format = _plain  # type: ignore[assignment,method-assign]


def show_stage(stage: str, seconds: float, result: str) -> None:
    """Print the line of a stage that has ended; the first is preceded by what the columns are."""
    if _shown:
        lines = [_shown[0], ""] if len(_shown) == 1 else [""]
        lines[-1] = f"{stage:<12}{seconds:>8.1f}  {result}"
        _shown.append(lines[-1])
        tqdm.write("\n".join(lines))  # bars of stages that go on stay below


def _is_for_everybody(handler: logging.Handler, record: logging.LogRecord) -> bool:
    """Whether a record is more than Prefect's accounts of states and servers, or a detail of ours."""
    is_account = record.levelno < logging.WARNING or "Finished in state" in record.getMessage()
    if is_account and record.pathname.startswith(ENGINE):
        return False
    return not getattr(record, "detail", False) and bool(show_record(handler, record))


def _plain(handler: logging.Handler, record: logging.LogRecord) -> str:
    """Format a record as a sentence, after the stage that it is of."""
    stage, message = getattr(record, "task_run_name", ""), record.getMessage()
    about = f"{stage}: " if stage and not message.startswith(f"{stage}: ") else ""
    level = f"{record.levelname.lower()}: " if record.levelno >= logging.WARNING else ""
    return f"{level}{about}{message}"

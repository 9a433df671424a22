"""Imports torch and what else the stages need, seconds of work, while Prefect's own server starts."""

import threading
from contextlib import suppress

from prefect.settings import PREFECT_API_URL

from rootstock.config.architectures import architecture

_running: list[threading.Thread] = []


def begin(backbone: str) -> None:
    """Begin on a thread of its own; not where a server is configured, as nothing waits for its start then.

    Args:
        backbone: its name, for the library that builds it.
    """
    if not PREFECT_API_URL.value():
        thread = threading.Thread(target=_import, args=(backbone,), name="early imports")
        thread.start()
        _running.append(thread)


def wait() -> None:
    """Wait for the end, before a stage imports the same itself."""
    while _running:
        _running.pop().join()


def _import(backbone: str) -> None:
    with suppress(Exception):  # the stage that needs it fails in the same way, and says so
        import rootstock.evaluation.evaluate
        import rootstock.features.extraction
        import rootstock.training.heads  # noqa: F401
        from rootstock.backbones.networks import import_timm

        match architecture(backbone).library:
            case "timm":
                import_timm()
            case "torchvision":
                import torchvision.models  # noqa: F401

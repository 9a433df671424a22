"""How often the present test images have been used: a log of the different models measured on them.

Whoever measures one model after the other and keeps the best has chosen by the test images, and their figures flatter
it. The logs are of this machine; they say so, and forbid nothing.
"""

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from rootstock.system.errors import DamagedError
from rootstock.system.files import read_json, write

KEPT = 100  # sets of test images, the last on which a model was new


def count(path: Path, test_images: Iterable[str], model: str) -> int:
    """Record that a model was measured on test images.

    Args:
        path: the log, created if missing; a damaged one is begun anew.
        test_images: their ids.
        model: digest of its weights; the same model counts once.

    Returns:
        How many different models have been measured on exactly these images.
    """
    log: dict[str, list[str]] = _read(path)
    images = hashlib.sha256("\n".join(sorted(test_images)).encode()).hexdigest()[:16]
    models = log.pop(images, [])
    if model[:16] in models:  # as whenever nothing was trained anew
        return len(models)
    models = [*models, model[:16]]
    log = {**dict(list(log.items())[1 - KEPT :]), images: models}
    _write(path, log)
    return len(models)


def first_measured(path: Path, delivered: Iterable[str], model: str) -> set[str]:
    """Record that a model was measured on test images that a champion was not trained with.

    Args:
        path: the log, created if missing; a damaged one is begun anew. It keeps no images but those delivered now.
        delivered: ids of the images.
        model: digest of its weights.

    Returns:
        The images on which no other model has been measured before.
    """
    log: dict[str, str] = _read(path)
    now = {image: log.get(image, model[:16]) for image in delivered}
    if now != log:
        _write(path, now)
    return {image for image, first in now.items() if first == model[:16]}


def _read(path: Path) -> dict[str, Any]:
    try:
        log: dict[str, Any] = read_json(path) if path.exists() else {}
    except DamagedError:
        return {}
    return log


def _write(path: Path, log: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write(path, json.dumps(log))


def describe(models: int, images: int) -> str:
    """Describe what that does to test figures; "" for the first model."""
    if models < 2:
        return ""
    return (
        f"The {_ordinal(models)} model measured on these {images:,} test images: its figures are a little flattered if "
        "it was chosen by them. For an unbiased figure, add fresh images, or draw a new split (ingest.split)."
    )


def _ordinal(number: int) -> str:
    suffix = "th" if 10 <= number % 100 <= 20 else {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")
    return f"{number:,}{suffix}"

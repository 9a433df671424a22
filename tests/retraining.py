"""Deliveries of photos, retrainings, and what they leave."""

import shutil
import sys

from PIL import Image, ImageOps

from rootstock.model import history
from rootstock.model.history import Row
from tests.workspace import CLASSES, Workspace, draw_photos


def deliver(workspace: Workspace, domain: str, each: int, first: int = 500, *, bad: bool = False) -> None:
    """Put photos of another domain, negatives, into the inbox; bad ones under another class's name."""
    drawn, labels = workspace.root.parent / f"drawn-{domain}-{first}", list(CLASSES)
    draw_photos(drawn, each, first)
    for number, path in enumerate(sorted(drawn.rglob("*.png"))):
        label = labels[(7 * number + 3) % 3] if bad else path.parent.name
        target = workspace.root / "data" / "inbox" / domain / label / f"{path.parent.name}-{path.name}"
        target.parent.mkdir(parents=True, exist_ok=True)
        ImageOps.invert(Image.open(path)).save(target)
    shutil.rmtree(drawn)


def retrain(workspace: Workspace, **env: str) -> str:
    """Retrain on a terminal; returns what a person reads at the end."""
    return workspace.run(sys.executable, "-m", "flows.retrain", **env).stdout.strip().splitlines()[-1]


def champions(workspace: Workspace) -> list[Row]:
    """Read who was champion when."""
    return history.read(workspace.root / "data")


def model_of(workspace: Workspace) -> dict[str, bytes]:
    files = sorted((workspace.root / "data" / "model").iterdir())
    return {path.name: path.read_bytes() for path in files}

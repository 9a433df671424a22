"""The first batch of images to label: a page with thumbnails, and a project for Label Studio.

Beside `to_label.csv` are `to_label.html`, and what Label Studio imports: `to_label.json` (tasks with the champion's
predictions) and `to_label.xml` (the labelling interface). Images are inside, so that neither needs the inbox.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from PIL import Image

from rootstock.dataset import label_sets
from rootstock.evaluation import thumbnails
from rootstock.evaluation.labelling import Candidate
from rootstock.evaluation.report import data_uri, environment
from rootstock.images import decoding, inspection
from rootstock.images.inspection import Checks, Rejected
from rootstock.ingest.sources import Source
from rootstock.system.files import write

SHOWN, ENLARGED = 240, 640  # pixels of the longer side, on the page and in Label Studio
LABEL, IMAGE = "label", "image"  # names of the controls in Label Studio


@dataclass(frozen=True)
class Shown:
    """An image of the batch, and its pictures as WebP."""

    candidate: Candidate
    thumbnail: bytes
    enlarged: bytes


def write_batch(
    to_label: Path, batch: Sequence[Candidate], source: Source, classes: Sequence[str], checks: Checks, *,
    multi_label: bool = False,
) -> None:  # fmt: skip
    """Write the batch beside the list.

    Args:
        to_label: the list, a CSV file.
        batch: its first images, in order.
        source: has the files.
        classes: that the champion knows.
        checks: limits for accepted files, which may have changed since they were listed.
        multi_label: whether an image may have any number of them.
    """
    pictures = _pictures({one.path for one in batch}, source, checks)
    shown = [Shown(one, *pictures[one.path]) for one in batch if one.path in pictures]
    page = (
        environment().get_template("to_label.html.j2").render(shown=shown, list=to_label.name, multi_label=multi_label)
    )
    write(to_label.with_suffix(".html"), page)
    tasks = [_task(one, multi_label=multi_label) for one in shown]
    write(to_label.with_suffix(".json"), json.dumps(tasks, ensure_ascii=False, indent=1) + "\n")
    write(to_label.with_suffix(".xml"), _interface(classes, multi_label=multi_label))


def _pictures(paths: set[str], source: Source, checks: Checks) -> dict[str, tuple[bytes, bytes]]:
    """Draw each image twice, small and large; one that is gone or damaged by now is left out."""
    found = {}
    for item, load in source.read(paths):
        try:
            decoded = decoding.decode(inspection.check(load(), item.path, checks).data, ENLARGED)
        except Rejected:
            continue
        image = Image.fromarray(decoded.permute(1, 2, 0).numpy())
        small, large = (thumbnails.encoded(thumbnails.contained(image.copy(), side)) for side in (SHOWN, ENLARGED))
        found[item.path] = small, large
    return found


def _task(shown: Shown, *, multi_label: bool) -> dict[str, Any]:
    """Return a task of Label Studio; `path` comes back with the label."""
    one = shown.candidate
    choices = label_sets.split(one.predicted) if multi_label else [one.predicted]
    chosen = {"from_name": LABEL, "to_name": IMAGE, "type": "choices", "value": {"choices": choices}}
    prediction = {"model_version": "champion", "score": round(one.confidence, 4), "result": [chosen]}
    data = {"image": data_uri(shown.enlarged), "path": one.path, "domain": one.domain}
    return {"data": data, "predictions": [prediction]}


def _interface(classes: Sequence[str], *, multi_label: bool) -> str:
    """Return the labelling interface of Label Studio: the image, and one choice among the classes, or several."""
    view = ElementTree.Element("View")
    ElementTree.SubElement(view, "Image", name=IMAGE, value="$image")
    ElementTree.SubElement(view, "Text", name="path", value="$path")
    how = "multiple" if multi_label else "single"
    choices = ElementTree.SubElement(view, "Choices", name=LABEL, toName=IMAGE, choice=how, showInline="true")
    for name in classes:
        ElementTree.SubElement(choices, "Choice", value=name)
    ElementTree.indent(view)
    return ElementTree.tostring(view, encoding="unicode") + "\n"

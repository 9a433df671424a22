"""Labels that a person gave to unlabelled images of the inbox, read from a table or from Label Studio.

A labelled image moves from <domain>/_unlabelled/ to <domain>/<class>/, where the next retraining finds it.
"""

import json
from collections.abc import Collection, Iterator, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import pandas as pd

from rootstock.dataset import label_sets
from rootstock.ingest import inbox
from rootstock.ingest.inbox import Delivery
from rootstock.ingest.labels import clean
from rootstock.system import escape
from rootstock.system.errors import SourceError
from rootstock.system.phrases import listed

EXPECTED = "expected to_label.csv with a column label filled in, or an export of Label Studio (JSON, JSON-MIN or CSV)"
NAMED = 3  # classes or files that an error names


def read_labels(path: Path, *, multi_label: bool = False) -> dict[str, str]:
    """Read the label of each labelled image, by path in the inbox; images without one are left out.

    With `multi_label`, a label is a set of classes, `cat;dog`, and a semicolon alone means none of them: an annotation
    without a choice, or a semicolon in the table.

    Raises:
        SourceError: the file cannot be read, is something else, or an image has two labels.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
        pairs = list(_from_json(json.loads(text)) if path.suffix.lower() == ".json" else _from_table(path))
    except FileNotFoundError:
        raise SourceError(f"{path} does not exist; {EXPECTED}.") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        why = f"{type(error).__name__}: {error}" if isinstance(error, OSError) else "it is something else"
        raise SourceError(f"{path} cannot be read ({why}); {EXPECTED}.") from None
    labels: dict[str, str] = {}
    if multi_label:
        pairs = [(image, label_sets.parse(label, clean) or label_sets.SEPARATOR) for image, label in pairs]
    else:
        pairs = [(image, label) for image, label in pairs if label != label_sets.SEPARATOR]
    for image, label in pairs:
        if labels.setdefault(image, label) != label:
            raise SourceError(f"{path}: {image} has two labels, {labels[image]} and {label}; expected one.")
    return labels


def _from_table(path: Path) -> Iterator[tuple[str, str]]:
    table = pd.read_csv(path, dtype=str, keep_default_na=False, encoding="utf-8-sig")
    for image, label in zip(table["path"], table["choice" if "label" not in table else "label"], strict=True):
        if clean(label):
            yield escape.from_cell(image), clean(escape.from_cell(label))


def _from_json(tasks: Any) -> Iterator[tuple[str, str]]:  # noqa: ANN401
    """Read tasks of Label Studio: whole, with annotations of which the last counts, or JSON-MIN.

    An annotation without a choice is a semicolon.
    """
    for task in tasks:
        if "data" not in task:
            choice = task.get("label", "")
            label = _joined(choice["choices"]) if isinstance(choice, dict) else clean(str(choice))
            yield from [(str(task["path"]), label)] if label else []
            continue
        done = [one["result"] for one in task.get("annotations", ()) if not one.get("was_cancelled")]
        if done:
            yield str(task["data"]["path"]), _joined(done[-1][0]["value"]["choices"] if done[-1] else [])


def _joined(choices: list[object]) -> str:
    """Return choices of Label Studio as one text: of several, or of none, with semicolons."""
    return label_sets.SEPARATOR.join(clean(str(one)) for one in choices) or label_sets.SEPARATOR


def check(
    labels: Mapping[str, str],
    delivery: Delivery,
    known: Collection[str],
    *,
    new_classes: bool,
    multi_label: bool = False,
) -> None:
    """Check that labels can be names of folders and, unless `new_classes`, that the champion knows them.

    With `multi_label`, a label may be a set of classes, `cat;dog`, and a semicolon alone means none.

    Raises:
        SourceError: one cannot, or is unknown; or none of the images is in the inbox.
    """
    for image, label in labels.items():
        if label in (".", "..") or label.startswith("_") or any(sign in label for sign in "/\\\0"):
            raise SourceError(
                f"{image}: {label!r} cannot be a class; expected a name without slashes that does not begin with _."
            )
    asked = label_sets.classes_in(labels.values()) if multi_label else labels.values()
    unknown = sorted(set(asked) - set(known) - {""})
    if unknown and not new_classes:
        near = {label: get_close_matches(label, known, n=1) for label in unknown}
        named = [f"{label} (did you mean {found[0]}?)" if found else label for label, found in near.items()]
        raise SourceError(
            f"The champion does not know {listed(named, NAMED)}; correct the labels, or add --new-classes."
        )
    there = {item.path for item in delivery.unlabelled.items}
    if labels and not there & labels.keys():
        raise SourceError(
            f"None of the {len(labels):,} labelled images is in {delivery.url}, such as {min(labels)}: "
            "were they moved already?"
        )


def move(labels: Mapping[str, str], delivery: Delivery) -> int:
    """Move the images to the folders of their classes; return how many there were.

    Raises:
        SourceError: the store cannot be reached, or does not allow moving.
    """
    there = {item.path: labels[item.path] for item in delivery.unlabelled.items if item.path in labels}
    inbox.label_files(delivery, there)
    return len(there)

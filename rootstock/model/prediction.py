"""Classify many images, and write a row for each: CSV, JSON lines or Parquet.

Rows are written in parts beside the output, so that a killed run goes on where it was; at the end they become one file.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Generator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from rootstock.dataset import label_sets, tables
from rootstock.features.preparing import Prepared
from rootstock.images import inspection
from rootstock.images.inspection import Checks
from rootstock.images.reasons import Rejected
from rootstock.ingest.layout import Item, Loader
from rootstock.ingest.sources import Images
from rootstock.model import given
from rootstock.model.explanations import Explanations
from rootstock.model.known_features import KnownFeatures
from rootstock.model.model import CHECKS, Model
from rootstock.model.parts import Parts
from rootstock.system import escape, progress
from rootstock.system.errors import ParamsError
from rootstock.system.files import replacing
from rootstock.system.parallel import grouped
from rootstock.system.phrases import counted
from rootstock.training.calibration import most_probable

FORMATS = (".csv", ".jsonl", ".parquet")
EXPLANATION = "explanation"  # the column that names an image's picture
LABELS = "labels"  # the column of the classes of an image that may have any number of them
DIGITS = 6  # of numbers in JSON
PARTS = ".parts"  # the folder beside the output
Answer = tuple[Item, str, Rejected | None]  # with the image id


@dataclass
class Tally:
    """How many images were answered and how: `resumed` by an earlier run, `known` from cached features."""

    images: int = 0
    unknown: int = 0
    resumed: int = 0
    known: int = 0
    rejected: Counter[str] = field(default_factory=Counter)

    def __str__(self) -> str:
        """Describe it in a line."""
        bad = self.rejected.total()
        reasons = ", ".join(f"{count:,} {reason}" for reason, count in self.rejected.most_common())
        said = f"{counted(self.images, 'image')}: {self.images - bad:,} classified ({self.unknown:,} as unknown)"
        return f"{said}, {bad:,} rejected ({reasons})" if bad else said


def predict(
    model: Model, images: Images, out: Path, top: int = 3, known: KnownFeatures | None = None,
    checks: Checks = CHECKS, explain: Explanations | None = None,
) -> Tally:  # fmt: skip
    """Classify images and write `out`; a run that was killed goes on.

    Args:
        model: classifies them.
        images: listed.
        out: a path that ends as one of FORMATS.
        top: how many classes a row has, the most probable first. Where images have any number of classes, there is a
            column `labels` as well, with those predicted: `cat;dog`.
        known: cached features of the model's own kind; not used with `explain`, for which every image is decoded.
        checks: limits for accepted files.
        explain: receives a picture of each classified image, which its row names.

    Raises:
        ParamsError: the format is not known, or `out` is a folder.
    """
    if out.suffix.lower() not in FORMATS:
        raise ParamsError(f"{out}: expected a name that ends in {', '.join(FORMATS)}")
    if out.is_dir():
        raise ParamsError(f"{out} is a folder; expected a file")
    top = min(top, len(model.classes))
    settings = [top, str(checks), [str(explain.folder), explain.cam.layer] if explain else None]
    schema = _schema(model, top, explained=explain is not None)
    parts = Parts(out.with_name(out.name + PARTS), _fingerprint(model, images.items, settings), schema)
    known = KnownFeatures(None, None) if known is None or explain else known
    tally, done = Tally(), set[str]()
    for part in parts.read():
        _count(tally, part)
        done.update(part["path"].to_pylist())
    tally.resumed = tally.images
    wanted = {item.path for item in images.items} - done
    with progress.bar("predict", len(images.items)) as advance, parts:
        advance(0, skip=len(done))
        with closing(_rows(model, images, wanted, top, known, checks, tally, explain)) as rows:
            for table in rows:
                _count(tally, table)
                parts.add(table)
                advance(len(table))
    _write(parts, out)
    parts.remove()
    return tally


def known_features(model: Model, features: Path, dataset: Path) -> KnownFeatures:
    """Return the cached features of a workspace that are of the model's own kind; none where there is no dataset."""
    if not model.feature_key or not (dataset / tables.MANIFEST).exists():
        return KnownFeatures(None, None)
    return KnownFeatures(features / model.feature_key, tables.load_manifest(dataset))


def _schema(model: Model, top: int, *, explained: bool) -> pa.Schema:
    ranked = [field for one, two in _ranked(top) for field in ((one, pa.string()), (two, pa.float32()))]
    rest = [("unknown", pa.bool_()), ("novelty", pa.float32()), ("reason", pa.string()), ("detail", pa.string())]
    rest += [(EXPLANATION, pa.string())] if explained else []
    labels = [(LABELS, pa.string())] if model.multi_label else []
    return pa.schema([("path", pa.string()), *labels, *ranked, *rest])


def _ranked(top: int) -> list[tuple[str, str]]:
    """Return the columns of the most probable classes: names of label and probability, the first without a number."""
    ends = ["", *(f"_{rank}" for rank in range(2, top + 1))]
    return [(f"label{end}", f"probability{end}") for end in ends]


def _fingerprint(model: Model, items: Sequence[Item], settings: list[Any]) -> str:
    """Return what the rows depend on: the model, the images, and the settings."""
    listed = hashlib.sha256()
    for item in items:
        listed.update(f"{item.path}\t{item.stamp}\n".encode())
    weights = hashlib.sha256()
    for name, value in model.network.state_dict().items():
        weights.update(name.encode() + value.cpu().numpy().tobytes())
    own = [str(model.spec), model.classes, model.temperature, str(model.value_range), model.max_side]
    own += [] if model.thresholds is None else [model.thresholds.tolist()]
    return json.dumps([weights.hexdigest(), own, listed.hexdigest(), *settings], ensure_ascii=False)


def _count(tally: Tally, part: pa.Table) -> None:
    tally.images += len(part)
    tally.rejected.update(reason for reason in part["reason"].to_pylist() if reason)
    tally.unknown += sum(map(bool, part["unknown"].to_pylist()))


def _rows(
    model: Model, images: Images, wanted: set[str], top: int, known: KnownFeatures, checks: Checks, tally: Tally,
    explain: Explanations | None,
) -> Generator[pa.Table]:  # fmt: skip
    """Yield the rows of the wanted images, a group at a time."""
    schema = _schema(model, top, explained=explain is not None)
    problems = {item.path: item for item in images.items if item.problem and item.path in wanted}
    bad: list[Answer] = [(item, "", Rejected(item.problem)) for item in problems.values() if item.problem]
    if bad:
        yield _table(model, bad, np.empty((0, model.network.head.in_features), np.float32), top, schema)
    prepare = partial(_prepare, model=model, checks=model.own_checks(checks), known=known, keep=explain is not None)
    groups = grouped(images.read(wanted - problems.keys()), model.extractor_of_many.engine.group_size)
    with closing(model.extractor_of_many.features(groups, prepare)) as answered:
        for (found, seen), computed in answered:
            features, rest = [], iter(computed)
            for _, image_id, rejected in found:
                if not rejected:
                    row = known.get(image_id) if image_id else None
                    tally.known += row is not None
                    features.append(next(rest) if row is None else row)
            table = _table(model, found, np.array(features, np.float32).reshape(-1, computed.shape[1]), top, schema)
            yield _explained(model, table, seen, explain) if explain else table


def _explained(model: Model, rows: pa.Table, seen: Sequence[Prepared], explain: Explanations) -> pa.Table:
    """Write the pictures of a group, whose accepted images are given as prepared, and name them in its rows."""
    labels = rows["label"].to_pylist()
    good = [place for place, label in enumerate(labels) if label is not None]
    names: list[str | None] = [None] * len(rows)
    if good:
        paths, classes = ([values[place] for place in good] for values in (rows["path"].to_pylist(), labels))
        pixels = model.extractor_of_many.pixels(seen)
        written = explain.write(paths, pixels, [model.classes.index(label) for label in classes])
        for place, name in zip(good, written, strict=True):
            names[place] = name
    return rows.set_column(rows.schema.get_field_index(EXPLANATION), EXPLANATION, pa.array(names, pa.string()))


def _prepare(
    entries: Sequence[tuple[Item, Loader]], model: Model, checks: Checks, known: KnownFeatures, keep: bool
) -> tuple[tuple[list[Answer], list[Prepared]], list[Prepared]]:
    """Read, check and decode images; those whose features are known have an image id, and are only read.

    Returns the answers, beside them the prepared images if they are to be kept, and the prepared images.
    """
    found: list[Answer] = []
    prepared: list[Prepared] = []
    for item, load in entries:
        try:
            data = given.content(load())
            image_id = inspection.image_id(data) if known else ""
            if image_id in known:
                found.append((item, image_id, None))
                continue
            prepared.append(model.extractor_of_many.prepare_input(item.path, data, checks))
            found.append((item, "", None))
        except Rejected as rejected:
            found.append((item, "", Rejected(rejected.reason, rejected.detail)))
    return (found, prepared if keep else []), prepared


def _table(
    model: Model, found: Sequence[Answer], features: NDArray[np.float32], top: int, schema: pa.Schema
) -> pa.Table:
    """Return the rows of a group of images, with the features (n, width) of those that were accepted."""
    columns: dict[str, list[Any]] = {name: [None] * len(found) for name in schema.names}
    columns["path"] = [item.path for item, *_ in found]
    good = [place for place, (*_, rejected) in enumerate(found) if not rejected]
    if good:
        probabilities = model.probabilities(features)
        best = most_probable(probabilities, top)
        for (label, probability), ranks in zip(_ranked(top), best.T, strict=True):
            for place, row, chosen in zip(good, probabilities, ranks, strict=True):
                columns[label][place], columns[probability][place] = model.classes[chosen], float(row[chosen])
        if model.multi_label:
            for place, answer in zip(good, model.answers(probabilities), strict=True):
                columns[LABELS][place] = label_sets.join(np.asarray(model.classes)[answer])
        for place, novelty in zip(good, model.novelty.score(features) if model.novelty else (), strict=False):
            assert model.novelty is not None
            columns["novelty"][place], columns["unknown"][place] = float(novelty), novelty > model.novelty.threshold
    for place, (*_, rejected) in enumerate(found):
        if rejected:
            columns["reason"][place], columns["detail"][place] = rejected.reason.value, rejected.detail or None
    return pa.table(columns, schema=schema)


def _write(parts: Parts, out: Path) -> None:
    """Write the parts as one file."""
    with replacing(out) as temporary:
        if out.suffix.lower() == ".parquet":
            with pq.ParquetWriter(temporary, parts.schema, compression="zstd") as writer:
                for part in parts.read():
                    writer.write_table(part)
            return
        with temporary.open("w", encoding="utf-8", newline="") as file:
            for number, part in enumerate(parts.read()):
                file.write(_as_text(part, out.suffix.lower(), is_first=number == 0))


def _as_text(part: pa.Table, suffix: str, *, is_first: bool) -> str:
    if suffix == ".jsonl":
        return "".join(json.dumps(_rounded(row), ensure_ascii=False) + "\n" for row in part.to_pylist())
    text = escape.as_csv(part.to_pandas())
    return text if is_first else text.partition("\n")[2]


def _rounded(row: dict[str, Any]) -> dict[str, Any]:
    return {name: round(value, DIGITS) if isinstance(value, float) else value for name, value in row.items()}

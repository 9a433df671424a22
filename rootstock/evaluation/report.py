"""One self-contained HTML page of an evaluation: the verdict first, then what supports it.

report.render(Report(...))  ->  text of a page that needs no network, no script and no other file
"""

import base64
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from rootstock.dataset.tables import describe_missing_classes

MODELS = {"head": "Head", "finetuned": "Fine-tuned"}  # key in metrics.json: name on the page
SHARES = {"accuracy": "Accuracy", "macro_f1": "Macro-F1", "top5": "Top 5"}  # larger is better, at most one
LOSSES = {"log_loss": "Log loss", "ece": "Calibration error"}  # smaller is better, at least zero
CLASSES_OPEN = 20  # rows of a class table that are shown at once; the rest is behind a click


@dataclass(frozen=True)
class Mistake:
    """A test image that the winner got wrong."""

    thumbnail: bytes  # PNG, JPEG, GIF or WebP
    actual: str
    predicted: str
    confidence: float  # in the wrong class
    domain: str
    path: str


@dataclass(frozen=True)
class Report:
    """What the page shows; every mapping is as it stands in the file named.

    Args:
        name: of the model, the page's title.
        metrics: metrics.json: "head" and "finetuned" as `metrics.score` returns them, "winner" (which of
            the two) and "images" (a count for each of train, val, test).
        validation: "head" and "finetuned", each {"accuracy", "log_loss"} on validation, and "why", a sentence
            that says why the winner won.
        dataset: summary.json of the data set; of its keys `splits`, `domains`, `by_class` and `rejected` are
            needed, `sources`, `near_duplicates` and `shards` shown if there.
        backbone: backbone.json; any scalars, lists and mappings.
        params: params.yaml as nested mappings and lists.
        timings: {"stage", "seconds", "images", "note"} of each stage; images and note may be None or absent.
        pictures: what `plots.pictures` returns; a missing one is left out.
        mistakes: of the winner, worst first.
        warnings: where a search ended at a limit, and the like; a sentence each.
        tuned: whether anything was fine-tuned.

    """

    name: str
    metrics: Mapping[str, Any]
    validation: Mapping[str, Any]
    dataset: Mapping[str, Any]
    backbone: Mapping[str, Any]
    params: Mapping[str, Any]
    timings: Sequence[Mapping[str, Any]] = ()
    pictures: Mapping[str, bytes] = field(default_factory=dict)
    mistakes: Sequence[Mistake] = ()
    warnings: Sequence[str] = ()
    tuned: bool = True

    @property
    def models(self) -> dict[str, str]:
        """Name the models that there are: the fine-tuned one is the head's where nothing was tuned."""
        return MODELS if self.tuned else {"head": MODELS["head"]}

    @property
    def winner(self) -> str:
        """Key of the model that validation chose."""
        return str(self.metrics["winner"])


def render(report: Report) -> str:
    """Make the page; names and paths come from users, so everything is escaped."""
    scored, absent = _classes(report)
    return (
        environment()
        .get_template("report.html.j2")
        .render(
            report=report,
            models=report.models,
            best=report.metrics[report.winner],
            wrong=_wrong(report),
            comparison=_comparison(report),
            domains=_domains(report),
            classes=scored,
            absent=absent,
            without=describe_missing_classes(dict(report.dataset)),
            classes_open=CLASSES_OPEN,
            backbone=list(_flat(report.backbone)),
            settings=list(_flat(report.params)),
            seconds=sum(stage["seconds"] for stage in report.timings),
        )
    )


def environment() -> Environment:
    """Give what pages are made with: strict about names, careful about what comes from users."""
    pages = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    pages.filters.update(
        data_uri=data_uri,
        duration=duration,
        percent=percent,
        percents=percents,
        figure=figure,
        figures=figures,
    )
    return pages


def data_uri(picture: bytes) -> str:
    """Put a picture's bytes into an address, so that the page needs no other file."""
    kinds = {b"\xff\xd8": "jpeg", b"GIF8": "gif", b"RIFF": "webp"}
    kind = next((kind for magic, kind in kinds.items() if picture.startswith(magic)), "png")
    return f"data:image/{kind};base64,{base64.b64encode(picture).decode()}"


def duration(seconds: float) -> str:
    """Say a time as a person would: 0.4 s, 12 s, 4 min 07 s, 2 h 05 min."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60:02d} min"


def percent(share: float) -> str:
    """Write a share with one decimal; only all of it is 100 %, only nothing 0 %."""
    rounded = round(100 * share, 1)
    if rounded in (0, 100) and share not in (0, 1):
        rounded = 0.1 if rounded == 0 else 99.9
    return f"{rounded:g}%" if rounded in (0, 100) else f"{rounded:.1f}%"


def percents(interval: Mapping[str, float]) -> str:
    """Write both ends of an interval of shares: 98.2 to 99.8%."""
    return f"{percent(interval['low']).rstrip('%')} to {percent(interval['high'])}"


def figure(value: float) -> str:
    """Write a loss."""
    return f"{value:.3f}"


def figures(interval: Mapping[str, float]) -> str:
    """Write both ends of an interval of losses: 0.031 to 0.112."""
    return f"{figure(interval['low'])} to {figure(interval['high'])}"


def _wrong(report: Report) -> int:
    accuracy = float(report.metrics[report.winner]["accuracy"]["value"])
    return round(int(report.metrics["images"]["test"]) * (1 - accuracy))


def _bar(interval: Mapping[str, float], low: float, high: float) -> dict[str, float]:
    """Where an interval lies between two ends, in per cent of the way: its left end, width and value."""
    places = {name: 100 * (end - low) / ((high - low) or 1.0) for name, end in interval.items()}
    return {"left": places["low"], "width": places["high"] - places["low"], "dot": places["value"]}


def _comparison(report: Report) -> list[dict[str, Any]]:
    """A row a metric, each with the models' figures; all shares are on one scale, up to one."""
    metrics, models = report.metrics, report.models
    floor = _floor(metrics[model][metric] for model in models for metric in SHARES)
    rows = []
    for metric, name in (SHARES | LOSSES).items():
        both = [metrics[model][metric] for model in models]
        # A loss has a scale of its own, from zero, with a tenth to spare.
        scale = (floor, 1.0) if metric in SHARES else (0.0, 1.1 * max(one["high"] for one in both))
        value, ends = (figure, figures) if metric == "log_loss" else (percent, percents)
        rows.append(
            {
                "name": name,
                "better": "higher is better" if metric in SHARES else "lower is better",
                "models": [
                    {"key": model, "value": value(one["value"]), "ends": ends(one), "bar": _bar(one, *scale)}
                    for model, one in zip(models, both, strict=True)
                ],
            }
        )
    return rows


def _floor(intervals: Iterable[Mapping[str, float]]) -> float:
    """Where a scale of shares begins, so that the intervals fill it."""
    return max(0.0, min(interval["low"] for interval in intervals) - 0.02)


def _domains(report: Report) -> list[dict[str, Any]]:
    """A row a domain with test images, the winner's worst first."""
    best, models = report.metrics[report.winner]["domains"], report.models
    low = _floor(report.metrics[model]["domains"][name]["accuracy"] for model in report.models for name in best)
    return [
        {
            "name": name,
            "images": best[name]["images"],
            "models": {model: report.metrics[model]["domains"][name] for model in models},
            "bars": {
                model: _bar(report.metrics[model]["domains"][name]["accuracy"], low, 1.0) for model in report.models
            },
        }
        for name in sorted(best, key=lambda domain: best[domain]["accuracy"]["value"])
    ]


def _classes(report: Report) -> tuple[list[dict[str, Any]], list[str]]:
    """A row a class with test images, the winner's worst first, and the names of the classes without."""
    best = report.metrics[report.winner]["classes"]
    scored = [name for name in best if best[name]["images"]]
    scored.sort(key=lambda name: (best[name]["accuracy"]["value"], best[name]["f1"]["value"]))
    low = _floor(best[name]["accuracy"] for name in scored)
    rows = [
        {
            "name": name,
            "images": best[name]["images"],
            "models": {model: report.metrics[model]["classes"][name] for model in report.models},
            "bar": _bar(best[name]["accuracy"], low, 1.0),
        }
        for name in scored
    ]
    return rows, [name for name in best if not best[name]["images"]]


def _flat(value: object, key: str = "") -> Iterator[tuple[str, str]]:
    """Yield nested settings as they are named in messages: ("finetune.stages[1].unfreeze", "all")."""
    if isinstance(value, Mapping) and value:
        for name, inner in value.items():
            yield from _flat(inner, f"{key}.{name}" if key else str(name))
    elif isinstance(value, (list, tuple)) and any(isinstance(inner, Mapping) for inner in value):
        for place, inner in enumerate(value):
            yield from _flat(inner, f"{key}[{place}]")
    elif isinstance(value, (list, tuple)):
        yield key, ", ".join(_say(inner) for inner in value) or "none"
    else:
        yield key, _say(value)


def _say(value: object) -> str:
    match value:
        case None:
            return "none"
        case bool():
            return "yes" if value else "no"
        case int():
            return f"{value:,}" if abs(value) >= 10_000 else str(value)
        case float():
            return f"{value:g}"
        case _:
            return str(value)

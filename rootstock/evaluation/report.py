"""The evaluation report: one self-contained HTML page, the verdict first.

report.render(Report(...))  ->  HTML without network access or other files

Its one script sorts and filters what is on the page; the page is complete without it.
"""

import base64
import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from rootstock.dataset.summaries import describe_missing_classes
from rootstock.evaluation import figures, verdict

if TYPE_CHECKING:  # these import torch
    from rootstock.evaluation.advice import Advice
    from rootstock.evaluation.embedding import Embedding
    from rootstock.evaluation.mistakes import Confusion, Mistake, Suspect
    from rootstock.evaluation.why import Why

MODELS = {"head": "Head", "finetuned": "Fine-tuned"}  # key in metrics.json: name on the page
SCRIPT = (Path(__file__).parent / "report.js.j2").read_text(encoding="utf-8")
# The page's policy allows this script alone: none that a name of a file or a class could bring in.
SCRIPT_DIGEST = base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()
ROWS_OPEN = 50  # of a table that are shown at once; the others are a click or a search away


@dataclass(frozen=True)
class Report:
    """The contents of the page; mappings are as in the files named.

    Args:
        name: of the model; the page's title.
        winner: the model chosen on validation, "head" or "finetuned".
        why: the reason in a sentence.
        validation: figures of "head" and, if anything was fine-tuned, "finetuned", as returned by `metrics.score`.
        test: figures of the winner on the test images.
        dataset: summary.json of the dataset; `splits`, `domains`, `by_class` and `rejected` are required, `sources`
            and `near_duplicates` optional.
        backbone: backbone.json; any scalars, lists and mappings.
        params: those that differ from their defaults, as nested mappings and lists.
        lineage: what the model comes from, such as the git commit, by name.
        timings: {"stage", "seconds", "images", "note"} of each stage; images and note may be None or absent.
        pictures: as returned by `plots.pictures`; missing ones are left out.
        advice: what to do next.
        mistakes: of the winner, worst first.
        class_mistakes: small thumbnails of the worst mistakes of some classes, by name.
        confusions: pairs of classes, the most frequent first.
        duplicates: small thumbnails of some groups of near duplicates.
        reasons: explanations of some test images; None if they were not asked for.
        embedding: a map of the features; None if it was not asked for, or there are too few images.
        suspects: images whose label is probably wrong, worst first.
        suspected: how many there are in label_issues.csv; None if they were not looked for.
        suspected_test: how many of these are test images.
        judged: the images that were judged, as returned by `label_issues.describe_judged`.
        warnings: one sentence each, on training, such as a search that ended at a limit.
        rough: why the figures are rough, in a sentence each; shown below the accuracy.
        uses: what earlier models measured on the same test images do to the figures, in a sentence; "" for none.
        unknown: share of the test images that the winner calls unknown.
        learning_curve: whether more images would help, in words; "" if that was not asked for.
        averaged: which average of weights was kept, in a sentence; "" if none was tried.
        heads: the kinds of heads that were tried, if validation chose among them: kind, val_log_loss, val_accuracy and
            standard_error of the difference to the best.
        head_why: why one of them was chosen.
        repeated: the head on repeated splits, in words; "" if that was not asked for.
    """

    name: str
    winner: str
    why: str
    validation: Mapping[str, Any]
    test: Mapping[str, Any]
    dataset: Mapping[str, Any]
    backbone: Mapping[str, Any]
    params: Mapping[str, Any]
    lineage: Mapping[str, str] = field(default_factory=dict)
    timings: Sequence[Mapping[str, Any]] = ()
    pictures: Mapping[str, bytes] = field(default_factory=dict)
    advice: "Sequence[Advice]" = ()
    mistakes: "Sequence[Mistake]" = ()
    class_mistakes: Mapping[str, Sequence[bytes]] = field(default_factory=dict)
    confusions: "Sequence[Confusion]" = ()
    duplicates: Sequence[Sequence[bytes]] = ()
    reasons: "Why | None" = None
    embedding: "Embedding | None" = None
    suspects: "Sequence[Suspect]" = ()
    suspected: int | None = None
    suspected_test: int = 0
    judged: str = "images"
    warnings: Sequence[str] = ()
    rough: Sequence[str] = ()
    uses: str = ""
    repeated: str = ""
    unknown: float | None = None
    learning_curve: str = ""
    averaged: str = ""
    heads: Sequence[Mapping[str, Any]] = ()
    head_why: str = ""

    @property
    def multi_label(self) -> bool:
        """Whether images have any number of classes."""
        return bool(self.dataset.get("multi_label"))

    @property
    def models(self) -> dict[str, str]:
        """Return the models to show, by key: the head alone if nothing was fine-tuned."""
        return {key: name for key, name in MODELS.items() if key in self.validation}


def render(report: Report) -> str:
    """Render the page; everything is escaped, since names and paths come from users."""
    scored, absent = _classes(report)
    return (
        environment()
        .get_template("report.html.j2")
        .render(
            report=report,
            models=report.models,
            best=report.test,
            tested=figures.count_images(report.test["images"], report.test["groups"], "test image"),
            wrong=_wrong(report),
            comparison=_comparison(report),
            domains=_domains(report),
            classes=scored,
            absent=absent,
            without=describe_missing_classes(dict(report.dataset)),
            rows_open=ROWS_OPEN,
            usable=verdict.usable(report.test),
            compared=verdict.compared(report.test, report.why),
            backbone=list(_flat(report.backbone)),
            settings=list(_flat(report.params)) if report.params else [],
            script=Markup(SCRIPT),  # noqa: S704  ours, without any value of the report
            script_digest=SCRIPT_DIGEST,
            seconds=sum(stage["seconds"] for stage in report.timings),
        )
    )


def environment() -> Environment:
    """Return the Jinja environment: strict about undefined names, with autoescaping."""
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
        percent=figures.percent,
        percents=figures.percents,
        interval=figures.describe_interval,
        figure=figures.figure,
        counted=figures.counted,
    )
    return pages


def data_uri(picture: bytes) -> str:
    """Encode a picture as a data URI."""
    kinds = {b"\xff\xd8": "jpeg", b"GIF8": "gif", b"RIFF": "webp"}
    kind = next((kind for magic, kind in kinds.items() if picture.startswith(magic)), "png")
    return f"data:image/{kind};base64,{base64.b64encode(picture).decode()}"


def duration(seconds: float) -> str:
    """Format a duration: 0.4 s, 12 s, 4 min 07 s, 2 h 05 min."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    rounded = round(seconds)
    if rounded < 60:
        return f"{rounded} s"
    if rounded < 3600:
        return f"{rounded // 60} min {rounded % 60:02d} s"
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60:02d} min"


def _wrong(report: Report) -> int:
    right = report.test["exact_match" if report.multi_label else "accuracy"]
    return round(int(report.test["images"]) * (1 - float(right["value"])))


def _bar(interval: Mapping[str, float], low: float, high: float) -> dict[str, float]:
    """Return left end, width and value of a figure in per cent of the range from `low` to `high`."""
    places = {name: 100 * (end - low) / ((high - low) or 1.0) for name, end in interval.items()}
    left = places.get("low", places["value"])
    return {"left": left, "width": places.get("high", left) - left, "dot": places["value"]}


def _comparison(report: Report) -> list[dict[str, Any]]:
    """Return one row per metric: each model on validation, then the winner on test. All shares have one scale."""
    shown = [(key, f"{name}, validation", report.validation[key]) for key, name in report.models.items()]
    shown.append((report.winner, f"{MODELS[report.winner]}, test", report.test))
    tested = figures.shown(report.test)
    names = {metric: name for metric, name in tested.items() if all(metric in own for *_, own in shown)}
    floor = _floor(own[metric] for *_, own in shown for metric in names if metric in figures.SHARES)
    rows = []
    for metric, name in names.items():
        is_share, found = metric in figures.SHARES, [own[metric] for *_, own in shown]
        # Each loss has its own scale, from zero to 10 % above the largest value.
        scale = (floor, 1.0) if is_share else (0.0, 1.1 * max(max(one.values()) for one in found))
        models = [
            {
                "key": key,
                "name": title,
                "value": figures.value(metric, one),
                "ends": figures.ends(metric, one),
                "bar": _bar(one, *scale),
            }
            for (key, title, _), one in zip(shown, found, strict=True)
        ]
        better = "higher is better" if is_share else "lower is better"
        rows.append({"name": name, "better": better, "models": models})
    return rows


def _floor(intervals: Iterable[Mapping[str, float]]) -> float:
    """Return the lower end of a scale of shares on which the intervals use the full width."""
    return max(0.0, min(min(interval.values()) for interval in intervals) - 0.02)


def _domains(report: Report) -> list[dict[str, Any]]:
    """Return the winner's figures per domain with test images, the worst first."""
    domains = report.test["domains"]
    low = _floor(domains[name]["accuracy"] for name in domains)
    return [
        {"name": name, "bar": _bar(domains[name]["accuracy"], low, 1.0), **domains[name]}
        for name in sorted(domains, key=lambda domain: domains[domain]["accuracy"]["value"])
    ]


def _classes(report: Report) -> tuple[list[dict[str, Any]], list[str]]:
    """Return the winner's figures per class with test images, the worst first, and the names of classes without."""
    classes = report.test["classes"]
    scored = [name for name in classes if classes[name]["images"]]
    scored.sort(key=lambda name: (classes[name]["recall"]["value"], classes[name]["f1"]["value"]))
    low = _floor(classes[name]["recall"] for name in scored)
    rows = [{"name": name, "bar": _bar(classes[name]["recall"], low, 1.0), **classes[name]} for name in scored]
    return rows, [name for name in classes if not classes[name]["images"]]


def _flat(value: object, key: str = "") -> Iterator[tuple[str, str]]:
    """Yield nested settings with dotted names: ("finetune.stages[1].unfreeze", "all")."""
    if isinstance(value, Mapping) and value:
        for name, inner in value.items():
            yield from _flat(inner, f"{key}.{name}" if key else str(name))
    elif isinstance(value, (list, tuple)) and any(isinstance(inner, Mapping) for inner in value):
        for place, inner in enumerate(value):
            yield from _flat(inner, f"{key}[{place}]")
    elif isinstance(value, (list, tuple)):
        yield key, ", ".join(_format(inner) for inner in value) or "none"
    else:
        yield key, _format(value)


def _format(value: object) -> str:
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

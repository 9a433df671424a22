"""An evaluation of the small dataset's models, and its outputs."""

import dataclasses
from pathlib import Path

from rootstock.config.params import Evaluate, Params
from rootstock.evaluation import evaluate
from rootstock.evaluation.evaluate import Background, Kept
from rootstock.evaluation.model_pair import Inputs

PARAMS = Params(evaluate=Evaluate(mistakes=5))
ALONE = Params(
    evaluate=Evaluate(mistakes=5, label_issues=0, learning_curve=False, explain=False)
)  # half of the seconds
NOTHING_KEPT = Kept()


def timings(seconds: float = 1.0) -> list[dict]:
    return [{"stage": "evaluate", "seconds": seconds, "images": 24, "note": "on a machine"}]


@dataclasses.dataclass(frozen=True)
class Done:
    """An evaluation and its outputs."""

    found: evaluate.Evaluation
    model: Path
    report: Path

    def files(self, folder: Path) -> dict[str, bytes]:
        return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def run(inputs: Inputs, folder: Path, params: Params = ALONE, seconds: float = 1.0, kept: Kept = NOTHING_KEPT) -> Done:
    found = evaluate.evaluate(
        inputs, params, folder / "model", folder / "report", lambda: timings(seconds),
        Background(uses=folder / "measured.parquet"), kept,
    )  # fmt: skip
    return Done(found, folder / "model", folder / "report")

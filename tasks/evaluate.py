"""evaluate: all outputs so far in, the better model and a report on both out.

python -m tasks.evaluate
"""

import time

from rootstock.config.params import Params
from tasks.bridge import workspace
from tasks.bridge.stage import Summary, stage
from tasks.bridge.workspace import BACKBONE, DATASET, FEATURES, FINETUNED, HEAD, IMAGES, MEASURED, MODEL, REPORT

STAGES = ("ingest", "backbone", "extract", "train_head", "fine_tune")


@stage
def evaluate(params: Params) -> Summary:
    """Choose between head and fine-tuned model on validation, then measure the winner on the test images."""
    from rootstock.dataset import tables
    from rootstock.evaluation.evaluate import Inputs, evaluate as compare

    start = time.perf_counter()
    inputs = Inputs(IMAGES, DATASET, BACKBONE, FEATURES, HEAD, FINETUNED)

    def timings() -> list[dict[str, object]]:
        runs = workspace.last_runs()
        own = {
            "stage": "evaluate",
            "seconds": round(time.perf_counter() - start, 2),
            "images": None,
            "note": "",
        }
        return [runs[name] for name in STAGES if name in runs] + [own]

    found = compare(inputs, params, MODEL, REPORT, timings, MEASURED)
    accuracy = found.test["accuracy"]
    interval = f"{accuracy['low']:.1%} to {accuracy['high']:.1%}"
    note = f"winner {found.choice.winner}, test {accuracy['value']:.1%} ({interval})"
    if without := tables.describe_missing_classes(tables.load_summary(DATASET)):
        note += f"; {without}"
    return Summary(found.test["images"], note)


if __name__ == "__main__":
    evaluate.main()

"""evaluate: all outputs so far in, the better model and a report on both out.

python -m tasks.evaluate
"""

import shutil
import time
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING

from rootstock.config.params import Params
from tasks.bridge import lineage, workspace
from tasks.bridge.stage import Summary, stage
from tasks.bridge.workspace import (
    BACKBONE,
    COMPARE,
    DATASET,
    EVALUATED,
    FEATURES,
    FINETUNED,
    HEAD,
    IMAGES,
    MEASURED,
    MODEL,
    PIXELS,
    REPORT,
)

if TYPE_CHECKING:  # imports torch
    from rootstock.images.array_store import ArrayStore

STAGES = ("ingest", "backbone", "extract", "train_head", "fine_tune")


@stage
def evaluate(params: Params) -> Summary:
    """Choose between head and fine-tuned model on validation, then measure the winner on the test images."""
    from rootstock.dataset import summaries, tables
    from rootstock.evaluation import figures, kept_features, kept_heads
    from rootstock.evaluation.evaluate import Background, Inputs, Kept, evaluate as choose

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

    background = Background(MEASURED, lineage.lineage(), COMPARE / "compare.parquet")
    heads = kept_heads.opened(EVALUATED / "heads", inputs, params)
    with _decoded(params) as images, kept_features.opened(EVALUATED / "features", inputs, params) as features:
        found = choose(inputs, params, MODEL, REPORT, timings, background, Kept(images, features, heads))
    shutil.rmtree(EVALUATED, ignore_errors=True)
    accuracy = found.test["accuracy"]
    interval = figures.percents(accuracy)
    note = f"winner {found.choice.winner}, test {figures.percent(accuracy['value'])}" + (
        f" ({interval})" if interval else ""
    )
    if without := summaries.describe_missing_classes(tables.load_summary(DATASET)):
        note += f"; {without}"
    return Summary(found.test["images"], note)


def _decoded(params: Params) -> "AbstractContextManager[ArrayStore | None]":
    """Open the store of decoded images that fine-tuning has begun; nothing is decoded where nothing was fine-tuned."""
    from rootstock.backbones import backbones
    from rootstock.config.architectures import Transform
    from rootstock.dataset import shards
    from rootstock.images import pixel_store

    if not params.finetune.stages:
        return nullcontext()
    transform = Transform.from_dict(backbones.describe(BACKBONE)["transform"])
    return pixel_store.opened(PIXELS, transform, IMAGES, shards.names(IMAGES), params.cache.pixels_gb)


if __name__ == "__main__":
    evaluate.main()

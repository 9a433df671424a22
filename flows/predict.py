"""Classify images with the champion, and write a row for each: CSV, JSON lines or Parquet.

    python -m flows.predict photos/ --out predictions.csv
    python -m flows.predict 's3://bucket/new/*.jpg' --out s3://bucket/predictions.parquet --top 5
    find . -name '*.jpg' | python -m flows.predict - --out predictions.jsonl
    python -m flows.predict photos/ --out predictions.csv --explain why/    # and a picture of each: why

A source is a folder, a pattern, an archive, a table of paths or URLs, an image, or `-` for a list on standard input. An
image that cannot be read is a row with the reason, and the exit status is 3 then. A killed run goes on where it was.
The command needs no server; in the UI this is the deployment `predict/cpu`.
"""

import argparse
import os
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from prefect import flow
from prefect.client.schemas.objects import State
from prefect.states import Completed

from rootstock.system import entry_points, stores
from rootstock.system.errors import ParamsError, RootstockError
from rootstock.system.phrases import per_second
from tasks.bridge import orchestration, run_params
from tasks.bridge.orchestration import failed
from tasks.bridge.workspace import DATASET, FEATURES, LOCAL, MODEL

if TYPE_CHECKING:
    from rootstock.model.prediction import Tally

SOME_REJECTED = 3  # exit status
TOP = 3  # classes


@dataclass(frozen=True)
class Predicted:
    """How many images were classified and rejected, and a sentence that says so."""

    images: int
    rejected: int
    summary: str


@flow(name="predict")
def predict(
    source: str, out: str = "predictions.parquet", model: str = str(MODEL), top: int = TOP, explain: str = ""
) -> State[Predicted]:
    """Classify images with the champion, and write a row for each.

    Args:
        source: Folder, pattern, archive, table of paths or URLs, or image, on any store.
        out: File to write, on any store, ending in .csv, .jsonl or .parquet.
        model: Folder of the model.
        top: How many classes a row has, the most probable first.
        explain: Folder for a picture of each image, which shows where the evidence for its class lies; empty for none.
    """
    try:
        with orchestration.reported_flow() as log:
            places = {"source": source, "out": out, "model": model} | ({"explain": explain} if explain else {})
            with run_params.within_roots(places):
                done = classify(source, out, Path(model), top, explain=Path(explain) if explain else None)
    except RootstockError as error:
        return failed(error)
    log.info("%s", done.summary)
    return Completed(message=done.summary, data=done)


def classify(
    source: str, out: str, folder: Path, top: int, lines: Iterable[str] = (), explain: Path | None = None
) -> Predicted:
    """Classify the images of a source; features that this workspace has cached are not computed again.

    With `explain`, that folder receives a picture of each image, for which all are decoded. Where `out` is a URL, the
    file is written here first, so that a killed run goes on.

    Raises:
        RootstockError: there is no model, the source cannot be read, or the output cannot be written.
    """
    from rootstock.ingest.unlabelled import list_images
    from rootstock.model import explanations, model as models, prediction

    begin = time.perf_counter()
    models.check_folder(folder)
    if top < 1:
        raise ParamsError(f"top is {top}; expected at least 1.")
    images = list_images(source, lines)
    loaded = models.load(folder)
    name = models.describe(folder)["backbone"]["name"]
    explained = explanations.into(explain, loaded, name) if explain else None
    known = prediction.known_features(loaded, FEATURES, DATASET)
    with stores.written_here(out, LOCAL / "predictions") as here:
        tally = prediction.predict(loaded, images, here, top, known, explain=explained)
    return Predicted(tally.images, tally.rejected.total(), _summary(tally, out, time.perf_counter() - begin))


def _summary(tally: "Tally", out: str, seconds: float) -> str:
    new = tally.images - tally.resumed
    said = [str(tally)]
    said += [f"{tally.known:,} from cached features"] if tally.known else []
    said += [f"{tally.resumed:,} of an earlier run"] if tally.resumed else []
    return f"{', '.join(said)}. {out}, {seconds:.1f} s, {per_second(new / seconds, 'images')}"


def main() -> None:
    """Classify; an error is one sentence and exit status 1, images that were rejected are exit status 3."""
    parser = argparse.ArgumentParser(description="Classify images with the champion, and write a row for each.")
    parser.add_argument("source", help="folder, pattern, archive, table, image, any fsspec URL, or - for a list")
    parser.add_argument("--out", required=True, help="file or URL ending in .csv, .jsonl or .parquet")
    parser.add_argument("--model", type=Path, default=MODEL, help=f"folder of the model (default: {MODEL})")
    parser.add_argument("--top", type=int, default=TOP, help=f"number of top classes in each row (default: {TOP})")
    parser.add_argument("--explain", type=Path, help="folder for a picture of each image: where the evidence lies")
    asked = parser.parse_args()
    with entry_points.entry_point("predict"):
        # Names of files are bytes, and not always UTF-8; a process may have no standard input.
        lines = map(os.fsdecode, sys.stdin.buffer) if sys.stdin else ()
        done = classify(asked.source, asked.out, asked.model, asked.top, lines, asked.explain)
        print(done.summary)
    sys.exit(SOME_REJECTED if done.rejected else 0)


if __name__ == "__main__":
    main()

"""Write the champion for other runtimes: ONNX, OpenVINO, torch.export or TorchScript, checked on the test images.

    python -m flows.export --format onnx
    python -m flows.export --format openvino --int8        # an 8-bit version beside it, if it is about as accurate
    python -m flows.export --format onnx openvino torch torchscript --out exports/{format}

Each goes to a folder of its own, with export.json and a README.md that shows how to use it. The command needs no
server; in the UI this is the deployment `export/cpu`.
"""

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from prefect import flow
from prefect.client.schemas.objects import State
from prefect.states import Completed

from rootstock.config import params_file
from rootstock.config.flow_params import ExportFormat as Format
from rootstock.dataset import tables
from rootstock.system import entry_points
from rootstock.system.errors import ParamsError, RootstockError
from tasks.bridge import orchestration, run_params
from tasks.bridge.orchestration import failed
from tasks.bridge.workspace import DATA, DATASET, IMAGES, MODEL, PARAMS

FORMATS: tuple[Format, ...] = get_args(Format)
OUT = str(DATA / "export" / "{format}")
NOT_KEPT = 3  # exit status


@dataclass(frozen=True)
class Written:
    """What was exported, a line each, and whether each int8 version that was asked for was kept."""

    lines: tuple[str, ...]
    complete: bool


@flow(name="export")
def export(format: Format = "onnx", int8: bool = False, out: str = OUT, model: str = str(MODEL)) -> State[Written]:
    """Write the champion for other runtimes.

    Args:
        format: Runtime that the file is for; torch is the archive of torch.export.
        int8: Quantise to 8-bit integers, too (onnx and openvino).
        out: Folder to write, with {format} in place of the format.
        model: Folder of the model.
    """
    try:
        with orchestration.reported_flow() as log, run_params.within_roots({"out": out, "model": model}):
            done = write(format, out, Path(model), int8=int8)
    except RootstockError as error:
        return failed(error)
    for line in done.lines:
        log.info("%s", line)
    return Completed(message=done.lines[-1], data=done)


def write(format: Format, out: str, folder: Path, *, int8: bool) -> Written:
    """Export a model; it is checked, and int8 calibrated, on the images of this workspace.

    Raises:
        RootstockError: there is no model, it cannot be exported in this format, or `out` holds something else.
    """
    from rootstock.model import model as models
    from rootstock.model.export import exporting

    models.check_folder(folder)
    max_loss = params_file.load(PARAMS).export.max_loss if int8 else None
    there = (DATASET / tables.MANIFEST).exists()
    dataset = exporting.Dataset(tables.load_manifest(DATASET), IMAGES) if there else None
    place = Path(out.replace("{format}", format))
    digest = str(models.describe(folder).get("digest", ""))  # earlier versions wrote none
    done = exporting.export(models.load(folder), digest, format, place, dataset, max_loss)
    lines = [f"{done.folder}/{version}" for version in done.versions]
    return Written((*lines, done.dropped) if done.dropped else tuple(lines), not done.dropped)


def main() -> None:
    """Export; an error is one sentence and exit status 1, an int8 version that was not kept is exit status 3."""
    parser = argparse.ArgumentParser(description="Write the champion for other runtimes, checked on the test images.")
    parser.add_argument("--format", nargs="+", choices=FORMATS, default=["onnx"], help="one or several (default: onnx)")
    parser.add_argument("--int8", action="store_true", help="quantise to 8-bit integers, too (onnx and openvino)")
    parser.add_argument("--out", default=OUT, help="folder, with {format} for the format (default: %(default)s)")
    parser.add_argument("--model", type=Path, default=MODEL, help=f"folder of the model (default: {MODEL})")
    asked = parser.parse_args()
    complete = True
    with entry_points.entry_point("export"):
        if len(set(asked.format)) > 1 and "{format}" not in asked.out:
            raise ParamsError(f"--out is {asked.out}, for several formats; expected a folder with {{format}} in it.")
        for format_ in dict.fromkeys(asked.format):
            done = write(format_, asked.out, asked.model, int8=asked.int8)
            print("\n".join(done.lines), flush=True)
            complete &= done.complete
    sys.exit(0 if complete else NOT_KEPT)


if __name__ == "__main__":
    main()

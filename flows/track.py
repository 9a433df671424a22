"""Track the results of this workspace where `track` of params.yaml says: MLflow or Weights & Biases.

    python -m flows.track

A flow, `dvc repro` and `dvc exp run` do so themselves; this is for results of before, or if the server did not answer.
"""

import argparse

from rootstock.system.entry_points import entry_point
from rootstock.system.errors import RootstockError
from tasks.bridge import workspace


def main() -> None:
    """Track; an error is one sentence and exit status 1."""
    argparse.ArgumentParser(description="Track the results of this workspace.").parse_args()
    with entry_point("track"):
        to = workspace.read_params().track
        if to == "none":
            raise RootstockError(f"{workspace.PARAMS}: track is none; expected mlflow or wandb (docs/tracking.md).")
        from tasks.bridge import tracking  # DVC takes a second to import

        with workspace.writing(queue=print):
            tracked = tracking.track_finished(to)
        if not tracked:  # a warning has said why
            raise SystemExit(1)
        print(tracked)


if __name__ == "__main__":
    main()

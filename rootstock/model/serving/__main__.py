"""Serve the model of a folder, where neither Prefect nor DVC is needed.

    pip install '.[serve]'
    python -m rootstock.model.serving data/model
    ROOTSTOCK_TOKEN=$(openssl rand -hex 16) python -m rootstock.model.serving data/model --host 0.0.0.0

Whatever model lies in the folder is served, and each that takes its place; `python -m flows.serve` serves the champion
of a workspace. docs/serving.md describes requests, answers and limits.
"""

from functools import partial
from pathlib import Path

from rootstock.model.serving import connections, settings
from rootstock.system.entry_points import entry_point


def main() -> None:
    """Serve until a signal; an error is one sentence and exit status 1."""
    parser = settings.parser("Serve the model of a folder: uploads in, predictions out.")
    parser.add_argument("model", type=Path, help="folder of the model, e.g. data/model")
    asked = parser.parse_args()
    with entry_point("serve"):
        asked_for = settings.settings_of(asked)
        listener = connections.listening(asked_for.host, asked_for.port)
        from rootstock.model.serving import served, server  # these import torch

        server.serve(partial(served.in_folder, asked.model), listener, asked_for, verbose=asked.verbose)


if __name__ == "__main__":
    main()

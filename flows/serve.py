"""Serve the champion: images in by HTTP, predictions out, with `champion@v3` in every answer.

    python -m flows.serve                         # http://127.0.0.1:8000, until Ctrl-C
    python -m flows.serve --model data/model      # a folder as it is, whatever its model
    curl --form images=@photo.jpg http://127.0.0.1:8000/predict

After a promotion or a rollback the server answers with the new champion; a challenger that is being trained is never
served. It needs no Prefect server. A model without a workspace is served by `python -m rootstock.model.serving`.
"""

from functools import partial
from pathlib import Path

from rootstock.model.serving import connections, settings
from rootstock.system.entry_points import entry_point


def main() -> None:
    """Serve until a signal; an error is one sentence and exit status 1."""
    parser = settings.parser("Serve the champion: images in by HTTP, predictions out.")
    parser.add_argument("--model", type=Path, help="a folder to serve as it is, instead of the champion")
    asked = parser.parse_args()
    with entry_point("serve"):
        asked_for = settings.settings_of(asked)
        listener = connections.listening(asked_for.host, asked_for.port)
        from rootstock.model.serving import served, server  # these import torch
        from tasks.bridge import served_champion

        find = partial(served.in_folder, asked.model) if asked.model else served_champion.find
        server.serve(find, listener, asked_for, verbose=asked.verbose)


if __name__ == "__main__":
    main()

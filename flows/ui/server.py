"""Start Prefect's server, guarded and with SQLite writes queued (see tasks/bridge/server.py).

python -m flows.ui.server --port 4200    # else as `prefect server start`
"""

import sys
from typing import Any

import uvicorn
from prefect.cli import app

from tasks.bridge.server import guarded

serve = uvicorn.run
OTHER_PROCESSES = ("--background", "-b", "--workers")  # with these Prefect starts its server unguarded


def serve_guarded(app: Any, **options: Any) -> None:  # noqa: ANN401
    """Serve as Prefect's command does, with its app guarded."""
    serve(guarded(app), **options)


if __name__ == "__main__":
    for option in sys.argv[1:]:
        if option.partition("=")[0] in OTHER_PROCESSES:
            sys.exit(f"server: {option} is not supported: the guarded server is one process; see docs/deployment.md")
    uvicorn.run = serve_guarded
    sys.argv[1:1] = ["server", "start"]
    app()

"""Prefect's server as Rootstock starts it, with a door and for SQLite (tasks/bridge/server.py says what that means).

python -m flows.ui.server --port 4200    # else as `prefect server start`
"""

import sys
from typing import Any

import uvicorn
from prefect.cli import app

from tasks.bridge.server import behind_door

serve = uvicorn.run
OTHER_PROCESSES = ("--background", "-b", "--workers")  # in which Prefect would start its server without the door


def serve_behind_door(app: Any, **options: Any) -> None:  # noqa: ANN401
    """Serve as Prefect's command means to, with a door before its app."""
    serve(behind_door(app), **options)


if __name__ == "__main__":
    for option in sys.argv[1:]:
        if option.partition("=")[0] in OTHER_PROCESSES:
            sys.exit(f"server: {option} is not for this one, which is one process with a door; see docs/deployment.md")
    uvicorn.run = serve_behind_door
    sys.argv[1:1] = ["server", "start"]
    app()

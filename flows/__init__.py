"""The Prefect flows that a person, an API call or a schedule starts, one file per flow."""

import importlib.util
import os

from rootstock.system import memory

if importlib.util.find_spec("prefect") is None or importlib.util.find_spec("dvc") is None:
    raise SystemExit("The flows need Prefect and DVC: pip install -c constraints.txt -e '.[pipeline]'")

# For the temporary server of a flow: its first start creates a database, which on a small machine takes longer than
# Prefect waits; its telemetry fills the terminal with stack traces without a network.
os.environ.setdefault("PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS", "60")
os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
# Else Prefect's client tells a new user on a terminal that it collects data on them, and does.
os.environ.setdefault("DO_NOT_TRACK", "1")
memory.prefer_jemalloc()
